"""Scores of masks that were predicted for expressions: cumulative and mean intersection over union."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .bootstrap import bootstrap_interval

PRECISION_THRESHOLDS = (0.5, 0.7, 0.9)


def mask_overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """
    How many pixels two masks share, and how many they have together.

    Args:
        prediction, target (`np.ndarray` of shape `(height, width)` and dtype bool): masks; 0 and 1 are taken too.

    Returns:
        `tuple[int, int]`: intersection and union, in pixels.

    Raises:
        ValueError: if their sizes differ, or a mask holds more than two values, such as logits that no threshold was
            applied to.
    """
    masks = [_boolean(mask, what) for mask, what in ((prediction, "predicted mask"), (target, "target mask"))]
    if masks[0].shape != masks[1].shape:
        raise ValueError(
            f"A predicted mask is of shape {masks[0].shape} and its target of {masks[1].shape}: resize the prediction "
            "to the image first, both must be of one (height, width)."
        )
    return int((masks[0] & masks[1]).sum()), int((masks[0] | masks[1]).sum())


def _boolean(mask: Any, what: str) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"A {what} is of shape {array.shape}, expected (height, width).")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"A {what} has values from {array.min()} to {array.max()}, expected true and false (0 and 1)."
        )
    return array.astype(bool)


def referring_segmentation_scores(
    predictions: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    images: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Scores masks that were predicted for referring expressions.

    cIoU is the sum of all intersections over the sum of all unions, in which large objects count more; gIoU is the
    mean IoU of expressions. An expression that nothing fits has an empty target: an empty prediction has the IoU 1
    there, any other 0 (dvlab-research/LISA, train_ds.py; Lai et al., LISA, Section 5.1; Liu et al., GRES, Section 3).

    Args:
        predictions, targets (`list[np.ndarray]`): boolean masks, `(height, width)` in pixels, one of each for an
            expression; sizes may differ between expressions.
        images (`list`, *optional*): the image of each expression, which are resampled as a whole for the intervals; by
            default each expression has its own.
        num_resamples (`int`, *optional*, defaults to 2000): of the bootstrap.
        seed (`int`, *optional*, defaults to 0): of the bootstrap.

    Returns:
        `dict`: `ciou`, `giou`, `precision_at_50`, `precision_at_70`, `precision_at_90` (share of IoU above it) and,
        where there are empty targets, `no_target_accuracy`; each `{"value", "interval"}`, from 0 to 1, with a 95 %
        bootstrap interval; `num_expressions` and `num_images`. `ciou` is `None` if all masks are empty.

    Raises:
        ValueError: if there are no expressions, not as many targets or images, or masks do not fit together; names the
            expression.
    """
    if not len(targets) or len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets: expected as many, and some.")
    places: list[Hashable] = list(range(len(targets)) if images is None else images)
    if len(places) != len(targets):
        raise ValueError(f"{len(places)} images for {len(targets)} expressions: give each expression its image.")
    overlaps = np.array(
        [_overlap_of(row, *masks) for row, masks in enumerate(zip(predictions, targets))], dtype=np.float64
    )
    shared, united = overlaps.T
    ious = np.where(united == 0, 1.0, shared / np.maximum(united, 1))

    def mean(values: np.ndarray, of: Sequence[Hashable]) -> dict[str, Any]:
        interval = bootstrap_interval(values, of, num_resamples=num_resamples, seed=seed)
        return {"value": float(values.mean()), "interval": interval}

    found: dict[str, Any] = {
        "ciou": _cumulative(overlaps, places, num_resamples, seed) if united.sum() else None,
        "giou": mean(ious, places),
    }
    for threshold in PRECISION_THRESHOLDS:
        found[f"precision_at_{round(100 * threshold)}"] = mean((ious > threshold).astype(np.float64), places)
    empty = np.array([not np.asarray(target).any() for target in targets])
    if empty.any():
        found["no_target_accuracy"] = mean(ious[empty], [place for place, is_empty in zip(places, empty) if is_empty])
    return {**found, "num_expressions": len(targets), "num_images": len(set(places))}


def _overlap_of(row: int, prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    try:
        return mask_overlap(prediction, target)
    except ValueError as error:
        raise ValueError(f"Expression {row}: {error}") from error


def _cumulative(overlaps: np.ndarray, places: list[Hashable], num_resamples: int, seed: int) -> dict[str, Any]:
    shared, united = overlaps.sum(0)

    def ratio(means: np.ndarray) -> np.ndarray:
        return means[..., 0] / np.maximum(means[..., 1], 1e-12)

    interval = bootstrap_interval(
        overlaps, places, num_resamples=num_resamples, seed=seed, bounds=None, statistic=ratio
    )
    return {"value": float(shared / united), "interval": interval}


__all__ = ["PRECISION_THRESHOLDS", "mask_overlap", "referring_segmentation_scores"]
