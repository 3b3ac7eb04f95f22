"""Clusters of patches around density peaks: how many there are follows the image."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.modeling_outputs import ModelOutput

from .cluster_kernels import gaussian_kernel, iterative_masks, squared_distances_to_centers, threshold_masks
from .cluster_order import centers_of_mass, kept_in_order
from .density_peaks import DensityPeaks, find_density_peaks

Method = Literal["iterative", "threshold"]
Assignment = Literal["hard", "soft"]


@dataclass
class PatchClusters(ModelOutput):
    """
    Clusters of the patches of images: N patches, M clusters, the largest number of the batch.

    Args:
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_clusters, num_patches)`):
            Membership of patches in clusters: 0 or 1 if hard, weights if soft. Sums to 1 over clusters at every patch.
            In float32 at least, whatever the features.
        assignment (`torch.LongTensor` of shape `(batch, num_patches)`):
            The cluster of each patch; of soft clusters the one of the largest weight.
        mask (`torch.BoolTensor` of shape `(batch, num_clusters)`):
            True at clusters of the image. Padding is at the end, and zero in all masks.
        centers (`torch.LongTensor` of shape `(batch, num_clusters)`):
            The patch that each cluster formed around. Of the scope that the iterative method leaves it is the patch
            that would have been the next seed. -1 at padding.
        scores (`torch.FloatTensor` of shape `(batch, num_patches)`):
            Score of every patch: see [`density_peaks`].
        soft_masks (`torch.FloatTensor` of shape `(batch, num_clusters, num_patches)`, *optional*):
            The differentiable weights of these clusters, also where `cluster_masks` are hard. Where a hard cluster
            that won no patch was dropped they sum to less than 1. `None` of hard clusters of the threshold method that
            are not straight through.
    """

    cluster_masks: torch.Tensor = None  # type: ignore[assignment]
    assignment: torch.Tensor = None  # type: ignore[assignment]
    mask: torch.Tensor = None  # type: ignore[assignment]
    centers: torch.Tensor = None  # type: ignore[assignment]
    scores: torch.Tensor = None  # type: ignore[assignment]
    soft_masks: torch.Tensor | None = None


@dataclass
class _Candidates:
    """Clusters in the order in which they were found: before empty ones are dropped, and before they are sorted."""

    centers: torch.Tensor
    is_real: torch.Tensor
    labels: torch.Tensor
    soft_masks: Any


def cluster_patches(
    features: torch.Tensor,
    *,
    method: Method,
    assignment: Assignment = "hard",
    num_neighbors: int = 5,
    score_threshold: float = 0.5,
    stop_threshold: float = 0.05,
    kernel_scale: float | torch.Tensor = 1.0,
    min_tokens: int = 1,
    max_tokens: int = 64,
    relative_kernel_scale: bool = False,
    straight_through: bool = False,
    grid_size: tuple[int, int] | None = None,
) -> PatchClusters:
    """
    Clusters the patches of images by density peaks (Section 2.1, Appendix C). The result is deterministic, does not
    depend on what else is in the batch, and every patch belongs to a cluster.

    `"iterative"` is the paper's Algorithm 1. All patches begin in scope. Again and again, the patch of the largest
    score ⊙ scope becomes a seed, its mask is scope ⊙ α with α = exp(-d²/σ²) of the distances to the seed, and 1 - α of
    the scope is left; until the mean scope is below `stop_threshold` with `min_tokens - 1` seeds or more, or there are
    `max_tokens - 1` seeds. What scope is left is one more mask. Hard clusters take the patches whose largest mask they
    have, and those that win none are dropped.

    `"threshold"` takes every patch of a score above `score_threshold` as a centre; if these are fewer than
    `min_tokens` or more than `max_tokens`, as many patches of the highest scores. Every patch joins its nearest
    centre. Soft weights are the kernels of all centres, normalised.

    Of equal values the one of the lowest patch index, or of the cluster found first, counts. Seeds and hard clusters
    take no gradient. Soft masks give theirs to features and kernel scale.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): patch features.
        method (`"iterative"` or `"threshold"`): see above.
        assignment (`"hard"` or `"soft"`): whether a patch belongs to one cluster or, by weights, to all of them.
        num_neighbors (`int`): of [`density_peaks`].
        score_threshold (`float`): of the threshold method.
        stop_threshold (`float`): of the iterative method, from 0 to 1.
        kernel_scale (`float` or `torch.FloatTensor` of one element): σ, in the unit of distances ‖x_i - x_j‖ / √D.
        min_tokens, max_tokens (`int`): bounds of the number of clusters, or of patches if these are fewer. Dropping
            may leave fewer hard clusters of the iterative method than `min_tokens`.
        relative_kernel_scale (`bool`): whether σ is `kernel_scale` times the mean distance between the image's
            patches.
        straight_through (`bool`): whether hard `cluster_masks` have the gradient of the soft ones.
        grid_size (`tuple[int, int]`, *optional*): height and width of the image in patches. If given, clusters are in
            raster order of their centres of mass (by height, then by width); else seeds are in the order in which they
            were found, and centres of the threshold method by patch index.

    Returns:
        [`PatchClusters`].

    Raises:
        ValueError: if an option is none of those above, bounds contradict each other, the grid is not that of the
            patches, or features are not finite.
    """
    _check(method, assignment, kernel_scale, min_tokens, max_tokens, grid_size, features)
    peaks = find_density_peaks(features, num_neighbors)
    bounds = min(min_tokens, features.shape[1]), min(max_tokens, features.shape[1])
    squared_scale = squared_scale_of_images(kernel_scale, relative_kernel_scale, peaks.squared, features.shape[-1])
    if method == "iterative":
        candidates = _iterative_candidates(features, peaks, squared_scale, stop_threshold, bounds)
    else:
        needs_soft = assignment == "soft" or straight_through
        candidates = _threshold_candidates(
            features, peaks, squared_scale if needs_soft else None, score_threshold, bounds
        )
    return _finished(candidates, peaks.scores, assignment, straight_through, grid_size)


def given_clusters(assignment: torch.Tensor, grid_size: tuple[int, int] | None = None) -> PatchClusters:
    """
    Hard clusters that are already known, such as a plain grid's, in the form that [`cluster_patches`] gives them.

    Args:
        assignment (`torch.LongTensor` of shape `(batch, num_patches)`):
            The cluster of each patch, from 0 on; numbers may be left out.
        grid_size (`tuple[int, int]`, *optional*):
            Height and width of the images in patches: clusters are then in raster order of their centres of mass,
            and otherwise in that of their numbers.

    Returns:
        [`PatchClusters`] without scores (zeros); the centre of a cluster is its first patch.

    Raises:
        ValueError: if numbers are negative or no whole numbers, or the grid has another number of patches.
    """
    if assignment.ndim != 2 or assignment.is_floating_point() or not assignment.numel() or int(assignment.min()) < 0:
        raise ValueError(
            f"assignment has the shape {tuple(assignment.shape)} and dtype {assignment.dtype}: expected the number of "
            "a cluster, from 0 on, for each patch of each image, (batch, num_patches)."
        )
    num_patches = assignment.shape[1]
    if grid_size is not None and grid_size[0] * grid_size[1] != num_patches:
        raise ValueError(
            f"assignment is of {num_patches} patches, the grid of {grid_size[0]} × {grid_size[1]}: give one for each."
        )
    labels = assignment.long()
    places = torch.arange(num_patches, device=labels.device).expand_as(labels)
    first = torch.full((len(labels), int(labels.max()) + 1), num_patches, device=labels.device)
    first = first.scatter_reduce(1, labels, places, "amin")
    found = _Candidates(first, first < num_patches, labels, None)
    return _finished(found, torch.zeros(labels.shape, device=labels.device), "hard", False, grid_size)


def _iterative_candidates(features, peaks: DensityPeaks, squared_scale, stop_threshold, bounds) -> _Candidates:
    seeds, num_seeds, next_seed = _find_seeds(
        peaks, squared_scale.detach(), features.shape[-1], stop_threshold, bounds
    )
    is_seed = torch.arange(seeds.shape[1], device=seeds.device) < num_seeds.unsqueeze(1)
    kernels = gaussian_kernel(squared_distances_to_centers(features, peaks.squared, seeds), squared_scale)
    soft_masks = iterative_masks(kernels * is_seed.unsqueeze(-1), num_seeds)
    slots = torch.arange(seeds.shape[1] + 1, device=seeds.device)
    centers = torch.cat([seeds, next_seed.unsqueeze(1)], dim=1).scatter(
        1, num_seeds.unsqueeze(1), next_seed.unsqueeze(1)
    )
    return _Candidates(centers, slots <= num_seeds.unsqueeze(1), soft_masks.detach().argmax(1), soft_masks)


@torch.no_grad()
def _find_seeds(peaks: DensityPeaks, squared_scale, hidden_size: int, stop_threshold: float, bounds):
    """Seeds of all images, one of each at a time; how many each has; and which patch would be its next."""
    min_tokens, max_tokens = bounds
    images = torch.arange(len(peaks.scores), device=peaks.scores.device)
    scope = torch.ones_like(peaks.scores)
    num_seeds = torch.zeros_like(images)
    squared_scale = squared_scale.reshape(-1, 1) * hidden_size
    seeds = []
    for step in range(max_tokens - 1):
        goes_on = (num_seeds == step) & ((scope.mean(-1) >= stop_threshold) | (step < min_tokens - 1))
        if not bool(goes_on.any()):
            break
        seed = (peaks.relative_scores * scope).argmax(-1)
        kernel = torch.exp(-peaks.squared[images, seed] / squared_scale)
        scope = torch.where(goes_on.unsqueeze(1), scope * (1 - kernel), scope)
        num_seeds = num_seeds + goes_on
        seeds.append(seed)
    found = torch.stack(seeds, dim=1) if seeds else images.new_empty(len(images), 0)
    return found, num_seeds, (peaks.relative_scores * scope).argmax(-1)


def _threshold_candidates(features, peaks: DensityPeaks, squared_scale, score_threshold, bounds) -> _Candidates:
    num_patches = features.shape[1]
    num_centers = (peaks.scores > score_threshold).sum(-1, keepdim=True).clamp(*bounds)
    order = peaks.relative_scores.argsort(dim=-1, descending=True, stable=True)
    best = order[:, : int(num_centers.max())]
    slots = torch.arange(best.shape[1], device=best.device)
    is_center = slots < num_centers
    centers = best.masked_fill(~is_center, num_patches).sort(dim=-1).values
    rows = centers.clamp(max=num_patches - 1)
    images = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    distances = peaks.squared[images, rows]
    labels = distances.masked_fill_(~is_center.unsqueeze(-1), torch.inf).argmin(1)
    labels = torch.nn.functional.pad(labels, (0, 1)).scatter(1, centers, slots.expand_as(centers))[:, :-1]
    soft_masks = None
    if squared_scale is not None:
        distances = squared_distances_to_centers(features, peaks.squared, rows)
        soft_masks = threshold_masks(distances, squared_scale, is_center)
    return _Candidates(rows, is_center, labels, soft_masks)


def _finished(found: _Candidates, scores, assignment, straight_through, grid_size) -> PatchClusters:
    """Drops empty clusters, brings the others in order and writes out their masks."""
    num_slots, num_patches = found.centers.shape[1], scores.shape[1]
    if assignment == "hard":
        sizes = torch.zeros_like(found.centers).scatter_add_(1, found.labels, torch.ones_like(found.labels))
        is_kept = sizes > 0
    else:
        # Masks of less than the rounding error of a sum over patches: of seeds in regions that are already taken.
        mass = found.soft_masks.detach().sum(-1)
        is_kept = found.is_real & (mass > num_patches * torch.finfo(mass.dtype).eps)
    positions = None
    if grid_size is not None:
        weights = None if assignment == "hard" else found.soft_masks.detach()
        positions = centers_of_mass(found.labels, weights, num_slots, grid_size, scores.dtype)
    order, mask, new_slot = kept_in_order(is_kept, positions)
    labels = new_slot.gather(1, found.labels)
    soft_masks: Any = None
    cluster_masks: Any = None
    if found.soft_masks is not None:
        index = order.unsqueeze(-1).expand(-1, -1, num_patches)
        soft_masks = cluster_masks = found.soft_masks.gather(1, index) * mask.unsqueeze(-1)
    if assignment == "hard":
        slots = torch.arange(order.shape[1], device=order.device)
        cluster_masks = (labels.unsqueeze(1) == slots.unsqueeze(-1)).to(scores.dtype)
        if straight_through:
            cluster_masks = cluster_masks + (soft_masks - soft_masks.detach())
    centers = found.centers.gather(1, order).masked_fill(~mask, -1)
    return PatchClusters(cluster_masks, labels, mask, centers, scores, soft_masks)


def squared_scale_of_images(
    kernel_scale: float | torch.Tensor, is_relative: bool, squared: torch.Tensor, hidden_size: int
) -> torch.Tensor:
    """
    σ² of each image.

    Args:
        kernel_scale (`float` or `torch.FloatTensor` of one element): σ.
        is_relative (`bool`): whether it counts in mean distances between the image's patches.
        squared (`torch.FloatTensor` of shape `(batch, num_patches, num_patches)`): ‖x_i - x_j‖².
        hidden_size (`int`): D.

    Returns:
        `torch.FloatTensor` of shape `(batch or 1, 1, 1)`.
    """
    squared_scale = torch.as_tensor(kernel_scale, dtype=squared.dtype, device=squared.device).square()
    squared_scale = squared_scale.reshape(1, 1, 1)
    if is_relative:
        mean_distance = squared.sqrt().mean((1, 2), keepdim=True)
        squared_scale = squared_scale * mean_distance.square() / hidden_size
    # Patches that are all alike are at distance 0, whatever the scale.
    return squared_scale.clamp(min=torch.finfo(squared_scale.dtype).tiny ** 0.5)


def _check(method, assignment, kernel_scale, min_tokens, max_tokens, grid_size, features) -> None:
    for name, value, choices in (
        ("method", method, ("iterative", "threshold")),
        ("assignment", assignment, ("hard", "soft")),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}: choose {choices[0]!r} or {choices[1]!r}.")
    if not 1 <= min_tokens <= max_tokens:
        raise ValueError(
            f"min_tokens={min_tokens} and max_tokens={max_tokens} are no bounds: 1 ≤ min_tokens ≤ max_tokens is "
            "needed."
        )
    if isinstance(kernel_scale, torch.Tensor):
        if kernel_scale.numel() != 1:
            raise ValueError(f"kernel_scale has shape {tuple(kernel_scale.shape)}, expected one number.")
        kernel_scale = kernel_scale.item()
    if not 0 < kernel_scale < math.inf:
        raise ValueError(f"kernel_scale is {kernel_scale}: the scale of a kernel is a number above 0.")
    if grid_size is not None and features.ndim == 3 and math.prod(grid_size) != features.shape[1]:
        raise ValueError(
            f"grid_size {grid_size[0]} × {grid_size[1]} has {math.prod(grid_size)} patches, the features are of "
            f"{features.shape[1]}."
        )


__all__ = [
    "Assignment",
    "Method",
    "PatchClusters",
    "cluster_patches",
    "given_clusters",
    "squared_scale_of_images",
]
