"""Data sets with masks of objects: COCO's instances and panoptic segmentation, and SA-1B."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .images import image_names
from .object_masks import MaskedImage

_COCO = {"images": ("id",), "annotations": ("image_id",), "categories": ("id", "name")}
_SA1B: dict[str, tuple[str, ...]] = {"image": (), "annotations": ()}


def coco_instance_images(annotations: str | os.PathLike, images: str | os.PathLike) -> list[MaskedImage]:
    """
    Images of a COCO instances file, such as `instances_val2017.json` or what `vistok scenes` writes.

    Args:
        annotations (`str`): JSON file with `images`, `annotations` and `categories`.
        images (`str`): folder of the images.

    Returns:
        `list[MaskedImage]`: in the order of the file; images without annotations are among them.

    Raises:
        FileNotFoundError: if the file, the folder or an image is missing.
        ValueError: if it is no COCO file, or an annotation is of no image.
    """
    file, folder = Path(annotations), _folder(images)
    document = _document(file, _COCO)
    of_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        if "segmentation" not in annotation:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} has no segmentation: give a file of instances, such as "
                "instances_val2017.json, and of panoptic segmentation coco_panoptic_images."
            )
        of_image[annotation["image_id"]].append(annotation)
    _check_known(file, of_image, document["images"])
    names = {category["id"]: str(category["name"]) for category in document["categories"]}
    found = [
        MaskedImage(
            folder / _file_name(record, file),
            _size(record, file),
            tuple(of_image[record["id"]]),
            file,
            names,
            background=record.get("background"),
        )
        for record in document["images"]
    ]
    return _existing(found, file)


def coco_panoptic_images(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    segmentations: str | os.PathLike | None = None,
    things_only: bool = False,
) -> list[MaskedImage]:
    """
    Images of a COCO panoptic file, such as `panoptic_val2017.json`.

    Args:
        annotations (`str`): JSON file with `images`, `annotations` (of each image a `file_name` and `segments_info`)
            and `categories`.
        images (`str`): folder of the images.
        segmentations (`str`, *optional*): folder of the PNG files; by default the one beside the JSON file that has
            its name.
        things_only (`bool`, *optional*, defaults to `False`): stuff, such as sky, is background and no object.

    Returns:
        `list[MaskedImage]`: one for each annotation.

    Raises:
        FileNotFoundError: if the file, a folder, an image or a PNG is missing.
        ValueError: if it is no COCO panoptic file, or an annotation is of no image.
    """
    file, folder = Path(annotations), _folder(images)
    drawn = _folder(segmentations if segmentations is not None else file.with_suffix(""))
    document = _document(file, _COCO)
    records = {record["id"]: record for record in document["images"]}
    _check_known(file, [annotation["image_id"] for annotation in document["annotations"]], document["images"])
    names = {category["id"]: str(category["name"]) for category in document["categories"]}
    things = {category["id"] for category in document["categories"] if category.get("isthing", 1)}
    found = []
    for annotation in document["annotations"]:
        if "segments_info" not in annotation:
            raise ValueError(f"{file} holds no panoptic segmentation: image {annotation['image_id']} has no segments.")
        _check_entries(file, f"segments_info of image {annotation['image_id']}", annotation["segments_info"], ("id",))
        record = records[annotation["image_id"]]
        segments = [one for one in annotation["segments_info"] if not things_only or one.get("category_id") in things]
        png = drawn / _file_name(annotation, file)
        place = folder / _file_name(record, file)
        found.append(MaskedImage(place, _size(record, file), tuple(segments), file, names, png))
    return _existing(found, file)


def sa1b_images(folder: str | os.PathLike, images: str | os.PathLike | None = None) -> list[MaskedImage]:
    """
    Images of SA-1B: beside each one a JSON file with its masks, as compressed run lengths.

    Args:
        folder (`str`): holds the JSON files, and folders of them.
        images (`str`, *optional*): folder of the images; by default they lie beside their JSON files.

    Returns:
        `list[MaskedImage]`: in the order of the files' names. Masks have no category, and may lie in each other.

    Raises:
        FileNotFoundError: if there is no such folder, no JSON file in it, or an image is missing.
        ValueError: if a JSON file is not of SA-1B.
    """
    files = sorted(file for file in _folder(folder).rglob("*.json") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"The folder {str(folder)!r} holds no JSON file with masks of SA-1B.")
    found = []
    for file in files:
        document = _document(file, _SA1B)
        place = (file.parent if images is None else _folder(images)) / _file_name(document["image"], file)
        found.append(MaskedImage(place, _size(document["image"], file), tuple(document["annotations"]), file))
    return _existing(found, files[0].parent)


def masked_images(annotations: str | os.PathLike, images: str | os.PathLike) -> list[MaskedImage]:
    """
    Images with masks in whichever of the formats above: a JSON file of COCO's instances or panoptic segmentation, or a
    folder of SA-1B.

    Args:
        annotations (`str`): file or folder.
        images (`str`): folder of the images.

    Returns:
        `list[MaskedImage]`

    Raises:
        FileNotFoundError, ValueError: as those that read the formats.
    """
    path = Path(annotations)
    if path.is_dir():
        return sa1b_images(path, images)
    document = _document(path, _COCO)
    is_panoptic = any("segments_info" in annotation for annotation in document["annotations"][:1])
    return (coco_panoptic_images if is_panoptic else coco_instance_images)(path, images)


def _document(file: Path, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A JSON object with these fields, whose entries have these fields in turn."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no annotation file {str(file)!r}.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON file, or a damaged one: {error}") from error
    missing = [name for name in fields if not isinstance(document, dict) or name not in document]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(map(repr, missing))}: expected a JSON object with these.")
    for name, keys in fields.items():
        _check_entries(file, name, document[name], keys)
    return document


def _check_entries(file: Path, name: str, entries: Any, keys: Sequence[str]) -> None:
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if lacking or not isinstance(entry, dict):
            raise ValueError(f"{file}: entry {number} of {name} lacks {', '.join(lacking) or 'all fields'}.")


def _folder(folder: str | os.PathLike) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    return path


def _file_name(record: Mapping[str, Any], file: Path) -> str:
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{file}: file_name of {record.get('id', record.get('image_id'))!r} is {name!r}.")
    return name


def _size(record: Mapping[str, Any], file: Path) -> tuple[int, int]:
    size = record.get("height"), record.get("width")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"{file}: height and width of {record.get('file_name')!r} are {size}, expected pixels.")
    return size  # type: ignore[return-value]


def _check_known(file: Path, image_ids: Any, records: Sequence[Mapping[str, Any]]) -> None:
    unknown = set(image_ids) - {record["id"] for record in records}
    if unknown:
        raise ValueError(f"{file} has annotations of {len(unknown)} images that it lacks, such as {min(unknown)!r}.")


def _existing(found: list[MaskedImage], source: Path) -> list[MaskedImage]:
    """What was found, if all of it is there; of one missing file of thousands the user is to know before the work."""
    if not found:
        raise ValueError(f"{source} has no images.")
    folders: dict[Path, set[str]] = {}
    for file in [file for one in found for file in (one.file, one.panoptic_file) if file is not None]:
        if file.parent not in folders:
            folders[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()
        if file.name not in folders[file.parent]:
            near = f", which holds {len(image_names(file.parent))} images" if file.parent.is_dir() else ""
            raise FileNotFoundError(f"There is no {str(file)!r}, which {source} names{near}: name the right folder.")
    return found


__all__ = ["coco_instance_images", "coco_panoptic_images", "masked_images", "sa1b_images"]
