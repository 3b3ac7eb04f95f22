"""GVTBench's object counting and multi-class identification: scored as the authors' code does, and strictly."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .prediction_checks import check_predictions

MODES = ("reference", "strict")

# In this order, case-sensitively, as substrings: rules of the released code, with its slip at nine.
_REFERENCE_DIGITS = (
    ("none", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nive", "9"),
)
_UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["thir", "four", "fif", "six", "seven", "eigh", "nine"]
_TEN_TO_NINETEEN = ["ten", "eleven", "twelve", *(f"{stem}teen" for stem in _TEENS)]
_NUMBERS = {word: number for number, word in enumerate(["zero", *_UNITS, *_TEN_TO_NINETEEN, "twenty"])} | {"none": 0}
# Neither part of "sixteenth" nor of "thirty-one", which is beyond the words that are read.
_NUMBER = re.compile(rf"\b\d+\b|(?<![\w-])(?:{'|'.join(_NUMBERS)})\b(?!-(?:{'|'.join(_UNITS)})\b)", re.IGNORECASE)
_YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)
_MOST_DIGITS = 4000  # Python refuses to read integers much longer than this.

Questions = Sequence[Mapping[str, Any]]


def postprocess(prediction: str) -> str:
    """
    What the released code makes of a generated text before it is scored: its first sentence, with one full stop.

    Full stops become words of their own, line breaks vanish, one leading full stop is dropped, and the text is cut at
    the next one.

    Args:
        prediction (`str`): what the model said.

    Returns:
        `str`: `"two dogs."` of `".two  dogs. And"`; `""` if there was no word, `"."` if nothing is left of them.
    """
    words = [word for word in prediction.replace(".", " . ").replace("\n", "").strip().split(" ") if word]
    if not words:
        return ""
    if words[0] == ".":
        words = words[1:]
    if "." in words:
        words = words[: words.index(".")]
    return " ".join(words) + "."


def read_count(prediction: str, mode: str = "reference") -> int | None:
    """
    The count that a prediction states.

    Args:
        prediction (`str`): what the model said, as it was generated.
        mode (`str`, *optional*, defaults to `"reference"`): `"reference"`, bit for bit the released code: after
            [`postprocess`], `none`, `one` … `eight` and `nive` (sic) become digits wherever they occur, and the first
            digits are the count, 0 if there are none ("Three" is 0, "phone" 1, "sixteen" 6). `"strict"`: the first
            number that stands alone, in digits or in words up to twenty, in any case.

    Returns:
        `int` or `None`: the count; `None`, in strict mode only, if there is none.

    Raises:
        ValueError: if the mode is unknown.
    """
    if _check_mode(mode) == "strict":
        found = _NUMBER.search(prediction)
        if found is None:
            return None
        word = found.group().lower()
        return _NUMBERS[word] if word in _NUMBERS else int(word[:_MOST_DIGITS])
    text = postprocess(prediction)
    for word, digit in _REFERENCE_DIGITS:
        text = text.replace(word, digit)
    digits = re.search(r"\d+", text)
    return int(digits.group()[:_MOST_DIGITS]) if digits else 0


def read_yes_no(prediction: str) -> str | None:
    """
    The first "yes" or "no" of a prediction that is a word of its own, in any case: the strict reading.

    Args:
        prediction (`str`): what the model said.

    Returns:
        `str` or `None`: `"yes"`, `"no"`, or `None` if it says neither.
    """
    found = _YES_NO.search(prediction)
    return found.group().lower() if found else None


def mci_is_right(prediction: str, answer: str, mode: str = "reference") -> bool:
    """
    Whether a prediction says what the answer of an identification question says.

    Args:
        prediction (`str`): what the model said, as it was generated.
        answer (`str`): `"Yes."` or `"No."`.
        mode (`str`, *optional*, defaults to `"reference"`): `"reference"`, bit for bit the released code: the answer
            occurs anywhere in the postprocessed prediction, in any case ("Yes, no doubt" is always right, and so is
            "I do not know" where "No." is). `"strict"`: it is what [`read_yes_no`] reads.

    Raises:
        ValueError: if the mode is unknown.
    """
    if _check_mode(mode) == "strict":
        return read_yes_no(prediction) == answer.strip().rstrip(".").lower()
    said = postprocess(prediction).lower()
    return ("Yes" in answer and "yes" in said) or ("No" in answer and "no" in said)


def score_object_counting(
    predictions: Sequence[str], questions: Questions, mode: str = "reference", per_question: bool = False
) -> dict[str, Any]:
    """
    Accuracy and errors of counts (Section 2 of the GVT paper, "Object Counting").

    A prediction without a count counts as 0 in the errors of either mode and is wrong.

    Args:
        predictions (`list[str]`): what the model said to each question, as it was generated.
        questions (`list[dict]`): records of GVTBench; `text_out` is read.
        mode (`str`, *optional*, defaults to `"reference"`): how counts are read, see [`read_count`]. Only the
            reference mode is comparable with published numbers.
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each question, of which
            the metrics are means.

    Returns:
        `dict`: `accuracy` (percent), `mae`, `rmse` (objects), `num_questions`, `num_unanswered` (predictions that
        state no count by the strict reading, in either mode), `mode`, `bins`: the same metrics for answers from 0 to
        2, 3 to 5, …, by names like `"3-5"`. With `per_question` also `values`: `accuracy` (100 or 0 each), `mae` and
        `mse` (the mean of which is the square of `rmse`) as lists.

    Raises:
        ValueError: if there are no questions, not as many predictions, the mode is unknown or a record is malformed.
    """
    _check_mode(mode)
    answers = _checked(predictions, questions, lambda row, question: _count_of(row, question))
    counts = [read_count(prediction, mode) or 0 for prediction in predictions]
    errors = [abs(count - answer) for count, answer in zip(counts, answers)]
    bins: dict[int, list[int]] = defaultdict(list)
    for answer, error in zip(answers, errors):
        bins[answer // 3].append(error)
    result: dict[str, Any] = {
        **_counting_metrics(errors),
        "num_unanswered": sum(read_count(prediction, "strict") is None for prediction in predictions),
        "mode": mode,
        "bins": {f"{3 * key}-{3 * key + 2}": _counting_metrics(bins[key]) for key in sorted(bins)},
    }
    if per_question:
        result["values"] = {
            "accuracy": [100.0 * (error == 0) for error in errors],
            "mae": [_ratio(error, 1) for error in errors],
            "mse": [_ratio(error * error, 1) for error in errors],
        }
    return result


def score_multi_class_identification(
    predictions: Sequence[str], questions: Questions, mode: str = "reference", per_question: bool = False
) -> dict[str, Any]:
    """
    Accuracy of answers to "Does … exist in the image?" (Section 2 of the GVT paper, "Multi-Class Identification").

    Args:
        predictions (`list[str]`): what the model said to each question, as it was generated.
        questions (`list[dict]`): records of GVTBench; `text_out` and `n_obj_exist` are read.
        mode (`str`, *optional*, defaults to `"reference"`): what is right, see [`mci_is_right`]. Only the reference
            mode is comparable with published numbers; it also accepts predictions that say both, so report the strict
            one beside it.
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each question.

    Returns:
        `dict`: `accuracy` (percent), `num_questions`, `num_unanswered` (neither yes nor no by the strict reading, in
        either mode), `yes_ratio` (percent of "yes" among the predictions that say either, strictly; `None` if none
        does), `mode`, `bins`: the same for images with `"<10"`, `"10-19"` and `">=20"` objects, as far as there are
        any. With `per_question` also `values`: `accuracy`, 100 or 0 for each question.

    Raises:
        ValueError: if there are no questions, not as many predictions, the mode is unknown or a record is malformed.
    """
    _check_mode(mode)
    answers = _checked(predictions, questions, _yes_no_of)
    num_objects = _checked(predictions, questions, lambda row, question: _integer(row, question, "n_obj_exist"))
    values = [100.0 * mci_is_right(text, answer, mode) for text, answer in zip(predictions, answers)]
    said = [read_yes_no(prediction) for prediction in predictions]
    names = ["<10" if number < 10 else "10-19" if number < 20 else ">=20" for number in num_objects]
    result = {**_identification_metrics(values, said), "mode": mode, "bins": {}}
    for name in ("<10", "10-19", ">=20"):
        chosen = [index for index, of_bin in enumerate(names) if of_bin == name]
        if chosen:
            metrics = _identification_metrics([values[i] for i in chosen], [said[i] for i in chosen])
            result["bins"][name] = metrics
    if per_question:
        result["values"] = {"accuracy": values}
    return result


def _counting_metrics(errors: Sequence[int]) -> dict[str, Any]:
    return {
        "accuracy": 100.0 * sum(error == 0 for error in errors) / len(errors),
        "mae": _ratio(sum(errors), len(errors)),
        "rmse": math.sqrt(_ratio(sum(error * error for error in errors), len(errors))),
        "num_questions": len(errors),
    }


def _identification_metrics(values: Sequence[float], said: Sequence[str | None]) -> dict[str, Any]:
    answered = [word for word in said if word is not None]
    return {
        "accuracy": sum(values) / len(values),
        "num_questions": len(values),
        "num_unanswered": len(said) - len(answered),
        "yes_ratio": 100.0 * answered.count("yes") / len(answered) if answered else None,
    }


def _ratio(number: int, divisor: int) -> float:
    """A quotient of integers of any length: models do write numbers of a hundred digits."""
    try:
        return number / divisor
    except OverflowError:
        return math.inf


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected {' or '.join(map(repr, MODES))}.")
    return mode


def _checked(predictions: Sequence[str], questions: Questions, read: Callable[[int, Mapping[str, Any]], Any]) -> list:
    """What `read` finds in each question, after a look at the predictions."""
    check_predictions(predictions, questions)
    return [read(row, question) for row, question in enumerate(questions)]


def _field(row: int, question: Mapping[str, Any], field: str) -> Any:
    if not isinstance(question, Mapping) or field not in question:
        raise ValueError(f"question {row} has no {field!r}: expected a record of GVTBench, got {question!r}.")
    return question[field]


def _integer(row: int, question: Mapping[str, Any], field: str) -> int:
    value = _field(row, question, field)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{field!r} of question {row} is {value!r}, expected a whole number, 0 or greater.")
    return value


def _count_of(row: int, question: Mapping[str, Any]) -> int:
    return _integer(row, question, "text_out")


def _yes_no_of(row: int, question: Mapping[str, Any]) -> str:
    value = _field(row, question, "text_out")
    if value not in ("Yes.", "No.", "Yes", "No"):
        raise ValueError(f"'text_out' of question {row} is {value!r}, expected 'Yes.' or 'No.'.")
    return value


__all__ = [
    "MODES",
    "mci_is_right",
    "postprocess",
    "read_count",
    "read_yes_no",
    "score_multi_class_identification",
    "score_object_counting",
]
