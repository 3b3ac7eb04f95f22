"""Recipes: a whole training run in one YAML file."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration.optional import require

SECTIONS = ("model", "trainable", "lora", "data", "training", "card")


@dataclass
class ModelRecipe:
    """
    What the model is composed of.

    Args:
        vision, text (`str`): base models: names of vistok, folders or Hub ids.
        kind (`str`): `"gvt"`.
        checkpoint (`str`, *optional*): starts from this folder in place of new weights.
        dtype (`str`, *optional*): of the frozen weights; by default that of the language model.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
        image_size (`int`, *optional*): side of the images in pixels; by default what the tower's processor says.
        chat_template (`str`): name of a chat template, or Jinja.
        processor (`dict`): further arguments of the processor.
        config (`dict`): fields of the model's config.
        resampler (`dict`): fields of the visual tokenizer's config.
    """

    vision: str = "vistok:dinov2-small"
    text: str = "vistok:smollm2-135m"
    kind: str = "gvt"
    checkpoint: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    image_size: int | None = None
    chat_template: str = "question-answer"
    processor: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    resampler: dict[str, Any] = field(default_factory=dict)


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
    trainable: dict[str, str] = field(
        default_factory=lambda: {"vision": "frozen", "resampler": "full", "llm": "frozen"}
    )
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
        ValueError: if a section or field is unknown, or an override is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {path}: give the path of a YAML file, such as recipes/gvt/demo.yaml."
        )
    values = read_yaml(path.read_text(), str(path)) or {}
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
    model, data = values.get("model") or {}, values.get("data") or {}
    _check_fields("model", model, ModelRecipe.__dataclass_fields__)
    _check_fields("data", data, DataRecipe.__dataclass_fields__)
    rest = {key: value for key, value in values.items() if key not in ("model", "data") and value is not None}
    return Recipe(model=ModelRecipe(**model), data=DataRecipe(**data), **rest)


def _check_fields(section: str, values: Mapping[str, Any], known) -> None:
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of {section}, which has: {', '.join(known)}.")


def _set(values: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        values = values[int(name)] if isinstance(values, list) else values.setdefault(name, {})
    if isinstance(values, list):
        values[int(last)] = value
    else:
        values[last] = value


__all__ = ["DataRecipe", "ModelRecipe", "Recipe", "load_recipe", "parse_overrides", "recipe_from_dict"]
