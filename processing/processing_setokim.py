"""Processor of Setokim."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Literal

from transformers import AutoConfig

from ..configuration.configuration_setok_vision import SeTokVisionConfig
from ..modeling.base_checkpoints import hub_arguments
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.setokim_composition import add_image_brackets
from .multimodal_processor import MultimodalProcessor, load_image_processor, load_tokenizer
from .square_images import prepared_side

Task = Literal["generate", "edit", "segment"]
"""What Setokim is asked to write besides text: an image for a prompt, an edited image, the mask of an expression."""


class SetokimProcessor(MultimodalProcessor):
    r"""
    Turns images and text into the inputs of [`SetokimForConditionalGeneration`]. Each `<image>` in the text becomes
    `[Img]`, one placeholder for each visual token that an image may have, and `[/Img]`; the model takes out those that
    an image leaves unused.

    Args:
        image_processor (`BaseImageProcessor`): that of the vision tower.
        tokenizer (`PreTrainedTokenizerBase`):
            That of the language model; gets an `image_token`, an `image_start_token` and an `image_end_token` where it
            has none.
        num_image_tokens (`int`, *optional*, defaults to 64): largest number of visual tokens: `max_tokens` of SeTok.
        generation_instruction (`str`, *optional*, defaults to `"Generate an image: {}"`):
            What an image is asked for with; the prompt takes the place of `{}`. As in the training data.
        editing_instruction (`str`, *optional*, defaults to `"Edit the image: {}"`): the same, of edited images.
        segmentation_instruction (`str`, *optional*, defaults to `"Segment: {}"`): the same, of masks.
        chat_template (`str`, *optional*, defaults to `"vicuna"`):
            Jinja template, or the name of one in [`CHAT_TEMPLATES`]. Only one that writes images of answers too can
            ask for images: `"vicuna"` or `"chatml"`.

    Raises:
        TypeError: if an argument has no such name, the tokenizer is missing or the chat template is no text.
        ValueError: if the chat template is unknown, an instruction has no `{}`, or an image has no number of visual
            tokens from 1 on.

    Example:

    ```python
    >>> processor = SetokimProcessor.from_vision_text_pretrained("vistok:dinov2-small", "vistok:smollm2-135m")
    >>> inputs = processor(images=image, text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    >>> (inputs["input_ids"] == processor.image_token_id).sum()
    64
    ```"""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 64,
        generation_instruction: str = "Generate an image: {}",
        editing_instruction: str = "Edit the image: {}",
        segmentation_instruction: str = "Segment: {}",
        chat_template: str | None = None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(
                f"{', '.join(kwargs)}: no argument of SetokimProcessor. Beside its parts it takes num_image_tokens "
                "(max_tokens of SeTok), generation_instruction, editing_instruction, segmentation_instruction and "
                "chat_template."
            )
        chat_template = self._prepare(tokenizer, num_image_tokens, chat_template or "vicuna")
        brackets = add_image_brackets(tokenizer)
        self.image_start_token_id = brackets["image_start_token_id"]
        self.image_end_token_id = brackets["image_end_token_id"]
        self.image_start_token, self.image_end_token = tokenizer.image_start_token, tokenizer.image_end_token
        self.generation_instruction = generation_instruction
        self.editing_instruction = editing_instruction
        self.segmentation_instruction = segmentation_instruction
        for task, instruction in self._instructions.items():
            if instruction.count("{}") != 1:
                raise ValueError(
                    f"The instruction to {task} is {instruction!r}: write {{}} once, where the text goes."
                )
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        image_size: int | None = None,
        num_image_tokens: int | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> "SetokimProcessor":
        """
        Makes the processor that belongs to a model composed of the same two checkpoints. Images are resized to squares
        whole, without crop or border, so that masks fit them.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder (of SeTok too) or a Hub id.
            text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            image_size (`int`, *optional*):
                Side of the images in pixels; by default that of the images that the tower's own processor makes.
            num_image_tokens (`int`, *optional*):
                Largest number of visual tokens; by default `max_tokens` of SeTok, where the checkpoint is one, or of
                a new one.
            vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each part.
            kwargs: further arguments of the processor.

        Returns:
            [`SetokimProcessor`].

        Raises:
            ValueError: if the tower's own processor makes images of no fixed size, and no `image_size` is given.
        """
        image_processor = load_image_processor(vision, image_size, vision_kwargs)
        if image_size is None:
            side = prepared_side(image_processor)
            if side is None:
                raise ValueError(
                    f"The images of {vision} have no fixed size (size is {image_processor.size}): give image_size."
                )
            image_processor = load_image_processor(vision, side, vision_kwargs)
        if num_image_tokens is None:
            config = AutoConfig.from_pretrained(resolve_checkpoint(vision), **hub_arguments(vision_kwargs or {}))
            num_image_tokens = _max_tokens(config)
        return cls(
            image_processor=image_processor,
            tokenizer=load_tokenizer(text, text_kwargs),
            num_image_tokens=num_image_tokens,
            **kwargs,
        )

    @property
    def _instructions(self) -> dict[str, str]:
        return {
            "generate": self.generation_instruction,
            "edit": self.editing_instruction,
            "segment": self.segmentation_instruction,
        }

    @property
    def _image_tokens(self) -> tuple[str, str, str]:
        return self.image_token, self.image_start_token, self.image_end_token

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return f"{self.image_start_token}{self.image_token * self.num_image_tokens}{self.image_end_token}"

    def task_messages(self, task: Task, text: str) -> list[dict[str, Any]]:
        """
        The conversation in which an image or a mask is asked for and written, as it is trained: the last image is what
        is to be written.

        Args:
            task (`"generate"`, `"edit"` or `"segment"`): what is asked for; the last two about an image.
            text (`str`): prompt, instruction or expression.

        Returns:
            `list[dict]`: a turn of the user and one of the assistant.

        Raises:
            ValueError: if there is no such task, no text, or a token of images in it.
        """
        if task not in self._instructions:
            raise ValueError(f"task is {task!r}: choose one of {', '.join(self._instructions)}.")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"The text to {task} is {text!r}: give a prompt, an instruction or an expression.")
        if special := [token for token in self._image_tokens if token in text]:
            raise ValueError(
                f"The text to {task} has {' and '.join(special)} in it, which stands for an image: leave it out."
            )
        shown = [] if task == "generate" else [{"type": "image"}]
        asked = {"type": "text", "text": self._instructions[task].replace("{}", text)}
        return [
            {"role": "user", "content": [*shown, asked]},
            {"role": "assistant", "content": [{"type": "image"}]},
        ]

    def task_prompt(self, task: Task, text: str) -> str:
        """
        The prompt behind which an image or a mask is written: it ends in `[Img]`. An image that is asked about is
        `<image>` in it.

        Args:
            task, text: as in [`SetokimProcessor.task_messages`].

        Returns:
            `str`.

        Raises:
            ValueError: if there is no such task or no text, or the chat template writes no images into answers.
        """
        messages = self.task_messages(task, text)
        written = self.apply_chat_template(messages, tokenize=False)
        num_images = 1 if task == "generate" else 2
        if written.count(self.image_token) != num_images:
            raise ValueError(
                "The chat template leaves out the images of answers, so it cannot ask for one: use 'vicuna', 'chatml' "
                "or a template of your own that writes them."
            )
        return written[: written.rindex(self.image_token)] + self.image_start_token

    def split_at_images(self, token_ids: Any, **kwargs) -> list[str | int]:
        """
        What was generated, as text and images in their order.

        Args:
            token_ids (`torch.LongTensor` or `list[int]`): a sequence of `generate`, or its end behind the prompt.
            kwargs: for the tokenizer's `decode`.

        Returns:
            `list[str | int]`: texts, and for each image its number among those of the sequence, from 0 on: its index
            in `visual_tokens` of [`SetokimGenerateOutput`] where the sequence begins behind the prompt.
        """
        pieces: list[str | int] = []
        num_images = 0
        for is_image, run in groupby(map(int, token_ids), lambda token_id: token_id == self.image_token_id):
            if is_image:
                pieces.append(num_images)
                num_images += 1
            elif text := self.tokenizer.decode(list(run), **{"skip_special_tokens": True, **kwargs}):
                pieces.append(text)
        return pieces


def _max_tokens(config: Any) -> int:
    vision_config = config.vision_config if config.model_type == "setok" else config
    return getattr(vision_config, "max_tokens", SeTokVisionConfig.max_tokens)


__all__ = ["SetokimProcessor", "Task"]
