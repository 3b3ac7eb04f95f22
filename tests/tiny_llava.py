"""A tiny random LLaVA of transformers with its own processor, and SeTok behind its projector."""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from tests.tiny import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    NUM_PATCHES,
    PATCH_SIZE,
    livelier,
    pixels,
    tiny_clip_config,
    tiny_image_processor,
    tiny_llama_config,
    tiny_tokenizer,
)
from vistok import SeTokLlavaForConditionalGeneration, plug_setok
from vistok.modeling.composition import add_image_token
from vistok.processing.chat_templates import get_chat_template

SLOTS = [IMAGE_TOKEN_ID] * NUM_PATCHES
EVERY_PATCH = {"method": "threshold", "min_tokens": NUM_PATCHES, "max_tokens": NUM_PATCHES}
VARIABLE = {"method": "threshold", "score_threshold": 0.6, "num_neighbors": 2, "max_tokens": 7}


def tiny_llava(text_config=None, vision_config=None, **kwargs) -> LlavaForConditionalGeneration:
    """In evaluation mode; its generation config knows no end."""
    torch.manual_seed(5)
    config = LlavaConfig(
        vision_config=vision_config or tiny_clip_config(),
        text_config=text_config or tiny_llama_config(),
        **{"image_token_index": IMAGE_TOKEN_ID, "image_seq_length": NUM_PATCHES, **kwargs},
    )
    model = livelier(LlavaForConditionalGeneration(config)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 2
    model.generation_config.suppress_tokens = [IMAGE_TOKEN_ID]
    return model


def tiny_setok_llava(setok_config=None, **kwargs) -> SeTokLlavaForConditionalGeneration:
    return plug_setok(tiny_llava(**kwargs), VARIABLE if setok_config is None else setok_config)


def tiny_llava_processor(image_size: int = IMAGE_SIZE) -> LlavaProcessor:
    """As llava-hf/llava-1.5-7b-hf has it: [CLS] is counted and left out again."""
    tokenizer = tiny_tokenizer()
    add_image_token(tokenizer)
    tokenizer.padding_side = "left"
    side = {"height": image_size, "width": image_size}
    return LlavaProcessor(
        tiny_image_processor(size=side, crop_size=side),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=get_chat_template("question-answer"),
    )


def images_of_lengths(model, count: int = 3):
    """Images with different numbers of tokens, none of which uses all placeholders, and these numbers."""
    for seed in range(300):
        images = pixels(count, seed)
        lengths = model.get_image_features(images).token_mask.sum(1).tolist()
        if len(set(lengths)) == count and max(lengths) < NUM_PATCHES:
            return images, lengths
    raise AssertionError("no such images among 300 seeds")
