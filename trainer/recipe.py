"""Recipes: a whole training run in one YAML file."""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..configuration.optional import require
from ..hub_cards.card_header import check_card_fields
from .data_formats import DataSource
from .visual_language_config import VisualLanguageConfig

DEFAULT_VISION, DEFAULT_TEXT = "vistok:dinov2-small", "vistok:smollm2-135m"
SECTIONS = ("model", "trainable", "lora", "data", "training", "card")
GVT_TRAINABLE = {"vision": "frozen", "resampler": "full", "llm": "frozen"}


@dataclass
class ModelRecipe:
    """
    What the model is composed of.

    Args:
        vision, text (`str`, *optional*): base models: names of vistok, folders or Hub ids. By default the small ones
            of `vistok fetch`, or those of the checkpoint.
        kind (`str`): `"gvt"`.
        checkpoint (`str`, *optional*):
            Starts from the model in this folder. What `vision`, `text`, `config` and `resampler` say must then be true
            of it.
        dtype (`str`, *optional*): of the frozen weights; by default that of the language model.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
        image_size (`int`, *optional*): side of the images in pixels; by default what the tower's processor says.
        chat_template (`str`, *optional*): name of a chat template, or Jinja; by default `"question-answer"`, or that
            of the checkpoint.
        processor (`dict`): further arguments of the processor.
        config (`dict`): fields of the model's config.
        resampler (`dict`): fields of the visual tokenizer's config.
    """

    vision: str | None = None
    text: str | None = None
    kind: str = "gvt"
    checkpoint: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    image_size: int | None = None
    chat_template: str | None = None
    processor: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    resampler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.checkpoint is None:
            self.vision, self.text = self.vision or DEFAULT_VISION, self.text or DEFAULT_TEXT


@dataclass
class DataRecipe:
    """
    What the model is trained and evaluated on.

    Args:
        train (`list[dict]`): fields of a [`DataSource`] each; mixed by weights.
        eval (`list[dict]`): evaluated one by one, under their names.
        seed (`int`): of the mixture.
        stopping_strategy (`str`): when an epoch of a weighted mixture ends.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    eval: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    stopping_strategy: str = "all_exhausted"


@dataclass
class Recipe:
    """
    A training run.

    Args:
        model ([`ModelRecipe`]): what is trained.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"` or `"lora"`.
        lora (`dict`, *optional*): fields of `peft.LoraConfig`.
        data ([`DataRecipe`]): what it is trained on.
        training (`dict`): fields of [`VisualLanguageConfig`].
        card (`dict`): fields for the model card: `title`, `license`, `language`, `description`, `limits`.
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    trainable: dict[str, str] = field(default_factory=lambda: dict(GVT_TRAINABLE))
    lora: dict[str, Any] | None = None
    data: DataRecipe = field(default_factory=DataRecipe)
    training: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain dictionaries, as it stands in a YAML file."""
        return dataclasses.asdict(self)


def load_recipe(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """
    Reads a recipe.

    Args:
        path (`str`): YAML file.
        overrides (`list[str]`): `["--training.max_steps", "100", …]`; values are YAML, lists are indexed by number
            (`--data.train.0.max_samples 64`).

    Returns:
        [`Recipe`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no valid YAML, a section or field is unknown, or an override is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {path}: give the path of a YAML file, such as recipes/gvt/demo.yaml."
        )
    values = _mapping(str(path), read_yaml(path.read_text(encoding="utf-8"), str(path)))
    for key, value in parse_overrides(overrides).items():
        _set(values, key, value)
    return recipe_from_dict(values)


def read_yaml(text: str, name: str) -> Any:
    """
    Reads YAML as its version 1.2 has it: `no` is a word (`save_strategy: no`) and `1e-3` a number.

    Args:
        text (`str`): YAML.
        name (`str`): where it comes from, for the error.

    Raises:
        ValueError: if it is malformed.
    """
    yaml: Any = require("yaml", "train")
    base: Any = yaml.SafeLoader

    class Loader(base):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))
    number = re.compile(r"^[-+]?(?:[0-9]*\.[0-9]+|[0-9]+\.|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no valid YAML: {error}") from error


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """
    Reads `["--training.max_steps", "100", "--training.bf16=true"]`.

    Raises:
        ValueError: if an option has no dots-and-dashes form, or no value.
    """
    overrides: dict[str, Any] = {}
    arguments = list(arguments)
    while arguments:
        name = arguments.pop(0)
        if not name.startswith("--") or "." not in name:
            raise ValueError(
                f"{name!r} is no override: write --section.field value, such as --training.max_steps 100."
            )
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise ValueError(f"--{name} has no value: write --{name} value.")
            value = arguments.pop(0)
        overrides[name] = read_yaml(value, f"--{name}")
    return overrides


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """
    Makes a [`Recipe`] from plain dictionaries.

    Raises:
        ValueError: if a section or a field is unknown.
    """
    _check_fields("recipe", values, SECTIONS)
    sections = {name: _mapping(name, values.get(name)) for name in SECTIONS}
    for name, recipe_class in (("model", ModelRecipe), ("data", DataRecipe), ("training", VisualLanguageConfig)):
        _check_fields(name, sections[name], recipe_class.__dataclass_fields__)
    for name in ("trainable", "lora"):
        if name in sections["training"]:
            raise ValueError(f"{name!r} is a section of its own in a recipe: move it out of training.")
    data = DataRecipe(**sections["data"])
    for name in ("train", "eval"):
        _check_sources(f"data.{name}", getattr(data, name))
    return Recipe(
        model=ModelRecipe(**sections["model"]),
        trainable=sections["trainable"] or dict(GVT_TRAINABLE),
        lora=sections["lora"] or None,
        data=data,
        training=_checked_types(sections["training"]),
        card=check_card_fields(sections["card"]),
    )


def _mapping(section: str, values: Any) -> dict[str, Any]:
    """A section that is there but empty is None in YAML."""
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"{section} is {values!r}, expected fields with values: `field: value`, a line each.")
    return dict(values or {})


def _check_fields(section: str, values: Mapping[str, Any], known) -> None:
    for name in values:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=3)
            choices = f"did you mean {' or '.join(similar)}?" if similar else f"it has: {', '.join(known)}."
            raise ValueError(f"{name!r} is no field of {section}; {choices}")


def _checked_types(training: Mapping[str, Any]) -> dict[str, Any]:
    """TrainingArguments checks no types: a word for a number would be noticed far from here."""
    hints, checked = get_type_hints(VisualLanguageConfig), dict(training)
    for name, value in training.items():
        kinds = set(get_args(hints[name]) or [hints[name]])
        if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
            checked[name] = int(value)  # 1e3
        elif kinds <= {int, float, bool, type(None)} and not isinstance(value, (*kinds, *([int] * (float in kinds)))):
            expected = " or ".join(sorted(kind.__name__ for kind in kinds if kind is not type(None)))
            raise ValueError(f"training.{name} is {value!r}, expected {expected}.")
    return checked


def _check_sources(section: str, sources: Any) -> None:
    if not isinstance(sources, list):
        raise ValueError(f"{section} is {sources!r}, expected a list of data sources: `- {{format: …}}`.")
    names = [DataSource.from_dict(_mapping(f"{section}.{index}", source)).name for index, source in enumerate(sources)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Several sources of {section} are called {name!r}: give each its own `name`.")


def _set(values: Any, key: str, value: Any) -> None:
    """Sets a field by its path in nested dictionaries and lists; makes sections that the recipe leaves out."""
    names = key.split(".")
    if names[0] == "trainable" and not values.get("trainable"):
        values["trainable"] = dict(GVT_TRAINABLE)
    for depth, name in enumerate(names):
        place = ".".join(names[:depth])
        index: Any = name
        if isinstance(values, list):
            if not name.isdecimal() or int(name) >= len(values):
                raise ValueError(f"--{key}: {place} is a list of {len(values)}, numbered from 0: it has no {name!r}.")
            index = int(name)
        elif not isinstance(values, dict):
            raise ValueError(f"--{key}: {place} is {values!r}, it has no field {name!r}.")
        if depth == len(names) - 1:
            values[index] = value
        elif isinstance(values, dict) and values.get(index) is None:
            values[index] = {}
        values = values[index]


__all__ = ["DataRecipe", "ModelRecipe", "Recipe", "load_recipe", "parse_overrides", "recipe_from_dict"]
