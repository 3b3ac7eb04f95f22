"""How close reconstructed images are to the true ones: L1 and structural similarity."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .bootstrap import bootstrap_interval

WINDOW_RADIUS = 5  # pixels: a window of 11
SIGMA = 1.5  # pixels
K1, K2 = 0.01, 0.03


def l1_distance(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Mean absolute difference of pixels.

    Args:
        images, targets (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): from 0 to 1.

    Returns:
        `torch.DoubleTensor` of shape `(batch,)`: from 0 to 1.

    Raises:
        ValueError: if shapes differ, or values are not from 0 to 1.
    """
    first, second = _checked(images, targets)
    return (first - second).abs().mean((1, 2, 3))


def structural_similarity(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    SSIM (Wang, Bovik, Sheikh and Simoncelli, Image quality assessment, 2004, Eq. 13): means, variances and covariance
    under a Gaussian window of 11 × 11 pixels and σ = 1.5, K1 = 0.01, K2 = 0.03 and a range of 1, averaged over every
    place where the whole window lies in the image, and over channels.

    Args:
        images, targets (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): from 0 to 1.

    Returns:
        `torch.DoubleTensor` of shape `(batch,)`: at most 1, which only equal images have.

    Raises:
        ValueError: if shapes differ, values are not from 0 to 1, or images are smaller than the window.
    """
    first, second = _checked(images, targets)
    side = 2 * WINDOW_RADIUS + 1
    if min(first.shape[-2:]) < side:
        raise ValueError(
            f"Images of {first.shape[-2]} × {first.shape[-1]} pixels are smaller than the window of {side} × {side}, "
            "in which SSIM compares them."
        )
    # Variance is a small difference of large numbers, hence float64; one pass blurs all five maps.
    maps = torch.cat([first, second, first.square(), second.square(), first * second])
    mean_1, mean_2, square_1, square_2, product = _blurred(maps).chunk(5)
    variances = (square_1 - mean_1.square()) + (square_2 - mean_2.square())
    covariance = product - mean_1 * mean_2
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _blurred(maps: torch.Tensor) -> torch.Tensor:
    places = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    planes = maps.flatten(0, 1).unsqueeze(1)
    blurred = nn.functional.conv2d(nn.functional.conv2d(planes, kernel), kernel.transpose(2, 3))
    return blurred.view(*maps.shape[:2], *blurred.shape[-2:])


def reconstruction_scores(
    images: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    names: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    L1 and SSIM over images, each `(num_channels, height, width)` from 0 to 1; sizes may differ between images.

    Args:
        images, targets (`list[torch.FloatTensor]`): reconstructions and what they are of.
        names (`list`, *optional*): of the images; several reconstructions of one are resampled together.
        num_resamples (`int`, *optional*, defaults to 2000): of the bootstrap.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.

    Returns:
        `dict`: `l1` and `ssim`, each `{"value", "interval"}` with a 95 % bootstrap interval, and `num_images`.

    Raises:
        ValueError: if there are no images, not as many targets, or two do not fit together; names it.
    """
    if not len(targets) or len(images) != len(targets):
        raise ValueError(f"{len(images)} images for {len(targets)} targets: expected as many, and some.")
    places = list(range(len(targets))) if names is None else list(names)
    distances, similarities = [], []
    for place, image, target in zip(places, images, targets):
        try:
            distances.append(l1_distance(image[None], target[None]).item())
            similarities.append(structural_similarity(image[None], target[None]).item())
        except ValueError as error:
            raise ValueError(f"Image {place}: {error}") from error

    def mean(values: list[float], bounds: tuple[float, float]) -> dict[str, Any]:
        interval = bootstrap_interval(values, places, num_resamples=num_resamples, seed=seed, bounds=bounds)
        return {"value": float(np.mean(values)), "interval": interval}

    found = {"l1": mean(distances, (0.0, 1.0)), "ssim": mean(similarities, (-1.0, 1.0))}
    return {**found, "num_images": len(set(places))}


def _checked(images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if images.shape != targets.shape or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"Images are of shape {tuple(images.shape)} and targets of {tuple(targets.shape)}: expected the same "
            "(batch, channels, height, width) of both."
        )
    for name, pixels in (("Images", images), ("Targets", targets)):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails too
            raise ValueError(
                f"{name} have values from {low:g} to {high:g}, expected from 0 to 1: undo the normalisation first."
            )
    return images.double().clamp(0, 1), targets.double().clamp(0, 1)


__all__ = ["l1_distance", "reconstruction_scores", "structural_similarity"]
