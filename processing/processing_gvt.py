"""Processor of GVT."""

from collections.abc import Mapping
from typing import Any

from .multimodal_processor import MultimodalProcessor, load_image_processor, load_tokenizer


class GVTProcessor(MultimodalProcessor):
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
        ValueError: if the chat template is unknown, or an image has no number of visual tokens from 1 on.

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
        chat_template = self._prepare(tokenizer, num_image_tokens, chat_template or "question-answer")
        self.image_start_text = image_start_text
        self.image_end_text = image_end_text
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
        image_processor = load_image_processor(vision, image_size, vision_kwargs)
        tokenizer = load_tokenizer(text, text_kwargs)
        return cls(image_processor=image_processor, tokenizer=tokenizer, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return f"{self.image_start_text}{self.image_token * self.num_image_tokens}{self.image_end_text}"


__all__ = ["GVTProcessor"]
