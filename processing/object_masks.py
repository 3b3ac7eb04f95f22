"""Ground-truth masks of the objects of an image: in pixels, by patch, and as a vision tower sees them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .coco_masks import decode_mask
from .images import BadSampleError, load_image

CROWD = "iscrowd"


@dataclass(frozen=True)
class ObjectMasks:
    """
    The objects of one image.

    Args:
        masks (`np.ndarray` of shape `(num_objects, height, width)` and dtype bool): in pixels; they may overlap.
        names (`tuple[str, ...]`): of their categories; `""` where there are none, as in SA-1B.
        ignored (`np.ndarray` of shape `(height, width)` and dtype bool): pixels of which nothing is known: crowds of
            COCO's instances, what panoptic annotators left out. They count neither as objects nor as background.
    """

    masks: np.ndarray
    names: tuple[str, ...]
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.masks.shape[1], self.masks.shape[2]


@dataclass(frozen=True)
class MaskedImage:
    """
    An image and where its masks are to be read.

    Args:
        file (`Path`): the image.
        size (`tuple[int, int]`): height and width in pixels, as annotated.
        annotations (`tuple[dict, ...]`): with `segmentation`, or segments of a panoptic PNG with their `id`.
        labels (`Path`): the file that the annotations are from, for errors.
        categories (`dict[int, str]`): names by id.
        panoptic_file (`Path`, *optional*): PNG whose colours are the ids of segments.
        background (`str`, *optional*): the photograph that a scene of `vistok scenes` is composed over.
    """

    file: Path
    size: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]
    labels: Path
    categories: Mapping[int, str] = field(default_factory=dict)
    panoptic_file: Path | None = None
    background: str | None = None

    def objects(self, skip_empty: bool = False) -> ObjectMasks:
        """
        Decodes the masks.

        Args:
            skip_empty (`bool`, *optional*, defaults to `False`): leave out masks without a pixel, which are an error
                otherwise.

        Returns:
            [`ObjectMasks`]: in the order of the annotations, without crowds, which are among the ignored pixels.

        Raises:
            BadSampleError: if a mask is of another size than the image, damaged or empty, or the panoptic PNG is
                missing; names the annotation.
        """
        segments = self._segments()
        ignored = np.zeros(self.size, dtype=bool) if segments is None else segments == 0
        masks: list[np.ndarray] = []
        names: list[str] = []
        for annotation in self.annotations:
            mask = self._decoded(annotation) if segments is None else segments == annotation["id"]
            if annotation.get(CROWD):
                ignored |= mask
                continue
            if not mask.any():
                if skip_empty:
                    continue
                raise self._error(
                    annotation, "its mask is empty: repair the file, or leave such masks out (--skip-empty)"
                )
            masks.append(mask)
            names.append(self.categories.get(annotation.get("category_id", -1), ""))
        stacked = np.stack(masks) if masks else np.zeros((0, *self.size), dtype=bool)
        return ObjectMasks(stacked, tuple(names), ignored)

    def image(self) -> Image.Image:
        """
        Reads the image as it is stored, which is what masks refer to: EXIF's orientation is not applied.

        Raises:
            BadSampleError: if it is missing, unreadable, or not of the annotated size.
        """
        image = load_image(self.file, apply_exif_orientation=False)
        if (image.height, image.width) != self.size:
            raise BadSampleError(
                f"the image has {image.height} × {image.width} pixels (height × width), and {self.labels} was made "
                f"for {self.size[0]} × {self.size[1]}: give the images that belong to it",
                str(self.file),
            )
        return image

    def _decoded(self, annotation: Mapping[str, Any]) -> np.ndarray:
        try:
            return decode_mask(annotation.get("segmentation"), self.size)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise self._error(annotation, str(error) or type(error).__name__) from error

    def _segments(self) -> np.ndarray | None:
        """Ids of segments by pixel: red + 256 green + 256² blue (cocodataset/panopticapi, panopticapi/utils.py)."""
        if self.panoptic_file is None:
            return None
        colours = np.asarray(load_image(self.panoptic_file, apply_exif_orientation=False)).astype(np.int64)
        if colours.shape[:2] != self.size:
            raise BadSampleError(
                f"the segmentation has {colours.shape[0]} × {colours.shape[1]} pixels (height × width) and its image "
                f"{self.size[0]} × {self.size[1]}",
                str(self.panoptic_file),
            )
        return colours @ np.array([1, 256, 65536])

    def _error(self, annotation: Mapping[str, Any], reason: str) -> BadSampleError:
        return BadSampleError(f"annotation {annotation.get('id')} of {self.file.name}: {reason}", str(self.labels))


def label_map(objects: ObjectMasks) -> np.ndarray:
    """
    One label for each pixel. Of masks that overlap the smallest has the pixel: a part lies on its whole, and a small
    object before a large one more often than behind it.

    Args:
        objects ([`ObjectMasks`]): of an image.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype int64: 0 for background, the number of an object, from 1, and
        −1 for ignored pixels that no object has.
    """
    labels = np.where(objects.ignored, -1, 0).astype(np.int64)
    areas = objects.masks.sum((1, 2))
    for number in sorted(range(len(objects)), key=lambda index: (-areas[index], index)):
        labels[objects.masks[number]] = number + 1
    return labels


def patch_coverage(masks: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray:
    """
    How much of each patch masks cover, exactly, also where a patch ends within a pixel.

    Args:
        masks (`np.ndarray` of shape `(num_masks, height, width)`): bool or weights.
        grid_size (`tuple[int, int]`): height and width of the image in patches.

    Returns:
        `np.ndarray` of shape `(num_masks, grid_height, grid_width)` and dtype float64, from 0 to 1.

    Raises:
        ValueError: if masks are no such array, or the grid is empty.
    """
    if masks.ndim != 3 or 0 in masks.shape[1:] or min(grid_size) < 1:
        raise ValueError(
            f"Masks of shape {masks.shape} cannot be pooled to {grid_size[0]} × {grid_size[1]} patches: expected "
            "(masks, height, width), and at least one patch."
        )
    rows, columns = (_overlaps(pixels, patches) for pixels, patches in zip(masks.shape[1:], grid_size))
    return np.clip(rows @ masks.astype(np.float64) @ columns.T, 0.0, 1.0)


def patch_labels(objects: ObjectMasks, grid_size: tuple[int, int]) -> np.ndarray:
    """
    One label for each patch: what most of its area is. Of equal shares background wins, then the lower number.

    Args:
        objects ([`ObjectMasks`]): of an image.
        grid_size (`tuple[int, int]`): height and width of the image in patches.

    Returns:
        `np.ndarray` of shape `(grid_height, grid_width)` and dtype int64: labels as [`label_map`] has them. An object
        that nowhere has most of a patch has none.
    """
    pixels = label_map(objects)
    numbers = [0, *range(1, len(objects) + 1), -1]
    shares = patch_coverage(np.stack([pixels == number for number in numbers]), grid_size)
    # Shares that are equal but for rounding are equal.
    return np.array(numbers)[np.round(shares, 9).argmax(0)]


def seen_objects(objects: ObjectMasks, image_processor: Any) -> ObjectMasks:
    """
    Masks as a vision tower sees their image: resized, cropped or padded by its image processor.

    Args:
        objects ([`ObjectMasks`]): of an image.
        image_processor: of transformers.

    Returns:
        [`ObjectMasks`]: of the size of its pixel values. Objects that are cut away keep their place, and are empty;
        the padding is background.

    Raises:
        ValueError: if the image processor changes the colours of what it moves.
    """
    layers = np.concatenate([objects.masks, objects.ignored[None]])
    moved = []
    for start in range(0, len(layers), 24):  # bits of the three channels of a picture
        some = layers[start : start + 24]
        bits = np.zeros((8 * 3, *objects.size), dtype=np.uint8)
        bits[: len(some)] = some
        colours = np.packbits(bits.reshape(3, 8, *objects.size), axis=1, bitorder="little")[:, 0]
        picture = Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))
        moved.append(_moved_bits(picture, image_processor)[: len(some)])
    layers = np.concatenate(moved)
    return ObjectMasks(layers[:-1], objects.names, layers[-1])


def _moved_bits(picture: Image.Image, image_processor: Any) -> np.ndarray:
    values = image_processor(
        images=[picture],
        return_tensors="np",
        do_rescale=False,
        do_normalize=False,
        resample=Image.Resampling.NEAREST,
        image_mean=[0.0, 0.0, 0.0],  # the colour of LLaVA's padding
        data_format="channels_first",
    )["pixel_values"]
    moved = np.asarray(values)[0]
    if moved.shape[0] != 3 or not np.isin(moved, np.arange(256)).all():
        raise ValueError(
            f"{type(image_processor).__name__} changes colours even without rescaling and normalisation, so it cannot "
            "be told where masks go: give an image processor that resizes, crops or pads."
        )
    planes = np.unpackbits(moved.astype(np.uint8)[:, None], axis=1, bitorder="little")
    return planes.reshape(24, *moved.shape[1:]).astype(bool)


def _overlaps(pixels: int, patches: int) -> np.ndarray:
    """Share of each patch that each pixel has along one axis, `(patches, pixels)`; rows sum to 1."""
    edges = np.arange(patches + 1) * (pixels / patches)
    places = np.arange(pixels)
    ends = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return np.clip(ends, 0, None) / (pixels / patches)


__all__ = ["MaskedImage", "ObjectMasks", "label_map", "patch_coverage", "patch_labels", "seen_objects"]
