"""One face for every model that answers questions about images: those of vistok and those of transformers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..modeling.base_weights import resolve_checkpoint
from ..modeling.trained_setok import without_detokenizer
from .answer_run import AnswerRun
from .generation import answer_examples
from .generation_settings import GenerationSettings
from .image_controls import control_images
from .image_encoder import ImageEncoder
from .likelihoods import Likelihood, score_continuations
from .processor_batches import answer_with_processor, score_with_processor

Examples = Sequence[Mapping[str, Any]]


class ImageTextModel:
    """
    A model that answers questions about images.

    Composed models of vistok go the fast way: each image is encoded once, and prompts that begin alike share the
    computation of what they share. Any other image-text-to-text model (LLaVA, BLIP-2, InstructBLIP, SmolVLM, Qwen2-VL
    …) is asked through its processor, in batches. Either way the answers are those of one prompt at a time, up to ties
    in bfloat16, which may fall differently in another batch.

    Args:
        model (`PreTrainedModel`): what `AutoModelForImageTextToText` loads.
        processor (`ProcessorMixin`): what `AutoProcessor` loads. Its chat template writes the prompts; without one its
            image token stands before the user's text.
        batch_size (`int`, *optional*, defaults to 32): prompts per batch.
    """

    def __init__(self, model, processor, batch_size: int = 32):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self._encoders: dict[tuple[int, int] | None, ImageEncoder] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype: str = "auto",
        device: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int = 32,
    ) -> "ImageTextModel":
        """
        Loads a model and its processor.

        Args:
            path (`str`): folder, Hub id or name of base weights.
            dtype (`str`, *optional*, defaults to `"auto"`): `"bfloat16"`, `"float16"`, `"float32"`, or as saved.
            device (`str`, *optional*): by default the first GPU if there is one, and the CPU otherwise.
            attn_implementation (`str`, *optional*): such as `"eager"` or `"sdpa"`.
            batch_size (`int`, *optional*, defaults to 32): prompts per batch.

        Returns:
            [`ImageTextModel`], in evaluation mode.

        Raises:
            OSError: if there is no such model.
        """
        import torch

        folder = resolve_checkpoint(str(path))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        extra = without_detokenizer(folder)  # answers are text
        if attn_implementation is not None:
            extra["attn_implementation"] = attn_implementation
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **extra).to(device).eval()
        return cls(model, AutoProcessor.from_pretrained(folder), batch_size)

    @property
    def is_composed(self) -> bool:
        """Whether this is a composed model of vistok, which shares what prompts have in common."""
        core = getattr(self.model, "model", None)
        return hasattr(core, "visual_tokenizer") and hasattr(self.processor, "num_image_tokens")

    def encoder(self, image_size: tuple[int, int] | None = None, features: Mapping | None = None) -> ImageEncoder:
        """The visual tokens of a composed model, remembered over calls, of images brought to a size beforehand."""
        if image_size not in self._encoders:
            self._encoders[image_size] = ImageEncoder(
                self.model, self.processor, features, self.batch_size, image_size=image_size
            )
        return self._encoders[image_size]

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        *,
        max_new_tokens: int = 16,
        num_beams: int = 1,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        own_prompt: bool = False,
        progress_bar: bool = False,
    ) -> list[str]:
        """
        Answers prompts about images, greedily or with beams.

        Args:
            prompts (`list[str]`): what a user says, without placeholders of images, which come first.
            images (`list[list[PIL.Image.Image]]`): images of each prompt, possibly none.
            max_new_tokens, num_beams, repetition_penalty, length_penalty: see [`GenerationSettings`].
            own_prompt (`bool`, *optional*, defaults to `False`): the prompts are whole prompts and not questions: see
                [`render_prompts`].
            progress_bar (`bool`, *optional*, defaults to `False`): whether to show one.

        Returns:
            `list[str]`: an answer for each prompt, without white space at its ends.

        Raises:
            ValueError: if there are not as many lists of images as prompts, or a setting is out of range.
        """
        settings = GenerationSettings(max_new_tokens, num_beams, repetition_penalty, length_penalty)
        examples = _examples(prompts, images)
        run = AnswerRun(progress_bar=progress_bar and "answers")
        answers = self.answer(examples, settings, own_prompt=own_prompt, run=run)
        return [answers[index] for index in range(len(examples))]

    def log_likelihoods(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        continuations: Sequence[str],
        *,
        own_prompt: bool = False,
    ) -> list[Likelihood]:
        """
        How probable continuations are behind prompts.

        Args:
            prompts, images, own_prompt: see [`ImageTextModel.generate`].
            continuations (`list[str]`): an answer for each prompt, of which the end token is no part. The white space
                before it is the chat template's.

        Returns:
            `list[Likelihood]`: `total` in nats, `num_tokens` and `is_greedy` for each.

        Raises:
            ValueError: if the numbers differ or a continuation is empty.
        """
        if len(continuations) != len(prompts):
            raise ValueError(f"{len(continuations)} continuations for {len(prompts)} prompts, expected one for each.")
        return self.score(_examples(prompts, images), continuations, own_prompt=own_prompt)

    def answer(
        self,
        examples: Examples,
        settings: GenerationSettings,
        *,
        images: str = "given",
        seed: int = 0,
        image_size: tuple[int, int] | None = None,
        own_prompt: bool = False,
        run: AnswerRun | None = None,
    ) -> dict[int, str]:
        """
        Answers the last question of examples.

        Args:
            examples (`list[dict]`): training examples; the last turn of each is the right answer and is not shown.
            settings ([`GenerationSettings`]): of the decoding.
            images, seed: see [`control_images`].
            image_size (`tuple[int, int]`, *optional*): see [`resized`].
            own_prompt, run: see [`answer_examples`].

        Returns:
            `dict[int, str]`: answers by position, of the examples in this process's batches and of those known.
        """
        shown = control_images(examples, images, seed)
        common = (self.model, self.processor, shown, settings, self.batch_size)
        if self.is_composed:
            return answer_examples(*common, encoder=self.encoder(image_size), own_prompt=own_prompt, run=run)
        return answer_with_processor(*common, image_size=image_size, own_prompt=own_prompt, run=run)

    def score(
        self,
        examples: Examples,
        continuations: Sequence[str],
        *,
        image_size: tuple[int, int] | None = None,
        own_prompt: bool = False,
    ) -> list[Likelihood]:
        """
        Likelihoods of continuations of the last question of examples.

        Args:
            examples, image_size, own_prompt: see [`ImageTextModel.answer`].
            continuations (`list[str]`): one for each example.

        Returns:
            `list[Likelihood]`: one for each example.
        """
        common = (self.model, self.processor, examples, continuations, self.batch_size)
        if self.is_composed:
            return score_continuations(*common, encoder=self.encoder(image_size), own_prompt=own_prompt)
        return score_with_processor(*common, image_size=image_size, own_prompt=own_prompt)


def _examples(prompts, images) -> list[dict[str, Any]]:
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} lists of images for {len(prompts)} prompts, expected one for each.")
    return [
        {
            "id": str(row),
            "source": "prompts",
            "row": row,
            "images": list(shown),
            "messages": [
                {"role": "user", "content": [*({"type": "image"} for _ in shown), {"type": "text", "text": text}]},
                {"role": "assistant", "content": [{"type": "text", "text": "-"}]},
            ],
        }
        for row, (text, shown) in enumerate(zip(prompts, images))
    ]


__all__ = ["ImageTextModel", "Likelihood"]
