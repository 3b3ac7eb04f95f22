"""The processor of a converted LLaVA-1.5 or VW-LMM."""

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..modeling.convert_vtlmm import LlavaConversion
from ..modeling.published_checkpoints import first_line
from ..modeling.trained_weights import CheckpointError
from .chat_templates import get_chat_template
from .multimodal_processor import load_image_processor
from .processing_vtlmm import VTLMMProcessor
from .square_images import square_image_processor

# VW-LMM's Mistral has no space on either side of an answer (pengts/VW-LMM, visual_words/conversation.py).
_LLAVA_ANSWER = "{{ ' ' + words(message['content']) + ' ' + eos_token }}"
_VW_LMM_ANSWER = "{{ words(message['content']) + eos_token }}"


def published_llava_processor(conversion: LlavaConversion) -> VTLMMProcessor:
    """
    Makes the processor that prepares images and prompts as they were in training.

    Args:
        conversion ([`LlavaConversion`]): of [`convert_llava`] or [`LlavaPlan`]. Images are prepared as its
            checkpoint says, or that of its vision tower, or as OpenAI's CLIP does where there is no file that says it;
            padded to squares where they were in training.

    Returns:
        [`VTLMMProcessor`].

    Raises:
        OSError: if a tower other than CLIP has no image processor.
        CheckpointError: if there is one that cannot be read.
    """
    config: Any = conversion.config
    image_size = config.vision_config.image_size
    image_processor = _image_processor(conversion, image_size)
    if conversion.pad_to_square:
        image_processor = square_image_processor(image_processor, image_size)
    return VTLMMProcessor(
        image_processor=image_processor,
        tokenizer=conversion.tokenizer,
        num_image_tokens=config.adapter_config.num_tokens,
        chat_template=_chat_template(conversion),
    )


def _chat_template(conversion: LlavaConversion) -> str:
    if conversion.chat_template == "mistral" and conversion.kind == "vw-lmm":
        return get_chat_template("mistral").replace(_LLAVA_ANSWER, _VW_LMM_ANSWER)
    return conversion.chat_template


def _image_processor(conversion: LlavaConversion, image_size: int) -> Any:
    where = conversion.vision or conversion.source
    try:
        return load_image_processor(where)
    except (OSError, ValueError) as error:
        if (file := Path(where) / IMAGE_PROCESSOR_NAME).is_file():
            raise CheckpointError(
                f"{file} is no image processor that can be read: download it anew. ({first_line(error)})"
            ) from error
        config: Any = conversion.config
        if config.vision_config.model_type != "clip_vision_model":
            raise
        size = {"height": image_size, "width": image_size}
        return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size)


__all__ = ["published_llava_processor"]
