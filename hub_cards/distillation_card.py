"""What the card of a distilled vision tower says, gathered from its config and from what its training recorded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from . import card_facts
from .card_header import as_list

KIND = "feature-distillation"
"""The trainer in the recipe of such a tower."""

_TOWERS = {
    "before": "student before training",
    "after": "**this model**",
    "teacher": "teacher",
    "random": "student with random weights",
}
_RANDOM_STUDENTS = {
    "same": "random weights, the teacher's architecture",
    "wei": "random weights, the architecture of Wei et al. (2022)",
}
_PROBES = {"knn": "k-NN (%)", "linear_probe": "linear probe (%)"}


def distillation_card_values(
    folder: Path, results: Mapping[str, Any], config: PreTrainedConfig | None
) -> dict[str, Any]:
    """
    What the template of a distilled tower shows, beside what all cards show.

    Args:
        folder (`Path`): of the model.
        results (`Mapping`): as they stand in `results.json`.
        config (`PreTrainedConfig`, *optional*): the model's.

    Returns:
        `dict`: values of the template.
    """
    recipe, fields = results.get("recipe") or {}, results.get("card") or {}
    teacher, student = recipe.get("teacher") or {}, recipe.get("student") or {}
    sources = (recipe.get("data") or {}).get("train") or []
    models = card_facts.base_models({"teacher": str(teacher.get("model") or "")}, folder)
    licences, no_licence = card_facts.licence_table(models, sources)
    training = recipe.get("training") or {}
    return {
        "summary": _summary(models, training.get("mask_ratio") or 0),
        # In the header: what the weights are made from, which is not the teacher.
        "models": card_facts.base_models(_started_from(student), folder),
        "needs_vistok": config is not None and config.model_type not in CONFIG_MAPPING_NAMES,
        "student": _student(config, student),
        "teacher": _teacher(models, teacher),
        "feature_layer": student.get("feature_layer"),
        "gvt_layer": '"final"' if student.get("feature_layer") is None else student["feature_layer"],
        "while_training": _while_training(results.get("metrics") or {}),
        "representation": _representation(results.get("representation") or {}),
        "probed_on": _probed_on(recipe.get("probe") or {}, results.get("representation") or {}),
        "parameters": _parameters(results.get("parameters") or {}),
        "limits": as_list(fields.get("limits")),
        "licences": licences,
        "no_licence": no_licence,
    }


def _started_from(student: Mapping[str, Any]) -> dict[str, str]:
    model = student.get("model") or "same"
    return {} if model in _RANDOM_STUDENTS else {"student": model}


def _summary(models: Sequence[card_facts.BaseModel], mask_ratio: float) -> str:
    teacher = f"`{models[0].name}`" if models else "another vision tower"
    masked = (
        f" {100 * mask_ratio:g} % of the patches were masked, and only these were predicted." if mask_ratio else ""
    )
    return (
        f"A vision tower that was trained to predict the patch features of {teacher}, token by token, from images "
        f"without labels: feature distillation.{masked} It is an ordinary vision model of transformers."
    )


def _student(config: PreTrainedConfig | None, student: Mapping[str, Any]) -> list[card_facts.Row]:
    if config is None:
        return []
    model = student.get("model") or "same"
    names = {"image_size": "images", "patch_size": "patches"}
    sizes = [
        (label, f"{value} × {value} pixels")
        for key, label in names.items()
        if isinstance(value := getattr(config, key, None), int)
    ]
    return [
        ("architecture", card_facts.kind_in_words(config)),
        *sizes,
        ("started from", _RANDOM_STUDENTS.get(model) or f"`{card_facts.base_name(model)}`"),
    ]


def _teacher(models: Sequence[card_facts.BaseModel], teacher: Mapping[str, Any]) -> list[card_facts.Row]:
    layer = teacher.get("feature_layer")
    rows = [
        ("checkpoint", f"`{models[0].name}`" if models else ""),
        ("what it is", models[0].package.description if models and models[0].package else ""),
        ("features", "after its final norm" if layer is None else f"`hidden_states[{layer}]`"),
        ("images", f"{teacher['image_size']} × {teacher['image_size']} pixels" if teacher.get("image_size") else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _parameters(parameters: Mapping[str, int]) -> str:
    return (
        f"{parameters['all']:,} parameters, {parameters['trained']:,} of them trained."
        if parameters.get("all")
        else ""
    )


def _while_training(metrics: Mapping[str, Any]) -> list[list[str]]:
    names = [key.removeprefix("eval_").removesuffix("loss").strip("_") for key in metrics if key.endswith("loss")]
    rows = []
    for name in dict.fromkeys(names):
        prefix = f"eval_{name}_" if name else "eval_"
        values = [metrics.get(f"{prefix}{score}") for score in ("loss", "cosine_similarity", "explained_variance")]
        rows.append([name or "evaluation data", *("–" if value is None else f"{value:.4f}" for value in values)])
    header = ["on", "loss", "cosine similarity", "explained variance"]
    return [header, *rows] if rows else []


def _representation(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [label, *(_accuracy((found[name] or {}).get(probe)) for probe in _PROBES)]
        for name, label in _TOWERS.items()
        if name in found
    ]
    if rows and found.get("majority") is not None:
        rows.append(["always the most frequent class", *[f"{found['majority']:.1f}"] * len(_PROBES)])
    return [["features of", *_PROBES.values()], *rows] if rows else []


def _accuracy(score: Mapping[str, Any] | None) -> str:
    if not score:
        return "–"
    interval = score.get("interval")
    ends = f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
    return f"{score['accuracy']:.1f}{ends}"


def _probed_on(probe: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if not probe.get("test") or not found.get("num_test"):
        return ""
    source = card_facts.source_label(probe["test"])
    where = ", ".join(f"{name}: {value}" for name, value in (probe.get("where") or {}).items())
    return (
        f"Frozen features on {found['num_test']:,} labelled images of {source}{f' ({where})' if where else ''}, in "
        f"{found['num_classes']} classes, with {found['num_train']:,} others to learn from: k nearest neighbours and "
        "a linear classifier, with 95 % intervals."
    )


__all__ = ["KIND", "distillation_card_values"]
