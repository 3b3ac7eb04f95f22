"""SEED-Bench: multiple-choice questions in eight dimensions of images, answered by likelihood (Li et al. 2023)."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DIMENSIONS: Mapping[int, str] = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
}
"""`question_type_id` of the official file → name, of the dimensions of Table 7 of the GVT paper. The file's others are
text (9) and videos (10 to 12)."""
LETTERS = "ABCD"
IMAGE_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")

Examples = Sequence[Mapping[str, Any]]


def load_seed_bench(
    path: str | os.PathLike, images: str | os.PathLike, dimensions: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """
    Reads the questions about images of SEED-Bench.

    Args:
        path (`str`): the official `SEED-Bench.json` (AILab-CVC/SEED-Bench): `{"questions": [{"question_id",
            "question_type_id", "data_id", "data_type", "question", "choice_a" … "choice_d", "answer"}]}`.
        images (`str`): folder of the images, which are called as `data_id` says, with a suffix or, as in the official
            archive, without.
        dimensions (`list[int]`, *optional*): keys of `DIMENSIONS`; by default all eight. Other questions are left out.

    Returns:
        `list[dict]`: examples: `id`, `source`, `row`, `images`, `messages` (the question and the right choice),
        `choices` (four texts), `answer` (position of the right one), `dimension` (its name).

    Raises:
        FileNotFoundError: if the file, the folder or an image does not exist.
        ValueError: if the file is malformed (names row and field), or has no question of these dimensions.
    """
    path, images = Path(path), Path(images)
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is no folder: expected the images of SEED-Bench.")
    records = read_seed_bench(path, dimensions)
    return [seed_bench_example(path, row, record, images) for row, record in records.items()]


def read_seed_bench(path: Path, dimensions: Sequence[int] | None = None) -> dict[int, Mapping[str, Any]]:
    """
    The records of some dimensions, by their rows.

    Args:
        path, dimensions: see [`load_seed_bench`].

    Raises:
        FileNotFoundError, ValueError: see [`load_seed_bench`].
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: expected SEED-Bench.json.")
    wanted = tuple(DIMENSIONS if dimensions is None else dimensions)
    if unknown := [number for number in wanted if number not in DIMENSIONS]:
        raise ValueError(f"dimension {unknown[0]!r} is none of SEED-Bench's dimensions of images: {dict(DIMENSIONS)}.")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    records = document.get("questions") if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise ValueError(f"{path} has no list of 'questions': expected the format of SEED-Bench.json.")
    found = {
        row: record for row, record in enumerate(records) if _field(path, row, record, "question_type_id") in wanted
    }
    if not found:
        raise ValueError(f"{path} has no question of the dimensions {', '.join(map(str, wanted))}.")
    return found


def seed_bench_example(path: Path, row: int, record: Mapping[str, Any], images: Path) -> dict[str, Any]:
    """
    A record as an example, see [`load_seed_bench`].

    Args:
        path (`Path`): its file.
        row (`int`): its row.
        record (`dict`): from [`read_seed_bench`].
        images (`Path`): folder of the images.

    Raises:
        FileNotFoundError: if its image does not exist.
        ValueError: if it is malformed.
    """
    choices = [str(_field(path, row, record, f"choice_{letter.lower()}")) for letter in LETTERS]
    letter = _field(path, row, record, "answer")
    if not isinstance(letter, str) or len(letter) != 1 or letter not in LETTERS:
        raise ValueError(f"{path}, row {row}: 'answer' is {letter!r}, expected one of {', '.join(LETTERS)}.")
    answer = LETTERS.index(letter)
    content = [{"type": "image", "text": None}, {"type": "text", "text": str(_field(path, row, record, "question"))}]
    return {
        "id": str(_field(path, row, record, "question_id")),
        "source": "seed_bench",
        "row": row,
        "images": [{"path": str(_image(path, row, images, _field(path, row, record, "data_id"))), "bytes": None}],
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": choices[answer]}]},
        ],
        "choices": choices,
        "answer": answer,
        "dimension": DIMENSIONS[record["question_type_id"]],
    }


def _image(path: Path, row: int, images: Path, data_id: Any) -> Path:
    for suffix in IMAGE_SUFFIXES:
        if (file := images / f"{data_id}{suffix}").is_file():
            return file
    raise FileNotFoundError(
        f"{path}, row {row}: {images} holds no image {data_id!r} (looked for it without a suffix and with "
        f"{', '.join(IMAGE_SUFFIXES[1:])})."
    )


def _field(path: Path, row: int, record: Any, field: str) -> Any:
    if not isinstance(record, Mapping) or record.get(field) is None:
        raise ValueError(f"{path}, row {row}: no {field!r} in {record!r}.")
    return record[field]


def most_likely(log_likelihoods: Sequence[float]) -> int:
    """
    The choice that a model makes: the one whose text is the most likely answer.

    Args:
        log_likelihoods (`list[float]`): log-likelihood of each choice's text, in nats, summed over its tokens.

    Returns:
        `int`: its position, the first of equally likely ones.

    Raises:
        ValueError: if there are none, or one is not a number.
    """
    if not len(log_likelihoods) or any(math.isnan(value) for value in log_likelihoods):
        raise ValueError(f"the likelihoods of the choices are {list(log_likelihoods)}, expected a number for each.")
    return max(range(len(log_likelihoods)), key=lambda index: log_likelihoods[index])


def score_seed_bench(chosen: Sequence[int], questions: Examples, per_question: bool = False) -> dict[str, Any]:
    """
    Accuracy in each dimension, and their simple mean (Table 7 of the GVT paper). Chance is 25.

    Args:
        chosen (`list[int]`): position of the choice made in each question, see [`most_likely`].
        questions (`list[dict]`): from [`load_seed_bench`]; `answer`, `choices` and `dimension` are read.
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each question.

    Returns:
        `dict`: `accuracy` (percent, the simple mean of the dimensions), `pooled_accuracy` (of all questions alike),
        `num_questions`, `num_unanswered` (always 0: every question gets a choice), `bins`: `accuracy` and
        `num_questions` by name of the dimension. With `per_question` also `values`: `accuracy`, weighted so that their
        mean is that of the dimensions, and `pooled_accuracy`, 100 or 0 for each question.

    Raises:
        ValueError: if there are no questions, not as many choices, or a choice or a record is out of range.
    """
    if len(chosen) != len(questions) or not len(questions):
        raise ValueError(f"{len(chosen)} choices for {len(questions)} questions: expected one for each, and some.")
    right = [_is_right(row, choice, question) for row, (choice, question) in enumerate(zip(chosen, questions))]
    names = [question["dimension"] for question in questions]
    order = [name for name in DIMENSIONS.values() if name in names]
    bins: dict[str, dict[str, Any]] = {}
    for dimension in [*order, *sorted(set(names) - set(order))]:
        values = [value for value, name in zip(right, names) if name == dimension]
        bins[dimension] = {"accuracy": 100.0 * sum(values) / len(values), "num_questions": len(values)}
    result: dict[str, Any] = {
        "accuracy": sum(measured["accuracy"] for measured in bins.values()) / len(bins),
        "pooled_accuracy": 100.0 * sum(right) / len(right),
        "num_questions": len(right),
        "num_unanswered": 0,
        "bins": bins,
    }
    if per_question:
        weights = [len(right) / (len(bins) * bins[name]["num_questions"]) for name in names]
        result["values"] = {
            "accuracy": [100.0 * value * weight for value, weight in zip(right, weights)],
            "pooled_accuracy": [100.0 * value for value in right],
        }
    return result


def _is_right(row: int, choice: int, question: Mapping[str, Any]) -> bool:
    if missing := [field for field in ("answer", "choices", "dimension") if field not in question]:
        raise ValueError(f"question {row} has no {missing[0]!r}: expected an example of SEED-Bench.")
    num_choices = len(question["choices"])
    for name, position in (("the choice made", choice), ("'answer'", question["answer"])):
        if isinstance(position, bool) or not hasattr(position, "__index__") or not 0 <= position < num_choices:
            raise ValueError(f"question {row}: {name} is {position!r}, expected 0 to {num_choices - 1}.")
    return int(choice) == int(question["answer"])


__all__ = ["DIMENSIONS", "load_seed_bench", "most_likely", "read_seed_bench", "score_seed_bench", "seed_bench_example"]
