"""Checks of the sections of a study: what could not be run hours later is refused at the beginning."""

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_origin

from transformers import TrainingArguments

from ..configuration.configuration_perceiver_resampler import PerceiverResamplerConfig
from ..modeling.vision_features import FINAL
from .data_formats import known
from .scene_set import write_scenes

KEPT_SCENES = 12
"""Of so many scenes at most the attention maps are kept, and can be drawn."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Range(NamedTuple):
    """
    The numbers that a field takes.

    Args:
        least, most (`float`): ends.
        whole (`bool`): whether only whole numbers.
        optional (`bool`): whether it may be null.
    """

    least: float = 0
    most: float = math.inf
    whole: bool = True
    optional: bool = False


_COUNT, _SEED = Range(1), Range(0)
_POSITIVE = Range(1e-30, whole=False, optional=True)
_NOT_NEGATIVE = Range(0, whole=False, optional=True)
_OPTIONAL_COUNT = Range(1, optional=True)
_SCENES = {
    "num_scenes": _COUNT,
    "num_classes": _COUNT,
    "size": Range(64, 4096),
    "seed": _SEED,
    "max_objects": Range(1, 9),
    "max_overlap": Range(0, 0.9, whole=False),
    "questions_per_scene": Range(0, 50),
    "captions_per_scene": Range(1, 50),
    "num_proc": _COUNT,
}
_EVALUATION = {
    "num_shuffled": _OPTIONAL_COUNT,
    "seed": _SEED,
    "batch_size": _COUNT,
    "max_new_tokens": _COUNT,
}
_PROBE = {"num_train": _COUNT, "num_test": _COUNT, "size": Range(64, 4096), "seed": _SEED, "k": _COUNT}
_ENCODER = {"seed": _SEED, "image_size": _OPTIONAL_COUNT}
_TRAINING = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "conversations_per_row"), _OPTIONAL_COUNT),
    **dict.fromkeys(("learning_rate", "num_train_epochs", "logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm"), _NOT_NEGATIVE),
    "max_steps": Range(-1),
}
_TAKEN_SCENES = ("folder", "split", "apart_from")
_TAKEN_TRAINING = ("output_dir", "seed", "data_seed")


def check_section_types(study: Any, what: str) -> None:
    """
    Makes sure that the sections of a study are what its fields say.

    Args:
        study (dataclass): with fields of plain types, and lists and dictionaries.
        what (`str`): what an error calls it.

    Raises:
        ValueError: if one is of another type.
    """
    for section in dataclasses.fields(study):
        value = getattr(study, section.name)
        # In Python 3.10 `list[int]` is a type by itself, and no class of its lists.
        kind: Any = get_origin(section.type) or section.type
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{section.name} of the {what} is {value!r}, expected a {kind.__name__}.")


def check_fields(place: str, values: Any, names: Sequence[str]) -> None:
    """
    Refuses what is no mapping, and unknown fields.

    Args:
        place (`str`): of the section, for the error.
        values: of the recipe.
        names (`list[str]`): the fields that there are.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{place} is {values!r}, expected fields: {', '.join(names)}.")
    for name in values:
        known(f"field of {place}", name, names)


def check_numbers(place: str, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """
    Refuses numbers out of their range.

    Args:
        place (`str`): of the section, for the error.
        values (`dict`): of the recipe.
        ranges (`dict[str, Range]`): of each field that is a number.
    """
    for name, allowed in ranges.items():
        if name not in values or (values[name] is None and allowed.optional):
            continue
        value = values[name]
        right = not isinstance(value, bool) and isinstance(value, int if allowed.whole else (int, float))
        if not right or not allowed.least <= value <= allowed.most:
            raise ValueError(f"{place}.{name} is {value!r}, expected {_told(allowed)}.")


def _told(allowed: Range) -> str:
    kind = "a whole number" if allowed.whole else "a number"
    if allowed.most < math.inf:
        text = f"{kind} from {allowed.least:g} to {allowed.most:g}"
    elif allowed.least == -math.inf:
        text = kind
    else:
        text = f"{kind} above 0" if 0 < allowed.least < 1 else f"{kind}, at least {allowed.least:g}"
    return text + (" or null" if allowed.optional else "")


def check_scenes(scenes: Mapping[str, Any], splits: Sequence[str]) -> None:
    """The section `scenes`: arguments of [`write_scenes`], for both splits or of each."""
    names = [name for name in inspect.signature(write_scenes).parameters if name not in _TAKEN_SCENES]
    check_fields("scenes", scenes, [*names, *splits])
    check_numbers("scenes", scenes, _SCENES)
    for split in splits:
        if scenes.get(split) is not None:
            check_fields(f"scenes.{split}", scenes[split], names)
            check_numbers(f"scenes.{split}", scenes[split], _SCENES)


def check_evaluation(evaluation: Mapping[str, Any], tasks: Sequence[str], modes: Sequence[str]) -> None:
    """The section `evaluation`: tasks, and how they are asked."""
    check_fields("evaluation", evaluation, ["tasks", *_EVALUATION, "mode", "dtype"])
    chosen = evaluation.get("tasks")
    if not isinstance(chosen, Mapping) or not chosen:
        raise ValueError(f"evaluation.tasks is {chosen!r}, expected tasks by name: {', '.join(tasks)}.")
    for task, options in chosen.items():
        known("task of the study", task, tasks)
        check_fields(f"evaluation.tasks.{task}", {} if options is None else options, ["num_questions"])
        check_numbers(f"evaluation.tasks.{task}", options or {}, {"num_questions": _OPTIONAL_COUNT})
    known("mode of the evaluation", evaluation.get("mode", "strict"), modes)
    known("dtype of the evaluation", evaluation.get("dtype", "auto"), DTYPES)
    check_numbers("evaluation", evaluation, _EVALUATION)


def check_attention(attention: Mapping[str, Any], resampler: Mapping[str, Any] | None) -> None:
    """
    The section `attention`.

    Args:
        attention (`dict`): of the study.
        resampler (`dict`, *optional*): fields of the resampler's config; `None` if they are those of a checkpoint.
    """
    check_fields("attention", attention, ["num_scenes", "shown", "query", "heads", "layer"])
    heads = attention.get("heads", [0, 1])
    if not isinstance(heads, list) or not heads:
        raise ValueError(f"attention.heads is {heads!r}, expected a list of numbers of heads, such as [0, 1].")
    ranges = {"num_scenes": Range(0), "shown": Range(1, KEPT_SCENES), "query": Range(0), "layer": Range(-math.inf)}
    of_heads = Range(0)
    if resampler is not None:
        sizes = {
            name: resampler.get(name, getattr(PerceiverResamplerConfig, name))
            for name in ("num_latents", "num_attention_heads", "num_hidden_layers")
        }
        check_numbers("protocol.model.resampler", sizes, dict.fromkeys(sizes, _COUNT))
        num_queries, num_heads, num_layers = sizes.values()
        ranges |= {"query": Range(0, num_queries - 1), "layer": Range(-num_layers, num_layers - 1)}
        of_heads = Range(0, num_heads - 1)
    check_numbers("attention", attention, ranges)
    for head in heads:
        check_numbers("attention", {"heads": head}, {"heads": of_heads})


def check_probe(probe: Mapping[str, Any]) -> None:
    """The section `probe`; an empty one leaves the probes out."""
    check_fields("probe", probe, list(_PROBE))
    if missing := [name for name in ("num_train", "num_test") if probe and name not in probe]:
        raise ValueError(f"probe has no {' and no '.join(missing)}: numbers of scenes. Leave it empty for no probes.")
    check_numbers("probe", probe, _PROBE)


def check_supervision(supervision: Mapping[str, Any]) -> None:
    """The section `supervision`."""
    check_fields("supervision", supervision, ["image_size", "training"])
    check_numbers("supervision", supervision, {"image_size": _OPTIONAL_COUNT})
    check_supervised_training("supervision.training", supervision.get("training") or {})


def check_supervised_training(place: str, training: Any) -> None:
    """Fields of `TrainingArguments`, save for those that the study sets."""
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.name not in _TAKEN_TRAINING]
    check_fields(place, training, names)
    check_training(place, training)


def check_training(place: str, training: Any) -> None:
    """Numbers of any training, save for those that only its own arguments know."""
    if not isinstance(training, Mapping):
        raise ValueError(f"{place} is {training!r}, expected fields of the training.")
    check_numbers(place, training, _TRAINING)
    if training.get("max_steps") == 0:
        raise ValueError(f"{place}.max_steps is 0, expected at least 1, or -1 to go by num_train_epochs.")


def check_not_set(place: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """
    Refuses what the study sets itself.

    Args:
        place (`str`): of the section.
        values (`dict`): its fields.
        names (`list[str]`): paths in it, such as `"teacher.model"`.
    """
    for name in names:
        section, field = name.split(".")
        if field in (values.get(section) or {}):
            raise ValueError(f"{place}.{name} is set by the study itself, for each of its models: leave it out.")


def check_encoder(place: str, encoder: Mapping[str, Any]) -> None:
    """Values of the fields of an encoder, whose names are known to be right."""
    check_numbers(place, encoder, _ENCODER)
    layer = encoder.get("feature_layer", FINAL)
    if layer != FINAL and (isinstance(layer, bool) or not isinstance(layer, int)):
        raise ValueError(f"{place}.feature_layer is {layer!r}, expected a whole number or {FINAL}.")
    for name in ("model", "architecture", "label", "supervision", "num_images"):
        if name in encoder and not isinstance(encoder[name], str):
            raise ValueError(f"{place}.{name} is {encoder[name]!r}, expected text.")


__all__ = [
    "KEPT_SCENES",
    "Range",
    "check_attention",
    "check_encoder",
    "check_evaluation",
    "check_fields",
    "check_not_set",
    "check_numbers",
    "check_probe",
    "check_scenes",
    "check_section_types",
    "check_supervised_training",
    "check_supervision",
    "check_training",
]
