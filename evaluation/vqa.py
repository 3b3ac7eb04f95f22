"""Accuracy of short answers by exact match, its uncertainty, and what guessing would score."""

import random
import string
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..processing.images import image_key

Examples = Sequence[Mapping[str, Any]]

BREAKDOWNS: Mapping[str, Mapping[Any, str]] = {"photograph": {True: "photographs only", False: "not only photographs"}}
"""Columns by which reports are broken down beside the type, and how they call the groups. Scenes of photographs and
drawings together are not only photographs."""


def normalize_answer(answer: str) -> str:
    """
    Lower case, without white space at the ends and without punctuation at the end.

    Args:
        answer (`str`): e.g. `" Yes."`.

    Returns:
        `str`: e.g. `"yes"`.
    """
    return answer.strip().lower().rstrip(string.punctuation + string.whitespace)


def answer_is_right(prediction: str, answer: str) -> bool:
    """
    Whether a prediction is the answer, up to [`normalize_answer`]. An empty prediction never is.

    Args:
        prediction (`str`): what the model said.
        answer (`str`): what is right.
    """
    predicted = normalize_answer(prediction)
    return bool(predicted) and predicted == normalize_answer(answer)


def is_unanswered(prediction: str) -> bool:
    """Whether a prediction says nothing, punctuation apart."""
    return not normalize_answer(prediction)


def question_of(example: Mapping[str, Any]) -> str:
    """Text of the last question of an example, without its images."""
    return _last_text(example, "user")


def answer_of(example: Mapping[str, Any]) -> str:
    """The right answer of an example: its last turn."""
    return _last_text(example, "assistant")


def _last_text(example, role: str) -> str:
    content = next(message["content"] for message in reversed(example["messages"]) if message["role"] == role)
    return _text(content)


def _text(content) -> str:
    return "".join(part["text"] for part in content if part["type"] == "text").strip()


def questions_and_answers(example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    Every question of an example with its answer: an assistant's turn, and the user's last one before it.

    Args:
        example (`dict`): training example, of one turn or several.

    Returns:
        `list[tuple[str, str]]`: in their order.
    """
    pairs, question = [], None
    for message in example["messages"]:
        if message["role"] == "user":
            question = _text(message["content"])
        elif message["role"] == "assistant" and question is not None:
            pairs.append((question, _text(message["content"])))
            question = None
    return pairs


def image_clusters(examples: Examples) -> list[Hashable]:
    """
    Which questions belong together because they are about the same image.

    Args:
        examples (`list[dict]`): training examples.

    Returns:
        `list`: equal for examples about the same images; an example without images is alone.
    """
    return [
        tuple(image_key(image) for image in example.get("images") or []) or ("no image", index)
        for index, example in enumerate(examples)
    ]


def choose_questions(
    test: Iterable[Mapping[str, Any]], max_questions: int | None = None, seed: int = 0
) -> list[Mapping[str, Any]]:
    """
    A choice of examples in which each is equally likely, in their own order.

    Args:
        test (`list[dict]` or `Dataset`): examples.
        max_questions (`int`, *optional*): how many; by default all.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Raises:
        ValueError: if `max_questions` is less than 1.
    """
    if max_questions is not None and max_questions < 1:
        raise ValueError(f"max_questions is {max_questions}, expected at least 1.")
    examples = list(test)
    if max_questions is None or max_questions >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), max_questions))]


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> list[float] | None:
    """
    Percentile interval of a mean, by resampling whole clusters: questions about one image are right or wrong
    together, and resampling single ones would make the interval too narrow.

    Resamples of clusters that are all alike are alike, too, which is no proof that there are no others. The interval
    then has the exact ends of Clopper and Pearson for the share of other clusters, of which `n` were drawn and none
    was found: at most `1 - ((1 - level) / 2) ** (1 / n)`. These may have any value within `bounds`.

    Args:
        values (`list[float]`): for instance 1 for each right and 0 for each wrong answer.
        clusters (`list`): the cluster of each value, such as its image.
        level (`float`, *optional*, defaults to 0.95): coverage.
        num_resamples (`int`, *optional*, defaults to 2000): number of resamples.
        seed (`int`, *optional*, defaults to 0): of the resampling.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): the least and the greatest value there
            can be.

    Returns:
        `list[float]` or `None`: lower and upper end; `None` with fewer than two clusters.

    Raises:
        ValueError: if there are not as many clusters as values.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters were given: give each value one.")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        return None
    members = np.array([numbers[cluster] for cluster in clusters])
    sums = np.bincount(members, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(members)
    tail = (1 - level) / 2
    of_cluster = sums / counts
    if (of_cluster == of_cluster[0]).all():
        value, others = float(of_cluster[0]), 1 - tail ** (1 / len(counts))
        return [value - others * (value - bounds[0]), value + others * (bounds[1] - value)]
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = generator.integers(0, len(counts), len(counts))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = sums.sum() / counts.sum()
    return [float(min(low, mean)), float(max(high, mean))]


def measure(
    predictions: Sequence[str],
    examples: Examples,
    type_column: str = "answer_type",
    breakdowns: Mapping[str, Mapping[Any, str]] = BREAKDOWNS,
) -> dict[str, Any]:
    """
    Accuracy of predictions, in total, per type of question, and per group of other breakdowns.

    Args:
        predictions (`list[str]`): one for each example.
        examples (`list[dict]`): training examples.
        type_column (`str`, *optional*, defaults to `"answer_type"`): column that holds the type, if there is one.
        breakdowns (`dict[str, dict]`, *optional*, defaults to [`BREAKDOWNS`]): further columns, and for each value the
            name of its group; a value without a name is left out.

    Returns:
        `dict`: `num_questions`, `num_images` (distinct, or sets of them), `accuracy` and `interval` (of 95 %) between
        0 and 1, `unanswered`, and, where examples have types, `per_type`: for each type a `dict` of the same kind;
        where they have columns of `breakdowns`, `breakdowns`: for each column a `dict` like `per_type`.

    Raises:
        ValueError: if there are no examples, or not as many predictions.
    """
    if len(predictions) != len(examples) or not examples:
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples, expected one for each.")
    right = [answer_is_right(text, answer_of(example)) for text, example in zip(predictions, examples)]
    unanswered = [is_unanswered(text) for text in predictions]
    clusters = image_clusters(examples)
    summary = _summary(right, unanswered, clusters, range(len(examples)))

    def groups(names: Sequence[Any]) -> dict[Any, Any]:
        members: dict[Any, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            if name is not None:
                members[name].append(index)
        return {name: _summary(right, unanswered, clusters, members[name]) for name in sorted(members, key=str)}

    if of_type := groups([example.get(type_column) for example in examples]):
        summary["per_type"] = of_type
    found = {
        column: of_column
        for column, names in breakdowns.items()
        if (of_column := groups([names.get(example.get(column)) for example in examples]))
    }
    if found:
        summary["breakdowns"] = found
    return summary


def _summary(right, unanswered, clusters, chosen: Sequence[int]) -> dict[str, Any]:
    values, of = [right[index] for index in chosen], [clusters[index] for index in chosen]
    return {
        "num_questions": len(chosen),
        "num_images": len(set(of)),
        "accuracy": sum(values) / len(chosen),
        "interval": bootstrap_interval(values, of),
        "unanswered": sum(unanswered[index] for index in chosen),
    }


def majority_answers(test: Examples, type_column: str | None = None) -> list[str]:
    """
    What the best constant guess would predict: the most frequent answer of the questions themselves.

    Args:
        test (`list[dict]`): examples.
        type_column (`str`, *optional*): guess one answer for each type in this column, and not one for all.

    Returns:
        `list[str]`: a prediction for each example.
    """
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    types = [example.get(type_column) if type_column else None for example in test]
    for kind, example in zip(types, test):
        counts[kind][answer_of(example)] += 1
    return [counts[kind].most_common(1)[0][0] for kind in types]


def question_only_prior(train: Examples, test: Examples) -> list[str]:
    """
    What someone would predict who read all training questions and never saw an image: the most frequent training
    answer of exactly this question, or, of a question that training does not hold, the most frequent one of all.

    Args:
        train (`list[dict]`): examples, of which every turn is read.
        test (`list[dict]`): examples, of which the last question is answered.

    Returns:
        `list[str]`: a prediction for each example of `test`.

    Raises:
        ValueError: if there are no training examples.
    """
    of_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for example in train:
        for question, answer in questions_and_answers(example):
            of_question[question][answer] += 1
            overall[answer] += 1
    if not overall:
        raise ValueError("The question-only prior learns from training examples, and none were given.")
    fallback = overall.most_common(1)[0][0]
    questions = [question_of(example) for example in test]
    return [of_question[text].most_common(1)[0][0] if text in of_question else fallback for text in questions]


__all__ = [
    "BREAKDOWNS",
    "answer_is_right",
    "answer_of",
    "bootstrap_interval",
    "choose_questions",
    "image_clusters",
    "is_unanswered",
    "majority_answers",
    "measure",
    "normalize_answer",
    "question_of",
    "question_only_prior",
    "questions_and_answers",
]
