"""A tiny random SeTok with its decoders: what the tests of stage I are made of."""

import torch
from transformers import Dinov2Config

from vistok import ImageDetokenizerConfig, SeTokConfig, SeTokForPreTraining

TOKEN_SIZE = 12
DRAWN_SIZE = 8
SEEN_SIZE = 24
GRID = (6, 6)


def tiny_mapper_config(**kwargs) -> dict:
    sizes = {"token_size": TOKEN_SIZE, "num_queries": 3, "hidden_size": 16, "num_hidden_layers": 4}
    return {**sizes, "num_attention_heads": 2, "intermediate_size": 24, **kwargs}


def tiny_unet_config(**kwargs) -> dict:
    blocks = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }
    sizes = {"sample_size": DRAWN_SIZE, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16]}
    sizes |= {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 20, "attention_head_dim": 4}
    return {**blocks, **sizes, **kwargs}


def tiny_vae_config(**kwargs) -> dict:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [8, 8], "latent_channels": 4, "norm_num_groups": 4, "sample_size": 2 * DRAWN_SIZE}
    return {**blocks, **sizes, **kwargs}


def tiny_detokenizer_config(latent: bool = False, **kwargs) -> ImageDetokenizerConfig:
    """On pixels, or on latents of half the size."""
    unet = tiny_unet_config(in_channels=4, out_channels=4) if latent else tiny_unet_config()
    given = {"mapper_config": tiny_mapper_config(), "unet_config": unet}
    return ImageDetokenizerConfig(**{**given, "vae_config": tiny_vae_config() if latent else None, **kwargs})


def tiny_setok_config(latent: bool = False, **kwargs) -> SeTokConfig:
    """Images of 24 × 24 pixels are 6 × 6 patches, and three to six tokens."""
    tower = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=SEEN_SIZE, patch_size=4
    )
    vision = {"vision_config": tower.to_dict(), "min_tokens": 3, "max_tokens": 6, "output_size": TOKEN_SIZE}
    vision |= {"relative_kernel_scale": True, "cluster_projection_size": 32}
    given = {
        "vision_config": {**vision, **kwargs.pop("vision", {})},
        "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
        "detokenizer_config": tiny_detokenizer_config(latent),
    }
    return SeTokConfig(**{**given, **kwargs})


def tiny_setok(**kwargs) -> SeTokForPreTraining:
    return SeTokForPreTraining(tiny_setok_config(**kwargs)).eval()


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def tokens_of(*counts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random visual tokens of a batch and the mask that says how many each image has; padding is zero."""
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    tokens = torch.randn(len(counts), max(counts), TOKEN_SIZE, generator=seeds(seed)[0])
    return tokens * mask[..., None], mask


def save_diffusion_checkpoint(folder, latent: bool = True):
    """A tiny diffusion checkpoint in the format of diffusers, as SD v1.5 has it; returns its path."""
    import json

    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    config = tiny_detokenizer_config(latent)
    UNet2DConditionModel(**config.unet_config).save_pretrained(folder / "unet")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    if latent:
        AutoencoderKL(**config.vae_config).save_pretrained(folder / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)
