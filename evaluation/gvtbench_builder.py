"""GVTBench's questions built anew: from any COCO-format instances file, and from the metadata of VCR."""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .gvtbench_names import COCO_CLASSES, check_naming, class_name, counted_form, identified_form

logger = logging.get_logger(__name__)

TASKS = ("oc", "mci")
CLASSES_PER_IMAGE = 3
"""Object counting asks about the most frequent classes of an image, so many at most."""
COUNTS_BELOW = 10
"""Object counting asks about classes of fewer instances than this."""


@dataclass(frozen=True)
class ImageObjects:
    """
    What is annotated in an image.

    Args:
        image_id (`int` or `str`): as in the records of GVTBench.
        classes (`list[str]`): the class of each annotation, in their order, crowds as one.
        file_name (`str`, *optional*): path of the image, where the id does not give it.
    """

    image_id: int | str
    classes: Sequence[str]
    file_name: str | None = None


def build_questions(
    instances_json: str | os.PathLike,
    task: str = "oc",
    num_questions: int | None = None,
    seed: int = 0,
    names: str | None = None,
) -> list[dict[str, Any]]:
    """
    Questions of object counting or multi-class identification about annotated images, as GVTBench's were made.

    Counting asks for the three most frequent classes of an image (of equally frequent ones, those annotated first),
    and of these for those with fewer than ten instances. Identification asks for every class of the image, and for as
    many others, drawn at random, as far as there are so many. All annotations count, a crowd as one. On the
    annotations of COCO, the pool (see [`question_pool`]) holds the official questions.

    Args:
        instances_json (`str`): a COCO-format instances file; or the metadata of VCR: the folder `vcr1images`, a
            metadata file in it (`….json` beside the image `….jpg`), or an annotation file (`val.jsonl`).
        task (`str`, *optional*, defaults to `"oc"`): `"oc"` counts, `"mci"` identifies.
        num_questions (`int`, *optional*): a random choice of so many; by default all.
        seed (`int`, *optional*, defaults to 0): of the absent classes and of the choice.
        names (`str`, *optional*): how classes are spelt, `"coco"` or `"vcr"` (plurals without spaces); by default as
            the files of the data set are.

    Returns:
        `list[dict]`: `image_id`, `text_in`, `text_out`, `n_obj_exist` (all annotations of the image), in the order of
        the images. An image whose name is not its id in twelve digits has its `file_name`, too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an argument is out of range, or the file is malformed or without annotations.
    """
    if num_questions is not None and num_questions < 1:
        raise ValueError(f"num_questions is {num_questions}, expected at least 1.")
    pool, generator = [], random.Random(seed)
    for positive, negative in _questions_of_images(instances_json, task, names):
        pool += positive
        chosen = generator.sample(range(len(negative)), min(len(positive), len(negative)))
        pool += [negative[index] for index in sorted(chosen)]
    if not pool:
        raise ValueError(f"{instances_json} holds no image about which a question of {task!r} can be asked.")
    if num_questions is None or num_questions == len(pool):
        return pool
    if num_questions > len(pool):
        logger.warning(f"{instances_json} gives {len(pool)} questions of {task!r}, not the {num_questions} asked for.")
        return pool
    return [pool[index] for index in sorted(generator.sample(range(len(pool)), num_questions))]


def question_pool(
    instances_json: str | os.PathLike, task: str = "oc", names: str | None = None
) -> list[dict[str, Any]]:
    """
    All questions that [`build_questions`] may ask: of identification, every absent class, too.

    Args:
        instances_json, task, names: see [`build_questions`].

    Returns:
        `list[dict]`: records.
    """
    pairs = _questions_of_images(instances_json, task, names)
    return [question for positive, negative in pairs for question in (*positive, *negative)]


def _questions_of_images(path, task, names) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Questions about each image: those that are always asked, and those of which some are drawn."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected {' or '.join(map(repr, TASKS))}.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a COCO-format instances file or metadata of VCR.")
    images, classes, spelling = _read_objects(path)
    names = check_naming(spelling if names is None else names)
    for image in images:
        if task == "oc":
            yield _counting_questions(image, names), []
        else:
            yield _identification_questions(image, classes, names)


def _counting_questions(image: ImageObjects, names: str) -> list[dict[str, Any]]:
    most_frequent = Counter(image.classes).most_common(CLASSES_PER_IMAGE)
    return [
        _record(image, f"How many {counted_form(name, names)} are there in the image?", str(count))
        for name, count in most_frequent
        if count < COUNTS_BELOW
    ]


def _identification_questions(image: ImageObjects, classes: Sequence[str], names: str):
    present = list(dict.fromkeys(image.classes))
    absent = [name for name in classes if name not in set(present)]

    def ask(name: str, answer: str) -> dict[str, Any]:
        return _record(image, f"Does {identified_form(name, names)} exist in the image?", answer)

    return [ask(name, "Yes.") for name in present], [ask(name, "No.") for name in absent]


def _record(image: ImageObjects, text_in: str, text_out: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "image_id": image.image_id,
        "text_in": text_in,
        "text_out": text_out,
        "n_obj_exist": len(image.classes),
    }
    return record if image.file_name is None else {**record, "file_name": image.file_name}


def _read_objects(path: Path) -> tuple[list[ImageObjects], list[str], str]:
    """Annotated images, all classes there are, and how the questions of the data set spell them."""
    if path.is_dir() or path.suffix == ".jsonl":
        return *_read_vcr(path), "vcr"
    document = _read_json(path)
    if isinstance(document, dict) and "names" in document and "annotations" not in document:
        return *_read_vcr(path), "vcr"
    return *_read_coco(path, document), "coco"


def _read_coco(path: Path, document: Any) -> tuple[list[ImageObjects], list[str]]:
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{path} has no list of {key!r}: expected a COCO-format instances file.")
    try:
        category_names = {category["id"]: class_name(category["name"]) for category in document["categories"]}
        classes_of: dict[Any, list[str]] = {image["id"]: [] for image in document["images"]}
        file_names = {image["id"]: image.get("file_name") for image in document["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: an image lacks its id, or a category its id or name ({error!r}).") from error
    for row, annotation in enumerate(document["annotations"]):
        image_id, category = (_get(annotation, field) for field in ("image_id", "category_id"))
        if image_id not in classes_of or category not in category_names:
            raise ValueError(
                f"{path}, annotation {row}: image_id {image_id!r} and category_id {category!r} must be among the "
                "images and the categories of the file."
            )
        classes_of[image_id].append(category_names[category])
    images = [
        ImageObjects(
            image_id, classes, None if _follows_from_id(image_id, file_names[image_id]) else file_names[image_id]
        )
        for image_id, classes in classes_of.items()
    ]
    return images, list(dict.fromkeys(category_names.values()))


def _follows_from_id(image_id: Any, file_name: str | None) -> bool:
    return not file_name or (isinstance(image_id, int) and file_name == f"{image_id:012d}.jpg")


def _read_vcr(path: Path) -> tuple[list[ImageObjects], list[str]]:
    if path.suffix == ".jsonl":
        objects = _vcr_annotations(path)
    else:
        folder = path if path.is_dir() else path.parent.parent
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        objects = {
            file.relative_to(folder).with_suffix(".jpg").as_posix(): _get(_read_json(file), "names") for file in files
        }
    if not objects:
        raise ValueError(f"{path} holds no metadata of VCR: expected files like <movie>/<clip>@<number>.json.")
    for image_id, names in objects.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: the names of the objects in {image_id!r} are {names!r}, expected a list.")
    spaced = {name.replace(" ", ""): name for name in COCO_CLASSES}
    images = [
        ImageObjects(image_id, [spaced.get(name.replace(" ", ""), class_name(name)) for name in names])
        for image_id, names in objects.items()
    ]
    return images, list(dict.fromkeys([*COCO_CLASSES, *(name for image in images for name in image.classes)]))


def _vcr_annotations(path: Path) -> dict[str, Any]:
    """The objects of each image of an annotation file, in which an image has a line for each of its questions."""
    objects: dict[str, Any] = {}
    for row, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            annotation = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {row}: not JSON ({error}).") from error
        image = _get(annotation, "img_fn")
        if not isinstance(image, str):
            raise ValueError(f"{path}, line {row}: 'img_fn' is {image!r}, expected the path of an image.")
        objects.setdefault(image, _get(annotation, "objects"))
    return objects


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error


def _get(record: Any, field: str) -> Any:
    return record.get(field) if isinstance(record, Mapping) else None


__all__ = ["CLASSES_PER_IMAGE", "COUNTS_BELOW", "TASKS", "ImageObjects", "build_questions", "question_pool"]
