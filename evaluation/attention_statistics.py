"""Numbers beside attention maps (GVT, Figure 3): how much heads differ, and how much attention lies on objects."""

import itertools
from collections.abc import Sequence

import numpy as np


def head_divergence(attention: np.ndarray) -> float:
    """
    Mean pairwise divergence between heads: the Jensen-Shannon divergence of the maps of one query in two heads,
    averaged over pairs of heads and over queries.

    Args:
        attention (`np.ndarray` of shape `(num_heads, num_queries, grid_height, grid_width)`):
            From [`query_attention`]. Each map is scaled to sum to 1 over the patches.

    Returns:
        `float`: in bits, from 0 (all heads look alike) to 1 (no two heads look at the same patch).

    Raises:
        ValueError: if there are fewer than two heads, or a map is no distribution over patches.
    """
    maps = _distributions(attention)
    if len(maps) < 2:
        raise ValueError(f"Divergence between heads needs at least 2 heads, got {len(maps)}.")
    pairs = itertools.combinations(range(len(maps)), 2)
    return float(np.mean([jensen_shannon(maps[one], maps[other]) for one, other in pairs]))


def jensen_shannon(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Jensen-Shannon divergence of distributions.

    Args:
        first, second (`np.ndarray` of shape `(..., num_outcomes)`): not negative, each row sums to 1.

    Returns:
        `np.ndarray` of shape `(...)`: in bits, between 0 and 1.
    """
    middle = (first + second) / 2
    return (_relative_entropy(first, middle) + _relative_entropy(second, middle)) / 2


def _relative_entropy(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    ratio = np.divide(one, other, out=np.ones_like(one), where=one > 0)
    return (one * np.log2(ratio)).sum(-1)


def share_in_mask(attention: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """
    The share of attention that lies on objects.

    Args:
        attention (`np.ndarray` of shape `(..., grid_height, grid_width)`): maps.
        mask (`np.ndarray` of shape `(grid_height, grid_width)`): the share of each patch that is covered by objects,
            from [`mask_on_grid`]. Its mean is what attention that is spread evenly would reach.

    Returns:
        `np.ndarray` of shape `(...)`: between 0 and 1.

    Raises:
        ValueError: if the grids differ, or a map is no distribution over patches.
    """
    if attention.shape[-2:] != mask.shape:
        raise ValueError(f"The attention has a grid of {attention.shape[-2:]} and the mask one of {mask.shape}.")
    return (_distributions(attention) * mask.reshape(-1)).sum(-1)


def mask_on_grid(mask: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray:
    """
    Brings a mask from pixels to patches.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): of the image as the model sees it; true or 1 on objects.
        grid_size (`tuple[int, int]`): height and width of the image in patches.

    Returns:
        `np.ndarray` of shape `grid_size`: the share of each patch that the mask covers.

    Raises:
        ValueError: if the mask is no whole number of patches high and wide.
    """
    height, width = mask.shape
    if height % grid_size[0] or width % grid_size[1]:
        raise ValueError(
            f"A mask of {height} × {width} pixels cannot be divided into {grid_size[0]} × {grid_size[1]}."
        )
    patches = mask.reshape(grid_size[0], height // grid_size[0], grid_size[1], width // grid_size[1])
    return patches.astype(np.float64).mean((1, 3))


def attention_numbers(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """
    What is told beside a figure of attention maps, image by image.

    Args:
        maps (`list[np.ndarray]`): of each image, `(num_heads, num_queries, grid_height, grid_width)`.
        masks (`list[np.ndarray]`): of each image, from [`mask_on_grid`].

    Returns:
        `dict[str, list[float]]`: for each image `head_divergence` (bits), `share_in_masks` (mean over heads and
        queries) and `mask_area`, its floor.

    Raises:
        ValueError: if there is not a mask for each image.
    """
    if len(maps) != len(masks) or not maps:
        raise ValueError(f"{len(maps)} attention maps and {len(masks)} masks were given, expected one for each image.")
    return {
        "head_divergence": [head_divergence(of_image) for of_image in maps],
        "share_in_masks": [float(share_in_mask(of_image, mask).mean()) for of_image, mask in zip(maps, masks)],
        "mask_area": [float(mask.mean()) for mask in masks],
    }


def _distributions(attention: np.ndarray) -> np.ndarray:
    """Maps as distributions over patches, in float64."""
    flat = np.asarray(attention, dtype=np.float64).reshape(*attention.shape[:-2], -1)
    sums = flat.sum(-1, keepdims=True)
    if not np.isfinite(flat).all() or (flat < 0).any() or (sums <= 0).any():
        raise ValueError("An attention map is negative, not finite or zero on all patches: it is no distribution.")
    return flat / sums


__all__ = [
    "attention_numbers",
    "head_divergence",
    "jensen_shannon",
    "mask_on_grid",
    "share_in_mask",
]
