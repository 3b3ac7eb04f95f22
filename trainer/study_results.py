"""What a study has found so far: scores with intervals, paired differences, attention and cost, from finished jobs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.seed_replicates import AVERAGE, ImageScores, Replicates, draw_images
from ..evaluation.study_tasks import TASKS
from .study_jobs import RESULTS, Plan, is_finished, read_json
from .study_plan import ANSWERS, ATTENTION, FLOORS, PROBE, SCENES, TRAINING, cell_job, encoder_job, probe_job
from .study_questions import ask_questions
from .study_recipe import StudyRecipe
from .study_scores import FLOORS_OF_QUESTIONS, Kind, Scores, ScoreTable

ATTENTION_MEASURES = ("head_divergence", "share_in_masks")
PROBES = ("knn", "linear_probe")
CellKey = tuple[str, str, int]
_PER_QUESTION = ("values", "images", "parts", "shuffled_values", "shuffled_places")


def collect_study(recipe: StudyRecipe, plan: Plan, output: Path) -> dict[str, Any]:
    """
    Gathers the results of all jobs that are finished.

    Args:
        recipe ([`StudyRecipe`]): the study.
        plan ([`Plan`]): its jobs.
        output (`Path`): its folder.

    Returns:
        `dict`: `title`, `tasks`, `floors`, `scenes`, `encoders`, `cells` (a `dict` each), `rows` (for each kind of
        model `scores`, `gains` and `parts` with intervals, `shuffled`, cost), `questions` (see [`ask_questions`]),
        `attention`, `attention_differences`, `probes`, `cost` (CPU seconds of all jobs, by kind), `missing` (jobs that
        are not finished) and `recipe`; plain values, as JSON has them.

    Raises:
        ValueError: if not a single cell is trained and has answered.
    """
    finished = {
        job.name: read_json(output / job.name / RESULTS)
        for job in plan.jobs
        if is_finished(output, plan.configurations[job.name])
    }
    cells = _cells(recipe, finished)
    if not cells:
        raise ValueError(f"No cell of the study in {output} is finished: there is nothing to report yet.")
    tasks = [task for task in TASKS if task in recipe.evaluation["tasks"]]
    floors = finished.get(FLOORS, {}).get("results", {})
    scores = Scores({key: cell[ANSWERS]["results"] for key, cell in cells.items()}, tasks, floors)
    attention = _attention_table(cells)
    return {
        "title": recipe.title,
        "tasks": tasks,
        "floors": {task: _without(floors[task], _PER_QUESTION) for task in tasks if task in floors},
        "scenes": {name: finished[name]["results"] for name in SCENES if name in finished},
        "encoders": [_describe_encoder(recipe, name, finished) for name in recipe.encoders],
        "rows": [_row(scores, kind, cells) for kind in scores.kinds],
        "seed_spread": {m: asdict(scores.tasks.seed_variance(m)) for m in scores.tasks.measures},
        "parts": scores.parts.measures,
        "questions": ask_questions(recipe, scores),
        "attention": [] if attention is None else _attention_rows(attention, cells),
        "attention_differences": [] if attention is None else _attention_differences(recipe, attention),
        "probes": _probes(recipe, finished),
        "cost": _cost(plan, finished),
        "cells": [_describe_cell(key, cell, tasks) for key, cell in cells.items()],
        "missing": [job.name for job in plan.jobs if job.name not in finished],
        "recipe": recipe.to_dict(),
    }


def _cells(recipe: StudyRecipe, finished: Mapping[str, Any]) -> dict[CellKey, dict[str, Any]]:
    """Of each cell that has answered the documents of its jobs."""
    found = {}
    for encoder in recipe.encoders:
        for tuning in recipe.tuning:
            for seed in recipe.seeds:
                names = {what: cell_job(encoder, tuning, seed, what) for what in (TRAINING, ANSWERS, ATTENTION, PROBE)}
                jobs = {what: finished[name] for what, name in names.items() if name in finished}
                if TRAINING in jobs and ANSWERS in jobs:
                    found[(encoder, tuning, seed)] = jobs
    return found


def _row(scores: Scores, kind: Kind, cells: Mapping[CellKey, Mapping[str, Any]]) -> dict[str, Any]:
    own = [cell for (encoder, tuning, _), cell in cells.items() if (encoder, tuning) == kind]
    answers = [cell[ANSWERS]["results"] for cell in own]
    shuffled = {task: _mean([of_cell[task]["shuffled"] for of_cell in answers]) for task in scores.task_names}
    measures = scores.tasks.measures
    return {
        "encoder": kind[0],
        "tuning": kind[1],
        "num_seeds": len(own),
        "scores": {measure: asdict(scores.tasks.score(kind, measure)) for measure in measures},
        "gains": {measure: asdict(scores.gains.score(kind, measure)) for measure in measures},
        "above_floor": {measure: scores.above_floor(kind, measure) for measure in measures},
        "parts": {part: asdict(scores.parts.score(kind, part)) for part in scores.parts.measures},
        "shuffled": shuffled | {AVERAGE: _mean(list(shuffled.values()))},
        "cpu_seconds": _mean([_sum_cost(cell)["cpu_seconds"] for cell in own]),
        "wall_seconds": _mean([_sum_cost(cell)["wall_seconds"] for cell in own]),
        "train_loss": _mean([cell[TRAINING]["results"]["train_loss"] for cell in own]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _sum_cost(cell: Mapping[str, Any]) -> dict[str, Any]:
    costs = [document["cost"] for document in cell.values()]
    added = {name: round(sum(cost[name] for cost in costs), 1) for name in ("cpu_seconds", "wall_seconds")}
    return {**added, "sessions": max(cost["sessions"] for cost in costs), "threads": costs[0]["threads"]}


def _cost(plan: Plan, finished: Mapping[str, Any]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for job in plan.jobs:
        if job.name in finished:
            seconds[job.kind] += finished[job.name]["cost"]["cpu_seconds"]
    return dict(seconds)


def _describe_encoder(recipe: StudyRecipe, name: str, finished: Mapping[str, Any]) -> dict[str, Any]:
    encoder, made = recipe.encoders[name], finished.get(encoder_job(name))
    described = {
        "name": name,
        "label": encoder.get("label") or name,
        "supervision": encoder.get("supervision") or encoder["how"],
        "num_images": encoder.get("num_images") or _num_images(encoder["how"], finished),
        "how": encoder["how"],
        "feature_layer": recipe.feature_layer_of(name),
        "teacher": encoder.get("teacher"),
        "mask_ratio": encoder.get("mask_ratio", 0.0) if encoder["how"] == "distilled" else None,
    }
    if made is not None:
        described |= {"cost": made["cost"], "hash": made["hash"]}
        measures = ("steps", "train_loss", "mean_average_precision", "metrics", "representation")
        described |= {key: made["results"][key] for key in measures if key in made["results"]}
    return described


def _num_images(how: str, finished: Mapping[str, Any]) -> str | None:
    """Of the training of an encoder, where the study knows it."""
    if how in ("supervised", "distilled") and SCENES[0] in finished:
        return f"{finished[SCENES[0]]['results']['images']:,}"
    return "0" if how == "random" else None


def _describe_cell(key: CellKey, cell: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    encoder, tuning, seed = key
    of_tasks, training = cell[ANSWERS]["results"], cell[TRAINING]
    return {
        "encoder": encoder,
        "tuning": tuning,
        "seed": seed,
        "tasks": {task: _without(of_tasks[task], _PER_QUESTION) for task in tasks},
        "training": {name: training["results"].get(name) for name in ("steps", "train_loss", "parameters")},
        "cost": _sum_cost(cell),
        "environment": training["environment"],
        "hash": training["hash"],
        "answers_hash": cell[ANSWERS]["hash"],
    }


def _probes(recipe: StudyRecipe, finished: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each encoder that was probed the accuracies as made, after tuning by seed, and before training."""
    found = []
    for name in recipe.encoders:
        if probe_job(name) not in finished:
            continue
        results = finished[probe_job(name)]["results"]
        jobs = [cell_job(name, "tuned", seed, PROBE) for seed in recipe.seeds]
        tuned = [finished[job]["results"]["tower"] for job in jobs if job in finished]
        found.append(
            {
                "encoder": name,
                "floors": results["floors"],
                "made": {probe: results["tower"][probe] for probe in PROBES},
                "random": {probe: results["random"][probe] for probe in PROBES} if "random" in results else None,
                "tuned": {probe: [one[probe]["accuracy"] for one in tuned] for probe in PROBES},
            }
        )
    return found


def _attention_table(cells: Mapping[CellKey, Mapping[str, Any]]) -> ScoreTable | None:
    found: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
    for (encoder, tuning, _), cell in cells.items():
        if ATTENTION in cell:
            found[(encoder, tuning)].append(cell[ATTENTION]["results"])
    if not found:
        return None
    images = sorted({image for kind in found.values() for cell in kind for image in cell["images"]})
    kinds: dict[Kind, Replicates] = {
        kind: {
            measure: [ImageScores.from_questions(cell[measure], cell["images"], images) for cell in replicates]
            for measure in ATTENTION_MEASURES
        }
        for kind, replicates in found.items()
    }
    return ScoreTable(kinds, ATTENTION_MEASURES, draw_images(len(images)), greatest=None)


def _attention_rows(table: ScoreTable, cells: Mapping[CellKey, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of the attention maps of each kind of model, with intervals over scenes and seeds."""
    rows = []
    for kind in table.kinds:
        first = next(
            cell[ATTENTION]["results"] for key, cell in cells.items() if key[:2] == kind and ATTENTION in cell
        )
        measured = {measure: asdict(table.score(kind, measure)) for measure in ATTENTION_MEASURES}
        area, number = _mean(first["mask_area"]), len(first["images"])
        rows.append({"encoder": kind[0], "tuning": kind[1], "mask_area": area, "num_scenes": number, **measured})
    return rows


def _attention_differences(recipe: StudyRecipe, table: ScoreTable) -> list[dict[str, Any]]:
    """How much students differ from their teachers, on the same scenes."""
    return [
        {"encoder": name, "teacher": encoder["teacher"], "tuning": tuning}
        | {measure: asdict(table.difference(pair[0], pair[1], measure)) for measure in ATTENTION_MEASURES}
        for tuning in recipe.tuning
        for name, encoder in recipe.encoders.items()
        if encoder["how"] == "distilled"
        and set(pair := ((name, tuning), (encoder["teacher"], tuning))) <= set(table.kinds)
    ]


__all__ = ["ATTENTION_MEASURES", "FLOORS_OF_QUESTIONS", "PROBES", "collect_study"]
