"""Keeping evaluation images out of training data."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..evaluation.gvtbench_images import gvtbench_coco_images

OFFICIAL = "gvtbench"
"""What `exclude` calls the images of COCO val2017 that the official GVTBench questions are about."""

_FILE_SUFFIXES = (".json", ".jsonl", ".txt")


@dataclass(frozen=True)
class ImageSet:
    """Images by the stems of their file names, and by ids that a user listed.

    Args:
        stems (`frozenset[str]`): see [`image_stem`].
        ids (`frozenset[int | str]`): ids within the annotation file.
    """

    stems: frozenset[str] = frozenset()
    ids: frozenset[int | str] = frozenset()

    def holds(self, file_name: str, image_id: int | str | None = None) -> bool:
        """Whether an image is among them.

        Args:
            file_name (`str`): its file, with or without folders.
            image_id (`int` or `str`, *optional*): its id within its annotation file.

        Returns:
            `bool`: whether it is.
        """
        return image_stem(file_name) in self.stems or image_id in self.ids


def image_stem(file_name: str) -> str:
    """The part of a file name by which an image is recognised in another data set.

    Args:
        file_name (`str`): e.g. `"val2014/COCO_val2014_000000000139.jpg"`.

    Returns:
        `str`: without folders, suffix and the prefix of COCO's 2014 and 2015 releases: `"000000000139"`.
    """
    name = PurePosixPath(file_name.replace("\\", "/")).name
    stem = name.rsplit(".", 1)[0] if "." in name else name
    return re.sub(r"^COCO_(train|val|test)20\d\d_", "", stem)


def coco_stem(image_id: int) -> str:
    """The stem of an image of COCO, of whichever release: twelve digits."""
    return f"{image_id:012d}"


def official_images() -> ImageSet:
    """The images of COCO val2017 that the official GVTBench questions are about."""
    return ImageSet(frozenset(map(coco_stem, gvtbench_coco_images())))


def images_to_exclude(exclude: str | int | os.PathLike | Iterable[str | int | os.PathLike]) -> ImageSet:
    """Collects the images that are not to be trained on.

    Args:
        exclude (`str`, `int` or a list of them): each is `"gvtbench"`; a file of GVTBench, VQAv2 or POPE questions; a
            COCO-format file (its `images`); a `.txt` file with a file name or id on each line; the file name of an
            image; or an image id, which is taken as that of the annotation file and as that of COCO.

    Returns:
        `ImageSet`: the images.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is of none of these kinds.
    """
    items = [exclude] if isinstance(exclude, (str, int, os.PathLike)) else list(exclude)
    stems: set[str] = set()
    ids: set[int | str] = set()
    for item in items:
        if item == OFFICIAL:
            stems |= official_images().stems
        elif isinstance(item, int) and not isinstance(item, bool):
            stems.add(coco_stem(item))
            ids.add(item)
        elif not isinstance(item, (str, os.PathLike)):
            raise ValueError(f"exclude must list files, file names and image ids, got {item!r}.")
        elif Path(item).suffix.lower() in _FILE_SUFFIXES:
            listed = _images_of_file(Path(item).expanduser())
            stems |= listed.stems
            ids |= listed.ids
        else:
            stems.add(image_stem(os.fspath(item)))
    return ImageSet(frozenset(stems), frozenset(ids))


def _images_of_file(path: Path) -> ImageSet:
    if not path.is_file():
        raise FileNotFoundError(f"exclude names {path}, and there is no such file.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        numbers = frozenset(int(line) for line in lines if line.isdigit())
        return ImageSet(frozenset([*map(coco_stem, numbers), *map(image_stem, lines)]), numbers)
    records = _parsed(text, path)
    if isinstance(records, Mapping):
        records = next(
            (records[part] for part in ("images", "questions", "annotations") if part in records), [records]
        )
    found = [_stem_of_record(record) for record in records if isinstance(record, Mapping)]
    stems = frozenset(stem for stem in found if stem is not None)
    if not stems:
        raise ValueError(
            f"exclude names {path}, of whose records none says its image by 'file_name', 'image' or 'image_id'."
        )
    return ImageSet(stems)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            # POPE's .json files hold a record on each line.
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(f"exclude names {path}, which is not valid JSON ({error}).") from error


def _stem_of_record(record: Mapping[str, Any]) -> str | None:
    name = record.get("file_name") or record.get("image") or record.get("image_id")
    if isinstance(name, int):
        return coco_stem(name)
    if isinstance(name, str) and name:
        return image_stem(name)
    # An entry of `images` without a file name, as in LVIS.
    return coco_stem(record["id"]) if isinstance(record.get("id"), int) else None


__all__ = ["OFFICIAL", "ImageSet", "image_stem", "images_to_exclude", "official_images"]
