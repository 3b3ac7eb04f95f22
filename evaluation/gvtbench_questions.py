"""GVTBench's question files: reading the official ones, and what can be answered without looking at the images."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .gvtbench_builder import build_questions, question_pool
from .priors import most_frequent, two_fold_guesses

logger = logging.get_logger(__name__)

OFFICIAL_FILES: Mapping[str, str] = {
    "coco_oc": "10f2144b1d2d79d6620af0758f6d3591cb5798eba09ba6d5c0f405c0dd3fb21b",
    "coco_mci": "eedc0e47f92cb9059116bb35aff784f522bf80d7a0f9becfa3d846252596b745",
    "vcr_oc": "b5d5231c20633095c879c4f31f4bc9ea621a76e2e26540f8e815004d8d23f03f",
    "vcr_mci": "0445315cc4f3c69a3005727ee44437a7652cf56196b9b96d805e7bf232c1d8de",
}
"""Task → sha256 of its official file (TencentARC/GVT, folder GVTBench), 10,000 questions each."""

OTHER_COCO_OC = "bf5c31c8390fecfa6b7b8c33a16082778e294e0153f0f4595ec225afbd613dba"
"""sha256 of a second coco_oc.json in the authors' repository, of other questions, 85 % of which have the answer 1."""

_FIELDS = {"image_id": (int, str), "text_in": (str,), "text_out": (str,), "n_obj_exist": (int,)}
_TYPO, _SPELT_RIGHT = "exis in the image", "exist in the image"

Questions = Sequence[Mapping[str, Any]]


def official_name(path: str | os.PathLike) -> str | None:
    """
    Which official file a question file is, whatever it is called.

    Args:
        path (`str`): a file.

    Returns:
        `str` or `None`: a key of `OFFICIAL_FILES`, or `None` if it is none of these.
    """
    found = _sha256(Path(path).read_bytes())
    return next((name for name, sha256 in OFFICIAL_FILES.items() if sha256 == found), None)


def load_questions(
    path: str | os.PathLike, fix_typos: bool = False, deduplicate: bool = False
) -> list[dict[str, Any]]:
    """
    Reads a question file of GVTBench, and warns unless it is an official one.

    Args:
        path (`str`): JSON: a list of `{"image_id", "text_in", "text_out", "n_obj_exist"}`.
        fix_typos (`bool`, *optional*, defaults to `False`): see [`fix_question_typos`].
        deduplicate (`bool`, *optional*, defaults to `False`): see [`drop_duplicates`].

    Returns:
        `list[dict]`: `image_id` (an integer of COCO, a path of VCR), `text_in` (the question), `text_out` (`"Yes."`,
        `"No."` or a number as text), `n_obj_exist` (objects in the image).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a list, is empty, or a record is malformed; names row and field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file: expected a question file of GVTBench, such as coco_oc.json of TencentARC/GVT."
        )
    content = path.read_bytes()
    try:
        questions = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch or write it again.") from error
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"{path} holds no list of questions, expected a JSON list of records.")
    for row, question in enumerate(questions):
        _check_record(path, row, question)
    _warn_unless_official(path, _sha256(content))
    if fix_typos:
        questions = fix_question_typos(questions)
    return drop_duplicates(questions) if deduplicate else questions


def fix_question_typos(questions: Questions) -> list[dict[str, Any]]:
    """
    Spells every identification question alike. In the official vcr_mci, all questions with the answer "No." read "exis
    in the image" and all others "exist", so that the spelling alone gives the answer away.

    Args:
        questions (`list[dict]`): records.

    Returns:
        `list[dict]`: copies with "exist".
    """
    return [{**question, "text_in": question["text_in"].replace(_TYPO, _SPELT_RIGHT)} for question in questions]


def first_rows(questions: Questions) -> list[int]:
    """
    For each record the row of the first one that is equal to it in all fields.

    Args:
        questions (`list[dict]`): records.

    Returns:
        `list[int]`: a row for each, its own unless it is a copy.
    """
    first: dict[tuple, int] = {}
    return [first.setdefault(tuple(sorted(question.items())), row) for row, question in enumerate(questions)]


def drop_duplicates(questions: Questions) -> list[dict[str, Any]]:
    """
    Leaves out records that are equal to an earlier one in all fields: vcr_oc holds 1,726, vcr_mci 354 of them.

    Args:
        questions (`list[dict]`): records.

    Returns:
        `list[dict]`: each once, in their order.
    """
    return [dict(questions[row]) for row in sorted(set(first_rows(questions)))]


def image_path(question: Mapping[str, Any]) -> str:
    """
    Where the image of a question lies in its data set: `val2017/000000000139.jpg` of COCO, `vcr1images/…` of VCR. A
    question with a `file_name` (see [`build_questions`]) names it itself.

    Args:
        question (`dict`): a record.

    Returns:
        `str`: path in the data set, with forward slashes.
    """
    if "file_name" in question:
        return question["file_name"]
    image_id = question["image_id"]
    return f"val2017/{image_id:012d}.jpg" if isinstance(image_id, int) else f"vcr1images/{image_id}"


def find_image(question: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """
    The image file of a question, in the folder of the data set or in the one that holds its images.

    Args:
        question (`dict`): a record.
        folder (`str`): for instance the folder that holds `val2017`, or `val2017` itself.

    Returns:
        `Path`: a file that exists.

    Raises:
        FileNotFoundError: if it lies in neither; names both places.
    """
    within = image_path(question)
    inner = within if "file_name" in question else within.partition("/")[2]
    places = [Path(folder, name) for name in dict.fromkeys((within, inner, f"images/{inner}"))]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"No image for question {question['text_in']!r} about {question['image_id']!r}: "
        f"looked for {' and '.join(map(str, places))}."
    )


def question_clusters(questions: Questions) -> list[Hashable]:
    """The image of each question, by which [`bootstrap_interval`] resamples."""
    return [question["image_id"] for question in questions]


def majority(questions: Questions) -> list[str]:
    """
    What the best constant guess would predict: the most frequent answer of the questions themselves.

    Args:
        questions (`list[dict]`): records.

    Returns:
        `list[str]`: a prediction for each question, the first in the alphabet among equally frequent ones.

    Raises:
        ValueError: if there are no questions.
    """
    if not questions:
        raise ValueError("The majority answer was asked of no questions.")
    answer = most_frequent(Counter(question["text_out"] for question in questions))
    return [answer] * len(questions)


def two_fold_priors(questions: Questions, seed: int = 0) -> list[list[str]]:
    """
    What can be answered from the questions alone: guesses for each from the questions about the other images, see
    [`two_fold_guesses`].

    Args:
        questions (`list[dict]`): records about two images or more.
        seed (`int`, *optional*, defaults to 0): of the divisions.

    Returns:
        `list[list[str]]`: for each division a prediction for each question. The prior's score is the mean over them.

    Raises:
        ValueError: if the questions are about fewer than two images.
    """
    return two_fold_guesses(
        [question["text_in"] for question in questions],
        [question["text_out"] for question in questions],
        question_clusters(questions),
        seed=seed,
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_record(path: Path, row: int, question: Any) -> None:
    if not isinstance(question, dict):
        raise ValueError(f"{path}, row {row}: expected a record of a question, got {question!r}.")
    for field, types in _FIELDS.items():
        value = question.get(field)
        if not isinstance(value, types) or isinstance(value, bool):
            kinds = " or ".join({"int": "a whole number", "str": "text"}[kind.__name__] for kind in types)
            raise ValueError(f"{path}, row {row}: {field!r} is {value!r}, expected {kinds}.")


def _warn_unless_official(path: Path, sha256: str) -> None:
    if sha256 == OTHER_COCO_OC:
        logger.warning(
            f"{path} is the second coco_oc.json of TencentARC/GVT (GVTBench/GVTBench), 85 % of whose answers are 1, "
            "not the official one in GVTBench: scores on it cannot be compared with published ones."
        )
    elif sha256 not in OFFICIAL_FILES.values():
        logger.warning(
            f"{path} is none of the official files of GVTBench (its sha256 is {sha256[:12]}…): scores on it cannot be "
            "compared with published ones."
        )


__all__ = [
    "OFFICIAL_FILES",
    "OTHER_COCO_OC",
    "build_questions",
    "drop_duplicates",
    "find_image",
    "first_rows",
    "fix_question_typos",
    "image_path",
    "load_questions",
    "majority",
    "official_name",
    "question_clusters",
    "question_pool",
    "two_fold_priors",
]
