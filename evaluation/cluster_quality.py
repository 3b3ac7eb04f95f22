"""How well clusters of patches follow the objects of images: adjusted Rand index, best IoU, number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .bootstrap import bootstrap_interval

RAND_BOUNDS = (-0.5, 1.0)
MEASURES = ("ari", "ari_objects", "iou", "pixel_iou")
"""What [`summarise_quality`] has an interval of, beside the number of tokens."""


def adjusted_rand_index(
    assignment: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Adjusted Rand index of two partitions of the patches of each image, from the pairs of patches that both join, one
    joins, or none joins (Hubert and Arabie, Comparing partitions, 1985, with all pairs counted as integers):
    1 for equal partitions, 0 on average for independent ones, at least −0.5.

    Args:
        assignment (`torch.LongTensor` of shape `(batch, num_patches)`): cluster of each patch. Patches of −1, which
            belong to no token, are a cluster of their own.
        labels (`torch.LongTensor` of shape `(batch, num_patches)`): object of each patch.
        counted (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*): patches that count; all by default.

    Returns:
        `torch.DoubleTensor` of shape `(batch,)`: 1 where both partitions are the same, even if they are trivial (one
        cluster, or none of two patches), and NaN where no patch counts.

    Raises:
        ValueError: if shapes differ.
    """
    _check_shapes(assignment, labels, counted)
    counts = contingency(assignment, labels, counted)
    # Ordered pairs of different patches: joined by both, by one alone, by none. Integers below 2^53 for any image.
    total = counts.sum((1, 2))
    both = counts.square().sum((1, 2)) - total
    of_clusters = counts.sum(2).square().sum(1) - total
    of_labels = counts.sum(1).square().sum(1) - total
    clusters_alone, labels_alone = of_clusters - both, of_labels - both
    none = total * (total - 1) - both - clusters_alone - labels_alone
    denominator = of_labels * (labels_alone + none) + of_clusters * (clusters_alone + none)
    index = 2 * (both * none - clusters_alone * labels_alone) / denominator
    same = (clusters_alone == 0) & (labels_alone == 0)
    return torch.where(total == 0, torch.nan, torch.where(same, 1.0, index))


def contingency(assignment: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """
    How many patches each cluster shares with each object.

    Args:
        assignment, labels, counted: as in [`adjusted_rand_index`].

    Returns:
        `torch.DoubleTensor` of shape `(batch, num_clusters, num_labels)`: whole numbers, of clusters and labels from
        −1 on.
    """
    clusters, objects = (_one_hot(values) for values in (assignment, labels))
    if counted is not None:
        clusters = clusters * counted.unsqueeze(-1)
    return clusters.transpose(1, 2) @ objects


def _one_hot(values: torch.Tensor) -> torch.Tensor:
    if values.min() < -1:
        raise ValueError(f"A patch has the number {int(values.min())}, expected at least −1.")
    return torch.nn.functional.one_hot(values.long() + 1).double()


def best_cluster_ious(assignment: torch.Tensor, coverage: torch.Tensor, counted: torch.Tensor | None = None):
    """
    Of each object the best intersection over union with a cluster. Clusters are unions of whole patches, so that with
    the part of each patch that an object covers this is the exact IoU in pixels; with ones and zeros that on the grid.

    Args:
        assignment (`torch.LongTensor` of shape `(num_patches,)`): cluster of each patch; −1 for none.
        coverage (`torch.Tensor` of shape `(num_objects, num_patches)`): from 0 to 1.
        counted (`torch.BoolTensor` of shape `(num_patches,)`, *optional*): patches that count; all by default.

    Returns:
        `torch.DoubleTensor` of shape `(num_objects,)`: NaN for an object of which no patch shows anything.

    Raises:
        ValueError: if shapes differ, or coverage is not from 0 to 1.
    """
    if coverage.ndim != 2 or coverage.shape[1:] != assignment.shape:
        raise ValueError(
            f"coverage is of shape {tuple(coverage.shape)} and the assignment of {tuple(assignment.shape)}: expected "
            "(objects, patches) and (patches)."
        )
    if coverage.numel() and not (coverage.min() >= 0 and coverage.max() <= 1):
        raise ValueError(f"coverage is from {coverage.min()} to {coverage.max()}, expected from 0 to 1.")
    clusters = _one_hot(assignment)[:, 1:]
    objects = coverage.double()
    if counted is not None:
        clusters, objects = clusters * counted.unsqueeze(-1), objects * counted
    shared = objects @ clusters
    areas = objects.sum(1, keepdim=True)
    united = areas + clusters.sum(0) - shared
    if not clusters.shape[1]:
        return torch.where(areas[:, 0] > 0, 0.0, torch.nan)
    best = (shared / united.clamp_min(1e-300)).amax(1)
    return torch.where(areas[:, 0] > 0, best, torch.nan)


@dataclass(frozen=True)
class ImageQuality:
    """
    How well the clusters of one image follow its objects.

    Args:
        image (`str`): its name.
        num_objects (`int`): in the ground truth.
        num_tokens (`int`): clusters.
        ari (`float`): adjusted Rand index over all patches, where background is one more object.
        ari_objects (`float` or `None`): over patches of objects alone; `None` with fewer than two objects that have a
            patch, of which no partition can be wrong or right.
        ious (`tuple[float, ...]`): best IoU of each object that has most of a patch, on the grid.
        pixel_ious (`tuple[float, ...]`): best IoU of each object, in pixels.
        group (`str`, *optional*): what it shares with other images, such as the photograph behind its objects.
    """

    image: str
    num_objects: int
    num_tokens: int
    ari: float
    ari_objects: float | None
    ious: tuple[float, ...]
    pixel_ious: tuple[float, ...]
    group: str | None = None


def image_quality(
    image: str, assignment: torch.Tensor, labels: torch.Tensor, coverage: torch.Tensor, group: str | None = None
) -> ImageQuality:
    """
    Compares clusters with objects.

    Args:
        image (`str`): its name.
        assignment (`torch.LongTensor` of shape `(num_patches,)`): cluster of each patch; −1 for none.
        labels (`torch.LongTensor` of shape `(num_patches,)`): from [`patch_labels`]: −1 ignored, 0 background, objects
            from 1 on.
        coverage (`torch.Tensor` of shape `(num_objects, num_patches)`): from [`patch_coverage`].
        group (`str`, *optional*): as in [`ImageQuality`].

    Returns:
        [`ImageQuality`].

    Raises:
        ValueError: if shapes differ, or all patches are ignored.
    """
    known = labels >= 0
    if not known.any():
        raise ValueError(f"{image}: all patches are ignored, so there is nothing to compare clusters with.")
    objects = labels >= 1
    num_seen = len(labels[objects].unique())
    grid_masks = labels == torch.arange(1, len(coverage) + 1, device=labels.device).unsqueeze(1)
    of_objects = adjusted_rand_index(assignment[None], labels[None], objects[None]).item() if num_seen > 1 else None
    return ImageQuality(
        image,
        num_objects=len(coverage),
        num_tokens=len(assignment[assignment >= 0].unique()),
        ari=adjusted_rand_index(assignment[None], labels[None], known[None]).item(),
        ari_objects=of_objects,
        ious=_numbers(best_cluster_ious(assignment, grid_masks.double(), known)),
        pixel_ious=_numbers(best_cluster_ious(assignment, coverage, known)),
        group=group,
    )


def _numbers(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(value for value in values.tolist() if value == value)


def summarise_quality(
    qualities: Sequence[ImageQuality], num_resamples: int = 2000, seed: int = 0, by_group: bool = False
) -> dict[str, Any]:
    """
    Means over images, with 95 % bootstrap intervals over whole images.

    Args:
        qualities (`list[ImageQuality]`): of the same clustering.
        num_resamples (`int`, *optional*, defaults to 2000): of the bootstrap.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.
        by_group (`bool`, *optional*, defaults to `False`): resample whole groups of images: what an interval then
            says holds of other groups too, such as photographs that no image had behind its objects.

    Returns:
        `dict`: `ari` and `ari_objects`, means over images; `iou` and `pixel_iou`, means over objects; `num_tokens`,
        mean over images; `rank_correlation` of tokens and objects, each `{"value", "interval"}`, `None` where it is
        not defined; and `num_images`, `num_objects`, `token_counts` from [`token_count_statistics`].

    Raises:
        ValueError: if there are no images.
    """
    if not qualities:
        raise ValueError("There are no images to summarise.")
    measured: dict[str, list[tuple[str, float]]] = {name: [] for name in (*MEASURES, "num_tokens")}
    places: list[str] = []
    for number, quality in enumerate(qualities):
        name = quality.group if by_group and quality.group is not None else f"{number} {quality.image}"
        places.append(name)
        measured["ari"].append((name, quality.ari))
        measured["num_tokens"].append((name, quality.num_tokens))
        if quality.ari_objects is not None:
            measured["ari_objects"].append((name, quality.ari_objects))
        measured["iou"] += [(name, value) for value in quality.ious]
        measured["pixel_iou"] += [(name, value) for value in quality.pixel_ious]
    tokens, objects = [one.num_tokens for one in qualities], [one.num_objects for one in qualities]
    bounds = {"ari": RAND_BOUNDS, "ari_objects": RAND_BOUNDS, "num_tokens": None}
    found: dict[str, Any] = {
        name: _mean(values, bounds.get(name, (0.0, 1.0)), num_resamples, seed) for name, values in measured.items()
    }
    return {
        **found,
        "rank_correlation": rank_correlation_interval(tokens, objects, num_resamples, seed, places),
        "num_images": len(qualities),
        "num_objects": sum(objects),
        "token_counts": token_count_statistics(tokens),
    }


def _mean(values, bounds, num_resamples: int, seed: int) -> dict[str, Any] | None:
    if not values:
        return None
    numbers = [value for _, value in values]
    interval = bootstrap_interval(
        numbers, [name for name, _ in values], num_resamples=num_resamples, seed=seed, bounds=bounds
    )
    return {"value": float(np.mean(numbers)), "interval": interval}


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """
    Spearman's rank correlation: that of ranks, where equal values share the mean of their ranks.

    Args:
        first, second (`list[float]`): as many values.

    Returns:
        `float` or `None`: from −1 to 1; `None` where one of them is constant, or there are fewer than two.

    Raises:
        ValueError: if there are not as many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be correlated: expected as many.")
    if len(first) < 2:
        return None
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = np.sqrt(np.prod([(rank**2).sum() for rank in centred]))
    return float(centred[0] @ centred[1] / spread) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[places]


def rank_correlation_interval(
    first: Sequence[float],
    second: Sequence[float],
    num_resamples: int = 2000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """
    [`rank_correlation`] with its 95 % interval: ranks are taken anew in each resample of the pairs.

    Args:
        first, second (`list[float]`): of each image.
        num_resamples, seed: of the bootstrap.
        groups (`list[str]`, *optional*): of the images, to be resampled together; by default each its own.

    Returns:
        `dict` or `None`: `value` and `interval`, which is `None` where a tenth of the resamples or more have none.
    """
    value = rank_correlation(first, second)
    if value is None:
        return None
    generator = np.random.default_rng(seed)
    pairs = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    numbers = np.unique(np.arange(len(first)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    draws = (generator.integers(0, len(members), len(members)) for _ in range(num_resamples))
    drawn = (pairs[:, np.concatenate([members[number] for number in numbers])] for numbers in draws)
    defined = [one for one in (rank_correlation(*pair) for pair in drawn) if one is not None]
    if not defined or len(defined) <= 0.9 * num_resamples:
        return {"value": value, "interval": None}
    low, high = np.quantile(defined, [0.025, 0.975])
    return {"value": value, "interval": [float(min(low, value)), float(max(high, value))]}


def token_count_statistics(counts: Sequence[int]) -> dict[str, Any]:
    """
    How many tokens images have.

    Args:
        counts (`list[int]`): of each image.

    Returns:
        `dict`: `mean`, `std`, `min`, `median`, `max`, and `histogram`, how many images have each number.

    Raises:
        ValueError: if there are no images.
    """
    if not len(counts):
        raise ValueError("There are no images whose tokens could be counted.")
    numbers = np.asarray(counts)
    values, times = np.unique(numbers, return_counts=True)
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "min": int(numbers.min()),
        "median": float(np.median(numbers)),
        "max": int(numbers.max()),
        "histogram": {int(value): int(number) for value, number in zip(values, times)},
    }


def _check_shapes(assignment: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor | None) -> None:
    shapes = [tuple(one.shape) for one in (assignment, labels, counted) if one is not None]
    if assignment.ndim != 2 or len(set(shapes)) != 1 or not assignment.numel():
        raise ValueError(f"Assignment and labels are of shapes {shapes}: expected the same (batch, patches) of all.")


__all__ = [
    "MEASURES",
    "ImageQuality",
    "adjusted_rand_index",
    "best_cluster_ious",
    "contingency",
    "image_quality",
    "rank_correlation",
    "rank_correlation_interval",
    "summarise_quality",
    "token_count_statistics",
]
