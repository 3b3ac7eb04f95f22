"""The image detokenizer of SeTok: visual tokens → feature mapper → diffusion U-Net → image."""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_image_detokenizer import ImageDetokenizerConfig
from ..configuration.optional import require
from .diffusion_parts import EXTRA, build_scheduler, build_unet, build_vae
from .feature_mapper import FeatureMapper
from .losses_diffusion import snr_weights
from .query_grid import QueryGrid
from .sine_positions import sine_positions

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Where noise comes from: one generator for a batch, or one for each image, which then does not depend on others."""


_PIXELS = "those of squares of {0} × {0} pixels, because there is no vae_config"


@dataclass
class ImageDetokenizerOutput(ModelOutput):
    """
    Output of an [`ImageDetokenizer`].

    Args:
        loss (`torch.FloatTensor` of shape `()`): mean squared error of the prediction, in training mode weighted by
            `snr_bounds`.
        preview_loss, placement_loss (`torch.FloatTensor` of shape `()`, *optional*, with the mapper's `query_grid`):
            Of what the mapper's queries say of their squares of the image: see [`QueryGrid`]. Means over images; one
            whose tokens were dropped counts 0.
        prediction (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
            What the U-Net predicted: the noise, or what else `prediction_type` says.
        target (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): what it should have been.
        timesteps (`torch.LongTensor` of shape `(batch,)`): step of the noise that each image had.
    """

    loss: torch.Tensor | None = None
    preview_loss: torch.Tensor | None = None
    placement_loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    target: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None


class ImageDetokenizer(PreTrainedModel):
    """
    Denoises images under the condition of their visual tokens (SeTok, Section 2.2, stage I-a): a feature mapper turns
    the tokens into the cross-attention condition of a U-Net, which works on the latents of a frozen VAE or on pixels.
    Where the queries of the mapper stand for squares of the image (`query_grid`), they learn by a [`QueryGrid`] too.

    Args:
        config ([`ImageDetokenizerConfig`]): see there.

    Raises:
        ImportError: if the extra `generation` is not installed.
        ValueError: if U-Net, VAE and scheduler do not fit one another.
    """

    config: ImageDetokenizerConfig
    # Of diffusers, which is not there for everybody.
    unet: Any
    vae: Any
    config_class = ImageDetokenizerConfig
    base_model_prefix = ""
    main_input_name = "tokens"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Blip2QFormerLayer", "BasicTransformerBlock", "ResnetBlock2D"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: ImageDetokenizerConfig):
        super().__init__(config)
        parts: Any = config
        self.mapper = FeatureMapper(parts.mapper_config)
        self.unet = build_unet(parts.unet_config)
        self.vae = None if parts.vae_config is None else build_vae(parts.vae_config).requires_grad_(False)
        patch_size: int = parts.pixel_patch_size
        channels = 3 * patch_size**2 if self.vae is None else self.vae.config.latent_channels
        num_positions: int = parts.num_position_channels
        num_seen = channels + num_positions + (channels if parts.preview_channels else 0)
        if (self.unet.config.in_channels, self.unet.config.out_channels) != (num_seen, channels):
            raise ValueError(
                f"unet_config has in_channels={self.unet.config.in_channels} and "
                f"out_channels={self.unet.config.out_channels}, expected {num_seen} and {channels}: "
                + ("those of a latent of the VAE" if self.vae is not None else _PIXELS.format(patch_size))
                + (f", {channels} of a preview" if parts.preview_channels else "")
                + (f", and {num_positions} of positions." if num_positions else ".")
            )
        self.query_grid: Any = None
        if side := parts.query_grid_side:
            mapper_config = parts.mapper_config
            self.query_grid = QueryGrid(
                side, mapper_config.condition_size, mapper_config.token_size, channels, self.unet.config.sample_size
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # U-Net and VAE start as diffusers builds them; the mapper is a model of its own.
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def _scheduler(self, class_name: str | None = None) -> Any:
        config: Any = self.config.scheduler_config
        return build_scheduler(config, class_name)

    @functools.cached_property
    def _noise_scheduler(self) -> Any:
        """What adds noise in training. Not built with the model, which may be on the device without data."""
        scheduler = self._scheduler("DDPMScheduler")
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"scheduler_config has prediction_type={scheduler.config.prediction_type!r}: choose epsilon, "
                "v_prediction or sample."
            )
        weighs_noise = self.config.snr_bounds is not None and scheduler.config.prediction_type == "epsilon"
        if weighs_noise and scheduler.alphas_cumprod.min() <= 0:
            raise ValueError(
                f"snr_bounds is {self.config.snr_bounds} and prediction_type 'epsilon', but the noise of "
                "scheduler_config leaves nothing of the image at its end (rescale_betas_zero_snr): predict 'sample' "
                "or 'v_prediction', or leave snr_bounds out."
            )
        return scheduler

    @can_return_tuple
    def forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        images: torch.Tensor,
        noise: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        generator: Generators = None,
        cluster_masks: torch.Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> ImageDetokenizerOutput:
        """
        The loss of one denoising step, E‖ε − ε_θ(z_t, t, c)‖² (SeTok, Section 2.2). In training mode some images lose
        their tokens (`condition_dropout`), so that sampling can be guided, and steps are weighted (`snr_bounds`).

        Args:
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): visual tokens.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*): True at real tokens.
            images (`torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`): what is denoised, 0 to 1.
            noise (`torch.FloatTensor`, *optional*): ε, of the shape of latents (of images without a VAE).
            timesteps (`torch.LongTensor` of shape `(batch,)`, *optional*): t, drawn uniformly by default.
            generator (`torch.Generator` or a list of them, *optional*):
                What is not given is drawn from it; from a list, for each image from its own.
            cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
                Which patches each token is made of, for the placement loss of a mapper with `query_grid`.
            grid_size (`tuple[int, int]`, *optional*): height and width of the image in patches, beside them.

        Returns:
            [`ImageDetokenizerOutput`].

        Raises:
            ValueError: if the images are of another size, or not 0 to 1, or only one of cluster_masks and grid_size is
                there.
        """
        if (cluster_masks is None) != (grid_size is None):
            raise ValueError("cluster_masks and grid_size say together where tokens lie: give both or neither.")
        scheduler = self._noise_scheduler
        latents = self.encode_images(images, generator)
        if noise is None:
            noise = self._randn(latents.shape, generator, latents.dtype)
        if timesteps is None:
            timesteps = self._random(
                torch.randint, scheduler.config.num_train_timesteps, count=len(latents), generator=generator
            )
        noisy = scheduler.add_noise(latents, noise, timesteps)
        dropped = None
        if self.training:
            dropped = self._random(torch.rand, count=len(latents), generator=generator) < self.config.condition_dropout
        condition = self.mapper(tokens, mask, dropped)
        prediction = self._denoised(noisy, timesteps, condition)
        target = self._target(latents, noise, timesteps)
        errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
        if self.training and self.config.snr_bounds is not None:
            left = scheduler.alphas_cumprod.to(errors.device)[timesteps]
            errors = errors * snr_weights(left, self.config.snr_bounds, scheduler.config.prediction_type)
        loss = errors.mean()
        told: dict[str, torch.Tensor] = {}
        if self.query_grid is not None:
            kept: Any = 1 if dropped is None else ~dropped
            losses = {"preview_loss": self.query_grid.preview_loss(condition, latents)}
            if cluster_masks is not None and grid_size is not None:
                found = self.query_grid.placement_loss(condition, tokens, mask, cluster_masks, grid_size)
                losses["placement_loss"] = found
            # Over all images, not over those that are left: batches that make one step are then as one batch.
            told = {name: (of_images * kept).mean() for name, of_images in losses.items()}
        return ImageDetokenizerOutput(loss=loss, prediction=prediction, target=target, timesteps=timesteps, **told)

    def _target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        prediction_type = self._noise_scheduler.config.prediction_type
        if prediction_type == "v_prediction":
            return self._noise_scheduler.get_velocity(latents, noise, timesteps)
        return noise if prediction_type == "epsilon" else latents

    @torch.no_grad()
    def sample(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """
        Draws an image for the tokens of each image of a batch.

        Args:
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): visual tokens.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*): True at real tokens.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of the noise. With a list, of one for each image, an image is the same alone or in any batch.
            num_inference_steps (`int`, *optional*): steps of denoising; by default those of the config.
            guidance_scale (`float`, *optional*):
                How far to go from the unconditional prediction (0) to the conditional one (1) and beyond; by default
                that of the config. At 1 the unconditional one is not computed.

        Returns:
            `torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`: images, 0 to 1.

        Raises:
            ValueError: if there are not as many generators as images, there is no step, or an image is not finite.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}, expected at least 1.")
        if isinstance(generator, Sequence) and len(generator) != len(tokens):
            raise ValueError(f"There are {len(generator)} generators for {len(tokens)} images: give one for each.")
        condition = self.mapper(tokens, mask)
        if scale != 1:
            nothing = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
            condition = torch.cat([self.mapper(tokens, mask, nothing), condition])
        scheduler = self._scheduler()
        scheduler.set_timesteps(steps, device=condition.device)
        size = self.unet.config.sample_size
        samples = self._randn((len(tokens), self.unet.config.out_channels, size, size), generator, self.unet.dtype)
        samples = samples * scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": _as_list(generator)} if takes_generator else {}
        for timestep in scheduler.timesteps:
            prediction = self._predict(scheduler.scale_model_input(samples, timestep), timestep, condition, scale)
            samples = scheduler.step(prediction, timestep, samples, **options).prev_sample
        return self.decode_latents(samples)

    def _predict(self, samples, timestep, condition, scale) -> torch.Tensor:
        repeated = samples.repeat(len(condition) // len(samples), 1, 1, 1)
        prediction = self._denoised(repeated, timestep, condition)
        if scale == 1:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def _denoised(self, noisy: torch.Tensor, timesteps: Any, condition: torch.Tensor) -> torch.Tensor:
        """What the U-Net makes of noisy latents, beside which it may see where each of them lies and a preview."""
        seen = noisy
        if self.config.preview_channels:
            # Without a gradient: what the U-Net wants of the preview kept queries from learning which token is where.
            seen = torch.cat([seen, self.query_grid.previews(condition).detach().to(noisy)], dim=1)
        if self.config.num_position_channels:
            grid_size = (noisy.shape[-2], noisy.shape[-1])
            positions = sine_positions(grid_size, self.config.num_position_channels).to(noisy).T
            seen = torch.cat([seen, positions.unflatten(-1, grid_size).expand(len(noisy), -1, -1, -1)], dim=1)
        return self.unet(seen, timesteps, encoder_hidden_states=condition.to(noisy.dtype)).sample

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """
        What the U-Net works on: latents of the VAE, drawn from their distribution and scaled; without a VAE the
        images themselves, -1 to 1, squares of `pixel_patch_size` pixels as channels.

        Args:
            images (`torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`): 0 to 1.
            generator (`torch.Generator` or a list of them, *optional*): source of the draw.

        Raises:
            ValueError: if the images are of another size, or not 0 to 1.
        """
        self._check_images(images)
        values = images.to(self.unet.dtype) * 2 - 1
        if self.vae is None:
            return nn.functional.pixel_unshuffle(values, self.config.pixel_patch_size)
        latents = self.vae.encode(values.to(self.vae.dtype)).latent_dist.sample(_as_list(generator))
        latents = (latents - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor
        return latents.to(self.unet.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """
        The inverse of [`encode_images`].

        Args:
            latents (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): what the U-Net works on.

        Returns:
            `torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`: images, 0 to 1.

        Raises:
            ValueError: if an image is not finite.
        """
        if self.vae is not None:
            latents = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
            latents = self.vae.decode(latents.to(self.vae.dtype)).sample
        latents = nn.functional.pixel_shuffle(latents, self.config.pixel_patch_size)
        broken = (~latents.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"{len(broken)} of {len(latents)} images (the first is number {broken[0]}) are not finite: check "
                "their visual tokens, and the dtype: the VAE of Stable Diffusion overflows in float16."
            )
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def _check_images(self, images: torch.Tensor) -> None:
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"The images to reconstruct have the shape {tuple(images.shape)}, expected (batch, 3, {size}, "
                f"{size}): the detokenizer's image_size, whatever the size is that the vision tower reads."
            )
        lowest, highest = images.min().item(), images.max().item()
        if not (lowest >= -1e-3 and highest <= 1 + 1e-3):  # nor NaN
            raise ValueError(
                f"The images to reconstruct have values from {lowest:.3g} to {highest:.3g}, expected 0 to 1: not "
                "normalised as the vision tower's are."
            )

    def _randn(self, shape: Sequence[int], generator: Generators, dtype: torch.dtype) -> torch.Tensor:
        require("diffusers", EXTRA)
        from diffusers.utils.torch_utils import randn_tensor

        return randn_tensor(tuple(shape), generator=_as_list(generator), device=self.device, dtype=dtype)

    def _random(self, draw, *arguments, count: int, generator: Generators) -> torch.Tensor:
        """Drawn where the generator lives, so that a seed means the same on every device."""
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        size = (count // len(generators),)
        draws = [
            draw(*arguments, size, generator=one, device=self.device if one is None else one.device)
            for one in generators
        ]
        return torch.cat(draws).to(self.device)


def _as_list(generator: Generators) -> Any:
    return list(generator) if isinstance(generator, Sequence) else generator


__all__ = ["ImageDetokenizer", "ImageDetokenizerOutput"]
