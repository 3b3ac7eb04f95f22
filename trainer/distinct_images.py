"""Images of training examples, each once, for trainers that read no text."""

import hashlib
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

IMAGE_COLUMNS = ("id", "source", "row", "images")


def distinct_images(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    A row for each distinct image of training examples: many questions may be about one image, and one question about
    several. An image is known by its path or, where it has none, by its bytes.

    Args:
        dataset (`Dataset` or `IterableDataset`): training examples (see [`load_data_source`]). Of a stream, whose
            images nobody can compare, the first image of each example is taken.

    Returns:
        The same kind of data set with the columns `id`, `source`, `row` and `images`, a list of one.

    Raises:
        ValueError: if there are no images.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.filter(_has_images).map(_first_image, remove_columns=_others(dataset))
    if len(dataset) == 0:  # said by whoever trains on it
        return dataset
    dataset = dataset.select_columns([name for name in IMAGE_COLUMNS if name in dataset.column_names])
    seen: set[Any] = set()
    rows, positions = [], []
    for row, images in enumerate(dataset["images"]):
        for position, image in enumerate(images or []):
            key = _identity(image)
            if key not in seen:
                seen.add(key)
                rows.append(row)
                positions.append(position)
    if not rows:
        raise ValueError("The data has no images: there is nothing to distil on.")
    chosen = dataset.select(rows)
    if any(positions) or any(len(images) > 1 for images in chosen["images"]):
        numbered = chosen.add_column("_position", positions)
        chosen = numbered.map(_image_at, remove_columns="_position", load_from_cache_file=False)
    return chosen


def _identity(image: Any) -> Any:
    if isinstance(image, Mapping):
        return image["path"] if image.get("bytes") is None else hashlib.sha256(image["bytes"]).digest()
    return id(image)


def _image_at(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": [example["images"][example["_position"]]]}


def _first_image(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": example["images"][:1]}


def _has_images(example: Mapping[str, Any]) -> bool:
    return bool(example.get("images"))


def _others(dataset: IterableDataset) -> list[str]:
    return [name for name in dataset.column_names or [] if name not in IMAGE_COLUMNS]


__all__ = ["distinct_images"]
