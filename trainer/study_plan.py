"""The jobs of a study, in their order: scenes, floors, encoders, and for each kind of model and seed its training and
what is measured of it, each on its own, so that another measurement trains nothing anew."""

from collections.abc import Mapping
from typing import Any

from .study_jobs import Job, Plan
from .study_recipe import KEPT_SCENES, SHARED, SPLITS, StudyRecipe, merge

SCENES = tuple(f"scenes/{split}" for split in SPLITS)
FLOORS = "floors"
TRAINING, ANSWERS, ATTENTION, PROBE = "training", "answers", "attention", "probe"


def encoder_job(name: str) -> str:
    """The job that makes an encoder."""
    return f"encoders/{name}"


def probe_job(name: str) -> str:
    """The job that probes an encoder as it was made."""
    return f"probes/{name}"


def cell_job(encoder: str, tuning: str, seed: int, what: str = TRAINING) -> str:
    """
    A job of a cell.

    Args:
        encoder, tuning, seed: of the cell.
        what (`str`, *optional*, defaults to `"training"`): or `"answers"`, `"attention"`, `"probe"`.
    """
    return f"cells/{encoder}-{tuning}-seed{seed}/{what}"


def plan_study(recipe: StudyRecipe) -> Plan:
    """
    Divides a study into jobs.

    Args:
        recipe ([`StudyRecipe`]): the study.

    Returns:
        [`Plan`]: all cells of a seed come before those of the next, so that the first report is complete early.
    """
    jobs = [
        Job(name, "scenes", recipe.scenes_of(split), SCENES[:number])  # the test scenes are held against the others
        for number, (name, split) in enumerate(zip(SCENES, SPLITS))
    ]
    asked = {"evaluation": dict(recipe.evaluation), "data": recipe.protocol.get("data") or {}}
    jobs.append(Job(FLOORS, "floors", asked, SCENES))
    for name, encoder in recipe.encoders.items():
        jobs.append(Job(encoder_job(name), "encoder", _encoder_config(recipe, encoder), _needed_by(encoder)))
    if recipe.probe:
        jobs += [_probe_of_encoder(recipe, name) for name in recipe.encoders]
    for seed in recipe.seeds:
        for name in recipe.encoders:
            for tuning in recipe.tuning:
                jobs += _cell_jobs(recipe, name, tuning, seed)
    return Plan(jobs)


def _cell_jobs(recipe: StudyRecipe, name: str, tuning: str, seed: int) -> list[Job]:
    layer = recipe.feature_layer_of(name)
    config = {"encoder": name, "feature_layer": layer, "tuning": tuning, "seed": seed}
    training = cell_job(name, tuning, seed)
    needs = (*SCENES, training)
    jobs = [
        Job(training, "training", {**config, "protocol": recipe.protocol_of(tuning)}, (*SCENES, encoder_job(name))),
        Job(
            cell_job(name, tuning, seed, ANSWERS),
            "answers",
            {"model": training, "evaluation": recipe.evaluation},
            needs,
        ),
    ]
    if recipe.num_attention_scenes:
        # Which query, heads and scenes are drawn is up to the report.
        looked = {"num_scenes": recipe.num_attention_scenes, "layer": recipe.attention.get("layer", -1)}
        jobs.append(Job(cell_job(name, tuning, seed, ATTENTION), "attention", {"model": training, **looked}, needs))
    if recipe.probe and tuning == "tuned":
        probe = {"model": training, "feature_layer": layer, "probe": recipe.probe}
        jobs.append(Job(cell_job(name, tuning, seed, PROBE), "probe", probe, needs))
    return jobs


def _probe_of_encoder(recipe: StudyRecipe, name: str) -> Job:
    encoder = recipe.encoders[name]
    config = {
        "encoder": name,
        "feature_layer": recipe.feature_layer_of(name),
        "image_size": (recipe.protocol.get("model") or {}).get("image_size"),
        "probe": recipe.probe,
    }
    if encoder["how"] == "distilled":  # what it was before its distillation
        config["random_seed"] = encoder.get("seed", 0)
    return Job(probe_job(name), "probe", config, (*SCENES, encoder_job(name)))


def _encoder_config(recipe: StudyRecipe, encoder: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in encoder.items() if name == "how" or name not in SHARED}
    how = encoder["how"]
    if how == "supervised":
        config["supervision"] = merge(recipe.supervision, {"training": config.pop("training", None) or {}})
    elif how == "distilled":
        config["teacher_layer"] = recipe.feature_layer_of(encoder["teacher"])
        config["distillation"] = merge(recipe.distillation, {"training": config.pop("training", None) or {}})
    return config


def _needed_by(encoder: Mapping[str, Any]) -> tuple[str, ...]:
    if encoder["how"] in ("pretrained", "random"):
        return ()
    teacher = (encoder_job(encoder["teacher"]),) if encoder["how"] == "distilled" else ()
    return (*SCENES, *teacher)


__all__ = [
    "ANSWERS",
    "ATTENTION",
    "FLOORS",
    "KEPT_SCENES",
    "PROBE",
    "SCENES",
    "TRAINING",
    "cell_job",
    "encoder_job",
    "plan_study",
    "probe_job",
]
