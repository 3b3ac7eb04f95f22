"""Weights of the denoising loss by how much of the image is left in the noise."""

from collections.abc import Sequence
from typing import Literal

import torch


def snr_weights(
    alphas_cumprod: torch.Tensor,
    bounds: Sequence[float],
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "sample",
) -> torch.Tensor:
    """
    Weights for the squared error of what a U-Net predicts, such that the squared error of the image that follows from
    it weighs as much as the signal-to-noise ratio ᾱ_t / (1 − ᾱ_t) truncated to bounds: (1, a large number) is the
    truncated SNR of Salimans and Ho (Progressive Distillation for Fast Sampling of Diffusion Models, 2022, Section 4),
    (0, γ) the Min-SNR-γ of Hang et al. (Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, Section
    3.4).

    Args:
        alphas_cumprod (`torch.FloatTensor` of shape `(batch,)`): ᾱ_t of the step of each image.
        bounds (`list[float]`): the lowest and the highest weight.
        prediction_type (`str`, *optional*, defaults to `"sample"`): of diffusers: what the U-Net predicts.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`: not finite where noise is predicted and nothing is left of the image.
    """
    ratios = alphas_cumprod / (1 - alphas_cumprod)
    of_image = ratios.clamp(*bounds)
    if prediction_type == "epsilon":
        return of_image / ratios
    return of_image / (ratios + 1) if prediction_type == "v_prediction" else of_image


__all__ = ["snr_weights"]
