"""Fréchet distance between the features of two sets of images: FID, with the extractor that it was measured with."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

from ..processing.images import ImageSource
from .image_representations import ImageTower, representations_of

logger = logging.get_logger(__name__)

IMAGES_OF_FID = 10_000
"""Fewer images than this, and the distance is mostly the bias of its estimate (bioinf-jku/TTUR, README.md)."""


def frechet_distance(real_features: torch.Tensor, features: torch.Tensor, extractor: str) -> dict[str, Any]:
    """
    Distance of the Gaussians that features of two sets of images have: ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)
    (Heusel et al., GANs trained by a two time-scale update rule, 2017, Eq. 6), with unbiased covariances, in float64.
    The trace of the root is the nuclear norm of the product of the centred features, so that no root of a singular
    matrix is taken.

    It is called FID where the features are those of the Inception network that the paper used. Of any other extractor
    only distances in the same features can be compared, which is why the result names it. The estimate is too large
    by a bias that falls with the number of images: compare sets of one size, beside the distance of two halves of the
    real images.

    Args:
        real_features (`torch.FloatTensor` of shape `(num_real, hidden_size)`): of true images.
        features (`torch.FloatTensor` of shape `(num_images, hidden_size)`): of generated ones.
        extractor (`str`): what they were made with, such as `"vistok:dinov2-small, layer -3, mean of patches"`.

    Returns:
        `dict`: `frechet_distance`, `extractor`, `num_real`, `num_images`, `hidden_size` and, with fewer images of one
        of the sets than dimensions or than 10,000, `warning`, which is logged too.

    Raises:
        ValueError: if widths differ, a set has fewer than two images, features are not finite, or no extractor is
            named.
    """
    if not extractor.strip():
        raise ValueError("extractor is empty: name what the features were made with, no distance means anything else.")
    if real_features.ndim != 2 or features.ndim != 2 or real_features.shape[1] != features.shape[1]:
        raise ValueError(
            f"Features are of shapes {tuple(real_features.shape)} and {tuple(features.shape)}: expected (images, "
            "hidden size), of one hidden size."
        )
    real, other = (_gaussian(one, which) for one, which in ((real_features, "real"), (features, "generated")))
    shared = torch.linalg.svdvals(real[1] @ other[1].T).sum()
    distance = (real[0] - other[0]).square().sum() + real[1].square().sum() + other[1].square().sum() - 2 * shared
    found: dict[str, Any] = {
        "frechet_distance": max(0.0, distance.item()),  # below by rounding alone
        "extractor": extractor,
        "num_real": len(real_features),
        "num_images": len(features),
        "hidden_size": features.shape[1],
    }
    fewest = min(len(real_features), len(features))
    if fewest < max(IMAGES_OF_FID, features.shape[1] + 1):
        rank = f", and the covariance of {features.shape[1]} features has no full rank" * (fewest <= features.shape[1])
        found["warning"] = (
            f"small sample: {fewest} images{rank}; the estimate is too large by a bias that depends on their number. "
            "Compare it with sets of the same size only, not with published values."
        )
        logger.warning(f"Fréchet distance: {found['warning']}")
    return found


def _gaussian(features: torch.Tensor, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean, and a factor R of the covariance RᵀR."""
    if len(features) < 2:
        raise ValueError(f"There are {len(features)} {which} images: a covariance needs at least two.")
    if not torch.isfinite(features).all():
        raise ValueError(f"Features of {which} images are not finite: the images or the weights may be damaged.")
    values = features.double()
    mean = values.mean(0)
    factor = torch.linalg.qr((values - mean) / (len(values) - 1) ** 0.5, mode="r").R
    return mean, factor


def image_frechet_distance(
    real_images: Sequence[ImageSource],
    images: Sequence[ImageSource],
    tower: ImageTower,
    name: str,
    pooling: str = "mean",
    batch_size: int = 32,
) -> dict[str, Any]:
    """
    [`frechet_distance`] of images in the features of a vision tower.

    Args:
        real_images, images (`list`): paths or PIL images.
        tower ([`ImageTower`]): makes a vector of each image.
        name (`str`): of the tower, such as `"vistok:dinov2-small"`; the result names it with layer and pooling.
        pooling (`str`, *optional*, defaults to `"mean"`): as in [`representations_of`].
        batch_size (`int`, *optional*, defaults to 32): images per pass.

    Returns:
        `dict`: as in [`frechet_distance`].

    Raises:
        BadSampleError: if an image cannot be read.
        ValueError: as in [`frechet_distance`] and [`representations_of`].
    """
    layer = "final features" if tower.feature_layer in (None, "final") else f"layer {tower.feature_layer}"
    extractor = f"{name}, {layer}, {'mean of patches' if pooling == 'mean' else pooling}"
    found = [representations_of({name: tower}, some, pooling, batch_size)[name] for some in (real_images, images)]
    return frechet_distance(found[0], found[1], extractor)


__all__ = ["IMAGES_OF_FID", "frechet_distance", "image_frechet_distance"]
