"""What a card says of a model, gathered from its config and from what its training recorded."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedConfig

from ..modeling.base_weights import BASE_WEIGHTS, DATA_PACKAGES, PREFIX, shipped_checkpoint
from ..modeling.registry_packages import RegistryPackage
from .published_text import base_name, is_absolute
from .run_results import read_results

Row = tuple[str, str]

# The Hub's ids of the published weights that vistok's base weights were converted from.
HUB_IDS = {"dinov2-small": "facebook/dinov2-small", "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}

# The data packages that a format reads where a source names none.
_CUTOUTS = ("fluent-emoji", "noto-emoji", "tuxpaint-stamps")
_PHOTOGRAPHS = ("mate-backgrounds", "lomiri-wallpapers", "plasma-wallpapers", "material-kit")
FORMAT_PACKAGES = {
    "easy-vqa": ("easy-vqa",),
    "cutout-scenes": _CUTOUTS,
    "captioned-photographs": ("tuxpaint-stamps",),
    "photograph-scenes": (*_CUTOUTS, *_PHOTOGRAPHS),
    "scene-masks": (*_CUTOUTS, *_PHOTOGRAPHS),
}

# Fields of a training that say where and how often something is written or measured, not what is learned.
_NOT_LEARNING = re.compile(
    r"(?:log|save|eval|hub|push|report|dataloader|per_device_eval)|.*_dir$|run_name$|disable_tqdm$"
)


MODES = {"frozen": "frozen", "full": "trained", "lora": "LoRA adapters trained"}
"""What was done with parts of a model, in words."""


@dataclass(frozen=True)
class BaseModel:
    """
    A pretrained part of a model.

    Args:
        part (`str`): `"vision"` or `"text"`.
        name (`str`): how the card calls it: a name of vistok, a Hub id, or the last component of a folder.
        hub_id (`str`, *optional*): where the Hub has it.
        package (`RegistryPackage`, *optional*): the registry package that it came in.
    """

    part: str
    name: str
    hub_id: str | None = None
    package: RegistryPackage | None = None


def base_models(names: Mapping[str, str] | None, folder: Path) -> list[BaseModel]:
    """
    The pretrained parts of a model, and those of what ships with vistok among them.

    Args:
        names (`Mapping`, *optional*): checkpoint of each part: a name of vistok, a folder or a Hub id.
        folder (`Path`): of the model, beside which relative folders may lie.
    """
    found = []
    for part, name in sorted((names or {}).items(), reverse=True):
        if name:
            found.append(_base_model(part, name, folder))
            found += [replace(model, part=f"{model.part} of {name}") for model in _shipped_with(name)]
    return found


def _shipped_with(name: str) -> list[BaseModel]:
    shipped = shipped_checkpoint(name)
    if shipped is None:
        return []
    return base_models(json.loads((shipped / "config.json").read_bytes()).get("base_models"), shipped)


def _base_model(part: str, name: str, folder: Path) -> BaseModel:
    weights = BASE_WEIGHTS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if weights is not None:
        return BaseModel(part, name, HUB_IDS.get(weights.name), weights)
    if is_hub_id(name) and not any(os.path.isdir(path) for path in (name, folder / name)):
        return BaseModel(part, name, name)
    return BaseModel(part, base_name(name))


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository of the Hub: `organisation/name`."""
    if name.count("/") != 1 or is_absolute(name) or name.startswith((".", "~", "/")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def gvt_architecture(config: PreTrainedConfig, image_size: int | None = None) -> list[Row]:
    """
    What a GVT is made of, in words.

    Args:
        config ([`GVTConfig`]): the model's.
        image_size (`int`, *optional*): side of the images, in pixels.
    """
    text, tokenizer = config.text_config, config.resampler_config
    heads = getattr(tokenizer, "num_attention_heads", None), getattr(tokenizer, "head_dim", None)
    width = getattr(tokenizer, "intermediate_size", None)
    rows = [
        ("images", f"{image_size} × {image_size} pixels" if image_size else ""),
        ("vision tower", tower_in_words(config)),
        (
            "visual tokenizer",
            kind_in_words(tokenizer)
            + (f", {heads[0]} heads of {heads[1]}" if all(heads) else "")
            + (f", feed-forward layers of {number(width)}" if width else ""),
        ),
        ("visual tokens per image", token_count_in_words(tokenizer)),
        ("projection", f"{_token_width(tokenizer)} → {text.hidden_size}"),
        ("language model", language_model_in_words(config)),
        ("LoRA", lora_in_words(config)),
    ]
    return [(name, value) for name, value in rows if value]


def token_count_in_words(tokenizer: PreTrainedConfig) -> str:
    """How many visual tokens an image has, by the config of a visual tokenizer; empty where it does not say."""
    for name in ("num_latents", "num_tokens"):
        if (count := getattr(tokenizer, name, None)) is not None:
            return number(count)
    most = getattr(tokenizer, "max_tokens", None)
    return f"{number(tokenizer.min_tokens)} to {number(most)}, as the image asks for" if most else ""


def _token_width(tokenizer: PreTrainedConfig) -> int | None:
    widths = (getattr(tokenizer, name, None) for name in ("output_size", "hidden_size", "patch_hidden_size"))
    return next((width for width in widths if width), None)


def tower_in_words(config: PreTrainedConfig) -> str:
    """The vision tower of a composed model, and what is read of it."""
    vision, layer = config.vision_config, config.vision_feature_layer
    patch_size = None if getattr(vision, "hidden_sizes", None) else getattr(vision, "patch_size", None)
    patches = f", patches of {patch_size} × {patch_size} pixels" if isinstance(patch_size, int) else ""
    tokens = "all its tokens" if config.vision_feature_select_strategy == "full" else "patches only"
    features = "its features after the final norm" if layer == "final" else f"its `hidden_states[{layer}]`"
    return f"{kind_in_words(vision)}{patches}; {features}, {tokens}"


def language_model_in_words(config: PreTrainedConfig) -> str:
    """The language model of a composed model."""
    return f"{kind_in_words(config.text_config)}, vocabulary of {number(config.text_config.vocab_size)} tokens"


def lora_in_words(config: PreTrainedConfig) -> str:
    """The adapters of a composed model; empty if it has none."""
    if not (lora := config.lora_config):
        return ""
    rank, alpha, modules = (plain(lora.get(key)) for key in ("r", "lora_alpha", "target_modules"))
    return f"rank {rank}, alpha {alpha}, on `{modules}`"


def kind_in_words(config: PreTrainedConfig) -> str:
    """Type and size of a model, such as "dinov2, 12 layers of 384" or "convnext, stages of 96, 192, 384 and 768"."""
    kind = config.model_type.removesuffix("_vistok").replace("_", " ")
    if stages := getattr(config, "hidden_sizes", None):
        return f"{kind}, stages of {', '.join(map(str, stages[:-1]))} and {stages[-1]}"
    layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    return f"{kind}, {layers} layers of {width}" if layers and width else kind


def data_packages(sources: Iterable[Mapping[str, Any]]) -> dict[str, list[RegistryPackage]]:
    """
    Which data packages sources are made of.

    Args:
        sources (iterable of `Mapping`): data sources of a recipe.

    Returns:
        `dict[str, list[RegistryPackage]]`: for each source, by its label, the packages that its fields name, or those
        that its format reads.
    """
    found: dict[str, list[RegistryPackage]] = {}
    for source in sources:
        fields = {key: value for key, value in source.items() if key not in ("format", "name")}
        names = [word for word in _words(fields) if word in DATA_PACKAGES]
        names = names or list(FORMAT_PACKAGES.get(str(source.get("format")), ()))
        known = found.setdefault(source_label(source), [])
        known += [DATA_PACKAGES[name] for name in dict.fromkeys(names) if DATA_PACKAGES[name] not in known]
    return found


def _words(value: Any) -> list[str]:
    """All strings in nested values, keys aside."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [word for entry in value.values() for word in _words(entry)]
    return [word for entry in value for word in _words(entry)] if isinstance(value, list | tuple) else []


def source_label(source: Mapping[str, Any]) -> str:
    """How a card calls a data source: by its name, else by its format."""
    return str(source.get("name") or source.get("format") or "unnamed")


def hub_datasets(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """The data sets of the Hub that sources read; a name of anything else would be a link to somebody's data there."""
    paths = [source.get("path") for source in sources if source.get("format") == "hub"]
    return [path for path in paths if isinstance(path, str) and is_hub_id(path) and not Path(path).exists()]


def data_table(sources: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """
    Data sources as a table, with columns only for what at least one of them says.

    Args:
        sources (iterable of `Mapping`): data sources of a recipe.

    Returns:
        `list[list[str]]`: header and rows; empty without sources.
    """
    sources = list(sources)
    total = sum(float(source.get("weight") or 0) for source in sources)
    rows = [
        {
            "source": source_label(source),
            "format": str(source.get("format") or ""),
            "split": str(source.get("split") or ""),
            "where": ", ".join(f"{key}: {plain(value)}" for key, value in (source.get("where") or {}).items()),
            "at most": number(source["max_samples"]) if source.get("max_samples") else "",
            "weight": _weight(source["weight"], total) if source.get("weight") and len(sources) > 1 else "",
            "from": _origin(source),
            "options": ", ".join(f"{key}: {plain(value)}" for key, value in (source.get("options") or {}).items()),
        }
        for source in sources
    ]
    columns = [column for column in rows[0] if any(row[column] for row in rows)] if rows else []
    return [columns, *([row[column] or "–" for column in columns] for row in rows)] if rows else []


def _weight(weight: float, total: float) -> str:
    return f"{weight:g} ({100 * weight / total:.1f} %)"


def _origin(source: Mapping[str, Any]) -> str:
    packages = [f"{package.package} {package.version}" for package in data_packages([source])[source_label(source)]]
    path = source.get("path")
    paths = [base_name(str(entry)) if is_absolute(str(entry)) else str(entry) for entry in _words([path])]
    return ", ".join(packages or paths)


def hyper_parameters(training: Mapping[str, Any]) -> list[Row]:
    """
    Those fields of a training that decide on what is learned.

    Args:
        training (`Mapping`): section `training` of a recipe.
    """
    return [
        (name, plain(value)) for name, value in training.items() if value is not None and not _NOT_LEARNING.match(name)
    ]


def licence_table(
    models: Iterable[BaseModel], sources: Iterable[Mapping[str, Any]]
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """
    Licences of what a model was made of.

    Args:
        models (iterable of [`BaseModel`]): its pretrained parts; of what ships with vistok also its data counts.
        sources (iterable of `Mapping`): the data that it was trained on.

    Returns:
        `tuple[list[tuple[str, str, str]], list[str]]`: what, where from and under which licence; and the names of what
        has no recorded licence.
    """
    rows: list[tuple[str, str, str]] = []
    unknown: list[str] = []
    for model in models:
        if shipped := shipped_checkpoint(model.name):
            results = read_results(shipped)
            licence = (results.get("card") or {}).get("license") or "see its card"
            rows.append((f"`{model.name}`", "ships with vistok", licence))
            trained_on = ((results.get("recipe") or {}).get("data") or {}).get("train") or []
            for label, packages in data_packages(trained_on).items():
                rows += [(f"data of `{model.name}`", _package(package), package.licence) for package in packages]
                unknown += [] if packages else [f"{label} of {model.name}"]
        elif model.package is None:
            unknown.append(f"{model.name} (see its card)" if model.hub_id else model.name)
        else:
            rows.append((f"`{model.name}`", _package(model.package), model.package.licence))
    for label, packages in data_packages(sources).items():
        rows += [(label, _package(package), package.licence) for package in packages]
        unknown += [] if packages else [label]
    return list(dict.fromkeys(rows)), list(dict.fromkeys(unknown))


def _package(package: RegistryPackage) -> str:
    registry = {"pypi": "PyPI", "npm": "npm", "debian": "Debian"}.get(package.registry, package.registry)
    return f"{registry}: {package.package} {package.version}"


def number(value: Any) -> str:
    """A count with its thousands apart: `5,545,152`."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(value: Any) -> str:
    """A value as it stands in a recipe."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Seconds in words: `1 h 23 min`, `2 min 5 s` or `35 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def device_hours(hardware: str, seconds: float | None) -> str:
    """
    What a run cost, in hours of a device.

    Args:
        hardware (`str`): as recorded: `8 × NVIDIA H200` or `4 CPU cores (x86_64)`.
        seconds (`float`, *optional*): duration of the run.

    Returns:
        `str`: `1.5 GPU hours`; empty where one of both is unknown.
    """
    match = re.match(r"(\d+) (×|CPU cores)", hardware)
    if match is None or not seconds:
        return ""
    return f"{int(match[1]) * seconds / 3600:.2g} {'GPU' if match[2] == '×' else 'CPU-core'} hours"


__all__ = [
    "BaseModel",
    "base_models",
    "data_packages",
    "data_table",
    "device_hours",
    "duration",
    "gvt_architecture",
    "hyper_parameters",
    "is_hub_id",
    "kind_in_words",
    "language_model_in_words",
    "licence_table",
    "lora_in_words",
    "number",
    "plain",
    "source_label",
    "tower_in_words",
]
