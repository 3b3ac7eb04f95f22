"""Recipes: a whole training run in one YAML file, for one of several trainers."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration.optional import require
from .feature_distillation_recipe import FeatureDistillationRecipe
from .model_recipe import ModelRecipe
from .recipe_sections import DEFAULT_TRAINER, DataRecipe, Recipe, mapping
from .setok_recipe import SeTokRecipe
from .setokim_recipe import SetokimRecipe
from .visual_language_recipe import VisualLanguageRecipe
from .visual_modeling_recipe import VisualModelingRecipe

TRAINERS: dict[str, type[Recipe]] = {
    recipe_class.trainer: recipe_class
    for recipe_class in (
        *(VisualLanguageRecipe, FeatureDistillationRecipe, VisualModelingRecipe),
        *(SeTokRecipe, SetokimRecipe),
    )
}
"""The recipe class of each trainer, by the name that `trainer` has in a recipe: the one place to add another."""


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
    values = mapping(str(path), read_yaml(path.read_text(encoding="utf-8"), str(path)))
    recipe_class = _recipe_class(values)
    for key, value in parse_overrides(overrides).items():
        section = key.split(".")[0]
        if values.get(section) and section in recipe_class.sections:
            values[section] = recipe_class.read_section(section, values[section])  # a name may stand for a section
        _set(values, key, value, recipe_class.section_defaults)
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


def parse_overrides(arguments: Sequence[str], names: Sequence[str] = ()) -> dict[str, Any]:
    """
    Reads `["--training.max_steps", "100", "--training.bf16=true"]`.

    Args:
        arguments (`list[str]`): of a command line.
        names (`list[str]`, *optional*): fields that are set as a whole, without a dot.

    Raises:
        ValueError: if an option has no dots-and-dashes form, or no value.
    """
    overrides: dict[str, Any] = {}
    arguments = list(arguments)
    while arguments:
        name = arguments.pop(0)
        if not name.startswith("--") or not ("." in name or name[2:].partition("=")[0] in names):
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
    Makes the [`Recipe`] of a trainer from plain dictionaries.

    Args:
        values (`Mapping`): sections, and `trainer`, a key of `TRAINERS`; by default `"visual-language"`.

    Raises:
        ValueError: if the trainer, a section or a field is unknown.
    """
    return _recipe_class(values).from_dict({name: value for name, value in values.items() if name != "trainer"})


def _recipe_class(values: Mapping[str, Any]) -> type[Recipe]:
    name = values.get("trainer") or DEFAULT_TRAINER
    if not isinstance(name, str) or name not in TRAINERS:
        raise ValueError(f"{name!r} is no trainer of a recipe: choose {', '.join(TRAINERS)}.")
    return TRAINERS[name]


def _set(values: Any, key: str, value: Any, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Sets a field by its path in nested dictionaries and lists; makes sections that the recipe leaves out."""
    names = key.split(".")
    if names[0] in defaults and not values.get(names[0]):
        values[names[0]] = dict(defaults[names[0]])
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


__all__ = ["TRAINERS", "DataRecipe", "ModelRecipe", "Recipe", "load_recipe", "parse_overrides", "recipe_from_dict"]
