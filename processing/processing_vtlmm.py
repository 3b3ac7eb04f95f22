"""Processor of VT-LMM."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from ..modeling.base_checkpoints import hub_arguments
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.vision_features import patch_grid
from .multimodal_processor import MultimodalProcessor, load_image_processor, load_tokenizer
from .square_images import prepared_side, square_image_processor


class VTLMMProcessor(MultimodalProcessor):
    r"""
    Turns images and text into the inputs of [`VTLMMForCausalLM`]. Each `<image>` in the text becomes a placeholder for
    each patch of an image, with nothing around them, as in LLaVA-1.5.

    Args:
        image_processor (`BaseImageProcessor`): that of the vision tower.
        tokenizer (`PreTrainedTokenizerBase`): that of the language model; gets an `image_token` if it has none.
        num_image_tokens (`int`, *optional*, defaults to 576):
            Number of visual tokens per image: its patches. The default is that of CLIP ViT-L/14 at 336 pixels.
        chat_template (`str`, *optional*, defaults to `"vicuna"`):
            Jinja template, or the name of one: `"vicuna"` (Vicuna v1 with its system prompt), `"mistral"`, `"chatml"`,
            `"question-answer"` or `"plain"` (captions).

    Raises:
        TypeError: if an argument has no such name, the tokenizer is missing or the chat template is no text.
        ValueError: if the chat template is unknown, or an image has no number of visual tokens from 1 on.

    Example:

    ```python
    >>> parts = ("vistok:dinov2-small", "vistok:smollm2-135m")
    >>> processor = VTLMMProcessor.from_vision_text_pretrained(*parts, image_size=112)
    >>> inputs = processor(images=image, text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    >>> (inputs["input_ids"] == processor.image_token_id).sum()
    64
    ```"""

    # Of LLaVA-1.5: that of GVT writes no system prompt.
    template_names = {"vicuna": "vicuna-v1"}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int = 576,
        chat_template: str | None = None,
        **kwargs,
    ):
        if kwargs:
            raise TypeError(
                f"{', '.join(kwargs)}: no argument of VTLMMProcessor. Beside its parts it takes num_image_tokens (the "
                "patches of an image) and chat_template."
            )
        chat_template = self._prepare(tokenizer, num_image_tokens, chat_template or "vicuna")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        image_size: int | None = None,
        num_image_tokens: int | None = None,
        pad_to_square: bool = True,
        chat_template: str | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> "VTLMMProcessor":
        """
        Makes the processor that belongs to a model composed of the same two checkpoints.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            image_size (`int`, *optional*):
                Side of the images in pixels that the tower is to see; by default that of the tower's own processor.
            num_image_tokens (`int`, *optional*):
                Number of visual tokens per image; by default one for each patch, without [CLS]. Of a convolutional
                tower, whose stages differ, the model knows it: `model.model.adapter.max_num_tokens`.
            pad_to_square (`bool`, *optional*, defaults to `True`):
                Pads images to squares of the tower's mean colour before they are resized, as LLaVA-1.5 does. `False`
                prepares them as the tower's own processor does, or, with `image_size`, distorts them to squares.
            chat_template (`str`, *optional*, defaults to `"vicuna"`): Jinja template, or the name of one.
            vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each part.
            kwargs: further arguments of the processor.

        Returns:
            [`VTLMMProcessor`].

        Raises:
            ValueError: if the tower's own processor makes images of no fixed size, and neither `image_size` nor
                `num_image_tokens` says more; if the tower is convolutional, and the number of tokens is not given; or
                if the chat template is unknown.
        """
        image_processor = load_image_processor(vision, None if pad_to_square else image_size, vision_kwargs)
        if pad_to_square:
            image_processor = square_image_processor(image_processor, image_size)
        if num_image_tokens is None:
            num_image_tokens = _num_patches(vision, image_processor, vision_kwargs)
        return cls(
            image_processor=image_processor,
            tokenizer=load_tokenizer(text, text_kwargs),
            num_image_tokens=num_image_tokens,
            chat_template=chat_template,
            **kwargs,
        )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_image_tokens


def _num_patches(vision: str, image_processor: Any, vision_kwargs: Mapping[str, Any] | None) -> int:
    side = prepared_side(image_processor)
    if side is None:
        raise ValueError(
            f"The images of {vision} have no fixed size (size is {image_processor.size}), so the number of their "
            "patches is unknown: give image_size or num_image_tokens."
        )
    config = AutoConfig.from_pretrained(resolve_checkpoint(vision), **hub_arguments(vision_kwargs or {}))
    vision_config = getattr(config, "vision_config", config)
    if getattr(vision_config, "hidden_sizes", None):
        raise ValueError(
            f"{vision} is a convolutional network ({vision_config.model_type}), whose stages have different numbers "
            "of patches: give num_image_tokens, which of a model made with image_size is "
            "model.model.adapter.max_num_tokens."
        )
    height, width = patch_grid(vision_config, (side, side))
    return height * width


__all__ = ["VTLMMProcessor"]
