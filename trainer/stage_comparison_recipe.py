"""The recipe of a comparison of arms: trainings that may share their first stages, and differ in what is behind."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration.shipped import here_or_shipped
from .data_formats import DataSource, known
from .recipe import load_recipe, parse_overrides, read_yaml, recipe_from_dict
from .study_checks import check_section_types
from .study_recipe import merge

KIND, WITHOUT_STAGES = "stages", "arms"
"""What `study` is in such a recipe."""

FLOORS = ("majority", "question_only_prior", "shuffled_images")
"""What arms are asked beside the questions, unless the evaluation says otherwise."""

_EVALUATION = ("tasks", "floors", "num_shuffled", "seed", "batch_size", "max_new_tokens", "dtype")
_COSTS = ("images", "num_images", "num_text_tokens", "rounds", "attn_implementation")
_ARM = ("after", "recipe", "changes", "label")
_STAGE = ("recipe", "changes")
_TASK = ("num_questions", "test", "train")


@dataclass
class StageComparison:
    """
    Arms of a training in stages, which share the stages before them and are asked the same questions.

    Args:
        stages (`dict[str, str | dict]`): what is trained once, by name and in order, each from the folder of the one
            before it: a recipe of `vistok train`, or `recipe` and `changes`. Without any, each arm starts anew.
        arms (`dict[str, dict]`): what is compared, by name: the stage that it comes `after`; the `recipe` of its last
            stage, trained once with each seed, with `changes`; without a recipe, the arm stops after that stage, and
            without a stage, it starts where its recipe does. `label` is what tables call it.
        compare (`list[list[str]]`): pairs of arms, of which the second is subtracted from the first.
        seeds (`list[int]`): of the arms' last stages.
        changes (`dict`): what is otherwise in all recipes, such as `{training: {max_steps: 20}}`.
        evaluation (`dict`): `tasks`: names of `vistok evaluate`, or names with `test` and `train` data sources, each
            with `num_questions` (by default all); `floors` (see [`evaluate_task`]); `num_shuffled` (questions of each
            that are asked about shuffled, and about blank, images), `seed`, `batch_size`, `max_new_tokens`, `dtype`.
        costs (`dict`): what reading an image costs is measured of all arms in turn, if there is this section:
            `images`, a data source; and the other arguments of [`measure_costs`].
        threads (`int`): that each job computes with.
        output_dir (`str`): where the comparison goes.
        title (`str`): of the report.
        study (`str`): `"stages"`, or `"arms"` where there are none.

    Raises:
        ValueError: if something is missing, unknown, or does not fit together; names section and field.
        FileNotFoundError: if a recipe is not there.
    """

    stages: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    compare: list[list[str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    changes: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    output_dir: str = "runs/comparison"
    title: str = "Arms of a training in stages"
    study: str = KIND

    def __post_init__(self):
        check_section_types(self, "comparison")
        if not self.arms or (self.study == KIND and not self.stages):
            raise ValueError(
                "The comparison needs stages, and arms that come behind them: name at least one of each, or, of "
                f"`study: {WITHOUT_STAGES}`, arms alone."
            )
        wrong = [seed for seed in self.seeds if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
        if wrong or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds of the comparison are {self.seeds}, expected whole numbers, each once.")
        if self.threads < 1:
            raise ValueError(f"threads of the comparison is {self.threads}, expected at least 1.")
        self._recipes = {name: self._recipe(f"stages.{name}", entry, _STAGE) for name, entry in self.stages.items()}
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        for pair in self.compare:
            if not isinstance(pair, list) or len(pair) != 2 or not set(pair) <= set(self.arms):
                raise ValueError(f"compare holds {pair!r}, expected two of the arms: {', '.join(self.arms)}.")
        self._check_evaluation()
        self._check_costs()

    def _check_arm(self, name: str, arm: Any) -> None:
        place = f"arms.{name}"
        if not isinstance(arm, Mapping):
            raise ValueError(f"{place} is {arm!r}, expected the stage that it comes after: {{after: …, recipe: …}}.")
        if arm.get("after") is not None or arm.get("recipe") is None:
            known(f"stage that {place} comes after", arm.get("after"), self.stages)
        if arm.get("recipe") is not None:
            self._recipes[place] = self._recipe(place, arm, _ARM)
        elif unused := [key for key in arm if key not in ("after", "label")]:
            raise ValueError(f"{place} has {unused[0]}, but no recipe: it stops after {arm['after']}.")

    def _recipe(self, place: str, entry: Any, fields: Sequence[str]) -> dict[str, Any]:
        """A recipe with its changes, but for where it starts and where it goes."""
        name = place.rpartition(".")[2]
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"{place} names a folder: use letters, digits, - and _.")
        described: dict[str, Any] = {"recipe": entry} if isinstance(entry, str) else dict(entry or {})
        for key in described:
            known(f"field of {place}", key, fields)
        if not isinstance(described.get("recipe"), str):
            raise ValueError(f"{place} has no recipe: name a YAML file of vistok train.")
        values = load_recipe(here_or_shipped(described["recipe"])).to_dict()
        if values.get("trainer", "visual-language") == "feature-distillation":
            raise ValueError(f"{place} trains no model that answers questions: {described['recipe']}.")
        values = merge(merge(values, self.changes), described.get("changes") or {})
        try:
            recipe_from_dict(values)
        except ValueError as error:
            raise ValueError(f"{place} of the comparison: {error}") from error
        starts_anew = place.startswith("arms.") and described.get("after") is None
        moved_of_model = () if starts_anew else ("checkpoint",)
        for section, moved in (("training", ("output_dir", "report_to")), ("model", moved_of_model)):
            values[section] = {key: value for key, value in values[section].items() if key not in moved}
        return {key: value for key, value in values.items() if key != "card"}

    def _check_evaluation(self) -> None:
        for key in self.evaluation:
            known("field of evaluation", key, _EVALUATION)
        tasks = self.evaluation.get("tasks")
        if not isinstance(tasks, Mapping) or not tasks:
            raise ValueError("evaluation has no tasks: name those of vistok evaluate, such as easy-vqa.")
        for task, options in tasks.items():
            for key in options or {}:
                known(f"field of evaluation.tasks.{task}", key, _TASK)
            for source in ("test", "train"):
                if (options or {}).get(source) is not None:
                    DataSource.from_dict(options[source])

    def _check_costs(self) -> None:
        for key in self.costs:
            known("field of costs", key, _COSTS)
        if self.costs:
            if not isinstance(self.costs.get("images"), Mapping):
                raise ValueError("costs has no images: give a data source whose images are read.")
            DataSource.from_dict(self.costs["images"])

    def recipe_of(self, name: str) -> dict[str, Any]:
        """
        The recipe of a stage, by its name, or of the last stage of an arm, as `arms.` and its name.

        Args:
            name (`str`): of the stage or arm.
        """
        return deepcopy(self._recipes[name])

    def label_of(self, arm: str) -> str:
        """What tables call an arm."""
        return self.arms[arm].get("label") or arm

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain dictionaries, as it stands in a YAML file."""
        return dataclasses.asdict(self)


def load_comparison(path: str | os.PathLike, overrides: Sequence[str] = ()) -> StageComparison:
    """
    Reads the recipe of a comparison.

    Args:
        path (`str`): YAML file.
        overrides (`list[str]`): `["--changes.training.max_steps", "100", "--seeds", "[0]", …]`, see [`load_recipe`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no valid YAML or no comparison, or an override is malformed.
    """
    sections = [section.name for section in dataclasses.fields(StageComparison)]
    given = dict(read_yaml(Path(path).read_text(encoding="utf-8"), str(path)))
    for name, value in parse_overrides(overrides, sections).items():
        override: Any = value
        for part in reversed(name.split(".")):
            override = {part: override}
        given = merge(given, override)
    for name in given:
        known("section of the comparison", name, sections)
    return StageComparison(**{name: deepcopy(value) for name, value in given.items() if value is not None})


__all__ = ["KIND", "StageComparison", "load_comparison"]
