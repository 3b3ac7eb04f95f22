"""Which objects images hold, from COCO-format instances files, Objects365 and OpenImages."""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .json_arrays import json_members

# Fields of LVIS' images: classes known to be absent, and classes of which not every object has an annotation.
_NEGATIVE = "neg_category_ids"
_NOT_EXHAUSTIVE = "not_exhaustive_category_ids"


@dataclass
class ObjectLabels:
    """The objects of one image.

    Args:
        image_id (`int` or `str`): its identity in the annotation file.
        file_name (`str`): its file.
        counts (`dict[str, int]`): number of objects by class, in the order of the annotations.
        doubtful (`set[str]`): classes whose number is not known, because a box holds a group of them or a picture of
            one.
        absent (`list[str]`, *optional*): classes known to be absent; `None` if every other class is.
        problem (`str`, *optional*): why the labels cannot be used.
    """

    image_id: int | str
    file_name: str
    counts: dict[str, int] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    absent: list[str] | None = None
    problem: str | None = None


@dataclass
class LabelledImages:
    """The images of an annotation file.

    Args:
        classes (`list[str]`): names of all classes, as the file spells them.
        images (`list[ObjectLabels]`): the images, in the order of the file.
        above (`dict[str, set[str]]`): the classes that an object of a class belongs to as well (a dog is an animal):
            where it is present, they are not absent.
    """

    classes: list[str]
    images: list[ObjectLabels]
    above: dict[str, set[str]] = field(default_factory=dict)


def read_instances(path: str | os.PathLike) -> LabelledImages:
    """Reads a COCO-format instances file, such as COCO's, LVIS', Objects365's or that of `vistok scenes`.

    Only the labels are held in memory. Of a class with a crowd region (`iscrowd`), or in Objects365 a picture or a
    mirror image of an object (`isfake`, `isreflected`), the number is doubtful. Images of LVIS say which few classes
    were looked for: absent are those of `neg_category_ids` only, and the number of one of
    `not_exhaustive_category_ids`, not all of whose objects have annotations, is doubtful (Gupta et al.: LVIS
    is a federated dataset). Both hold for the images of any file that have one of these fields.

    Args:
        path (`str`): JSON file with `images`, `annotations` and `categories`.

    Returns:
        `LabelledImages`: its images, also those without objects.

    Raises:
        ValueError: if it is not such a file.
    """
    names: dict[Any, str] = {}
    images: dict[Any, ObjectLabels] = {}
    found: dict[Any, dict[Any, int]] = defaultdict(dict)
    doubtful: dict[Any, set[Any]] = defaultdict(set)
    negative: dict[Any, list[Any]] = {}
    met = set()
    for member, element in json_members(path):
        met.add(member)
        if member == "categories":
            names[element["id"]] = str(element["name"])
        elif member == "images":
            # LVIS gives the address of an image instead of its file's name.
            name = element.get("file_name") or PurePosixPath(str(element.get("coco_url") or "")).name
            problem = None if name else "the image has no 'file_name'"
            images[element["id"]] = ObjectLabels(element["id"], str(name), problem=problem)
            if any(element.get(key) is not None for key in (_NEGATIVE, _NOT_EXHAUSTIVE)):
                negative[element["id"]] = _category_ids(element, _NEGATIVE, path)
                doubtful[element["id"]].update(_category_ids(element, _NOT_EXHAUSTIVE, path))
        elif member == "annotations":
            if not isinstance(element, Mapping) or not {"image_id", "category_id"} <= element.keys():
                raise ValueError(f"{path} holds annotations without 'category_id': is it an instances file?")
            counts = found[element["image_id"]]
            counts[element["category_id"]] = counts.get(element["category_id"], 0) + 1
            if any(element.get(mark) for mark in ("iscrowd", "isfake", "isreflected")):
                doubtful[element["image_id"]].add(element["category_id"])
    missing = {"categories", "images", "annotations"} - met
    if missing:
        raise ValueError(f"{path} is not a COCO-format instances file: it has no {' and no '.join(sorted(missing))}.")
    if strangers := [image_id for image_id in found if image_id not in images]:
        raise ValueError(
            f"{path} has annotations of {len(strangers)} images that it does not list, such as {strangers[0]!r}."
        )
    for image_id, image in images.items():
        counts, unsure, absent = found.get(image_id, {}), doubtful.get(image_id, set()), negative.get(image_id)
        unknown = [category for category in (*counts, *unsure, *(absent or ())) if category not in names]
        if unknown:
            image.problem = f"the category_id {unknown[0]!r} is not among the categories of the file"
            continue
        image.counts = {names[category]: count for category, count in counts.items()}
        image.doubtful = {names[category] for category in unsure}
        image.absent = None if absent is None else [names[category] for category in absent]
    return LabelledImages(list(names.values()), list(images.values()))


def _category_ids(image: Mapping[str, Any], key: str, path: str | os.PathLike) -> list[Any]:
    ids = image.get(key) or []
    if not isinstance(ids, list) or any(isinstance(category, (list, dict)) for category in ids):
        raise ValueError(f"{path}: {key} of image {image['id']!r} must be a list of category ids, got {ids!r}.")
    return ids


def read_open_images(
    boxes: str | os.PathLike,
    classes: str | os.PathLike,
    image_labels: str | os.PathLike | None = None,
    hierarchy: str | os.PathLike | None = None,
) -> LabelledImages:
    """Reads the box files of OpenImages (V4 to V7).

    A box with `IsGroupOf` holds more than five objects, one with `IsDepiction` a picture: the class's number is
    doubtful then. OpenImages does not say of every class whether it is absent: what is absent are the labels that
    people have verified so.

    Args:
        boxes (`str`): CSV of boxes, such as `train-annotations-bbox.csv`.
        classes (`str`): CSV of labels and names, such as `class-descriptions-boxable.csv`.
        image_labels (`str`, *optional*): CSV of image-level labels verified by people, with confidence 0 or 1, such
            as `train-annotations-human-imagelabels-boxable.csv`. Without it no class is known to be absent.
        hierarchy (`str`, *optional*): JSON of classes and their subclasses, `bbox_labels_600_hierarchy.json`: an
            object counts for the classes above its own too, where these are labelled.

    Returns:
        `LabelledImages`: the images that have boxes.

    Raises:
        ValueError: if a file lacks its columns or names unknown labels.
    """
    names = _label_names(classes)
    above = _classes_above(hierarchy, names) if hierarchy is not None else {}
    images: dict[str, ObjectLabels] = {}
    for row in _rows(boxes, ("ImageID", "LabelName", "IsGroupOf", "IsDepiction")):
        name = _name_of(row["LabelName"], names, boxes)
        image = images.setdefault(row["ImageID"], ObjectLabels(row["ImageID"], f"{row['ImageID']}.jpg", absent=[]))
        image.counts[name] = image.counts.get(name, 0) + 1
        # -1 says that nobody looked, and is no count either.
        if row["IsGroupOf"] != "0" or row["IsDepiction"] != "0":
            image.doubtful.add(name)
    for image in images.values():
        _count_for_classes_above(image, above)
    if image_labels is not None:
        for row in _rows(image_labels, ("ImageID", "LabelName", "Confidence")):
            labelled = images.get(row["ImageID"])
            # Image-level labels are of more classes than have boxes.
            if labelled is not None and float(row["Confidence"]) == 0 and row["LabelName"] in names:
                labelled.absent = [*(labelled.absent or ()), names[row["LabelName"]]]
    return LabelledImages(list(names.values()), list(images.values()), above)


def _count_for_classes_above(image: ObjectLabels, above: Mapping[str, set[str]]) -> None:
    own = dict(image.counts)
    for name, count in own.items():
        for ancestor in above.get(name, ()):
            if ancestor in own:
                image.counts[ancestor] += count
                if name in image.doubtful:
                    image.doubtful.add(ancestor)


def _label_names(path: str | os.PathLike) -> dict[str, str]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    # Releases before V7 have no header.
    names = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] != "LabelName"}
    if not names or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path} must have two columns, labels such as /m/0bt9lr and their names.")
    return names


def _name_of(label: str, names: Mapping[str, str], path: str | os.PathLike) -> str:
    if label not in names:
        raise ValueError(f"{path} has boxes of {label!r}, which the class descriptions do not name.")
    return names[label]


def _rows(path: str | os.PathLike, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {reader.fieldnames}.")
        for number, row in enumerate(reader):
            if None in row or any(row[column] is None for column in columns):
                raise ValueError(f"{path}, row {number}: the line has not as many cells as the header.")
            yield row


def _classes_above(path: str | os.PathLike, names: Mapping[str, str]) -> dict[str, set[str]]:
    """The names of all classes above each class, by name; the root has no name and is left out."""
    above: dict[str, set[str]] = defaultdict(set)

    def walk(node: Mapping[str, Any], ancestors: frozenset[str]) -> None:
        name = names.get(node.get("LabelName", ""))
        if name is not None:
            above[name] |= ancestors
            ancestors = ancestors | {name}
        for child in node.get("Subcategory", ()):
            walk(child, ancestors)

    document = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(document, Mapping) or "Subcategory" not in document:
        raise ValueError(f"{path} must be a tree of 'LabelName' and 'Subcategory'.")
    walk(document, frozenset())
    return dict(above)


__all__ = ["LabelledImages", "ObjectLabels", "read_instances", "read_open_images"]
