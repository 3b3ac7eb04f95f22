"""LLaVA's own processor for a LLaVA that was composed of two checkpoints."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, LlavaProcessor

from ..modeling.base_checkpoints import hub_arguments
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.composition import add_image_token
from ..modeling.vision_features import patch_grid
from .chat_templates import get_chat_template
from .multimodal_processor import load_image_processor, load_tokenizer
from .square_images import prepared_side


def compose_llava_processor(
    vision: str,
    text: str,
    *,
    image_size: int | None = None,
    chat_template: str | None = None,
    vision_kwargs: Mapping[str, Any] | None = None,
    text_kwargs: Mapping[str, Any] | None = None,
    **kwargs,
) -> LlavaProcessor:
    """
    Makes the processor of a [`SeTokLlavaForConditionalGeneration`] that was composed of the same two checkpoints: that
    of transformers, with a placeholder for each patch of an image.

    Args:
        vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
        text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
        image_size (`int`, *optional*): resizes images to a square of so many pixels, without crop.
        chat_template (`str`, *optional*, defaults to `"question-answer"`):
            Jinja template, or the name of one in [`CHAT_TEMPLATES`].
        vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each part.
        kwargs: arguments of `LlavaProcessor`.

    Raises:
        ValueError: if the chat template is unknown, or the tower's own processor makes images of no fixed size and no
            `image_size` is given.
    """
    image_processor = load_image_processor(vision, image_size, vision_kwargs)
    side = prepared_side(image_processor)
    if side is None:
        raise ValueError(
            f"The images of {vision} have no fixed size (size is {image_processor.size}), and LLaVA reads images of "
            "one size: give image_size."
        )
    # By this LlavaProcessor counts tokens of an image that is not there yet, whether images are cropped or not.
    image_processor.crop_size = {"height": side, "width": side}
    tokenizer = load_tokenizer(text, text_kwargs)
    add_image_token(tokenizer)
    tokenizer.padding_side = "left"  # answers are generated at the end of a prompt
    config = AutoConfig.from_pretrained(resolve_checkpoint(vision), **hub_arguments(vision_kwargs or {}))
    vision_config = getattr(config, "vision_config", config)
    height, _ = patch_grid(vision_config, (side, side))
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=get_chat_template(chat_template or "question-answer", tokenizer.image_token),
        **{
            "patch_size": side // height,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,  # which "default" leaves out again
            **kwargs,
        },
    )


__all__ = ["compose_llava_processor"]
