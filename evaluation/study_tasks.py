"""The tasks of a study: questions about a set of scenes as training examples, and what each answer scores."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .gvtbench_builder import build_questions
from .gvtbench_scoring import mci_is_right, read_count, read_yes_no

TASKS = ("vqa", "caption", "oc", "mci")
"""In the order of the columns of GVT's tables."""

TASK_NAMES = {"vqa": "VQA", "caption": "Caption", "oc": "OC", "mci": "MCI"}
SEMANTIC_TASKS, FINE_GRAINED_TASKS = ("vqa", "caption"), ("oc", "mci")
CAPTION_QUESTION = "what does the image describe?"
"""As GVT's training asks for captions (Section 4.1)."""

MODES = ("strict", "reference")


@dataclass(frozen=True)
class TaskQuestions:
    """
    The questions of a task about a set of scenes.

    Args:
        task (`str`): one of [`TASKS`].
        examples (`list[dict]`): training examples that end with a right answer.
        images (`list[int]`): the id of the image of each.
        answers (`list[list[str]]`): all right answers to each: of captions the references, of VQA those of annotators.
    """

    task: str
    examples: Sequence[Mapping[str, Any]]
    images: Sequence[int]
    answers: Sequence[Sequence[str]]

    def values(self, predictions: Sequence[str], mode: str = "strict") -> list[float]:
        """
        What each prediction scores.

        Args:
            predictions (`list[str]`): of each question.
            mode (`str`, *optional*, defaults to `"strict"`): how counts and yes or no are read, `"strict"` or
                `"reference"`, see [`read_count`].

        Returns:
            `list[float]`: 0 or 100 of OC and MCI, 0 to 100 of VQA, CIDEr ×100 of the image of captions. The score of
            the task is the mean.

        Raises:
            ValueError: if there is not a prediction for each question, or the mode is unknown.
        """
        if len(predictions) != len(self.examples):
            raise ValueError(f"{len(predictions)} predictions for {len(self.examples)} questions of {self.task}.")
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}.")
        if self.task == "caption":
            from .cider import cider_scores

            return cider_scores(predictions, self.answers)
        if self.task == "vqa":
            from .vqa_accuracy import vqa_scores

            return [100.0 * value for value in vqa_scores(predictions, self.answers)]
        right = _count_is_right if self.task == "oc" else mci_is_right
        return [100.0 * right(text, answers[0], mode) for text, answers in zip(predictions, self.answers)]

    def num_unanswered(self, predictions: Sequence[str]) -> int:
        """How many predictions hold no answer of the kind that was asked for."""
        if self.task == "oc":
            return sum(read_count(text, "strict") is None for text in predictions)
        if self.task == "mci":
            return sum(read_yes_no(text) is None for text in predictions)
        return sum(not text.strip() for text in predictions)

    def majority(self) -> list[str]:
        """The best constant guess: the most frequent answer, of captions the most frequent reference."""
        counts = Counter(answer for answers in self.answers for answer in dict.fromkeys(answers))
        return [min(counts, key=lambda answer: (-counts[answer], answer))] * len(self.answers)


def _count_is_right(prediction: str, answer: str, mode: str) -> bool:
    return read_count(prediction, mode) == int(answer)


def load_task(task: str, scenes: Path, num_questions: int | None = None, seed: int = 0) -> TaskQuestions:
    """
    Asks the questions of a task about a set of scenes.

    Args:
        task (`str`): `"oc"` and `"mci"` as GVTBench builds them from `instances.json`, `"vqa"` from
            `vqa_questions.json` and `vqa_annotations.json`, `"caption"` from `captions.json`.
        scenes (`Path`): folder of [`write_scenes`].
        num_questions (`int`, *optional*): a choice of so many; by default all.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Raises:
        FileNotFoundError: if the folder lacks a file.
        ValueError: if the task is unknown, a file is malformed, or nothing can be asked.
    """
    if task not in TASKS:
        raise ValueError(f"{task!r} is no task of a study: choose {', '.join(TASKS)}.")
    if num_questions is not None and num_questions < 1:
        raise ValueError(f"num_questions of {task} is {num_questions}, expected at least 1.")
    asked = {"caption": _captions, "vqa": _vqa}.get(task, lambda folder: _gvtbench(folder, task))(Path(scenes))
    if num_questions is not None and num_questions < len(asked):
        asked = [asked[index] for index in sorted(Random(seed).sample(range(len(asked)), num_questions))]
    if not asked:
        raise ValueError(f"The scenes in {scenes} give no question of {task}.")
    files = _image_files(Path(scenes))
    examples = [
        _example(f"{task}-{number}", f"scenes-{task}", number, files[image], question, answers[0])
        for number, (image, question, answers) in enumerate(asked)
    ]
    return TaskQuestions(task, examples, [image for image, _, _ in asked], [answers for _, _, answers in asked])


Asked = list[tuple[int, str, list[str]]]


def _gvtbench(scenes: Path, task: str) -> Asked:
    questions = build_questions(scenes / "instances.json", task)
    return [(question["image_id"], question["text_in"], [question["text_out"].strip()]) for question in questions]


def _captions(scenes: Path) -> Asked:
    references: dict[int, list[str]] = defaultdict(list)
    for annotation in _read(scenes / "captions.json")["annotations"]:
        references[annotation["image_id"]].append(annotation["caption"])
    return [(image, CAPTION_QUESTION, captions) for image, captions in references.items()]


def _vqa(scenes: Path) -> Asked:
    answers = {
        annotation["question_id"]: [given["answer"] for given in annotation["answers"]]
        for annotation in _read(scenes / "vqa_annotations.json")["annotations"]
    }
    return [
        (question["image_id"], question["question"], answers[question["question_id"]])
        for question in _read(scenes / "vqa_questions.json")["questions"]
    ]


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


def _example(name: str, source: str, row: int, file: str, question: str, answer: str) -> dict[str, Any]:
    image = {"type": "image", "text": None}
    return {
        "id": name,
        "source": source,
        "row": row,
        "images": [{"path": file, "bytes": None}],
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


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


def scene_masks(scenes: Path, images: Iterable[int]) -> list[Any]:
    """
    Where the objects of scenes are.

    Args:
        scenes (`Path`): folder of [`write_scenes`].
        images (`list[int]`): ids.

    Returns:
        `list[np.ndarray]`: of each image `(height, width)`, true on any object.
    """
    from .coco_masks import union_mask

    document = _read(Path(scenes) / "instances.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    segmentations: dict[int, list[Any]] = defaultdict(list)
    for annotation in document["annotations"]:
        segmentations[annotation["image_id"]].append(annotation["segmentation"])
    return [union_mask(segmentations[image], sizes[image]) for image in images]


__all__ = [
    "CAPTION_QUESTION",
    "FINE_GRAINED_TASKS",
    "SEMANTIC_TASKS",
    "TASKS",
    "TASK_NAMES",
    "TaskQuestions",
    "class_labels",
    "load_task",
    "scene_masks",
]
