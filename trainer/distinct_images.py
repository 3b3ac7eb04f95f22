"""Images of training examples, each once, for trainers that read no text."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Image, IterableDataset, List

from ..processing.images import image_key

IMAGE_COLUMNS = ("id", "source", "row", "images", "image")


def distinct_images(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    A row for each distinct image of training examples: many questions may be about one image, and one question about
    several. An image is known by its path or, where it has none, by its bytes.

    Args:
        dataset (`Dataset` or `IterableDataset`): training examples (see [`load_data_source`]), or any data set with a
            column `images`, lists of images, or `image`, one in each row. Of a stream, whose images nobody can
            compare, the first image of each example is taken.

    Returns:
        The same kind of data set with those of the columns `id`, `source`, `row`, and `images`, a list of one, or
        `image`. Images are not decoded.

    Raises:
        ValueError: if there is no such column, or there are no images in it.
    """
    column = _image_column(dataset)
    dataset = _undecoded(dataset, column)
    if isinstance(dataset, IterableDataset):
        dataset = dataset.filter(_has_images)
        return dataset if column == "image" else dataset.map(_first_image, remove_columns=_others(dataset))
    if len(dataset) == 0:  # said by whoever trains on it
        return dataset
    dataset = dataset.select_columns([name for name in IMAGE_COLUMNS if name in dataset.column_names])
    seen: set[Any] = set()
    rows, positions = [], []
    for row, images in enumerate(dataset[column]):
        for position, image in enumerate(images_in({column: images})):
            key = _identity(image)
            if key not in seen:
                seen.add(key)
                rows.append(row)
                positions.append(position)
    if not rows:
        raise ValueError("The data has no images: there is nothing to learn from.")
    chosen = dataset.select(rows)
    if column == "images" and (any(positions) or any(len(images) > 1 for images in chosen["images"])):
        numbered = chosen.add_column("_position", positions)
        chosen = numbered.map(_image_at, remove_columns="_position", load_from_cache_file=False)
    return chosen


def images_in(example: Mapping[str, Any]) -> list[Any]:
    """
    The images of an example.

    Args:
        example (`Mapping`): with a list `images`, or one `image`.
    """
    if example.get("images") is not None:
        return list(example["images"])
    return [] if example.get("image") is None else [example["image"]]


def _image_column(dataset: Dataset | IterableDataset) -> str:
    names = dataset.column_names
    if names is None or "images" in names:  # of some streams nothing is known
        return "images"
    if "image" not in names:
        raise ValueError(
            f"The data has the columns {', '.join(names) or 'none'}, and its images are looked for in `images`, "
            "lists of images, or `image`, one in each row: rename the column that holds them."
        )
    return "image"


def _undecoded(dataset: Any, column: str) -> Any:
    """Files as they are, which can be compared, and which data loader workers decode."""
    feature = (dataset.features or {}).get(column)
    if isinstance(feature, Image) and feature.decode:
        return dataset.cast_column(column, Image(decode=False))
    if isinstance(feature, List) and isinstance(feature.feature, Image) and feature.feature.decode:
        return dataset.cast_column(column, List(Image(decode=False)))
    return dataset


def _identity(image: Any) -> Any:
    if isinstance(image, Mapping):
        return image["path"] if image.get("bytes") is None else hashlib.sha256(image["bytes"]).digest()
    return os.fspath(image) if isinstance(image, str | os.PathLike) else image_key(image)


def _image_at(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": [example["images"][example["_position"]]]}


def _first_image(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": example["images"][:1]}


def _has_images(example: Mapping[str, Any]) -> bool:
    return bool(images_in(example))


def _others(dataset: IterableDataset) -> list[str]:
    return [name for name in dataset.column_names or [] if name not in IMAGE_COLUMNS]


__all__ = ["distinct_images", "images_in"]
