"""Metrics of the tasks: what each question contributes, by the scoring rules of its benchmark."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .gvtbench_scoring import mci_is_right, read_count, read_yes_no
from .measures import EXACT_MATCH, Metric
from .vqa import answer_is_right, answer_of

Examples = Sequence[Mapping[str, Any]]

MODE_NAMES = {"reference": "as published", "strict": "strict"}


def _other(mode: str) -> str:
    return "strict" if mode == "reference" else "reference"


def counting_metrics(mode: str) -> tuple[Metric, ...]:
    """Object counting: accuracy, MAE and RMSE as [`read_count`] reads the predictions in a mode, and the accuracy in
    the other mode. A prediction without a count is wrong and counts as 0 in the errors."""

    def errors(predictions, examples, mode=mode):
        counts = [read_count(prediction, mode) or 0 for prediction in predictions]
        return np.array([abs(count - float(answer_of(example))) for count, example in zip(counts, examples)])

    def right(mode: str):
        return lambda predictions, examples: errors(predictions, examples, mode) == 0

    return (
        Metric("accuracy", "right", right(mode)),
        Metric("mae", "MAE", errors, bounds=None, scale=1, higher_is_better=False),
        Metric(
            "rmse", "RMSE", lambda *asked: errors(*asked) ** 2, lambda means: np.sqrt(means[..., 0]), None, 1,
            higher_is_better=False,
        ),
        Metric(f"accuracy_{_other(mode)}", f"right, {MODE_NAMES[_other(mode)]}", right(_other(mode))),
    )  # fmt: skip


def identification_metrics(mode: str) -> tuple[Metric, ...]:
    """Multi-class identification: accuracy by [`mci_is_right`] in a mode, and in the other one."""

    def right(mode: str):
        return lambda predictions, examples: [
            mci_is_right(prediction, answer_of(example), mode) for prediction, example in zip(predictions, examples)
        ]

    return (
        Metric("accuracy", "right", right(mode)),
        Metric(f"accuracy_{_other(mode)}", f"right, {MODE_NAMES[_other(mode)]}", right(_other(mode))),
    )


def _vqa_scores(match: str):
    def scores(predictions, examples):
        from .vqa_accuracy import vqa_scores

        return vqa_scores(list(predictions), [example["answers"] for example in examples], match=match)

    return scores


VQA_METRICS = (
    Metric("accuracy", "VQA accuracy", _vqa_scores("exact")),
    Metric("accuracy_contains", "answer contained", _vqa_scores("contains")),
)
"""VQA accuracy: the official one, and that of GVT's released code, which accepts an answer that the prediction
contains. The two are not comparable."""


def _cider(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    from .cider import cider_scores

    return np.asarray(cider_scores(list(predictions), [example["answers"] for example in examples])) / 100


CAPTION_METRICS = (Metric("cider", "CIDEr", _cider, bounds=None),)
"""CIDEr-D of each image. Its interval resamples images and leaves the document frequencies as they are."""

NUM_CONSTANT_CAPTIONS = 16


def constant_caption(examples: Examples) -> list[str]:
    """One caption for all images: of sixteen reference captions, drawn at random, the one of the highest CIDEr."""
    captions = [caption for example in examples for caption in example["answers"]]
    candidates = random.Random(0).sample(captions, min(NUM_CONSTANT_CAPTIONS, len(captions)))
    scores = {caption: float(_cider([caption] * len(examples), examples).mean()) for caption in sorted(candidates)}
    return [max(scores, key=lambda caption: scores[caption])] * len(examples)


def _confusion(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    """For each question: true positive, false positive, false negative, true negative; "yes" is positive."""
    from .pope import read_pope_answer

    rows = np.zeros((len(predictions), 4))
    for row, (prediction, example) in enumerate(zip(predictions, examples)):
        says, is_there = read_pope_answer(prediction) == "yes", answer_of(example).lower().startswith("yes")
        rows[row, (0 if is_there else 1) if says else (2 if is_there else 3)] = 1
    return rows


def _share(above: Sequence[int], below: Sequence[int]):
    """A ratio of sums of columns; 0 where there is nothing to divide by, as when a model never says yes."""

    def statistic(means: np.ndarray) -> np.ndarray:
        divisor = means[..., list(below)].sum(-1)
        return means[..., list(above)].sum(-1) / np.where(divisor == 0, 1, divisor)

    return statistic


POPE_METRICS = (
    Metric("accuracy", "right", lambda *asked: _confusion(*asked)[:, [0, 3]].sum(1)),
    Metric("precision", "precision", _confusion, _share([0], [0, 1])),
    Metric("recall", "recall", _confusion, _share([0], [0, 2])),
    Metric("f1", "F1", _confusion, _share([0, 0], [0, 0, 1, 2])),
    Metric("yes_ratio", "says yes", lambda *asked: _confusion(*asked)[:, [0, 1]].sum(1)),
)
"""POPE: its official reading of the predictions, "yes" being the positive class."""


def _right_and_asked(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    """For each question, in the columns of its dimension: whether it is right, and that it was asked."""
    names = list(dict.fromkeys(example["dimension"] for example in examples))
    columns = np.zeros((len(predictions), 2 * len(names)))
    for row, (prediction, example) in enumerate(zip(predictions, examples)):
        place = names.index(example["dimension"])
        columns[row, place] = answer_is_right(prediction, answer_of(example))
        columns[row, len(names) + place] = 1
    return columns


def _mean_of_dimensions(means: np.ndarray) -> np.ndarray:
    right, asked = np.split(means, 2, axis=-1)
    shares = right / np.where(asked == 0, 1, asked)
    return shares.sum(-1) / (asked > 0).sum(-1)


CHOICE_METRICS = (
    Metric("accuracy", "right, mean of dimensions", _right_and_asked, _mean_of_dimensions),
    Metric("pooled_accuracy", "right, of all questions", EXACT_MATCH.values),
)
"""SEED-Bench: the simple mean of its dimensions, and the share of all questions."""


def without_count(prediction: str) -> bool:
    """Whether a prediction holds no number, strictly read."""
    return read_count(prediction, "strict") is None


def without_yes_no(prediction: str) -> bool:
    """Whether a prediction says neither yes nor no, strictly read."""
    return read_yes_no(prediction) is None


__all__ = [
    "CAPTION_METRICS",
    "CHOICE_METRICS",
    "POPE_METRICS",
    "VQA_METRICS",
    "constant_caption",
    "counting_metrics",
    "identification_metrics",
    "without_count",
    "without_yes_no",
]
