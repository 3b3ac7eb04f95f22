"""The visual token of a mask: what SeTok would make of an object if it were one cluster."""

from typing import Any

import torch

from .losses_segmentation import pairwise_soft_iou
from .patch_clusters import PatchClusters
from .setok_tokenizer import SeTokTokenizer


@torch.no_grad()
def merged_mask_tokens(
    tokenizer: SeTokTokenizer,
    patch_features: torch.Tensor,
    clusters: PatchClusters,
    grid_size: tuple[int, int],
    coverage: torch.Tensor,
) -> torch.Tensor:
    """
    Merges the patches of each mask as a cluster of their own, beside what is left of the clusters of the image: the
    token that the tokenizer would have had if it had found exactly this object. Where a cluster is the object, it is
    the token of this cluster.

    Args:
        tokenizer ([`SeTokTokenizer`]): whose merger is used.
        patch_features (`torch.FloatTensor` of shape `(num_masks, num_patches, hidden_size)`): of the image of each.
        clusters ([`PatchClusters`]): of the image of each mask.
        grid_size (`tuple[int, int]`): height and width of the images, in patches.
        coverage (`torch.FloatTensor` of shape `(num_masks, num_patches)`):
            How much of each patch the mask covers, 0 to 1. A patch is the object's from one half on; of an object
            that has half of no patch, where it has most.

    Returns:
        `torch.FloatTensor` of shape `(num_masks, token_size)`.

    Raises:
        ValueError: if a mask covers nothing.
    """
    _check(coverage)
    needed = coverage.amax(1, keepdim=True).clamp(max=0.5)
    inside = coverage >= needed
    others = clusters.cluster_masks * ~inside.unsqueeze(1)
    masks = torch.cat([others, inside.unsqueeze(1).to(others.dtype)], dim=1)
    last = clusters.mask.shape[1]
    with_object = PatchClusters(
        cluster_masks=masks,
        assignment=torch.where(inside, last, clusters.assignment),
        mask=(masks.sum(-1) > 0) & torch.cat([clusters.mask, clusters.mask.new_ones(len(masks), 1)], dim=1),
    )
    tokens, _ = tokenizer.merger(patch_features, with_object, grid_size)
    return tokens[:, -1]


@torch.no_grad()
def nearest_cluster_tokens(tokens: torch.Tensor, cluster_masks: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """
    The token of the cluster that overlaps most with each mask (soft IoU on the patch grid).

    Args:
        tokens (`torch.FloatTensor` of shape `(num_masks, num_tokens, token_size)`): of the image of each mask.
        cluster_masks (`torch.FloatTensor` of shape `(num_masks, num_tokens, num_patches)`): likewise.
        coverage (`torch.FloatTensor` of shape `(num_masks, num_patches)`): as in [`merged_mask_tokens`].

    Returns:
        `torch.FloatTensor` of shape `(num_masks, token_size)`.

    Raises:
        ValueError: if a mask covers nothing.
    """
    _check(coverage)
    best: Any = pairwise_soft_iou(cluster_masks, coverage.unsqueeze(1)).squeeze(2).argmax(1)
    return tokens[torch.arange(len(tokens), device=tokens.device), best]


def _check(coverage: torch.Tensor) -> None:
    empty = (coverage.amax(1) <= 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Masks {empty} are empty: a token stands for an object that covers at least a part of a patch."
        )


__all__ = ["merged_mask_tokens", "nearest_cluster_tokens"]
