"""The scores of a study's models as tables of replicates: of tasks, of parts of them, above what needs no image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..evaluation.seed_replicates import (
    AVERAGE,
    Estimate,
    ImageScores,
    Replicates,
    SeedVariance,
    draw_images,
    estimate_contrast,
    estimate_difference,
    estimate_score,
    pooled_seed_variance,
)
from ..evaluation.study_tasks import VQA_PARTS

Kind = tuple[str, str]
"""An encoder by name, and whether it is frozen or tuned."""

FLOORS_OF_QUESTIONS = ("majority", "question_only_prior")
_UNBOUNDED = ("caption", AVERAGE)  # CIDEr has no greatest value


class ScoreTable:
    """
    Scores of all kinds of models on the same images.

    Args:
        kinds (`dict`): [`Replicates`] of each kind of model.
        measures (`list[str]`): what can be asked for.
        weights (`np.ndarray`): from [`draw_images`].
        greatest (`float`, *optional*): the greatest value that there is; its measures have exact intervals where all
            images are alike. CIDEr and means with it have none.
        least (`float`, *optional*, defaults to 0): the least.
    """

    def __init__(
        self,
        kinds: Mapping[Kind, Replicates],
        measures: Sequence[str],
        weights: np.ndarray,
        greatest: float | None = 100.0,
        least: float = 0.0,
    ):
        self.kinds, self.measures, self._weights = dict(kinds), list(measures), weights
        self._ends = None if greatest is None else (least, greatest)
        self._variances = {name: pooled_seed_variance(kinds.values(), name, weights) for name in measures}

    def seed_variance(self, measure: str) -> SeedVariance:
        """How much a score varies with the seed, pooled over all kinds of models."""
        return self._variances[measure]

    def score(self, kind: Kind, measure: str) -> Estimate:
        """The score of a kind of model."""
        bounds = self._bounds(measure, 0)
        return estimate_score(self.kinds[kind], measure, self._weights, self._variances[measure], bounds=bounds)

    def difference(self, first: Kind, second: Kind, measure: str) -> Estimate:
        """How much higher the first scores than the second."""
        kinds, bounds = self.kinds, self._bounds(measure, 1)
        return estimate_difference(
            kinds[first], kinds[second], measure, self._weights, self._variances[measure], bounds=bounds
        )

    def contrast(self, terms: Sequence[tuple[Kind, float]], measure: str) -> Estimate:
        """A sum of scores with a factor each; the factors add up to zero."""
        of_kinds = [(self.kinds[kind], factor) for kind, factor in terms]
        bounds = self._bounds(measure, sum(abs(factor) for _, factor in terms) / 2)
        return estimate_contrast(of_kinds, measure, self._weights, self._variances[measure], bounds=bounds)

    def _bounds(self, measure: str, times: float) -> tuple[float, float] | None:
        """Of a score, or of a sum of so many differences."""
        if self._ends is None or measure in _UNBOUNDED:
            return None
        least, greatest = self._ends
        return (least, greatest) if not times else (times * (least - greatest), times * (greatest - least))


class Scores:
    """
    All scores of the cells of a study.

    Args:
        cells (`dict`): for each encoder, tuning and seed the results of its answers, by task.
        tasks (`list[str]`): of the study.
        floors (`dict`): results of the floors, by task; empty if they are not there yet.

    Attributes:
        tasks ([`ScoreTable`]): scores of the tasks, and their mean.
        parts ([`ScoreTable`]): of the parts of VQA, where questions have a type.
        gains ([`ScoreTable`]): how much higher questions score with their own scenes than with others.
    """

    def __init__(
        self, cells: Mapping[tuple[str, str, int], Mapping[str, Any]], tasks: Sequence[str], floors: Mapping[str, Any]
    ):
        self.task_names = list(tasks)
        found: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
        for (encoder, tuning, _), measured in cells.items():
            found[(encoder, tuning)].append(measured)
        images = sorted({image for measured in cells.values() for task in tasks for image in measured[task]["images"]})
        self._found, self._images, self._weights = found, images, draw_images(len(images))
        measures = [*tasks, *([AVERAGE] if len(tasks) > 1 else [])]
        self.tasks = self._table(tasks, measures, lambda one, task: (one[task]["values"], one[task]["images"]))
        self.gains = self._table(tasks, measures, _gains, least=-100.0)
        first = next(iter(cells.values()))
        parts = [part for part in VQA_PARTS if part in (first.get("vqa") or {}).get("parts", ())]
        self.parts = self._table(parts, parts, lambda one, part: _of_part(one["vqa"]["values"], one["vqa"], part))
        self._above = self._above_floors(measures, parts, floors)

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of models that there are."""
        return list(self._found)

    def table(self, measure: str) -> ScoreTable:
        """The table that holds a task, a part of one, or the mean."""
        return self.parts if measure in self.parts.measures else self.tasks

    def is_at_floor(self, kind: Kind, measure: str) -> bool:
        """
        Whether a kind of model cannot be told from the best that needs no image: the interval of what it scores above
        this, on the same questions, is not above zero. Without floors nothing is known, and nothing is at them.
        """
        table = self._above.get(measure)
        if table is None:
            return False
        low = table.score(kind, measure).low
        return low is None or low <= 0

    def above_floor(self, kind: Kind, measure: str) -> dict[str, Any] | None:
        """How much a kind of model scores above the floor, as a plain [`Estimate`]; `None` without floors."""
        table = self._above.get(measure)
        return None if table is None else asdict(table.score(kind, measure))

    def _table(self, names: Sequence[str], measures: Sequence[str], read, least: float = 0.0) -> ScoreTable:
        def of_images(one, name: str) -> ImageScores:
            values, images = read(one, name)
            return ImageScores.from_questions(values, images, self._images)

        kinds: dict[Kind, Replicates] = {
            kind: {name: [of_images(one, name) for one in replicates] for name in names}
            for kind, replicates in self._found.items()
        }
        return ScoreTable(kinds, measures, self._weights, least=least)

    def _above_floors(
        self, measures: Sequence[str], parts: Sequence[str], floors: Mapping[str, Any]
    ) -> dict[str, ScoreTable]:
        if not floors or any("values" not in floors.get(task, {}) for task in self.task_names):
            return {}

        def of_task(one, task):
            return _minus(one[task]["values"], _highest(floors[task]["values"])), one[task]["images"]

        def of_part(one, part):
            guesses = {name: _of_part(values, one["vqa"], part)[0] for name, values in floors["vqa"]["values"].items()}
            values, images = _of_part(one["vqa"]["values"], one["vqa"], part)
            return _minus(values, _highest(guesses)), images

        tasks = self._table(self.task_names, measures, of_task, least=-100.0)
        tables = dict.fromkeys(measures, tasks)
        return tables | dict.fromkeys(parts, self._table(parts, parts, of_part, least=-100.0))


def _gains(one: Mapping[str, Any], task: str) -> tuple[list[float], list[str]]:
    measured = one[task]
    places = measured["shuffled_places"]
    given = [measured["values"][place] for place in places]
    return _minus(given, measured["shuffled_values"]), [measured["images"][place] for place in places]


def _of_part(values: Sequence[float], measured: Mapping[str, Any], part: str) -> tuple[list[float], list[str]]:
    places = [place for place, found in enumerate(measured["parts"]) if found == part]
    return [values[place] for place in places], [measured["images"][place] for place in places]


def _minus(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def _highest(floors: Mapping[str, Sequence[float]]) -> Sequence[float]:
    return max((floors[name] for name in FLOORS_OF_QUESTIONS), key=lambda values: float(np.mean(values)))


__all__ = ["FLOORS_OF_QUESTIONS", "Kind", "ScoreTable", "Scores"]
