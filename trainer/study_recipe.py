"""The recipe of a study: which encoders are compared, with which protocol, on which tasks."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.protocol import MODES
from ..evaluation.study_tasks import TASKS
from ..modeling.vision_features import FINAL, FeatureLayer
from .data_formats import known
from .recipe import parse_overrides, read_yaml, recipe_from_dict
from .study_checks import (
    KEPT_SCENES,
    check_attention,
    check_encoder,
    check_evaluation,
    check_not_set,
    check_probe,
    check_scenes,
    check_section_types,
    check_supervised_training,
    check_supervision,
    check_training,
)

TUNING = ("frozen", "tuned")
SPLITS = ("train", "test")
# What any encoder is described by, and one of each kind beside.
SHARED = ("how", "label", "supervision", "num_images", "feature_layer")
HOW = {
    "pretrained": ("model",),
    "random": ("architecture", "image_size", "seed"),
    "supervised": ("architecture", "seed", "training"),
    "distilled": ("teacher", "mask_ratio", "seed", "training"),
}
REQUIRED = {"pretrained": "model", "random": "architecture", "supervised": "architecture", "distilled": "teacher"}


@dataclass
class StudyRecipe:
    """
    A study of vision towers as visual tokenizers: each is frozen or tuned, trained with several seeds in one protocol,
    and evaluated on the same tasks (GVT, Tables 2, 4 and 6).

    Args:
        encoders (`dict[str, dict]`):
            What is compared, by name. `how` says how it is made: `pretrained` (`model`: base model, folder or Hub id),
            `random` (`architecture`: of such a model, `image_size`, `seed`), `supervised` (`architecture`, `seed`,
            `training`: by the classes in the training scenes), `distilled` (`teacher`: an encoder before it,
            `mask_ratio`, `seed`, `training`). `feature_layer` (by default -1; of a distilled one, the layer that
            learned, which is `final` unless `distillation.student` says otherwise) is what the resampler, or a
            student, reads of it; `label`, `supervision` and `num_images` (of its pretraining) are what tables say of
            it.
        protocol (`dict`): a recipe of the visual-language trainer, without tower and output folder.
        tuned (`dict`): what is otherwise in the protocol where the tower is tuned.
        tuning (`list[str]`): `"frozen"`, `"tuned"` or both.
        seeds (`list[int]`): of the training of each kind of model.
        scenes (`dict`): arguments of [`write_scenes`], for both splits or under `train` and `test`.
        supervision (`dict`): class supervision: `image_size`, and `training`: fields of `TrainingArguments`.
        distillation (`dict`): a recipe of the feature-distillation trainer, without teacher and output folder.
        evaluation (`dict`): `tasks` (by name, with `num_questions`), `num_shuffled` (questions of each that are asked
            about shuffled images, by default all), `seed`, `mode`, `batch_size`, `max_new_tokens` and `dtype`.
        attention (`dict`): `num_scenes` to measure on (by default 32; 0 for none) and `layer` of the resampler; of the
            figure `shown` (scenes, by default 3), `query` and `heads`, all counted from 0.
        probe (`dict`): k-NN and linear probe of every tower, before and after tuning, on pictures of single objects
            that are of no class of the scenes: `num_train` and `num_test` of them to render (those of the study's
            classes are left out), `size`, `seed` and `k`. Left out where it is empty.
        threads (`int`): that each job computes with.
        output_dir (`str`): where the study goes.
        title (`str`): of the report.

    In the strings of `protocol`, `supervision` and `distillation`, `{train}` and `{test}` stand for the folders of the
    scenes.

    Raises:
        ValueError: if something is missing, unknown, or does not fit together; names section and field.
    """

    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    tuning: list[str] = field(default_factory=lambda: list(TUNING))
    seeds: list[int] = field(default_factory=lambda: [0])
    scenes: dict[str, Any] = field(default_factory=dict)
    supervision: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    output_dir: str = "runs/study"
    title: str = "Vision towers as visual tokenizers"

    def __post_init__(self):
        check_section_types(self, "study")
        self._check_cells()
        for name in self.encoders:
            self._check_encoder(name)
        check_scenes(self.scenes, SPLITS)
        check_evaluation(self.evaluation, list(TASKS), MODES)
        check_probe(self.probe)
        check_supervision(self.supervision)
        for name, values in (("protocol", self.protocol), ("tuned", merge(self.protocol, self.tuned))):
            _check_recipe(name, values)
            check_not_set(name, values, ("model.vision", "data.seed", "training.output_dir", "training.seed"))
        model = self.protocol.get("model") or {}
        check_attention(self.attention, None if model.get("checkpoint") else model.get("resampler") or {})
        self._check_distillation()

    def _check_distillation(self):
        for name, encoder in self.encoders.items():
            if encoder["how"] == "distilled":
                own = merge(self.distillation, {"training": encoder.get("training") or {}})
                place = "distillation" if not encoder.get("training") else f"distillation of encoders.{name}"
                _check_recipe(place, {**own, "trainer": "feature-distillation"})
                taken = ("teacher.model", "training.output_dir", "training.seed", "training.mask_ratio")
                check_not_set(place, own, taken)

    def _check_cells(self):
        if not self.encoders:
            raise ValueError("The study has no encoders to compare: name at least one under `encoders`.")
        for tuning in self.tuning:
            known("tuning of the study", tuning, TUNING)
        if not self.tuning or len(set(self.tuning)) < len(self.tuning):
            raise ValueError(f"tuning of the study is {self.tuning}, expected frozen, tuned or both, each once.")
        wrong = [seed for seed in self.seeds if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
        if wrong or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds of the study are {self.seeds}, expected whole numbers, each once.")
        if self.threads < 1:
            raise ValueError(f"threads of the study is {self.threads}, expected at least 1.")

    def _check_encoder(self, name: str):
        encoder, place = self.encoders[name], f"encoders.{name}"
        if not isinstance(encoder, Mapping):
            raise ValueError(f"{place} is {encoder!r}, expected how it is made: {{how: pretrained, model: …}}.")
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"The encoder {name!r} names a folder: use letters, digits, - and _.")
        how = known(f"how in {place}", encoder.get("how"), HOW)
        for key in encoder:
            known(f"field of {place}, which is {how}", key, (*SHARED, *HOW[how]))
        check_encoder(place, encoder)
        if how == "supervised":
            check_supervised_training(f"{place}.training", encoder.get("training") or {})
        if REQUIRED[how] not in encoder:
            raise ValueError(f"{place} has no {REQUIRED[how]}, which an encoder that is {how} needs.")
        before = list(self.encoders)[: list(self.encoders).index(name)]
        if how == "distilled":
            known(f"teacher in {place}, which has to be an encoder before it", encoder["teacher"], before)
            ratio = encoder.get("mask_ratio", 0.0)
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
                raise ValueError(f"mask_ratio of {place} is {ratio!r}, expected a number from 0 to less than 1.")

    @property
    def num_attention_scenes(self) -> int:
        """On so many scenes attention maps are measured."""
        return self.attention.get("num_scenes", 32)

    def protocol_of(self, tuning: str) -> dict[str, Any]:
        """
        The recipe that a model is trained with, but for its tower, its seed and its folder.

        Args:
            tuning (`str`): `"frozen"` or `"tuned"`.
        """
        frozen = merge(self.protocol, {"trainable": {"vision": "frozen"}})
        if tuning == "frozen":
            return frozen
        tuned = merge(self.protocol, {"trainable": {"vision": "full"}, "training": {"cache_features": False}})
        return merge(tuned, self.tuned)

    def feature_layer_of(self, name: str) -> FeatureLayer:
        """
        What the resampler, or a student, reads of an encoder.

        Args:
            name (`str`): of the encoder.
        """
        encoder, layer = self.encoders[name], -1
        if encoder["how"] == "distilled":
            layer = (self.distillation.get("student") or {}).get("feature_layer", FINAL)
        return encoder.get("feature_layer", layer)

    def scenes_of(self, split: str) -> dict[str, Any]:
        """The arguments of [`write_scenes`] for a split, but for its folder."""
        shared = {name: value for name, value in self.scenes.items() if name not in SPLITS}
        return {**shared, **(self.scenes.get(split) or {}), "split": split}

    def to_dict(self) -> dict[str, Any]:
        """The study as plain dictionaries, as it stands in a YAML file."""
        return dataclasses.asdict(self)


def load_study(path: str | os.PathLike, overrides: Sequence[str] = ()) -> StudyRecipe:
    """
    Reads the recipe of a study.

    Args:
        path (`str`): YAML file.
        overrides (`list[str]`): `["--protocol.training.max_steps", "100", "--seeds", "[0, 1, 2]", …]`, see
            [`load_recipe`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no valid YAML or no study, or an override is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no study {path}: give a YAML file, such as recipes/gvt/study.yaml.")
    values = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds {values!r}, expected the sections of a study.")
    given = dict(values)
    for name, value in parse_overrides(overrides, _sections()).items():
        override: Any = value
        for part in reversed(name.split(".")):
            override = {part: override}
        given = merge(given, override)
    return study_from_dict(given)


def study_from_dict(values: Mapping[str, Any]) -> StudyRecipe:
    """
    Makes a [`StudyRecipe`] from plain dictionaries.

    Raises:
        ValueError: if a section is unknown, or something in it.
    """
    for name in values:
        known("section of the study", name, _sections())
    return StudyRecipe(**{name: deepcopy(value) for name, value in values.items() if value is not None})


def _sections() -> list[str]:
    return [section.name for section in dataclasses.fields(StudyRecipe)]


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Nested dictionaries with some values replaced.

    Args:
        values (`dict`): stays as it is.
        changes (`dict`): what is otherwise; dictionaries in it change single fields, all else takes the place of what
            was there. In a list, a dictionary with the numbers of entries changes these.
    """
    merged = {name: deepcopy(value) for name, value in values.items()}
    for name, change in changes.items():
        before = merged.get(name)
        if isinstance(change, Mapping) and isinstance(before, Mapping):
            merged[name] = merge(before, change)
        elif isinstance(change, Mapping) and isinstance(before, list):
            merged[name] = _merge_list(name, before, change)
        else:
            merged[name] = deepcopy(change)
    return merged


def _merge_list(name: str, values: list[Any], changes: Mapping[str, Any]) -> list[Any]:
    numbered = {str(number): value for number, value in enumerate(values)}
    for number in changes:
        if str(number) not in numbered:
            raise ValueError(f"{name} is a list of {len(values)}, numbered from 0: it has no {number!r}.")
    return list(merge(numbered, {str(number): change for number, change in changes.items()}).values())


def fill_in(values: Any, places: Mapping[str, str]) -> Any:
    """
    Replaces `{train}` and the like in all strings.

    Args:
        values: strings, lists and dictionaries of them; anything else stays.
        places (`dict[str, str]`): what stands for each name.
    """
    if isinstance(values, str):
        for name, place in places.items():
            values = values.replace("{" + name + "}", place)
        return values
    if isinstance(values, Mapping):
        return {name: fill_in(value, places) for name, value in values.items()}
    return [fill_in(value, places) for value in values] if isinstance(values, (list, tuple)) else values


def _check_recipe(section: str, values: Mapping[str, Any]) -> None:
    """A recipe that the study could not run in the end is refused at its beginning."""
    try:
        recipe_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{section} of the study: {error}") from error
    check_training(f"{section}.training", values.get("training") or {})


__all__ = [
    "HOW",
    "KEPT_SCENES",
    "SHARED",
    "SPLITS",
    "TUNING",
    "StudyRecipe",
    "fill_in",
    "load_study",
    "merge",
    "study_from_dict",
]
