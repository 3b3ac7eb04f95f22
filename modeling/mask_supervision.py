"""What masks of objects teach SeTok (stage I-b): predicted masks are matched to objects, and both losses follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .losses_segmentation import (
    mask_bce_loss,
    mask_consistency_loss,
    mask_dice_loss,
    mean_over_pairs,
    pairwise_soft_iou,
)
from .mask_matching import match_masks, pairwise_mask_costs
from .object_mask_batches import batch_object_masks, resize_object_masks


@dataclass(frozen=True)
class MaskLosses:
    """
    The three losses of stage I-b, each a mean over matched pairs, and these pairs.

    Args:
        bce (`torch.Tensor`): scalar, binary cross-entropy in nats per point.
        dice (`torch.Tensor`): scalar, dice loss.
        consistency (`torch.Tensor`): scalar, mask consistency.
        matches (`torch.LongTensor` of shape `(3, num_pairs)`): image, token and object of each pair.
    """

    bce: torch.Tensor
    dice: torch.Tensor
    consistency: torch.Tensor
    matches: torch.Tensor


def mask_losses(
    mask_logits: torch.Tensor,
    token_mask: torch.Tensor,
    cluster_masks: torch.Tensor,
    grid_size: tuple[int, int],
    mask_labels: Sequence[torch.Tensor] | torch.Tensor,
    image_size: tuple[int, int],
    assigned_masks: torch.Tensor | None = None,
    cluster_matching_weight: float = 0.0,
    match: Callable[..., Any] = match_masks,
) -> MaskLosses:
    """
    Matches tokens to objects by their predicted masks, one to one (Hungarian, cost BCE + dice, and what
    `cluster_matching_weight` adds), and compares the matched ones: predicted masks by BCE and dice, clusters by mask
    consistency (SeTok, Section 2.2). Tokens that are left over take no loss; where objects are left over, because
    there are more of them than tokens, neither do these. Empty masks are no objects.

    Args:
        mask_logits (`torch.FloatTensor` of shape `(batch, num_tokens, height, width)`): before the sigmoid.
        token_mask (`torch.BoolTensor` of shape `(batch, num_tokens)`): True at real tokens.
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`):
            Attention masks of the clusters; the soft ones where there are some, which have a gradient.
        grid_size (`tuple[int, int]`): height and width of the images, in patches.
        mask_labels (`list[torch.Tensor]` or `torch.Tensor`): see [`batch_object_masks`].
        image_size (`tuple[int, int]`): height and width of the images, in pixels.
        assigned_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
            Patches that each token is made of; by default the attention masks.
        cluster_matching_weight (`float`, *optional*, defaults to 0.0):
            Of 1 − IoU of `assigned_masks` with objects in the cost, in addition. Not in the paper.
        match (`Callable`, *optional*): finds the pairs, with the arguments and the result of [`match_masks`].

    Returns:
        [`MaskLosses`]; all 0, with a gradient of 0, where there is no object in the whole batch.

    Raises:
        ValueError: if the masks are not those of the images, or of another size.
    """
    masks, present = batch_object_masks(mask_labels, image_size, len(mask_logits))
    device = mask_logits.device
    objects = resize_object_masks(masks, (mask_logits.shape[-2], mask_logits.shape[-1])).flatten(2).to(device)
    objects_on_grid = resize_object_masks(masks, grid_size).flatten(2).to(device)
    predicted = mask_logits.flatten(2)
    costs = pairwise_mask_costs(predicted, objects)
    if cluster_matching_weight:
        assigned = (cluster_masks if assigned_masks is None else assigned_masks).detach()
        costs = costs + cluster_matching_weight * (1 - pairwise_soft_iou(assigned, objects_on_grid))
    image, token, target = match(costs, token_mask, present.to(device))
    matched, matched_objects = predicted[image, token], objects[image, target]
    return MaskLosses(
        bce=mean_over_pairs(mask_bce_loss(matched, matched_objects)),
        dice=mean_over_pairs(mask_dice_loss(matched, matched_objects)),
        consistency=mask_consistency_loss(cluster_masks[image, token], objects_on_grid[image, target]),
        matches=torch.stack([image, token, target]),
    )


__all__ = ["MaskLosses", "mask_losses"]
