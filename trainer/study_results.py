"""What a study has found so far: scores with intervals, paired differences, attention and cost, from finished jobs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.seed_replicates import (
    AVERAGE,
    Estimate,
    ImageScores,
    Replicates,
    SeedVariance,
    draw_images,
    estimate_difference,
    estimate_score,
    mean_difference,
    pooled_seed_variance,
)
from ..evaluation.study_tasks import FINE_GRAINED_TASKS, SEMANTIC_TASKS, TASKS
from .study_jobs import RESULTS, Plan, is_finished, read_json
from .study_plan import FLOORS, SCENES, cell_job, encoder_job
from .study_recipe import StudyRecipe

_UNBOUNDED = ("caption", AVERAGE)  # CIDEr has no greatest value
ATTENTION_MEASURES = ("head_divergence", "share_in_masks")
Kind = tuple[str, str]
"""An encoder by name, and whether it is frozen or tuned."""


def collect_study(recipe: StudyRecipe, plan: Plan, output: Path) -> dict[str, Any]:
    """
    Gathers the results of all jobs that are finished.

    Args:
        recipe ([`StudyRecipe`]): the study.
        plan ([`Plan`]): its jobs.
        output (`Path`): its folder.

    Returns:
        `dict`: `title`, `tasks`, `floors`, `scenes`, `encoders`, `cells` (a `dict` each), `rows` (for each kind of
        model `scores` with intervals, `shuffled`, cost), `questions` (see [`ask_questions`]), `attention`, `missing`
        (jobs that are not finished) and `recipe`; plain values, as JSON has them.

    Raises:
        ValueError: if not a single cell is finished.
    """
    finished = {
        job.name: read_json(output / job.name / RESULTS)
        for job in plan.jobs
        if is_finished(output, plan.configurations[job.name])
    }
    cells = {
        (encoder, tuning, seed): finished[name]
        for encoder in recipe.encoders
        for tuning in recipe.tuning
        for seed in recipe.seeds
        if (name := cell_job(encoder, tuning, seed)) in finished
    }
    if not cells:
        raise ValueError(f"No cell of the study in {output} is finished: there is nothing to report yet.")
    tasks = [task for task in TASKS if task in recipe.evaluation["tasks"]]
    scores = Scores(cells, tasks)
    return {
        "title": recipe.title,
        "tasks": tasks,
        "floors": finished.get(FLOORS, {}).get("results", {}),
        "scenes": {name: finished[name]["results"] for name in SCENES if name in finished},
        "encoders": [_describe_encoder(recipe, name, finished.get(encoder_job(name))) for name in recipe.encoders],
        "rows": [_row(scores, kind, cells) for kind in scores.kinds],
        "seed_spread": {m: asdict(scores.seed_variance(m)) for m in scores.measures},
        "questions": ask_questions(recipe, scores),
        "attention": _attention(cells),
        "cells": [_describe_cell(key, cell, tasks) for key, cell in cells.items()],
        "missing": [job.name for job in plan.jobs if job.name not in finished],
        "recipe": recipe.to_dict(),
    }


class Scores:
    """
    The scores of all cells, by kind of model.

    Args:
        cells (`dict`): results of cells by encoder, tuning and seed.
        tasks (`list[str]`): of the study.
    """

    def __init__(self, cells: Mapping[tuple[str, str, int], Mapping[str, Any]], tasks: Sequence[str]):
        found: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
        for (encoder, tuning, _), cell in cells.items():
            found[(encoder, tuning)].append(cell["results"]["tasks"])
        self.tasks = list(tasks)
        self.measures = [*tasks, *([AVERAGE] if len(tasks) > 1 else [])]
        of_all = (
            image for kind in found.values() for cell in kind for task in tasks for image in cell[task]["images"]
        )
        images = sorted(set(of_all))
        self.kinds: dict[Kind, Replicates] = {
            kind: {
                task: [
                    ImageScores.from_questions(cell[task]["values"], cell[task]["images"], images)
                    for cell in replicates
                ]
                for task in tasks
            }
            for kind, replicates in found.items()
        }
        self._weights = draw_images(len(images))
        self._variances = {
            measure: pooled_seed_variance(self.kinds.values(), measure, self._weights) for measure in self.measures
        }

    def seed_variance(self, measure: str) -> SeedVariance:
        """How much a score varies with the seed, pooled over all kinds of models."""
        return self._variances[measure]

    def score(self, kind: Kind, measure: str) -> Estimate:
        """The score of a kind of model."""
        bounds = None if measure in _UNBOUNDED else (0.0, 100.0)
        return estimate_score(self.kinds[kind], measure, self._weights, self._variances[measure], bounds=bounds)

    def difference(self, first: Kind, second: Kind, measure: str) -> Estimate:
        """How much higher the first scores than the second."""
        kinds, bounds = self.kinds, None if measure in _UNBOUNDED else (-100.0, 100.0)
        return estimate_difference(
            kinds[first], kinds[second], measure, self._weights, self._variances[measure], bounds=bounds
        )

    def mean_difference(self, pairs: Sequence[tuple[Kind, Kind]], measure: str) -> Estimate:
        """The mean of differences."""
        of_pairs = [(self.kinds[first], self.kinds[second]) for first, second in pairs]
        bounds = None if measure in _UNBOUNDED else (-100.0, 100.0)
        return mean_difference(of_pairs, measure, self._weights, self._variances[measure], bounds=bounds)


def ask_questions(recipe: StudyRecipe, scores: Scores) -> list[dict[str, Any]]:
    """
    The three questions of the study, as far as it has the cells for them.

    Args:
        recipe ([`StudyRecipe`]): says which encoder is whose student.
        scores ([`Scores`]): of the cells.

    Returns:
        `list[dict]`: for each question `question`, `about` (the tasks it is about), `pairs` (`first`, `second`, and
        for each measure the difference with its interval) and `mean` over pairs, if there are several.
    """
    distilled = {name: encoder for name, encoder in recipe.encoders.items() if encoder["how"] == "distilled"}
    plain = {encoder["teacher"]: name for name, encoder in distilled.items() if not encoder.get("mask_ratio")}
    masked = [(name, encoder["teacher"]) for name, encoder in distilled.items() if encoder.get("mask_ratio")]
    asked = []
    for tuning in recipe.tuning:
        state = "" if tuning == "frozen" else ", tuned"
        of_students = [((student, tuning), (teacher, tuning)) for teacher, student in plain.items()]
        of_masks = [((name, tuning), (plain[teacher], tuning)) for name, teacher in masked if teacher in plain]
        asked += [
            (f"Does feature distillation help fine-grained perception{state}?", FINE_GRAINED_TASKS, of_students),
            (f"Does masking hurt feature distillation{state or ', frozen'}?", tuple(TASKS), of_masks),
        ]
    if set(recipe.tuning) == {"frozen", "tuned"}:
        both = [((name, "tuned"), (name, "frozen")) for name in recipe.encoders]
        pretrained = [pair for pair in both if recipe.encoders[pair[0][0]]["how"] != "random"]
        asked.append(("Does tuning the tower lose semantics?", SEMANTIC_TASKS, pretrained))
    found = []
    for question, about, pairs in asked:
        pairs = [pair for pair in pairs if set(pair) <= set(scores.kinds)]
        if pairs:
            found.append(
                {"question": question, "about": [task for task in about if task in scores.tasks]}
                | _answer(scores, pairs)
            )
    return found


def _answer(scores: Scores, pairs: Sequence[tuple[Kind, Kind]]) -> dict[str, Any]:
    of_pairs = [
        {"first": list(pair[0]), "second": list(pair[1])}
        | {"differences": {measure: asdict(scores.difference(*pair, measure)) for measure in scores.measures}}
        for pair in pairs
    ]
    mean = {measure: asdict(scores.mean_difference(pairs, measure)) for measure in scores.measures}
    return {"pairs": of_pairs, "mean": mean}


def _row(scores: Scores, kind: Kind, cells: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> dict[str, Any]:
    own = [cell for (encoder, tuning, _), cell in cells.items() if (encoder, tuning) == kind]
    shuffled = {task: _mean([cell["results"]["tasks"][task]["shuffled"] for cell in own]) for task in scores.tasks}
    return {
        "encoder": kind[0],
        "tuning": kind[1],
        "num_seeds": len(own),
        "scores": {measure: asdict(scores.score(kind, measure)) for measure in scores.measures},
        "shuffled": shuffled | {AVERAGE: _mean(list(shuffled.values()))},
        "cpu_seconds": _mean([cell["cost"]["cpu_seconds"] for cell in own]),
        "wall_seconds": _mean([cell["cost"]["wall_seconds"] for cell in own]),
        "train_loss": _mean([cell["results"]["training"]["train_loss"] for cell in own]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _describe_encoder(recipe: StudyRecipe, name: str, made: Mapping[str, Any] | None) -> dict[str, Any]:
    encoder = recipe.encoders[name]
    described = {
        "name": name,
        "label": encoder.get("label") or name,
        "supervision": encoder.get("supervision") or encoder["how"],
        "how": encoder["how"],
        "feature_layer": encoder.get("feature_layer", -1),
        "teacher": encoder.get("teacher"),
        "mask_ratio": encoder.get("mask_ratio", 0.0) if encoder["how"] == "distilled" else None,
    }
    if made is not None:
        described |= {"cost": made["cost"], "hash": made["hash"]}
        measures = ("steps", "train_loss", "mean_average_precision", "metrics", "representation")
        described |= {key: made["results"][key] for key in measures if key in made["results"]}
    return described


def _describe_cell(key: tuple[str, str, int], cell: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    encoder, tuning, seed = key
    left_out = ("values", "images")
    of_tasks = cell["results"]["tasks"]
    return {
        "encoder": encoder,
        "tuning": tuning,
        "seed": seed,
        "tasks": {task: {k: v for k, v in of_tasks[task].items() if k not in left_out} for task in tasks},
        "training": {key: cell["results"]["training"].get(key) for key in ("steps", "train_loss", "parameters")},
        "cost": cell["cost"],
        "environment": cell["environment"],
        "hash": cell["hash"],
    }


def _attention(cells: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of the attention maps of each kind of model, with intervals over scenes and seeds."""
    found: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
    for (encoder, tuning, _), cell in cells.items():
        found[(encoder, tuning)].append(cell["results"]["attention"])
    images = sorted({image for kind in found.values() for cell in kind for image in cell["images"]})
    kinds: dict[Kind, Replicates] = {
        kind: {
            measure: [ImageScores.from_questions(cell[measure], cell["images"], images) for cell in replicates]
            for measure in ATTENTION_MEASURES
        }
        for kind, replicates in found.items()
    }
    weights = draw_images(len(images))
    variances = {measure: pooled_seed_variance(kinds.values(), measure, weights) for measure in ATTENTION_MEASURES}
    return [
        {
            "encoder": kind[0],
            "tuning": kind[1],
            "mask_area": _mean(found[kind][0]["mask_area"]),
            "num_scenes": len(found[kind][0]["images"]),
            **{
                measure: asdict(estimate_score(kinds[kind], measure, weights, variances[measure]))
                for measure in ATTENTION_MEASURES
            },
        }
        for kind in kinds
    ]


__all__ = ["ATTENTION_MEASURES", "Scores", "ask_questions", "collect_study"]
