"""Processor of GVT."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin

from ..modeling.base_weights import resolve_checkpoint
from ..modeling.composition import add_image_token
from .chat_templates import get_chat_template


class GVTProcessor(ProcessorMixin):
    r"""
    Turns images and text into the inputs of [`GVTForConditionalGeneration`]. Each `<image>` in the text becomes
    `<Img> `, one placeholder for each visual token, and `</Img>`, which is the prompt of GVT.

    Args:
        image_processor (`BaseImageProcessor`): that of the vision tower.
        tokenizer (`PreTrainedTokenizerBase`): that of the language model; gets an `image_token` if it has none.
        num_image_tokens (`int`, *optional*, defaults to 32):
            Number of visual tokens per image: `num_latents` of the resampler.
        image_start_text (`str`, *optional*, defaults to `"<Img> "`): text before the visual tokens.
        image_end_text (`str`, *optional*, defaults to `"</Img>"`): text behind the visual tokens.
        chat_template (`str`, *optional*, defaults to `"question-answer"`):
            Jinja template, or the name of one in [`CHAT_TEMPLATES`].

    Raises:
        TypeError: if an argument has no such name, the tokenizer is missing or the chat template is no text.

    Example:

    ```python
    >>> processor = GVTProcessor.from_vision_text_pretrained("vistok:dinov2-small", "vistok:smollm2-135m")
    >>> inputs = processor(images=image, text="<image>\nQuestion: What is this? Answer:", return_tensors="pt")
    >>> inputs["pixel_values"].shape
    (1, 3, 224, 224)
    ```"""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 32,
        image_start_text: str = "<Img> ",
        image_end_text: str = "</Img>",
        chat_template: str | None = None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(
                f"{', '.join(kwargs)}: no argument of GVTProcessor. Beside its parts it takes num_image_tokens (the "
                "resampler's num_latents), image_start_text, image_end_text and chat_template."
            )
        if tokenizer is None:
            raise TypeError("GVTProcessor got no tokenizer: give that of the language model as tokenizer.")
        if chat_template is not None and not isinstance(chat_template, str):
            raise TypeError(
                f"chat_template is a {type(chat_template).__name__}: give one Jinja template, or the name of one."
            )
        self.image_token_id = add_image_token(tokenizer)
        tokenizer.padding_side = "left"  # answers are generated at the end of a prompt
        self.image_token = tokenizer.image_token
        self.num_image_tokens = num_image_tokens
        self.image_start_text = image_start_text
        self.image_end_text = image_end_text
        chat_template = get_chat_template(chat_template or "question-answer", self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        image_size: int | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> "GVTProcessor":
        """
        Makes the processor that belongs to a model composed of the same two checkpoints.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            image_size (`int`, *optional*):
                Resizes images to a square of so many pixels, without crop, as GVT does (Section 4.1). By default
                images are prepared as the tower's own processor does.
            vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each part.
            kwargs: arguments of the processor, such as `num_image_tokens`.

        Returns:
            [`GVTProcessor`].
        """
        image_processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(vision), **(vision_kwargs or {}))
        if image_size is not None:
            image_processor.size = {"height": image_size, "width": image_size}
            image_processor.do_resize = True
            image_processor.do_center_crop = False
        tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(text), **(text_kwargs or {}))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(image_processor=image_processor, tokenizer=tokenizer, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs):
        """
        Raises:
            ValueError: if there are not as many placeholders as images, in any row where images come in rows; names
                both numbers.
        """
        # newer versions of transformers compare them too
        if text is not None and self.image_token is not None and not kwargs.get("sanitize_control_tokens"):
            written = [sample.count(self.image_token) for sample in text]
            given = 0 if images is None else len(make_flat_list_of_images(images))
            if sum(written) != given:
                raise ValueError(
                    f"The text has {sum(written)} {self.image_token} tokens and {given} images were given: write one "
                    f"{self.image_token} for each image."
                )
            in_rows = isinstance(images, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in images)
            if given and in_rows:
                self._compare_rows(written, [len(row) for row in images])
        super().validate_inputs(images=images, text=text, **kwargs)

    def _compare_rows(self, written: list[int], given: list[int]) -> None:
        if len(written) != len(given):
            raise ValueError(
                f"{len(written)} texts and {len(given)} lists of images were given: give one list for each text."
            )
        for row, (tokens, images) in enumerate(zip(written, given)):
            if tokens != images:
                raise ValueError(
                    f"Text {row} has {tokens} {self.image_token} tokens and {images} images were given for it: write "
                    f"one {self.image_token} for each image of its list."
                )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return f"{self.image_start_text}{self.image_token * self.num_image_tokens}{self.image_end_text}"

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )


__all__ = ["GVTProcessor"]
