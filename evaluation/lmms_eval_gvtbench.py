"""GVTBench as tasks of lmms-eval: what the files of `lmms_eval_tasks/` refer to, scored like `vistok evaluate`."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

# By their full names, because lmms-eval executes this file by its path. Asked for a module by name, it would report a
# missing data file as a failed import.
from vistok.evaluation.gvtbench_questions import (
    find_image,
    fix_question_typos,
    load_questions,
    majority,
    two_fold_priors,
)
from vistok.evaluation.gvtbench_scoring import MODES, score_multi_class_identification, score_object_counting

TASKS = ("coco_oc", "coco_mci", "vcr_oc", "vcr_mci")
QUESTIONS = "VISTOK_GVTBENCH_QUESTIONS"
IMAGES = {"coco": "VISTOK_COCO_IMAGES", "vcr": "VISTOK_VCR_IMAGES"}
_WHAT = {
    QUESTIONS: f"the folder of GVTBench's question files ({', '.join(f'{task}.json' for task in TASKS)})",
    IMAGES["coco"]: "the folder of COCO's images: val2017, or the one that holds it",
    IMAGES["vcr"]: "the folder of VCR's images: vcr1images, or the one that holds it",
}
_FIELDS = ("image_id", "text_in", "text_out", "n_obj_exist")

Record = Mapping[str, Any]


def question_files(task: str) -> dict[str, Any]:
    """
    Where the questions of a task lie. Their images are looked for, too, so that none is missing hours later.

    Args:
        task (`str`): `"coco_oc"`, `"coco_mci"`, `"vcr_oc"` or `"vcr_mci"`.

    Returns:
        `dict`: arguments of `datasets.load_dataset`.

    Raises:
        ValueError: if an environment variable is missing or names no folder, or the file holds no questions.
        FileNotFoundError: if the folder holds no such file, or an image is missing.
    """
    file, folder = _folder(QUESTIONS) / f"{task}.json", _folder(IMAGES[task.partition("_")[0]])
    for record in load_questions(file):
        find_image(record, folder)
    return {"data_files": {"test": str(file)}}


def _folder(variable: str) -> Path:
    value = os.environ.get(variable, "")
    folder = Path(value).expanduser().absolute()
    if not value or not folder.is_dir():
        raise ValueError(f"{variable} is {value!r}, expected in this environment variable: {_WHAT[variable]}.")
    return folder


def question(record: Record, prompts: Mapping[str, str] | None = None) -> str:
    """
    The text that asks a record's question: bare, as the released code sends it, between the texts that a task sets.

    Args:
        record (`dict`): of GVTBench.
        prompts (`dict`, *optional*): `pre_prompt` and `post_prompt`.
    """
    prompts = prompts or {}
    return f"{prompts.get('pre_prompt', '')}{record['text_in']}{prompts.get('post_prompt', '')}"


def images(record: Record) -> list[Image.Image]:
    """
    The image that a record asks about.

    Args:
        record (`dict`): of GVTBench; images of COCO are numbers, those of VCR are paths.

    Returns:
        `list[PIL.Image.Image]`: one image.

    Raises:
        ValueError: if the environment variable is missing or names no folder.
        FileNotFoundError: if the image is missing.
    """
    folder = _folder(IMAGES["coco" if isinstance(record["image_id"], int) else "vcr"])
    with Image.open(find_image(record, folder)) as image:
        return [image.convert("RGB")]


def without_typos(records: Any) -> Any:
    """
    Questions without the authors' typo, which gives the answers of vcr_mci away; see [`fix_question_typos`].

    Args:
        records (`Dataset`): of GVTBench.

    Returns:
        `Dataset`: the same records otherwise.
    """
    return records.map(lambda record: fix_question_typos([record])[0])


def _results(
    record: Record, answers: Sequence[str], *, score: Callable, others: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """
    What is kept of one answer for each metric: the record and the answer. For those that are means of questions also
    `score`, 0 or 100, which lmms-eval computes standard errors from.
    """
    entry = {**{name: record[name] for name in _FIELDS}, "prediction": answers[0]}
    accuracies = {
        f"{mode}_accuracy": {**entry, "score": score([answers[0]], [record], mode=mode)["accuracy"]} for mode in MODES
    }
    same = ("unanswered", "deduplicated_accuracy", "majority_accuracy", "question_only_accuracy")
    return accuracies | dict.fromkeys([*others, *same], entry)


def _metric(entries: Sequence[Record], *, score: Callable, name: str, mode: str = "reference") -> float:
    return float(score([entry["prediction"] for entry in entries], entries, mode=mode)[name])


def _deduplicated(entries: Sequence[Record], *, score: Callable) -> float:
    distinct = {tuple(entry[name] for name in _FIELDS): entry for entry in entries}
    return _metric(list(distinct.values()), score=score, name="accuracy")


def _floor(entries: Sequence[Record], *, score: Callable, predict: Callable) -> float:
    """Accuracy of what knows no image, the mean over its guesses."""
    if predict is two_fold_priors and len({entry["image_id"] for entry in entries}) < 2:
        return math.nan
    guesses = predict(entries)
    return fmean(score(guess, entries, mode="reference")["accuracy"] for guess in guesses)


def _majority(entries: Sequence[Record]) -> list[list[str]]:
    return [majority(entries)]


_count = partial(_metric, score=score_object_counting)
_identify = partial(_metric, score=score_multi_class_identification)

# Object counting: percent, but for `mae` and `rmse` in objects and `unanswered` in questions.
counting_results = partial(
    _results,
    score=score_object_counting,
    others=[f"{mode}_{name}" for mode in MODES for name in ("mae", "rmse")],
)
counting_reference_accuracy = partial(_count, name="accuracy")
counting_reference_mae = partial(_count, name="mae")
counting_reference_rmse = partial(_count, name="rmse")
counting_strict_accuracy = partial(_count, name="accuracy", mode="strict")
counting_strict_mae = partial(_count, name="mae", mode="strict")
counting_strict_rmse = partial(_count, name="rmse", mode="strict")
counting_unanswered = partial(_count, name="num_unanswered")
counting_deduplicated = partial(_deduplicated, score=score_object_counting)
counting_majority = partial(_floor, score=score_object_counting, predict=_majority)
counting_question_only = partial(_floor, score=score_object_counting, predict=two_fold_priors)

# Multi-class identification, alike.
identification_results = partial(_results, score=score_multi_class_identification)
identification_reference_accuracy = partial(_identify, name="accuracy")
identification_strict_accuracy = partial(_identify, name="accuracy", mode="strict")
identification_unanswered = partial(_identify, name="num_unanswered")
identification_deduplicated = partial(_deduplicated, score=score_multi_class_identification)
identification_majority = partial(_floor, score=score_multi_class_identification, predict=_majority)
identification_question_only = partial(_floor, score=score_multi_class_identification, predict=two_fold_priors)


def __getattr__(name: str) -> Any:
    # A task's file names its data as a value (`coco_oc_files`). It is looked for when the task is loaded, not before.
    task = name.removesuffix("_files")
    if task in TASKS and name != task:
        return question_files(task)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["IMAGES", "QUESTIONS", "TASKS", "images", "question", "question_files", "without_typos"]
