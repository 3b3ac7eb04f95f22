"""The jobs of a study, in their order: scenes, floors, encoders, and a cell for each kind of model and seed."""

from collections.abc import Mapping
from typing import Any

from .study_jobs import Job, Plan
from .study_recipe import SPLITS, StudyRecipe, merge

SCENES = tuple(f"scenes/{split}" for split in SPLITS)
FLOORS = "floors"


def encoder_job(name: str) -> str:
    """The job that makes an encoder."""
    return f"encoders/{name}"


def cell_job(encoder: str, tuning: str, seed: int) -> str:
    """The job that trains and evaluates a model."""
    return f"cells/{encoder}-{tuning}-seed{seed}"


def plan_study(recipe: StudyRecipe) -> Plan:
    """
    Divides a study into jobs.

    Args:
        recipe ([`StudyRecipe`]): the study.

    Returns:
        [`Plan`]: all cells of a seed come before those of the next, so that the first report is complete early.
    """
    evaluation, attention = dict(recipe.evaluation), dict(recipe.attention)
    jobs = [
        Job(name, "scenes", recipe.scenes_of(split), SCENES[:number])  # the test scenes are held against the others
        for number, (name, split) in enumerate(zip(SCENES, SPLITS))
    ]
    jobs.append(Job(FLOORS, "floors", {"evaluation": evaluation, "data": recipe.protocol.get("data") or {}}, SCENES))
    for name, encoder in recipe.encoders.items():
        jobs.append(Job(encoder_job(name), "encoder", _encoder_config(recipe, encoder), _needed_by(encoder)))
    for seed in recipe.seeds:
        for name, encoder in recipe.encoders.items():
            for tuning in recipe.tuning:
                config = {
                    "encoder": name,
                    "feature_layer": encoder.get("feature_layer", -1),
                    "tuning": tuning,
                    "seed": seed,
                    "protocol": recipe.protocol_of(tuning),
                    "evaluation": evaluation,
                    "attention": attention,
                }
                jobs.append(Job(cell_job(name, tuning, seed), "cell", config, (*SCENES, encoder_job(name))))
    return Plan(jobs)


def _encoder_config(recipe: StudyRecipe, encoder: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in encoder.items() if name not in ("label", "supervision", "feature_layer")}
    how = encoder["how"]
    if how == "supervised":
        config["supervision"] = merge(recipe.supervision, {"training": config.pop("training", None) or {}})
    elif how == "distilled":
        teacher = recipe.encoders[encoder["teacher"]]
        config["teacher_layer"] = teacher.get("feature_layer", -1)
        config["distillation"] = merge(recipe.distillation, {"training": config.pop("training", None) or {}})
    return config


def _needed_by(encoder: Mapping[str, Any]) -> tuple[str, ...]:
    if encoder["how"] in ("pretrained", "random"):
        return ()
    teacher = (encoder_job(encoder["teacher"]),) if encoder["how"] == "distilled" else ()
    return (*SCENES, *teacher)


__all__ = ["FLOORS", "SCENES", "cell_job", "encoder_job", "plan_study"]
