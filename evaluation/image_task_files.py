"""What tasks whose answers are images are asked: pictures to draw again, expressions, captions and edits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..processing.images import BadSampleError, find_images
from .contents_scores import check_contents
from .task_questions import QuestionFiles, Split, coco_names, collect, find_questions, first_image, read_json

CAPTIONS_FILE, INSTANCES_FILE, EDITS_FOLDER, SEEDS_FILE = (
    *("drawing_captions.json", "instances.json", "edits", "seeds.json"),
)
REFERENCE_FILES = ("refs(vistok).json", "refs(unc).json", "refs(unc).p", "refs(umd).json", "refs(umd).p")


def make_example(
    task: str, row: int, images: Sequence[Path], text: str = "", id: Any = None, **columns: Any
) -> dict[str, Any]:
    """
    An example whose answer is an image.

    Args:
        task (`str`): its source.
        row (`int`): of the file, counted from 0.
        images (`list[Path]`): what is shown, and at last what is to be written.
        text (`str`, *optional*): caption, expression or instruction.
        id: by default the row.
        **columns: further columns.
    """
    return {
        "id": str(row if id is None else id),
        "source": task,
        "row": row,
        "images": [{"path": str(image), "bytes": None} for image in images],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": [{"type": "image", "text": None}]},
        ],
        "text": text,
        **columns,
    }


def load_pictures(task: str, files: QuestionFiles) -> list[Split]:
    """Pictures to draw again: those of a COCO file, such as `instances.json`, or all of a folder."""
    if files.questions is None:
        if files.images is None:
            raise ValueError(
                f"Task {task} draws pictures again: give --images, a folder, or --questions, a COCO file."
            )
        found = find_images([files.images])
        return [Split("test", [make_example(task, row, [image]) for row, image in enumerate(found)])]
    path = find_questions(task, files, (INSTANCES_FILE,))
    records, folder = _records(path, task, "images"), _beside(path, files)

    def convert(row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        image = first_image(folder, coco_names(record["id"], record.get("file_name")))
        return make_example(task, row, [image], id=record["id"], background=record.get("background"))

    return [Split("test", *collect(task, files, records, convert))]


def load_drawing_captions(task: str, files: QuestionFiles) -> list[Split]:
    """Captions to draw from, with what a probe can look for, as `vistok scenes --drawing-captions` writes them."""
    path = find_questions(task, files, (CAPTIONS_FILE,))
    images = {record["id"]: record for record in _records(path, task, "images")}
    folder = _beside(path, files)

    def convert(row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        shown = images[record["image_id"]]
        try:
            check_contents(record.get("contents"))
        except ValueError as error:
            raise BadSampleError(
                f"{error}: give drawing captions that say what a probe can look for, as vistok scenes "
                "--drawing-captions writes them",
                row=row,
                source=task,
            ) from error
        image = first_image(folder, coco_names(shown["id"], shown.get("file_name")))
        contents = record["contents"]
        return make_example(
            task, row, [image], str(record["caption"]), record["id"], background=shown.get("background"),
            contents=contents, kind=_number_of_objects(sum(entry["count"] for entry in contents)),
        )  # fmt: skip

    return [Split("test", *collect(task, files, _records(path, task, "annotations"), convert))]


def _number_of_objects(number: int) -> str:
    return "1 object" if number == 1 else f"{number} objects" if number < 5 else "5 objects or more"


def load_references(task: str, files: QuestionFiles) -> list[Split]:
    """Expressions that refer to an object with a mask, of RefCOCO's format (see the data format `refcoco`)."""
    path = find_questions(task, files, REFERENCE_FILES)
    if files.load_source is None:
        raise ValueError(f"Task {task} is a data source: give a function that loads it.")
    described = {"format": "refcoco", "name": task, "path": str(path)}
    if files.images is not None:
        described["images"] = str(files.images)
    elif (path.parent / "images").is_dir():
        described["images"] = str(path.parent / "images")
    backgrounds = _backgrounds(path.parent / INSTANCES_FILE, task)
    of_split: dict[str, list[dict[str, Any]]] = {}
    for split in _splits_of(path):
        examples = files.load_source({**described, **({} if split is None else {"split": split})})
        found = [
            {**example, "text": example["expression"],
             "background": backgrounds.get(Path(str(example["images"][0]["path"])).name)}
            for example in examples
        ]  # fmt: skip
        if not found:
            raise ValueError(f"Task {task} has no expressions to ask for: {path} holds none.")
        of_split[split or "test"] = found
    return [Split(name, examples) for name, examples in of_split.items()]


def _splits_of(path: Path) -> Sequence[str | None]:
    """The test splits of a file, or all of it where it has one split alone; of a pickle, which has several, `val`."""
    if path.suffix != ".json":
        return ["val"]
    found = {str(reference.get("split")) for reference in json.loads(path.read_text(encoding="utf-8"))}
    chosen = [name for name in ("val", "testA", "testB", "test") if name in found]
    return chosen if len(found) > 1 and chosen else [None]


def load_edits(task: str, files: QuestionFiles) -> list[Split]:
    """Edits in the layout of InstructPix2Pix (see the data format `instruct-pix2pix`); those of `vistok scenes` say
    what was done to which object."""
    path = find_questions(task, files, (f"{EDITS_FOLDER}/{SEEDS_FILE}", SEEDS_FILE))
    folder = path.parent if path.is_file() else path
    if files.load_source is None:
        raise ValueError(f"Task {task} is a data source: give a function that loads it.")
    known = _known_edits(folder, task)
    # The instruction as it is: the processor of a model wraps it.
    described = {"format": "instruct-pix2pix", "name": task, "path": str(folder), "prompt": "{question}"}
    if not known:
        described["split"] = "test"  # of the released data set
    examples = []
    for example in files.load_source(described):
        text = example["messages"][0]["content"][-1]["text"]
        examples.append({**example, "text": text, **known.get(str(example["id"]).split("/")[0], {})})
    if not examples:
        raise ValueError(f"Task {task} has no edits to ask for: {folder / SEEDS_FILE} names none.")
    return [Split("test", examples)]


def _known_edits(folder: Path, task: str) -> dict[str, dict[str, Any]]:
    """By the name of its folder, what an edit of `vistok scenes` did: kind, the object's class, and boxes of it."""
    edited, before = folder / INSTANCES_FILE, folder.parent / INSTANCES_FILE
    if not edited.is_file() or not before.is_file():
        return {}
    after, first = (_document(file, task) for file in (edited, before))
    names = {category["id"]: category["name"] for category in after["categories"]}
    annotations = {
        annotation["id"]: annotation for document in (first, after) for annotation in document["annotations"]
    }
    found = {}
    for record in after["images"]:
        edit = record.get("edit")
        if not isinstance(edit, Mapping):
            return {}
        changed = {}
        size = record["width"], record["height"]
        for side in ("source", "target"):
            annotation = annotations.get(edit.get(f"{side}_annotation_id"))
            if annotation is not None:
                changed["name"] = names[annotation["category_id"]]
                changed[f"{side}_box"] = [value / size[axis % 2] for axis, value in enumerate(annotation["bbox"])]
        changed |= {"color": edit.get("color"), "contents": edit.get("contents")}
        found[Path(record["file_name"]).parent.name] = {
            "kind": edit["kind"], "background": record.get("background"), "edit": {"kind": edit["kind"], **changed},
        }  # fmt: skip
    return found


def _document(path: Path, task: str) -> Mapping[str, Any]:
    document = read_json(path, task)
    if not isinstance(document, Mapping) or not {"images", "annotations", "categories"} <= document.keys():
        raise ValueError(f"{path} is no file of COCO instances: it lacks images, annotations or categories.")
    return document


def _records(path: Path, task: str, name: str) -> list[Any]:
    document = read_json(path, task)
    found = document.get(name) if isinstance(document, Mapping) else None
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list of {name}: expected a COCO file for task {task}.")
    return found


def _backgrounds(path: Path, task: str) -> dict[str, str]:
    """By name of image file, the photograph behind it, of scenes; empty where there is no such file."""
    if not path.is_file():
        return {}
    return {str(record.get("file_name")): record.get("background") for record in _records(path, task, "images")}


def _beside(path: Path, files: QuestionFiles) -> Path:
    """The folder of images that was given, or the one beside a file of `vistok scenes`."""
    folder = Path(files.images) if files.images is not None else path.parent / "images"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of images {folder}: give --images, the folder that holds them.")
    return folder


__all__ = [
    "load_drawing_captions",
    "load_edits",
    "load_pictures",
    "load_references",
    "make_example",
]
