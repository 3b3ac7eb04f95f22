"""The tasks of a study: questions about a set of scenes, and what each answer scores."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .protocol import MODES, Protocol
from .tasks import TASKS as EVALUATION_TASKS
from .tasks import QuestionFiles
from .vqa import choose_questions

TASKS = {"vqa": "vqa", "caption": "caption", "oc": "coco_oc", "mci": "coco_mci"}
"""In the order of the columns of GVT's tables, with what `vistok evaluate` calls them."""

TASK_NAMES = {"vqa": "VQA", "caption": "Caption", "oc": "OC", "mci": "MCI"}
FINE_GRAINED_TASKS = ("oc", "mci")

VQA_PARTS = {
    "vqa_semantic": ("naming", "category"),
    "vqa_counting": ("comparison", "threshold"),
    "vqa_spatial": ("size", "place", "location", "relation", "what is aside", "nearest"),
}
"""What the VQA questions of `vistok scenes` ask about, with the values of `question_type`."""

PART_NAMES = {
    "vqa_semantic": "VQA: names and categories",
    "vqa_counting": "VQA: more, fewer",
    "vqa_spatial": "VQA: places and sizes",
}
SEMANTIC_MEASURES = ("vqa_semantic", "caption")


@dataclass(frozen=True)
class TaskQuestions:
    """
    The questions of a task about a set of scenes.

    Args:
        task (`str`): one of [`TASKS`].
        examples (`list[dict]`): training examples that end with a right answer. A question is bare: the chat template
            of a model wraps it, as it did in training.
        protocol ([`Protocol`]): how answers are measured.
        types (`dict`, *optional*): by the id of an example its `question_type`, where the annotations have one.
    """

    task: str
    examples: Sequence[Mapping[str, Any]]
    protocol: Protocol
    types: Mapping[Any, str] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """The name of the image file of each question."""
        return [Path(example["images"][0]["path"]).name for example in self.examples]

    @property
    def parts(self) -> list[str | None]:
        """Which of [`VQA_PARTS`] each question belongs to; `None` where its type is unknown."""
        of_type = {kind: part for part, kinds in VQA_PARTS.items() for kind in kinds}
        return [of_type.get(self.types.get(example["id"], "")) for example in self.examples]

    def places(self, others: "TaskQuestions") -> list[int]:
        """Where each question of a choice stands among these."""
        numbers = {example["id"]: number for number, example in enumerate(self.examples)}
        return [numbers[example["id"]] for example in others.examples]

    def values(self, predictions: Sequence[str], metric: str | None = None) -> list[float]:
        """
        What each prediction scores.

        Args:
            predictions (`list[str]`): of each question.
            metric (`str`, *optional*): by default the primary one of the task.

        Returns:
            `list[float]`: 0 or 100 of OC and MCI, 0 to 100 of VQA, CIDEr ×100 of captions. The score of the task is
            the mean.

        Raises:
            ValueError: if there is not a prediction for each question, or the metric is unknown.
        """
        if len(predictions) != len(self.examples):
            raise ValueError(f"{len(predictions)} predictions for {len(self.examples)} questions of {self.task}.")
        known = {found.name: found for found in self.protocol.metrics}
        if metric is not None and metric not in known:
            raise ValueError(f"{metric!r} is no metric of {self.task}: choose {', '.join(known)}.")
        chosen = self.protocol.primary if metric is None else known[metric]
        return [float(value) * chosen.scale for value in np.asarray(chosen.values(predictions, self.examples))]

    @property
    def other_metrics(self) -> list[str]:
        """Metrics beside the primary one that are means of the values of questions, in percent."""
        return [found.name for found in self.protocol.metrics[1:] if found.name.startswith("accuracy")]

    def some(self, num_questions: int | None, seed: int = 0) -> "TaskQuestions":
        """
        A choice of the questions, in their order.

        Args:
            num_questions (`int`, *optional*): how many; by default all.
            seed (`int`, *optional*, defaults to 0): of the choice.

        Raises:
            ValueError: if the number is less than 1.
        """
        if num_questions is not None and num_questions < 1:
            raise ValueError(f"The number of questions of {self.task} is {num_questions}, expected at least 1.")
        return replace(self, examples=choose_questions(self.examples, num_questions, seed))

    def num_unanswered(self, predictions: Sequence[str]) -> int:
        """How many predictions hold no answer of the kind that was asked for."""
        return sum(map(self.protocol.unanswered, predictions))

    def majority(self) -> list[str]:
        """The best constant guess, for each question."""
        return self.protocol.constant(self.examples)


def load_task(
    task: str, scenes: Path, num_questions: int | None = None, seed: int = 0, mode: str = "strict"
) -> TaskQuestions:
    """
    Asks the questions of a task about a set of scenes.

    Args:
        task (`str`): `"oc"` and `"mci"` as GVTBench builds them from `instances.json`, `"vqa"` from
            `vqa_questions.json` and `vqa_annotations.json`, `"caption"` from `captions.json`.
        scenes (`Path`): folder of [`write_scenes`].
        num_questions (`int`, *optional*): a choice of so many; by default all.
        seed (`int`, *optional*, defaults to 0): of the choice.
        mode (`str`, *optional*, defaults to `"strict"`): how counts and yes or no are read: `"strict"` or
            `"reference"`, see [`read_count`].

    Raises:
        FileNotFoundError: if the folder lacks a file.
        ValueError: if the task or the mode is unknown, a file is malformed, or nothing can be asked.
    """
    if task not in TASKS:
        raise ValueError(f"{task!r} is no task of a study: choose {', '.join(TASKS)}.")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected {' or '.join(MODES)}.")
    found = EVALUATION_TASKS[TASKS[task]]
    (split,) = found.splits(QuestionFiles(questions=scenes, images=Path(scenes) / "images"))
    examples = [_bare(example) for example in split.test]
    types = _question_types(Path(scenes)) if task == "vqa" else {}
    return TaskQuestions(task, examples, found.asked(mode=mode), types).some(num_questions, seed)


def _question_types(scenes: Path) -> dict[Any, str]:
    annotations = _read(scenes / "vqa_annotations.json")["annotations"]
    return {str(item["question_id"]): str(item.get("question_type", "")) for item in annotations}


def _bare(example: Mapping[str, Any]) -> dict[str, Any]:
    asked, answered = example["messages"]
    content = [*asked["content"][:-1], {"type": "text", "text": example["question"]}]
    return {**example, "messages": [{**asked, "content": content}, answered]}


def _image_files(scenes: Path) -> dict[int, str]:
    images = _read(scenes / "instances.json")["images"]
    return {image["id"]: str((scenes / "images" / Path(image["file_name"]).name).absolute()) for image in images}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: expected a folder that `vistok scenes` wrote.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): write the scenes anew.") from error


def class_labels(scenes: Path) -> tuple[list[str], list[str], list[list[float]]]:
    """
    Which classes are in each scene, for class supervision.

    Args:
        scenes (`Path`): folder of [`write_scenes`].

    Returns:
        The names of the classes, the image files, and for each of these a 1 or 0 for each class.

    Raises:
        FileNotFoundError, ValueError: if `instances.json` is missing or malformed, or names no images.
    """
    document = _read(Path(scenes) / "instances.json")
    categories = sorted(document["categories"], key=lambda category: category["id"])
    places = {category["id"]: place for place, category in enumerate(categories)}
    present: dict[int, set[int]] = defaultdict(set)
    for annotation in document["annotations"]:
        present[annotation["image_id"]].add(places[annotation["category_id"]])
    files = _image_files(Path(scenes))
    if not files:
        raise ValueError(f"{scenes} has no images to learn classes from.")
    labels = [[float(place in present[image]) for place in range(len(categories))] for image in files]
    return [category["name"] for category in categories], list(files.values()), labels


def scene_objects(scenes: Path, images: Iterable[int]) -> list[list[Any]]:
    """
    Where the objects of scenes are.

    Args:
        scenes (`Path`): folder of [`write_scenes`].
        images (`list[int]`): ids.

    Returns:
        `list[list[np.ndarray]]`: of each image the masks of its objects, `(height, width)`, true on the object.
    """
    from ..processing.coco_masks import decode_mask

    document = _read(Path(scenes) / "instances.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    segmentations: dict[int, list[Any]] = defaultdict(list)
    for annotation in document["annotations"]:
        segmentations[annotation["image_id"]].append(annotation["segmentation"])
    return [[decode_mask(one, sizes[image]) for one in segmentations[image]] for image in images]


__all__ = [
    "FINE_GRAINED_TASKS",
    "PART_NAMES",
    "SEMANTIC_MEASURES",
    "TASKS",
    "TASK_NAMES",
    "VQA_PARTS",
    "TaskQuestions",
    "class_labels",
    "load_task",
    "scene_objects",
]
