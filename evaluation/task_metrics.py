"""Metrics of the tasks: what each question contributes, by the scoring rules of its benchmark."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .gvtbench_scoring import read_count, read_yes_no, score_multi_class_identification, score_object_counting
from .measures import EXACT_MATCH, Metric
from .pope import score_pope
from .vqa import answer_is_right, answer_of

Examples = Sequence[Mapping[str, Any]]

BEYOND_MEASURE = 1e150
"""The greatest error, whose square is a number still: models do write numbers of a thousand digits."""

MODE_NAMES = {"reference": "as published", "strict": "strict"}


def _other(mode: str) -> str:
    return "strict" if mode == "reference" else "reference"


def counting_metrics(mode: str) -> tuple[Metric, ...]:
    """Object counting: accuracy, MAE and RMSE by [`score_object_counting`] in a mode, and the accuracy in the other
    mode. A prediction without a count is wrong and counts as 0 in the errors, one beyond all measure as 1e150."""

    def of_questions(name: str, mode: str = mode):
        def values(predictions, examples):
            questions = [{"text_out": answer_of(example)} for example in examples]
            scored = score_object_counting(predictions, questions, mode, per_question=True)["values"][name]
            return np.asarray(scored) / 100 if name == "accuracy" else np.minimum(scored, BEYOND_MEASURE)

        return values

    return (
        Metric("accuracy", "right", of_questions("accuracy")),
        Metric("mae", "MAE", of_questions("mae"), bounds=None, scale=1, higher_is_better=False),
        Metric(
            "rmse", "RMSE", of_questions("mse"), lambda means: np.sqrt(means[..., 0]), None, 1, higher_is_better=False,
        ),
        Metric(f"accuracy_{_other(mode)}", f"right, {MODE_NAMES[_other(mode)]}",
               of_questions("accuracy", _other(mode))),
    )  # fmt: skip


def identification_metrics(mode: str) -> tuple[Metric, ...]:
    """Multi-class identification: accuracy by [`score_multi_class_identification`] in a mode, and in the other one."""

    def right(mode: str):
        def values(predictions, examples):
            questions = [
                {"text_out": answer_of(example), "n_obj_exist": example.get("n_obj_exist", 0)} for example in examples
            ]
            scored = score_multi_class_identification(predictions, questions, mode, per_question=True)
            return np.asarray(scored["values"]["accuracy"]) / 100

        return values

    return (
        Metric("accuracy", "right", right(mode)),
        Metric(f"accuracy_{_other(mode)}", f"right, {MODE_NAMES[_other(mode)]}", right(_other(mode))),
    )


def _vqa_scores(match: str):
    def scores(predictions, examples):
        from .vqa_accuracy import vqa_scores

        return vqa_scores(list(predictions), [example["answers"] for example in examples], match=match)

    return scores


def _contained_in_vocabulary(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    """For each question its score and 1, or twice 0 where it has no answer in the vocabulary."""
    kept = np.array([bool(example["in_vocabulary"]) for example in examples], dtype=np.float64)
    return np.stack([kept * _vqa_scores("contains")(predictions, examples), kept], axis=1)


def _ratio(means: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return means[..., 0] / means[..., 1]


def vqa_metrics(has_vocabulary: bool = False) -> tuple[Metric, ...]:
    """
    VQA accuracy: the official one, and one that accepts an answer that the prediction contains, as GVT's released code
    does. The two are not comparable.

    Args:
        has_vocabulary (`bool`, *optional*, defaults to `False`): whether examples say if they are `in_vocabulary`.
            With it the second number is that of the released code, which drops the other questions.
    """
    contained = (
        Metric("accuracy_contains", "answer contained, questions in the vocabulary", _contained_in_vocabulary, _ratio)
        if has_vocabulary
        else Metric("accuracy_contains", "answer contained, no question dropped", _vqa_scores("contains"))
    )
    return (Metric("accuracy", "VQA accuracy", _vqa_scores("exact")), contained)


def constant_vqa_answer(examples: Examples) -> list[str]:
    """One answer for all questions: the one of the highest VQA accuracy."""
    from .vqa_accuracy import best_constant_answer

    return [best_constant_answer([example["answers"] for example in examples])] * len(examples)


def _cider(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    from .cider import cider_scores

    return np.asarray(cider_scores(list(predictions), [example["answers"] for example in examples])) / 100


CAPTION_METRICS = (Metric("cider", "CIDEr", _cider, bounds=None),)
"""CIDEr-D of each image. Its interval resamples images and leaves the document frequencies as they are."""

NUM_CONSTANT_CAPTIONS = 16


def constant_caption(examples: Examples) -> list[str]:
    """One caption for all images: of sixteen reference captions, drawn at random, the one of the highest CIDEr."""
    from .cider import constant_scores

    captions = [caption for example in examples for caption in example["answers"]]
    drawn = random.Random(0).sample(captions, min(NUM_CONSTANT_CAPTIONS, len(captions)))
    candidates = sorted(set(drawn))
    scores = constant_scores(candidates, [example["answers"] for example in examples])
    return [candidates[int(np.argmax(scores))]] * len(examples)


def _confusion(predictions: Sequence[str], examples: Examples) -> np.ndarray:
    """For each question: true positive, false positive, false negative, true negative; "yes" is positive."""
    questions = [{"label": answer_of(example).lower()} for example in examples]
    values = score_pope(predictions, questions, per_question=True)["values"]
    right, yes = (np.asarray(values[name]) == 100 for name in ("accuracy", "yes_ratio"))
    return np.stack([right & yes, ~right & yes, ~right & ~yes, right & ~yes], axis=1).astype(np.float64)


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
    "constant_caption",
    "constant_vqa_answer",
    "counting_metrics",
    "identification_metrics",
    "vqa_metrics",
    "without_count",
    "without_yes_no",
]
