"""Losses of masks: binary cross-entropy, dice, and the consistency of clusters with objects (SeTok, stage I-b)."""

import torch
from torch import nn


def mask_bce_loss(mask_logits: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy of each mask, the mean over its points (SeTok, Section 2.2). Computed in float32, or in
    float64 if the logits are.

    Args:
        mask_logits (`torch.FloatTensor` of shape `(num_pairs, num_points)`): predicted masks, before the sigmoid.
        object_masks (`torch.Tensor` of shape `(num_pairs, num_points)`):
            What they should be, 0 to 1: how much of a point the object covers.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs,)`: in nats per point.

    Raises:
        ValueError: if the shapes do not agree.
    """
    logits, targets = _pairs(mask_logits, object_masks, "mask_logits")
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def mask_dice_loss(mask_logits: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    Dice loss of each mask, 1 − (2Σpy + 1) / (Σp + Σy + 1) with p the sigmoid of the logits and sums over its points
    (SeTok, Section 2.2). Computed in float32, or in float64 if the logits are.

    Args:
        mask_logits (`torch.FloatTensor` of shape `(num_pairs, num_points)`): predicted masks, before the sigmoid.
        object_masks (`torch.Tensor` of shape `(num_pairs, num_points)`): y, what they should be, 0 to 1.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs,)`.

    Raises:
        ValueError: if the shapes do not agree.
    """
    logits, targets = _pairs(mask_logits, object_masks, "mask_logits")
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)


def soft_iou(cluster_masks: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    Intersection over union of masks with values between 0 and 1, Σmy / Σ(m + y − my); 0 where both are empty.

    Args:
        cluster_masks (`torch.FloatTensor` of shape `(num_pairs, num_patches)`): m.
        object_masks (`torch.Tensor` of shape `(num_pairs, num_patches)`): y.

    Returns:
        `torch.FloatTensor` of shape `(num_pairs,)`.

    Raises:
        ValueError: if the shapes do not agree.
    """
    clusters, objects = _pairs(cluster_masks, object_masks, "cluster_masks")
    intersection = (clusters * objects).sum(-1)
    union = (clusters + objects - clusters * objects).sum(-1)
    return intersection / union.masked_fill(union == 0, 1)


def pairwise_soft_iou(cluster_masks: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    [`soft_iou`] of every cluster with every object of the same image, by one matrix product.

    Args:
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`): 0 to 1.
        object_masks (`torch.Tensor` of shape `(batch, num_objects, num_patches)`): 0 to 1.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_tokens, num_objects)`, in float32, or in float64 if the clusters are.

    Raises:
        ValueError: if batches or patches do not agree.
    """
    check_same_images(cluster_masks, object_masks, "cluster_masks", "num_patches")
    clusters = cluster_masks if cluster_masks.dtype == torch.float64 else cluster_masks.float()
    objects = object_masks.to(clusters.dtype)
    with torch.autocast(clusters.device.type, enabled=False):
        intersection = clusters @ objects.transpose(1, 2)
    union = clusters.sum(-1, keepdim=True) + objects.sum(-1).unsqueeze(1) - intersection
    return intersection / union.masked_fill(union == 0, 1)


def check_same_images(masks: torch.Tensor, object_masks: torch.Tensor, name: str, points: str) -> None:
    """
    Makes sure that masks of tokens and of objects can be compared, each with each, image by image.

    Args:
        masks (`torch.Tensor` of shape `(batch, num_tokens, num_points)`): of tokens.
        object_masks (`torch.Tensor` of shape `(batch, num_objects, num_points)`): of objects.
        name (`str`): what the first is called, for errors.
        points (`str`): what the number of their points is called.

    Raises:
        ValueError: if batches or points do not agree.
    """
    shapes = tuple(masks.shape), tuple(object_masks.shape)
    if any(len(shape) != 3 for shape in shapes) or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            f"{name} have the shape {shapes[0]} and object_masks {shapes[1]}: expected (batch, num_tokens, {points}) "
            f"and (batch, num_objects, {points})."
        )


def mask_consistency_loss(cluster_masks: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    Mask consistency: 1 − soft IoU of the attention mask of a cluster with the mask of its matched object on the patch
    grid, the mean over pairs (SeTok, Section 2.2). Computed in float32, or in float64 if the masks are.

    Args:
        cluster_masks (`torch.FloatTensor` of shape `(num_pairs, num_patches)`):
            Attention masks m of the matched clusters, 0 to 1.
        object_masks (`torch.Tensor` of shape `(num_pairs, num_patches)`):
            The matched object masks, 0 to 1: how much of a patch the object covers.

    Returns:
        `torch.Tensor`: a scalar; 0, with a gradient of 0, where there are no pairs.

    Raises:
        ValueError: if the shapes do not agree.
    """
    return mean_over_pairs(1 - soft_iou(cluster_masks, object_masks))


def mean_over_pairs(losses: torch.Tensor) -> torch.Tensor:
    """
    The mean of the losses of pairs; 0 where there are none, still part of the graph, so that processes which train
    together all run their backward passes.

    Args:
        losses (`torch.FloatTensor` of shape `(num_pairs,)`): a loss each.

    Returns:
        `torch.Tensor`: a scalar.
    """
    return losses.sum() / max(losses.numel(), 1)


def _pairs(predicted: torch.Tensor, target: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ValueError(
            f"{name} have the shape {tuple(predicted.shape)} and object_masks {tuple(target.shape)}: expected the "
            "same (num_pairs, num_points), with the masks of matched pairs in the same rows."
        )
    predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
    return predicted, target.to(predicted.dtype)


__all__ = [
    "check_same_images",
    "mask_bce_loss",
    "mask_consistency_loss",
    "mask_dice_loss",
    "mean_over_pairs",
    "pairwise_soft_iou",
    "soft_iou",
]
