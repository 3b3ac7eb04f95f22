"""Tiny random Setokims, with which the number of visual tokens follows the image, and their processors."""

import torch

from tests.tiny import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    livelier,
    pixels,
    tiny_dinov2_config,
    tiny_image_processor,
    tiny_llama_config,
    tiny_tokenizer,
)
from vistok import (
    SeTokConfig,
    SetokimConfig,
    SetokimForConditionalGeneration,
    SetokimProcessor,
    SeTokVisionConfig,
)

MAX_TOKENS = 6
START, END = 341, 342  # what `tiny_setokim_processor` gives them
SLOTS = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, END]
DRAWN_SIZE = 8

TINY_UNET = {
    "sample_size": DRAWN_SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
TINY_MAPPER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def tiny_setok_vision_config(vision_config=None, **kwargs) -> SeTokVisionConfig:
    chosen = {"method": "threshold", "score_threshold": 0.32, "num_neighbors": 2, "max_tokens": MAX_TOKENS}
    chosen |= {"vision_feature_layer": -1, "merger_num_layers": 1, "output_size": 20}
    return SeTokVisionConfig(vision_config=vision_config or tiny_dinov2_config(), **{**chosen, **kwargs})


def tiny_setok_config(vision_config=None, draws: bool = False, **kwargs) -> SeTokConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    detokenizer = {"unet_config": TINY_UNET, "mapper_config": TINY_MAPPER, "num_inference_steps": 2}
    return SeTokConfig(
        vision_config=tiny_setok_vision_config(vision_config, **kwargs),
        mask_decoder_config={**sizes, "num_upsamplings": 1},
        detokenizer_config=detokenizer if draws else None,
    )


def tiny_setokim_config(vision_config=None, text_config=None, setok_config=None, draws=False, **kwargs):
    return SetokimConfig(
        setok_config=setok_config or tiny_setok_config(vision_config, draws),
        text_config=text_config or tiny_llama_config(),
        **{"image_token_id": IMAGE_TOKEN_ID, "image_start_token_id": START, "image_end_token_id": END, **kwargs},
    )


def tiny_setokim(*args, attn_implementation=None, **kwargs) -> SetokimForConditionalGeneration:
    """A random Setokim in evaluation mode. Its generation config knows no end."""
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    torch.manual_seed(4)
    model = SetokimForConditionalGeneration._from_config(tiny_setokim_config(*args, **kwargs), **extra)
    model = livelier(model).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 2
    model.generation_config.suppress_tokens = [IMAGE_TOKEN_ID]  # as composing does
    return model


def tiny_setokim_processor(tokenizer=None, **kwargs) -> SetokimProcessor:
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    return SetokimProcessor(tiny_image_processor(), tokenizer, **{"num_image_tokens": MAX_TOKENS, **kwargs})


def images_of_lengths(model, count: int = 3, size: int = IMAGE_SIZE):
    """Images with different numbers of tokens, none of them the largest possible, and these numbers."""
    for seed in range(200):
        images = pixels(count, seed, size)
        lengths = model.get_image_features(images).token_mask.sum(1).tolist()
        if len(set(lengths)) == count and max(lengths) < MAX_TOKENS:
            return images, lengths
    raise AssertionError("no such images among 200 seeds")
