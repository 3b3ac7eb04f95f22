"""The order of clusters within an image, without the empty ones."""

import torch


def centers_of_mass(
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    num_clusters: int,
    grid_size: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """
    Where the centres of mass of clusters lie.

    Args:
        labels (`torch.LongTensor` of shape `(batch, num_patches)`): the cluster of each patch, in row-major order.
        weights (`torch.FloatTensor` of shape `(batch, num_clusters, num_patches)`, *optional*): soft masks to take
            in place of the labels.
        num_clusters (`int`): that labels may name.
        grid_size (`tuple[int, int]`): height and width of the image in patches.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_clusters, 2)`: row and column, in patches; (0, 0) of empty clusters.
    """
    grid = torch.cartesian_prod(*(torch.arange(length, device=labels.device, dtype=dtype) for length in grid_size))
    if weights is not None:
        mass = weights.sum(-1)
        sums = torch.stack([(weights * coordinate).sum(-1) for coordinate in grid.unbind(-1)], dim=-1)
    else:
        counts = torch.zeros(len(labels), num_clusters, device=labels.device, dtype=dtype)
        mass = counts.scatter_add(1, labels, torch.ones_like(labels, dtype=dtype))
        sums = torch.stack(
            [counts.scatter_add(1, labels, coordinate.expand_as(labels)) for coordinate in grid.unbind(-1)], dim=-1
        )
    return torch.where(mass.unsqueeze(-1) > 0, sums / mass.unsqueeze(-1), 0)


def kept_in_order(
    is_kept: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Brings the clusters that are kept to the front: in raster order of their positions, or in the order they are in.

    Args:
        is_kept (`torch.BoolTensor` of shape `(batch, num_slots)`): at least one of each image.
        positions (`torch.FloatTensor` of shape `(batch, num_slots, 2)`, *optional*): row and column of each.

    Returns:
        `tuple` of the slots in their new order, `(batch, num_clusters)`, with as many columns as the image with the
        most kept clusters needs; the mask of real ones, of the same shape; and where each slot went, `(batch,
        num_slots)`.
    """
    order = torch.arange(is_kept.shape[1], device=is_kept.device).expand_as(is_kept)
    for coordinate in () if positions is None else (positions[..., 1], positions[..., 0]):
        order = order.gather(1, coordinate.gather(1, order).argsort(dim=-1, stable=True))
    order = order.gather(1, (~is_kept).gather(1, order).int().argsort(dim=-1, stable=True))
    new_slot = torch.empty_like(order)
    new_slot.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    counts = is_kept.sum(-1, keepdim=True)
    num_clusters = int(counts.max())
    mask = torch.arange(num_clusters, device=order.device) < counts
    return order[:, :num_clusters], mask, new_slot


__all__ = ["centers_of_mass", "kept_in_order"]
