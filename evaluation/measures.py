"""What is measured of predictions: metrics with their intervals, in total, per type of question and per group."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import Statistic, bootstrap_interval, first_column
from .vqa import BREAKDOWNS, answer_is_right, answer_of, image_clusters, is_unanswered

Examples = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Metric:
    """
    A number that says how good predictions are: a statistic of the means of what each question contributes.

    Args:
        name (`str`): its key in reports.
        label (`str`): what tables and charts call it.
        values (`Callable`): takes predictions and examples, returns an array of shape `(num_questions,)` or
            `(num_questions, num_columns)`.
        statistic (`Callable`, *optional*): of the means of the columns; by default the only column's.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): the least and the greatest value there
            can be; `None` if there are none.
        scale (`float`, *optional*, defaults to 100.0): what tables and charts multiply it by: 100 for shares.
        higher_is_better (`bool`, *optional*, defaults to `True`): whether it is.
    """

    name: str
    label: str
    values: Callable[[Sequence[str], Examples], Any]
    statistic: Statistic = first_column
    bounds: tuple[float, float] | None = (0.0, 1.0)
    scale: float = 100.0
    higher_is_better: bool = True

    def columns(self, predictions: Sequence[str], examples: Examples) -> np.ndarray:
        """What each question contributes, `(num_questions, num_columns)`."""
        columns = np.asarray(self.values(predictions, examples), dtype=np.float64)
        return columns[:, None] if columns.ndim == 1 else columns

    def mean_columns(self, guesses: Sequence[Sequence[str]], examples: Examples) -> np.ndarray:
        """What each question contributes on average over several predictions of all, `(num_questions, num_columns)`.
        Equal predictions of a question are looked at once."""
        if len(guesses) == 1:
            return self.columns(guesses[0], examples)
        counted = [Counter(texts) for texts in zip(*guesses)]
        rows = [row for row, texts in enumerate(counted) for _ in texts]
        times = np.array([number for texts in counted for number in texts.values()], dtype=np.float64)
        columns = self.columns([text for texts in counted for text in texts], [examples[row] for row in rows])
        sums = np.zeros((len(examples), columns.shape[1]))
        np.add.at(sums, rows, columns * times[:, None])
        return sums / len(guesses)

    def measured(self, columns: np.ndarray, clusters: Sequence[Any]) -> tuple[float | None, list[float] | None]:
        """Value and 95 % interval of columns of some questions; neither where there is no such number."""
        value = float(self.statistic(columns.mean(0)))
        if not np.isfinite(value):
            return None, None
        interval = bootstrap_interval(columns, clusters, bounds=self.bounds, statistic=self.statistic)
        return value, interval if interval is None or np.isfinite(interval).all() else None

    def gain(self, columns: np.ndarray, floor: np.ndarray, clusters: Sequence[Any]) -> dict[str, Any]:
        """How much better the one is than the other about the same questions, with its interval over images."""
        sign, width = 1 if self.higher_is_better else -1, columns.shape[1]

        def difference(means: np.ndarray) -> np.ndarray:
            return sign * (self.statistic(means[..., :width]) - self.statistic(means[..., width:]))

        if self.statistic is first_column and self.bounds is not None:
            reach = self.bounds[1] - self.bounds[0]
            gains = sign * (columns - floor)
            interval = bootstrap_interval(gains, clusters, bounds=(-reach, reach))
            return {self.name: float(gains.mean()), "interval": interval}
        both = np.concatenate([columns, floor], axis=1)
        interval = bootstrap_interval(both, clusters, bounds=None, statistic=difference)
        return {self.name: float(difference(both.mean(0))), "interval": interval}


EXACT_MATCH = Metric(
    "accuracy",
    "right",
    lambda predictions, examples: [
        answer_is_right(prediction, answer_of(example)) for prediction, example in zip(predictions, examples)
    ],
)
"""The share of answers that are the right one, up to [`normalize_answer`]."""


def measure(
    predictions: Sequence[str],
    examples: Examples,
    type_column: str = "answer_type",
    breakdowns: Mapping[str, Mapping[Any, str]] = BREAKDOWNS,
    metrics: Sequence[Metric] = (EXACT_MATCH,),
    unanswered: Callable[[str], bool] = is_unanswered,
    others: Sequence[Sequence[str]] = (),
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """
    Metrics of predictions, in total, per type of question, and per group of other breakdowns.

    Args:
        predictions (`list[str]`): one for each example.
        examples (`list[dict]`): training examples.
        type_column (`str`, *optional*, defaults to `"answer_type"`): column that holds the type, if there is one.
        breakdowns (`dict[str, dict]`, *optional*, defaults to [`BREAKDOWNS`]): further columns, and for each value the
            name of its group; a value without a name is left out.
        metrics (`list[Metric]`, *optional*): what to measure, the primary one first; by default the accuracy of exact
            matches.
        unanswered (`Callable`, *optional*): whether a prediction says nothing that counts as an answer.
        others (`list[list[str]]`, *optional*): further predictions of all examples: what an example contributes to a
            metric is the mean over these and the first ones. Unanswered are counted among the first ones.
        clusters (`list`, *optional*): which examples intervals resample together; by default those of one image.

    Returns:
        `dict`: `num_questions`, `num_images` (distinct, or sets of them), the primary metric under its name and its
        `interval` (of 95 %), `unanswered`; where there are further metrics, `metrics`: for each `value` and
        `interval`; where examples have types, `per_type`: for each type a `dict` of the same kind; where they have
        columns of `breakdowns`, `breakdowns`: for each column a `dict` like `per_type`. Accuracies are shares between
        0 and 1.

    Raises:
        ValueError: if there are no examples, or not as many predictions.
    """
    if len(predictions) != len(examples) or not examples:
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples, expected one for each.")
    columns = {metric: metric.mean_columns([predictions, *others], examples) for metric in metrics}
    silent = [unanswered(text) for text in predictions]
    images = image_clusters(examples)
    together = images if clusters is None else list(clusters)
    summary = _summary(columns, silent, together, images, range(len(examples)))

    def groups(names: Sequence[Any]) -> dict[Any, Any]:
        members: dict[Any, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            if name is not None:
                members[name].append(index)
        return {
            name: _summary(columns, silent, together, images, members[name]) for name in sorted(members, key=_in_order)
        }

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


def _in_order(name: Any) -> tuple[float, str]:
    """Bins of numbers by their first number, other names by the alphabet."""
    digits = "".join(character if character.isdigit() else " " for character in str(name)).split()
    is_bin = digits and str(name)[0] in "<≥>0123456789"
    return (float(digits[0]) - str(name).startswith("<") if is_bin else -1.0, str(name))


def _summary(columns, silent, together, images, chosen: Sequence[int]) -> dict[str, Any]:
    chosen = list(chosen)
    of = [together[index] for index in chosen]
    measured = {metric: metric.measured(values[chosen], of) for metric, values in columns.items()}
    (primary, (value, interval)), *others = measured.items()
    summary = {
        "num_questions": len(chosen),
        "num_images": len({images[index] for index in chosen}),
        primary.name: value,
        "interval": interval,
        "unanswered": sum(silent[index] for index in chosen),
    }
    if others:
        summary["metrics"] = {
            metric.name: {"value": value, "interval": interval} for metric, (value, interval) in others
        }
    return summary


__all__ = ["EXACT_MATCH", "Metric", "measure"]
