"""What is measured of SeTok while it is trained: means of its losses, tokens per image, and cluster quality."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..configuration.configuration_setok import LOSS_TERMS
from ..evaluation.cluster_quality import image_quality, rank_correlation

COLUMNS = ("tokens", "objects", "ari", "iou_sum", "iou_count")
"""Of each image, behind sum and count of each term of the loss."""


def counts_of(outputs: Any, batch_size: int) -> dict[str, int]:
    """
    What each term of the loss is a mean over, in a batch.

    Args:
        outputs ([`SeTokForPreTrainingOutput`]): of the batch.
        batch_size (`int`): images.

    Returns:
        `dict[str, int]`: matched pairs, or images, of the terms that there are.
    """
    pairs = 0 if outputs.matches is None else outputs.matches.shape[1]
    found = {name for name in LOSS_TERMS if outputs.get(f"loss_{name}") is not None}
    return {name: pairs if name.startswith("mask_") else batch_size for name in LOSS_TERMS if name in found}


def image_rows(outputs: Any, num_objects: torch.Tensor | None, patch_labels: torch.Tensor | None) -> torch.Tensor:
    """
    What [`SeTokMetrics`] makes means of.

    Args:
        outputs ([`SeTokForPreTrainingOutput`]): of a batch.
        num_objects (`torch.LongTensor` of shape `(batch,)`, *optional*): of each image.
        patch_labels (`torch.LongTensor` of shape `(batch, num_patches)`, *optional*): see [`SeTokCollator`].

    Returns:
        `torch.DoubleTensor` of shape `(batch, 2 * num_terms + 5)`: sum and count of each term, in the row of the first
        image; then the columns `COLUMNS`, NaN where there are no masks.
    """
    batch_size = len(outputs.mask)
    terms = torch.zeros(batch_size, 2 * len(LOSS_TERMS), dtype=torch.float64)
    for name, count in counts_of(outputs, batch_size).items():
        place = 2 * LOSS_TERMS.index(name)
        terms[0, place] = float(outputs[f"loss_{name}"].detach()) * count
        terms[0, place + 1] = count
    rows = torch.full((batch_size, len(COLUMNS)), torch.nan, dtype=torch.float64)
    rows[:, 0] = outputs.mask.sum(1).cpu()
    if num_objects is not None and patch_labels is not None:
        rows[:, 1] = num_objects.cpu()
        for row, assignment, labels in zip(rows, outputs.assignment.cpu(), patch_labels.cpu()):
            if not bool((labels >= 0).any()):
                continue
            grid = labels == torch.arange(1, int(row[1]) + 1).unsqueeze(1)
            quality = image_quality("image", assignment, labels, grid.double())
            row[2], row[3], row[4] = quality.ari, sum(quality.ious), len(quality.ious)
    return torch.cat([terms, rows], dim=1)


def num_images(batch: Mapping[str, Any]) -> int:
    """
    How many images a batch has.

    Args:
        batch (`dict`): see [`SeTokCollator`].
    """
    return len(next(batch[name] for name in ("tokens", "patch_features", "pixel_values") if name in batch))


def num_own_images(batch_size: int, process_index: int, remainder: int) -> int:
    """
    How many images of a process's last batch are its own, at the front of it. Where processes do not divide a data set
    evenly, accelerate fills their last batches up with images that others have evaluated already, and drops what comes
    of these behind it; a mean over the batch would have counted them.

    Args:
        batch_size (`int`): images of the batch.
        process_index (`int`): of this process.
        remainder (`int`): images that all last batches together have of their own; 0 or less where these are whole.

    Returns:
        `int`: from 0 to `batch_size`.
    """
    return batch_size if remainder <= 0 else min(max(remainder - process_index * batch_size, 0), batch_size)


def first_images(inputs: Mapping[str, Any], number: int) -> dict[str, Any]:
    """
    A batch with its first images alone.

    Args:
        inputs (`dict`): see [`SeTokCollator`]; what is no tensor is of all images.
        number (`int`): how many.
    """
    return {name: value[:number] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


class SeTokMetrics:
    """
    Metrics of an evaluation: means of the terms of the loss; tokens per image, their rank correlation with the number
    of objects, adjusted Rand index and best IoU of clusters on the patch grid.

    Args:
        weights (`dict[str, float]`): of the terms in the total.
    """

    def __init__(self, weights: dict[str, float]):
        self.weights = dict(weights)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        rows = np.asarray(prediction.predictions, dtype=np.float64)
        terms, images = rows[:, : 2 * len(LOSS_TERMS)].sum(0), rows[:, 2 * len(LOSS_TERMS) :]
        means = {
            name: terms[2 * place] / terms[2 * place + 1]
            for place, name in enumerate(LOSS_TERMS)
            if terms[2 * place + 1] > 0
        }
        metrics = {f"loss_{name}": float(mean) for name, mean in means.items()}
        metrics["total_loss"] = float(sum(self.weights[name] * mean for name, mean in means.items()))
        return {**metrics, **image_metrics(images)}


def image_metrics(images: np.ndarray) -> dict[str, float]:
    """
    Tokens per image, and cluster quality.

    Args:
        images (`np.ndarray` of shape `(num_images, 5)`): with the columns `COLUMNS`.

    Returns:
        `dict[str, float]`: `tokens_mean`, `tokens_min`, `tokens_max`; where there are masks `objects_mean`,
        `tokens_rank_correlation` (unless one of the two is the same in all images), `ari` and `iou`.
    """
    if not len(images):
        return {}
    tokens, objects = images[:, 0], images[:, 1]
    found: dict[str, float] = {"tokens_mean": tokens.mean(), "tokens_min": tokens.min(), "tokens_max": tokens.max()}
    known = ~np.isnan(objects)
    if known.any():
        found["objects_mean"] = objects[known].mean()
        correlation = rank_correlation(tokens[known], objects[known])
        if correlation is not None:
            found["tokens_rank_correlation"] = correlation
    if not np.isnan(images[:, 2]).all():
        found["ari"] = np.nanmean(images[:, 2])
    if np.nansum(images[:, 4]) > 0:
        found["iou"] = np.nansum(images[:, 3]) / np.nansum(images[:, 4])
    return {name: float(value) for name, value in found.items()}


__all__ = [
    "COLUMNS",
    "SeTokMetrics",
    "counts_of",
    "first_images",
    "image_metrics",
    "image_rows",
    "num_images",
    "num_own_images",
]
