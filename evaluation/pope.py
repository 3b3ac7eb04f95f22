"""POPE: whether a model sees objects that are not there (Li et al. 2023), scored as its authors do."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .gvtbench_scoring import read_yes_no
from .prediction_checks import check_predictions

SPLITS = ("random", "popular", "adversarial")
"""How the absent objects were chosen: at random, by frequency, by what often lies beside the present ones."""

Questions = Sequence[Mapping[str, Any]]


def load_pope(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Reads the questions of POPE.

    Args:
        path (`str`): an official file (AoiDragon/POPE, `output/coco/coco_pope_random.json`), a JSON record a line; or
            a folder that holds files of several splits.

    Returns:
        `list[dict]`: `question_id`, `image` (name of a file of COCO's val2014), `text`, `label` (`"yes"` or `"no"`),
        and `split`, one of `SPLITS`, where the name of the file says it.

    Raises:
        FileNotFoundError: if there is no such file, or none of POPE in the folder.
        ValueError: if a record is malformed; names line and field.
    """
    path = Path(path)
    files = [file for split in SPLITS for file in sorted(path.glob(f"*{split}*.json*"))] if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{path} holds no questions of POPE: expected coco_pope_random.json or alike.")
    return [question for file in files for question in _read(file)]


def _read(file: Path) -> list[dict[str, Any]]:
    split = next((name for name in SPLITS if name in file.name), None)
    questions = []
    for row, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {row}: not JSON ({error}); POPE has one record a line.") from error
        for field in ("image", "text", "label"):
            if not isinstance(question, dict) or not isinstance(question.get(field), str):
                raise ValueError(f"{file}, line {row}: {field!r} is missing or no text in {question!r}.")
        _check_label(f"{file}, line {row}", question["label"])
        questions.append(question if split is None else {**question, "split": split})
    if not questions:
        raise ValueError(f"{file} holds no questions.")
    return questions


def read_pope_answer(prediction: str) -> str:
    """
    What a prediction says, by the official rule: "no" if the first sentence has the word "No", "no" or "not", between
    spaces and apart from commas, and else "yes", whatever it says.

    Args:
        prediction (`str`): what the model said.

    Returns:
        `str`: `"yes"` or `"no"`.
    """
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score_pope(predictions: Sequence[str], questions: Questions, per_question: bool = False) -> dict[str, Any]:
    """
    Accuracy, precision, recall and F1 of "yes", and how often the model says it.

    Args:
        predictions (`list[str]`): what the model said to each question.
        questions (`list[dict]`): from [`load_pope`]; `label` is read, and `split`, if there is one.
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each question.

    Returns:
        `dict`: `accuracy`, `precision`, `recall`, `f1`, `yes_ratio` (of the predictions), all in percent and 0 where
        they would divide by 0, `num_questions`, `num_unanswered` (predictions that say neither yes nor no by
        [`read_yes_no`], which the official rule reads as "yes", or as "no" if they say "not"), `num_empty` (those
        without a letter or digit, some of the unanswered); where questions have splits, `bins`: the same for each.
        POPE is reported per split. With `per_question` also `values`: `accuracy` (100 or 0) and `yes_ratio` for each
        question.

    Raises:
        ValueError: if there are no questions, not as many predictions, or a label is neither "yes" nor "no".
    """
    check_predictions(predictions, questions)
    for row, question in enumerate(questions):
        _check_label(f"question {row}", question.get("label"))
    said = [read_pope_answer(prediction) for prediction in predictions]
    labels = [question["label"] for question in questions]
    unanswered = [read_yes_no(prediction) is None for prediction in predictions]
    empty = [re.search(r"\w", prediction) is None for prediction in predictions]

    def summary(chosen: Sequence[int]) -> dict[str, Any]:
        pairs = [(said[index], labels[index]) for index in chosen]
        return {
            **_metrics(pairs),
            "num_unanswered": sum(unanswered[index] for index in chosen),
            "num_empty": sum(empty[index] for index in chosen),
        }

    result = summary(range(len(questions)))
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, question in enumerate(questions):
        if question.get("split") is not None:
            members.setdefault(question["split"], []).append(index)
    if bins := {split: summary(chosen) for split, chosen in members.items() if chosen}:
        result["bins"] = bins
    if per_question:
        result["values"] = {
            "accuracy": [100.0 * (word == label) for word, label in zip(said, labels)],
            "yes_ratio": [100.0 * (word == "yes") for word in said],
        }
    return result


def _metrics(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    found = pairs.count(("yes", "yes"))
    said, there = (sum(pair[side] == "yes" for pair in pairs) for side in (0, 1))
    return {
        "accuracy": 100.0 * sum(word == label for word, label in pairs) / len(pairs),
        "precision": 100.0 * found / said if said else 0.0,
        "recall": 100.0 * found / there if there else 0.0,
        "f1": 200.0 * found / (said + there) if said + there else 0.0,
        "yes_ratio": 100.0 * said / len(pairs),
        "num_questions": len(pairs),
    }


def _check_label(place: str, label: Any) -> None:
    if label not in ("yes", "no"):
        raise ValueError(f"{place}: 'label' is {label!r}, expected 'yes' or 'no'.")


__all__ = ["SPLITS", "load_pope", "read_pope_answer", "score_pope"]
