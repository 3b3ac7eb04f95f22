"""Data with masks of objects (COCO's instances and panoptic segmentation, SA-1B)."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ..processing.mask_annotations import coco_panoptic_images, masked_images
from ..processing.object_masks import MaskedImage
from .cutouts import SPLITS
from .data_examples import FEATURES, image_file
from .data_formats import DataSource, known, register_data_format
from .photograph_scenes import render_photograph_scenes

MASKS = "masks"
"""Column that says where the masks of an image are: see [`masked_image_of`]."""


@register_data_format("object-masks")
def object_masks(
    source: DataSource, segmentations: str | None = None, things_only: bool = False, crowds: bool = True
) -> Dataset:
    """Images with masks of their objects, without text, as [`SeTokTrainer`] learns boundaries from them.

    Args:
        source (`DataSource`): `path` is `instances_*.json` or `panoptic_*.json` of COCO, what `vistok scenes` writes
            (`instances.json`, or its folder), or a folder of SA-1B. `images` is the folder of the images, by default
            `images` beside the file, or the folder of SA-1B.
        segmentations (`str`, *optional*): of panoptic segmentation the folder of the PNG files.
        things_only (`bool`): of panoptic segmentation: stuff, such as sky, is background and no object.
        crowds (`bool`): keep images in which a crowd is marked, whose pixels count neither as object nor background.

    Returns:
        one example per image, with the further column `masks`.

    Raises:
        FileNotFoundError: if a file, a folder or an image is missing.
        ValueError: if it is of none of these formats, or segmentations are given of one that has none.
    """
    path, images = _places(source)
    if segmentations is not None or things_only:
        found = coco_panoptic_images(path, images, segmentations, things_only)
    else:
        found = masked_images(path, images)
    if not crowds:
        found = [one for one in found if not any(item.get("iscrowd") for item in one.annotations)]
    columns: dict[str, list[Any]] = {name: [] for name in (*FEATURES, MASKS)}
    for row, one in enumerate(found):
        values: tuple[Any, ...] = (str(row), source.name, row, [image_file(str(one.file))], [], _packed(one))
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return Dataset.from_dict(columns, features=Features({**FEATURES, MASKS: Value("large_string")}))


@register_data_format("scene-masks")
def scene_masks(
    source: DataSource,
    num_scenes: int = 2000,
    scene_seed: int = 0,
    size: int = 112,
    num_classes: int = 24,
    plain_backgrounds: bool = False,
) -> Dataset:
    """Scenes of cut-outs over photographs with the exact masks of their objects, rendered once into the cache.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`, which share neither cut-outs nor
            photographs.
        num_scenes, size, num_classes: see [`render_photograph_scenes`].
        scene_seed (`int`): seed of the scenes.
        plain_backgrounds (`bool`): objects stand on one colour in place of photographs.

    Returns:
        examples as those of the format `object-masks`.
    """
    split = known("split of scene-masks", source.split or "train", SPLITS)
    folder = render_photograph_scenes(
        split, num_scenes, scene_seed, size, num_classes, plain_backgrounds=plain_backgrounds
    )
    return object_masks(dataclasses.replace(source, path=str(folder), images=None, split=None, options={}))


def masked_image_of(example: Mapping[str, Any]) -> MaskedImage | None:
    """
    Where the masks of an example's image are to be read.

    Args:
        example (`dict`): of the format `object-masks`, or of another one.

    Returns:
        [`MaskedImage`], or `None` of an example without masks.
    """
    if example.get(MASKS) is None:
        return None
    packed = json.loads(example[MASKS])
    panoptic = packed["panoptic_file"]
    return MaskedImage(
        Path(example["images"][0]["path"]),
        tuple(packed["size"]),
        tuple(packed["annotations"]),
        Path(packed["labels"]),
        {int(number): name for number, name in packed["categories"].items()},
        None if panoptic is None else Path(panoptic),
        packed["background"],
    )


def _packed(one: MaskedImage) -> str:
    used = {annotation.get("category_id") for annotation in one.annotations}
    packed = {
        "size": list(one.size),
        "annotations": list(one.annotations),
        "labels": str(one.labels),
        "categories": {number: name for number, name in one.categories.items() if number in used},
        "panoptic_file": None if one.panoptic_file is None else str(one.panoptic_file),
        "background": one.background,
    }
    return json.dumps(packed, separators=(",", ":"))


def _places(source: DataSource) -> tuple[Path, Path]:
    """The annotations, and the folder of the images."""
    if not isinstance(source.path, str):
        raise ValueError(f"data source {source.name!r} needs a file or a folder of masks as `path`: {source.path!r}.")
    path = Path(source.path).expanduser().absolute()
    if (path / "instances.json").is_file():
        path = path / "instances.json"
    default = path if path.is_dir() else path.parent / "images"
    return path, default if source.images is None else Path(source.images).expanduser().absolute()


__all__ = ["MASKS", "masked_image_of", "object_masks", "scene_masks"]
