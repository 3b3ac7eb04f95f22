"""Density peaks: patches that many others resemble, far from any that even more resemble."""

import functools
from dataclasses import dataclass

import torch

# Features are copied to be centred, a block of images at a time: as much as the caches of a CPU hold, and elsewhere so
# much that the copy counts little.
_BLOCK_BYTES_ON_CPU, _BLOCK_BYTES = 8 * 2**20, 256 * 2**20


@dataclass
class DensityPeaks:
    """
    What clustering knows of patches. Here and below N is the number of patches and D the width of a feature.

    Args:
        scores (`torch.FloatTensor` of shape `(batch, num_patches)`): density times distance, s_i = ρ_i δ_i.
        densities (`torch.FloatTensor` of shape `(batch, num_patches)`): ρ_i, from 0 to 1.
        distances (`torch.FloatTensor` of shape `(batch, num_patches)`): δ_i, to the nearest denser patch.
        relative_scores (`torch.FloatTensor` of shape `(batch, num_patches)`):
            Scores over the density of the image's densest patch. They have the order of the scores, also where
            features lie so far apart that all densities, and with them all scores, are too small to differ from 0.
        squared (`torch.FloatTensor` of shape `(batch, num_patches, num_patches)`): ‖x_i - x_j‖², which is D d_ij².
    """

    scores: torch.Tensor
    densities: torch.Tensor
    distances: torch.Tensor
    relative_scores: torch.Tensor
    squared: torch.Tensor


def density_peaks(features: torch.Tensor, num_neighbors: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Scores patches as centres of clusters (Section 2.1, Eqs. 1 and 2), with d_ij = ‖x_i - x_j‖ / √D:

    - density ρ_i = exp(-(1/k) Σ d_ij²) over the k nearest neighbours of i, itself among them;
    - distance δ_i = min d_ij over the patches j that are denser than i; of the densest, max d_ij over all j. Of
      equally dense patches the one of the lower index counts as denser;
    - score s_i = ρ_i δ_i.

    Nothing is differentiable. Computed in float32, or float64 for features in float64.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): patch features.
        num_neighbors (`int`): k; where there are fewer patches, all of them.

    Returns:
        `tuple` of scores, densities and distances, each `torch.FloatTensor` of shape `(batch, num_patches)`.

    Raises:
        ValueError: if the features are not of three dimensions, empty or not finite, or `num_neighbors` is below 1.
    """
    peaks = find_density_peaks(features, num_neighbors)
    return peaks.scores, peaks.densities, peaks.distances


@torch.no_grad()
def find_density_peaks(features: torch.Tensor, num_neighbors: int) -> DensityPeaks:
    """As [`density_peaks`], and the squared distances between all patches with it."""
    _check(features, num_neighbors)
    energies, nearest_denser, squared = distances_and_densities(features, num_neighbors)
    is_finite = energies.isfinite() & nearest_denser.isfinite()
    if not bool(is_finite.all()):
        broken = (~is_finite).any(-1).nonzero().flatten().tolist()
        raise ValueError(
            f"The features of {len(broken)} of {len(features)} images (the first is number {broken[0]}) are not "
            "finite, or their squares are not: check the vision tower and its dtype."
        )
    densities, distances = torch.exp(-energies), (nearest_denser / features.shape[-1]).sqrt()
    relative_scores = torch.exp(energies.amin(-1, keepdim=True) - energies) * distances
    return DensityPeaks(densities * distances, densities, distances, relative_scores, squared)


@torch.no_grad()
def distances_and_densities(
    features: torch.Tensor, num_neighbors: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What [`density_peaks`] is made of. The values of the features are not looked at.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): patch features.
        num_neighbors (`int`): k.

    Returns:
        `tuple` of -log ρ_i and of D δ_i², `(batch, num_patches)` each, and of ‖x_i - x_j‖², `(batch, num_patches,
        num_patches)`.
    """
    batch_size, num_patches, hidden_size = features.shape
    dtype = computing_precision(features)
    energies = features.new_empty(batch_size, num_patches, dtype=dtype)
    nearest_denser = torch.empty_like(energies)
    squared = features.new_empty(batch_size, num_patches, num_patches, dtype=dtype)
    block_bytes = _BLOCK_BYTES_ON_CPU if features.device.type == "cpu" else _BLOCK_BYTES
    images_per_block = max(1, block_bytes // (num_patches * hidden_size * dtype.itemsize))
    for first in range(0, batch_size, images_per_block):
        block = slice(first, first + images_per_block)
        squared_distances(features[block].to(dtype), out=squared[block])
        energies[block] = _mean_of_nearest(squared[block], num_neighbors) / hidden_size
        nearest_denser[block] = _squared_distance_to_denser(squared[block], energies[block])
    return energies, nearest_denser, squared


def computing_precision(features: torch.Tensor) -> torch.dtype:
    """Distances are computed in float32 at least."""
    return torch.promote_types(features.dtype, torch.float32)


def squared_distances(features: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """
    ‖x_i - x_j‖² between the patches of each image, by one matrix product. They are symmetric, equal features are
    exactly 0 apart, and features of few bits (integers) give exact results, so that what is a tie stays one.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): in float32 or float64.
        out (`torch.FloatTensor` of shape `(batch, num_patches, num_patches)`): is overwritten.

    Returns:
        `out`.
    """
    centered = features - _middle_patch(features)
    torch.bmm(centered, centered.transpose(1, 2), out=out)
    norms = out.diagonal(dim1=1, dim2=2).clone()
    products = out + out.transpose(1, 2)  # twice the products; a kernel may round them differently at the edges
    torch.add(norms.unsqueeze(2), norms.unsqueeze(1), out=out)
    return out.sub_(products).clamp_(min=0)


def _middle_patch(features: torch.Tensor) -> torch.Tensor:
    """
    The patch of median norm of each image, `(batch, 1, hidden_size)`: no outlier. Differences to it lose fewer digits
    than the features, and unlike those to a mean they are exact wherever features are.
    """
    order = torch.linalg.vector_norm(features, dim=-1).argsort(dim=-1, stable=True)
    middle = order[:, order.shape[1] // 2]
    return features[torch.arange(len(features), device=features.device), middle].unsqueeze(1)


def _mean_of_nearest(squared: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """
    Mean over the nearest patches, the patch itself among them. Its 0 is known, and torch finds one number fewer in
    less than half the time where that makes them a 64th of all.
    """
    num_neighbors = min(num_neighbors, squared.shape[-1])
    if num_neighbors == 1:
        return squared.new_zeros(squared.shape[:2])
    to_itself = squared.diagonal(dim1=1, dim2=2)
    to_itself.fill_(torch.inf)
    nearest = squared.topk(num_neighbors - 1, dim=-1, largest=False, sorted=True).values.unbind(-1)
    to_itself.zero_()
    return functools.reduce(torch.add, nearest) / num_neighbors  # in one order for all patches: ties stay ties


def _squared_distance_to_denser(squared: torch.Tensor, energies: torch.Tensor) -> torch.Tensor:
    """Compares densities by their exponents, which differ where densities are too small or too near 1 to differ."""
    by_density = energies.argsort(dim=-1, stable=True)
    rank = torch.empty_like(by_density, dtype=torch.int32)
    order = torch.arange(squared.shape[-1], device=squared.device, dtype=torch.int32)
    rank.scatter_(-1, by_density, order.expand_as(rank))
    to_denser = torch.where(rank.unsqueeze(1) < rank.unsqueeze(2), squared, torch.inf).amin(-1)
    densest = by_density[:, :1]
    row = squared[torch.arange(len(squared), device=squared.device), densest.squeeze(1)]
    return to_denser.scatter_(1, densest, row.amax(-1, keepdim=True))


def _check(features: torch.Tensor, num_neighbors: int) -> None:
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"features are {features.dtype} of shape {tuple(features.shape)}, expected floating point numbers of "
            "shape (batch, num_patches, hidden_size) with at least one image and one patch."
        )
    if num_neighbors < 1:
        raise ValueError(f"num_neighbors is {num_neighbors}: a density needs at least 1, the patch itself.")


__all__ = [
    "DensityPeaks",
    "computing_precision",
    "density_peaks",
    "distances_and_densities",
    "find_density_peaks",
    "squared_distances",
]
