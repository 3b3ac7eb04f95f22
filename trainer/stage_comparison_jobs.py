"""The jobs of a comparison of arms: stages and arms that are trained, and questions that they are asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.command import evaluate_command, predictions_path
from ..evaluation.tasks import data_source_task
from .data_sources import load_data_source
from .recipe import recipe_from_dict
from .run_recipe import run_recipe
from .stage_comparison_costs import COSTS_JOB, measure_arms
from .stage_comparison_recipe import FLOORS, StageComparison
from .study_jobs import Job, Plan
from .study_recipe import merge

MODEL, EVALUATION = "model", "evaluation"
TRAINING, ANSWERS = "training", "answers"

_KEPT_OF_TRAINING = (
    "steps", "epochs", "examples", "rows", "train_loss", "train_seconds", "parameters", "metrics", "log_history",
)  # fmt: skip


def stage_job(stage: str, what: str = TRAINING) -> str:
    """The job that trains a stage, or asks it (`"answers"`)."""
    return f"stages/{stage}/{what}"


def arm_job(arm: str, seed: int, what: str = TRAINING) -> str:
    """The job that trains the last stage of an arm, or asks it (`"answers"`)."""
    return f"arms/{arm}-seed{seed}/{what}"


def answer_jobs(recipe: StageComparison) -> dict[str, list[str]]:
    """
    The jobs that ask each arm: one for each seed, or one of an arm that stops after a stage.

    Args:
        recipe ([`StageComparison`]): the comparison.
    """
    return {
        name: [stage_job(arm["after"], ANSWERS)]
        if arm.get("recipe") is None
        else [arm_job(name, seed, ANSWERS) for seed in recipe.seeds]
        for name, arm in recipe.arms.items()
    }


def plan_comparison(recipe: StageComparison) -> Plan:
    """
    Divides a comparison into jobs.

    Args:
        recipe ([`StageComparison`]): the comparison.

    Returns:
        [`Plan`]: the stages, then all arms of a seed before those of the next, so that the first report comes early.
    """
    jobs: list[Job] = []
    before: tuple[str, ...] = ()
    for name in recipe.stages:
        config = {"recipe": recipe.recipe_of(name), "start": before[0] if before else None}
        jobs.append(Job(stage_job(name), "stage", config, before))
        before = (stage_job(name),)
    stops = dict.fromkeys(arm["after"] for arm in recipe.arms.values() if arm.get("recipe") is None)
    jobs += [_asking(recipe, stage_job(name), stage_job(name, ANSWERS)) for name in stops]
    for seed in recipe.seeds:
        for name, arm in recipe.arms.items():
            if arm.get("recipe") is not None:
                start = None if arm.get("after") is None else stage_job(arm["after"])
                of_seed = {"data": {"seed": seed}, "training": {"seed": seed}}
                config = {"recipe": merge(recipe.recipe_of(f"arms.{name}"), of_seed), "start": start}
                jobs.append(Job(arm_job(name, seed), "stage", config, (start,) if start else ()))
                jobs.append(_asking(recipe, arm_job(name, seed), arm_job(name, seed, ANSWERS)))
    if recipe.costs:
        trained = {arm: asking[0].removesuffix(ANSWERS) + TRAINING for arm, asking in answer_jobs(recipe).items()}
        costs = {"models": trained, "costs": recipe.costs, "dtype": recipe.evaluation.get("dtype", "auto")}
        jobs.append(Job(COSTS_JOB, "stage-costs", costs, tuple(dict.fromkeys(trained.values()))))
    return Plan(jobs)


def _asking(recipe: StageComparison, model: str, job: str) -> Job:
    return Job(job, "stage-answers", {"model": model, "evaluation": recipe.evaluation}, (model,))


def train_stage(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Trains a stage, or goes on where this was interrupted.

    Args:
        config (`dict`): `recipe`, and `start`: the job whose model it starts from, if any.
        folder (`Path`): of the job; the model goes to `model` in it.
        output (`Path`): folder of the comparison.

    Returns:
        `dict`: what is known of the training.
    """
    changes: dict[str, Any] = {
        "training": {
            "output_dir": str(folder / MODEL),
            "feature_cache_dir": str(output / "features"),
            "report_to": "none",
            "disable_tqdm": True,
        }
    }
    if config["start"] is not None:
        changes["model"] = {"checkpoint": str(output / config["start"] / MODEL)}
    trained = run_recipe(recipe_from_dict(merge(config["recipe"], changes)))
    return {name: trained[name] for name in _KEPT_OF_TRAINING if name in trained}


def ask_model(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Asks a trained model the questions of all tasks, also about one another's images.

    Args:
        config (`dict`): `model`, the job that trained it, and `evaluation` of the comparison.
        folder (`Path`): of the job. Reports and predictions go to `evaluation` in it; what was answered is not asked
            again.
        output (`Path`): folder of the comparison.

    Returns:
        `dict`: for each task `score` in percent, `num_questions`, `num_unanswered`, `floors` (accuracies in percent),
        `shuffled` (with other images) and `num_shuffled`; and of each question `values`, 100 or 0, and `images`.
    """
    evaluation, found = config["evaluation"], {}
    for name, options in evaluation["tasks"].items():
        options = options or {}
        task = name if options.get("test") is None else data_source_task(name, options["test"], options.get("train"))
        results = evaluate_command(
            output / config["model"] / MODEL,
            [task],
            output=folder / EVALUATION,
            load_source=load_data_source,
            floors=evaluation.get("floors", FLOORS),
            max_questions=options.get("num_questions"),
            max_floor_questions=evaluation.get("num_shuffled"),
            batch_size=evaluation.get("batch_size", 32),
            max_new_tokens=evaluation.get("max_new_tokens"),
            dtype=evaluation.get("dtype", "auto"),
            seed=evaluation.get("seed", 0),
            progress_bar=False,
        )
        for asked, result in results.items():
            found[asked] = _measured(result, predictions_path(folder / EVALUATION, result["task"], result["split"]))
    return found


def _measured(result: Mapping[str, Any], predictions: Path) -> dict[str, Any]:
    entries = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()[1:]]
    given = [entry for entry in entries if entry["images"] == "given"]
    if any("right" not in entry or not entry.get("files") for entry in given):
        raise ValueError(
            f"The answers to {result['task']} are not right or wrong, or their images no files: a comparison asks "
            "short questions about files of images."
        )
    scale = result["measured_by"][0]["scale"]
    floors = {name: scale * floor["accuracy"] for name, floor in result["floors"].items()}
    shuffled = result["floors"].get("shuffled_images") or {}
    return {
        "score": scale * result["accuracy"],
        "num_questions": len(given),
        "num_unanswered": result.get("unanswered"),
        "shuffled": floors.pop("shuffled_images", None),
        "num_shuffled": shuffled.get("num_questions"),
        "floors": floors,
        "values": [100 * bool(entry["right"]) for entry in given],
        "images": [Path(entry["files"][0]).name for entry in given],
    }


KINDS = {"stage": train_stage, "stage-answers": ask_model, "stage-costs": measure_arms}
"""What does the jobs of each kind."""

__all__ = ["ANSWERS", "KINDS", "TRAINING", "answer_jobs", "arm_job", "ask_model", "plan_comparison", "stage_job"]
