"""Masks of COCO's instances: run lengths, compressed or not, and polygons, as boolean arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """
    Decodes the `segmentation` of an annotation.

    Args:
        segmentation (`dict` or `list`): run lengths `{"size", "counts"}`, whose counts are a list or COCO's text, or
            polygons `[[x0, y0, x1, y1, …], …]` in pixels.
        size (`tuple[int, int]`): height and width of the image in pixels.

    Returns:
        `np.ndarray` of shape `size` and dtype bool.

    Raises:
        ValueError: if it is neither, or of an image of another size.
    """
    if isinstance(segmentation, Mapping):
        if tuple(segmentation.get("size") or ()) != tuple(size):
            raise ValueError(f"A mask is of size {segmentation.get('size')} and its image of {list(size)}.")
        counts = segmentation["counts"]
        return _from_runs(_read_counts(counts) if isinstance(counts, (str, bytes)) else counts, size)
    if isinstance(segmentation, (list, tuple)) and all(isinstance(polygon, (list, tuple)) for polygon in segmentation):
        return _from_polygons(segmentation, size)
    raise ValueError(f"segmentation is a {type(segmentation).__name__}, expected run lengths or a list of polygons.")


def _from_runs(counts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Runs of background and object in turns, down the columns."""
    height, width = size
    if sum(counts) != height * width:
        raise ValueError(f"The runs of a mask add up to {sum(counts)} pixels, expected {height} × {width}.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _read_counts(text: str | bytes) -> list[int]:
    """
    COCO's compressed counts: numbers in groups of five bits, lowest first, a sixth says that more follow; from the
    third on they are differences to the last but one. (cocodataset/cocoapi, common/maskApi.c.)
    """
    codes = text.encode() if isinstance(text, str) else text
    counts: list[int] = []
    value, shift = 0, 0
    for code in codes:
        group = code - 48
        if not 0 <= group < 64:
            raise ValueError(f"{chr(code)!r} is no character of compressed run lengths.")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift  # negative numbers
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts


def _from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies in one of the polygons; pixel 0 is from 0 to 1."""
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"A polygon has {len(polygon)} numbers, expected at least three points of two each.")
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("A polygon has a coordinate that is not finite.")
        mask |= _filled(points, size)
    return mask


def _filled(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Even-odd rule along the centres of rows: every edge that a row meets turns what is to the right of it."""
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    centres = np.arange(size[0]) + 0.5
    meets = (y <= centres[:, None]) != (next_y <= centres[:, None])
    rows, edges = np.nonzero(meets)
    part = (centres[rows] - y[edges]) / (next_y - y)[edges]
    crossings = x[edges] + part * (next_x - x)[edges]
    columns = np.clip(np.ceil(crossings - 0.5), 0, size[1]).astype(np.int64)
    turns = np.zeros((size[0], size[1] + 1), dtype=np.int64)
    np.add.at(turns, (rows, columns), 1)
    return turns.cumsum(1)[:, :-1] % 2 == 1


__all__ = ["decode_mask"]
