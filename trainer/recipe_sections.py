"""What the recipes of all trainers share: their sections, the checks of what stands in them, and how they are run."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args, get_type_hints

from transformers import TrainingArguments

from ..configuration.optional import require
from ..configuration.shipped import here_or_shipped
from ..hub_cards.card_header import check_card_fields
from .data_formats import DataSource
from .loss_curve import CurveLabels
from .quantized_training import without_unused_fields
from .reproducible_trainer import ReproducibleTrainer

DEFAULT_TRAINER = "visual-language"


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
class PreparedRun:
    """
    All that [`run_recipe`] needs of a trainer.

    Args:
        trainer ([`ReproducibleTrainer`]): with a method `save_final(folder)`.
        train_dataset (`Dataset` or `IterableDataset`): as it was loaded, with the report `skipped_samples`.
        eval_datasets (`dict`): the same, by name.
        curve ([`CurveLabels`]): what the loss curve shows.
        count_parameters (`Callable`): makes the numbers of `"trained"` and of `"all"` parameters.
        base_models (`dict[str, str]`): by which names the results call the models of the recipe's section `model`.
        measures (`dict[str, Callable]`): what is measured of the saved model, by its name in `results.json`.
    """

    trainer: ReproducibleTrainer
    train_dataset: Any
    eval_datasets: dict[str, Any]
    curve: CurveLabels
    count_parameters: Callable[[], dict[str, int]]
    base_models: dict[str, str] = field(default_factory=dict)
    measures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass
class Recipe:
    """
    A training run, of any trainer. A subclass for each trainer adds its sections, as fields.

    Args:
        data ([`DataRecipe`]): what is trained on.
        training (`dict`): fields of the trainer's arguments.
        card (`dict`): fields for the model card: `title`, `license`, `language`, `description`, `limits`.
    """

    data: DataRecipe = field(default_factory=DataRecipe)
    training: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    trainer: ClassVar[str]
    arguments_class: ClassVar[type[TrainingArguments]]
    sections: ClassVar[tuple[str, ...]]
    # Sections that an override of one field starts from, where the recipe leaves them out.
    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Sections that say what is measured of the trained model: it is measured again where they have changed.
    measured_sections: ClassVar[tuple[str, ...]] = ()
    # Fields of the arguments that a recipe has elsewhere.
    moved_fields: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """
        Makes a recipe from plain dictionaries, without the entry `trainer`.

        Raises:
            ValueError: if a section or a field is unknown.
        """
        check_fields("recipe", values, cls.sections)
        sections = {name: cls.read_section(name, values.get(name)) for name in cls.sections}
        data = DataRecipe(**checked_section("data", sections["data"], DataRecipe))
        for name in ("train", "eval"):
            check_sources(f"data.{name}", getattr(data, name))
        training = checked_section("training", sections["training"], cls.arguments_class)
        for name, place in cls.moved_fields.items():
            if name in training:
                raise ValueError(f"{name!r} is {place} of a recipe: move it out of training.")
        own = {name: section for name, section in sections.items() if name not in ("data", "training", "card")}
        return cls(
            data=data,
            training=checked_types(training, cls.arguments_class),
            card=check_card_fields(sections["card"]),
            **cls.own_sections(own),
        )

    @classmethod
    def read_section(cls, name: str, values: Any) -> dict[str, Any]:
        """A section as it stands in YAML, as a dictionary."""
        return mapping(name, values)

    @classmethod
    def own_sections(cls, sections: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """The fields that the trainer adds, of its sections as they were read."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain dictionaries, as it stands in a YAML file."""
        values = dataclasses.asdict(self)
        if "model" in values:
            values["model"] = without_unused_fields(values["model"])
        named = {} if self.trainer == DEFAULT_TRAINER else {"trainer": self.trainer}
        return {**named, **{name: values[name] for name in self.sections}}

    def arguments(self) -> TrainingArguments:
        """The trainer's arguments."""
        return self.arguments_class(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        training = dict(self.training)
        if training.get("deepspeed"):
            require("deepspeed", "deepspeed")
        if isinstance(training.get("deepspeed"), str):  # may name a file that ships with vistok
            training["deepspeed"] = str(here_or_shipped(training["deepspeed"]))
        return training

    def prepare(self, args: TrainingArguments) -> PreparedRun:
        """
        Loads models and data, and makes the trainer.

        Args:
            args (`TrainingArguments`): of [`arguments`].
        """
        raise NotImplementedError


def mapping(section: str, values: Any) -> dict[str, Any]:
    """A section as a dictionary; one that is there but empty is None in YAML."""
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"{section} is {values!r}, expected fields with values: `field: value`, a line each.")
    return dict(values or {})


def check_fields(section: str, values: Mapping[str, Any], known) -> None:
    """Makes sure that only known fields are given."""
    for name in values:
        if name not in known:
            similar = difflib.get_close_matches(str(name), known, n=3)
            choices = f"did you mean {' or '.join(similar)}?" if similar else f"it has: {', '.join(known)}."
            raise ValueError(f"{name!r} is no field of {section}; {choices}")


def checked_section(name: str, values: dict[str, Any], section_class: Any) -> dict[str, Any]:
    """The values of a section, if its dataclass has these fields."""
    check_fields(name, values, section_class.__dataclass_fields__)
    return values


def checked_types(training: Mapping[str, Any], arguments_class: Any) -> dict[str, Any]:
    """TrainingArguments checks no types: a word for a number would be noticed far from here."""
    hints, checked = get_type_hints(arguments_class), dict(training)
    for name, value in training.items():
        kinds = set(get_args(hints[name]) or [hints[name]])
        if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
            checked[name] = int(value)  # 1e3
        elif kinds <= {int, float, bool, type(None)} and not isinstance(value, (*kinds, *([int] * (float in kinds)))):
            expected = " or ".join(sorted(kind.__name__ for kind in kinds if kind is not type(None)))
            raise ValueError(f"training.{name} is {value!r}, expected {expected}.")
    return checked


def check_sources(section: str, sources: Any) -> None:
    """Makes sure that data sources are described, and by different names."""
    if not isinstance(sources, list):
        raise ValueError(f"{section} is {sources!r}, expected a list of data sources: `- {{format: …}}`.")
    names = [DataSource.from_dict(mapping(f"{section}.{index}", source)).name for index, source in enumerate(sources)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Several sources of {section} are called {name!r}: give each its own `name`.")


__all__ = ["DEFAULT_TRAINER", "DataRecipe", "PreparedRun", "Recipe", "check_fields", "check_sources", "mapping"]
