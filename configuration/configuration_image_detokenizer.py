"""Configuration of SeTok's image detokenizer."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .multimodal_config import with_fields

# What SD v1.5 has beside the defaults of diffusers (huggingface/diffusers, the configs of the checkpoint's parts).
_SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD15_VAE = {
    "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
_SD15_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@strict
class ImageDetokenizerConfig(PreTrainedConfig):
    r"""
    Configuration of an [`ImageDetokenizer`]: a feature mapper whose output is the cross-attention condition of a
    diffusion U-Net, which works on the latents of a VAE or on pixels (SeTok, Section 2.2, stage I-a). Without
    arguments it is SD v1.5 with a mapper of the size of BERT-base.

    Args:
        mapper_config ([`FeatureMapperConfig`] or `dict`, *optional*):
            The feature mapper. Its `condition_size` follows the U-Net. With its `query_grid` the side of the grid
            divides `sample_size`.
        unet_config (`dict`, *optional*, defaults to SD v1.5's):
            Arguments of diffusers' `UNet2DConditionModel`. `sample_size` is needed: the side of a sample.
        vae_config (`dict`, *optional*, defaults to SD v1.5's where `unet_config` is left out):
            Arguments of diffusers' `AutoencoderKL`. `None` beside a `unet_config`: the U-Net works on pixels.
        pixel_patch_size (`int`, *optional*, defaults to 1):
            Without a VAE: squares of so many pixels on a side are one place of what the U-Net works on, with their
            pixels as channels (space to depth), so that an image costs as much as one that is smaller by this factor.
        num_position_channels (`int`, *optional*, defaults to 0):
            Channels with sine position embeddings beside those that the U-Net denoises; its `in_channels` are as many
            more than its `out_channels`. A U-Net that starts from random weights finds with them which place a token
            speaks of (after Liu et al., An intriguing failing of convolutional neural networks and the CoordConv
            solution, 2018); one that was trained before, as SD v1.5, has none.
        preview_channels (`bool`, *optional*, defaults to `False`):
            With the mapper's `query_grid`: whether the U-Net sees the preview that the queries make as well, as
            channels (after Saharia et al., Palette: Image-to-Image Diffusion Models, 2022), and so need not learn
            which query stands for which place; `in_channels` are as many more than `out_channels` again. The preview
            learns from the image alone.
        scheduler_config (`dict`, *optional*, defaults to SD v1.5's noise):
            Arguments of a scheduler of diffusers, `_class_name` that of the one which samples (by default
            `"DDIMScheduler"`). `prediction_type` says what the U-Net predicts: `"epsilon"` (the noise),
            `"v_prediction"` or `"sample"`.
        trained_unet_parts (`"keys_values"` or `"all"`, *optional*, defaults to `"keys_values"`):
            What the phase `"reconstruction"` trains of the U-Net: keys and values of its cross-attention, as in the
            paper, or all of it, where it starts from random weights.
        condition_dropout (`float`, *optional*, defaults to 0.1):
            Probability with which an image is denoised without its tokens in training, for classifier-free guidance.
        snr_bounds (`list[float]`, *optional*):
            In training the squared error of the image weighs as much as the signal-to-noise ratio of its step,
            truncated to these bounds (Salimans and Ho, 2022; Min-SNR of Hang et al., 2023, has a lower bound of 0):
            see [`snr_weights`]. By default all steps count the same, by the error of what is predicted. A U-Net that
            predicts the image learns little of its details that way, whose errors are small. One that predicts the
            noise needs a lower bound of 0: the error of the image is its own, times a ratio that goes to infinity.
        guidance_scale (`float`, *optional*, defaults to 3.0):
            How far sampling goes from the unconditional prediction (0) to the conditional one (1) and beyond, where
            it is not told otherwise.
        num_inference_steps (`int`, *optional*, defaults to 50):
            Steps of sampling, where it is not told otherwise.

    Example:

    ```python
    >>> from vistok import ImageDetokenizerConfig

    >>> blocks = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "block_out_channels": [64, 128]}
    >>> blocks |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "in_channels": 3, "out_channels": 3}
    >>> config = ImageDetokenizerConfig(  # pixels, trained from scratch
    ...     unet_config={**blocks, "sample_size": 64, "cross_attention_dim": 128}, trained_unet_parts="all"
    ... )
    >>> config.image_size
    64

    ```"""

    model_type = "setok_detokenizer"
    sub_configs_defaults = {"mapper_config": SubConfigSpec(config_class=AutoConfig, model_type="setok_feature_mapper")}

    mapper_config: dict | PreTrainedConfig | None = None
    unet_config: dict | None = None
    vae_config: dict | None = None
    pixel_patch_size: int = 1
    num_position_channels: int = 0
    preview_channels: bool = False
    scheduler_config: dict | None = None
    trained_unet_parts: Literal["keys_values", "all"] = "keys_values"
    condition_dropout: float = 0.1
    snr_bounds: list[float | int] | None = None
    guidance_scale: float = 3.0
    num_inference_steps: int = 50

    def __post_init__(self, **kwargs):
        if self.unet_config is None:
            self.unet_config = dict(_SD15_UNET)
            self.vae_config = dict(_SD15_VAE) if self.vae_config is None else self.vae_config
        if self.scheduler_config is None:
            self.scheduler_config = dict(_SD15_SCHEDULER)
        if isinstance(self.mapper_config, dict):
            self.mapper_config = {"model_type": "setok_feature_mapper", **self.mapper_config}
        super().__post_init__(**kwargs)
        if not isinstance(self.unet_config.get("sample_size"), int):
            raise ValueError(
                f"unet_config has sample_size={self.unet_config.get('sample_size')!r}: give the side of a square "
                "sample, in pixels, or in latents where there is a VAE."
            )
        condition_size = self.unet_config.get("cross_attention_dim", 1280)
        if not isinstance(condition_size, int):
            raise ValueError(
                f"unet_config has cross_attention_dim={condition_size!r}: one width for all blocks is expected, which "
                "the feature mapper then has."
            )
        self.mapper_config = with_fields(self.mapper_config, condition_size=condition_size)
        if (side := self.query_grid_side) and self.unet_config["sample_size"] % side:
            raise ValueError(
                f"mapper_config has num_queries={side**2} with query_grid, but its {side} × {side} squares do not "
                f"divide samples of {self.unet_config['sample_size']} × {self.unet_config['sample_size']}."
            )
        if self.preview_channels and not side:
            raise ValueError("preview_channels are of what the mapper's queries preview: set its query_grid.")
        if self.preview_channels and self.trained_unet_parts != "all":
            raise ValueError(
                f"trained_unet_parts is {self.trained_unet_parts!r}, but the U-Net's first layer has to learn to read "
                "preview_channels: set it to 'all', or leave them out."
            )
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout is {self.condition_dropout}, expected a probability, 0 to 1.")
        self._check_snr_bounds()
        if self.pixel_patch_size < 1 or (self.pixel_patch_size > 1 and self.vae_config is not None):
            raise ValueError(
                f"pixel_patch_size is {self.pixel_patch_size}, expected 1 or more, and 1 beside a vae_config, whose "
                "latents are no pixels."
            )
        if self.num_position_channels < 0 or self.num_position_channels % 4:
            raise ValueError(
                f"num_position_channels is {self.num_position_channels}, expected a multiple of 4 (sines and "
                "cosines of rows and columns), or 0."
            )
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}, expected at least 1.")

    def _check_snr_bounds(self) -> None:
        bounds = self.snr_bounds
        if bounds is None:
            return
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] < math.inf or bounds[1] == 0:
            raise ValueError(
                f"snr_bounds is {bounds}, expected the lowest and the highest weight of a step, such as [1.0, 10.0]."
            )

    @property
    def query_grid_side(self) -> int:
        """How many queries the mapper has for a row of the image; 0 where they stand for no squares of it."""
        mapper_config: Any = self.mapper_config
        return math.isqrt(mapper_config.num_queries) if mapper_config.query_grid else 0

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, on each side; 1 without a VAE."""
        return 1 if self.vae_config is None else 2 ** (len(_of(self.vae_config, "block_out_channels", [64])) - 1)

    @property
    def image_size(self) -> int:
        """Side of the images that are reconstructed, in pixels."""
        unet_config: Any = self.unet_config
        return unet_config["sample_size"] * self.vae_scale_factor * self.pixel_patch_size


def _of(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


__all__ = ["ImageDetokenizerConfig"]
