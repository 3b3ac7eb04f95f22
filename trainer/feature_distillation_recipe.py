"""Recipes of feature distillation: teacher, student, and the labelled images that both are probed on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from ..evaluation.representation_quality import POOLINGS, label_floors, representation_quality
from ..modeling.base_checkpoints import load_vision_tower
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.distillation_students import random_student, wei_student
from .data_examples import ROLES
from .data_formats import DataSource
from .data_sources import load_data_source, load_eval_datasets, mix_data_sources
from .distillation_collator import at_size, processor_size
from .distinct_images import distinct_images
from .feature_distillation_config import FeatureDistillationConfig
from .feature_distillation_trainer import FeatureDistillationTrainer
from .freezing import count_parameters
from .loss_curve import CurveLabels
from .recipe_sections import PreparedRun, Recipe, check_sources, checked_section, mapping

DEFAULT_TEACHER = "vistok:dinov2-small"
CURVE = CurveLabels("smooth L1 loss", "cosine_similarity", "cosine", "cosine similarity to the teacher", 1)
_BACKBONE_FIELDS = ("stage_names", "out_features", "out_indices")


@dataclass
class TeacherRecipe:
    """
    Whose features are learned.

    Args:
        model (`str`): vision checkpoint: name of a base model of vistok, folder or Hub id.
        feature_layer (`int`, *optional*): index into its `hidden_states`; by default what its final norm returns.
        image_size (`int`, *optional*): side of its images in pixels; by default the student's.
        dtype (`str`, *optional*, defaults to `"float32"`): of its weights.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
    """

    model: str = DEFAULT_TEACHER
    feature_layer: int | None = None
    image_size: int | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None


@dataclass
class StudentRecipe:
    """
    What learns them.

    Args:
        model (`str`): `"same"`, the teacher's architecture with random weights; `"wei"`, the student of Wei et al.
            (2022); or a vision checkpoint to go on from.
        feature_layer (`int`, *optional*): as of the teacher.
        image_size (`int`, *optional*): side of its images in pixels; by default what its image processor says.
        config (`dict`): fields of the config that are to be otherwise in `"same"`, such as `num_hidden_layers`.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
    """

    model: str = "same"
    feature_layer: int | None = None
    image_size: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    attn_implementation: str | None = None


@dataclass
class ProbeRecipe:
    """
    Labelled images on which k-NN and linear probe measure student, trained student and teacher.

    Args:
        train, test (`dict`): fields of a [`DataSource`] each.
        label (`str`, *optional*): column with the label; by default the last answer of the conversation.
        where (`dict`): only examples whose columns have these values, such as `{kind: category}`.
        pooling (`str`): as in [`image_representations`].
        k (`int`): neighbours.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    label: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    k: int = 20

    def __post_init__(self):
        check_sources("probe", [self.train, {**self.test, "name": "test"}])
        if self.pooling not in POOLINGS:
            raise ValueError(f"probe.pooling is {self.pooling!r}, expected {', '.join(POOLINGS)}.")


@dataclass
class FeatureDistillationRecipe(Recipe):
    """
    A run of [`FeatureDistillationTrainer`].

    Args:
        teacher ([`TeacherRecipe`]): whose features are learned; a name alone stands for `{model: name}`.
        student ([`StudentRecipe`]): what learns them; likewise.
        probe ([`ProbeRecipe`], *optional*): what both are measured on.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`FeatureDistillationConfig`], but for
            layers and image sizes. Of the data only the images are used.
    """

    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student: StudentRecipe = field(default_factory=StudentRecipe)
    probe: ProbeRecipe | None = None

    trainer: ClassVar[str] = "feature-distillation"
    arguments_class: ClassVar[Any] = FeatureDistillationConfig
    sections: ClassVar[tuple[str, ...]] = ("teacher", "student", "data", "probe", "training", "card")
    moved_fields: ClassVar[Any] = {
        "teacher_feature_layer": "feature_layer in the section teacher",
        "teacher_image_size": "image_size in the section teacher",
        "student_feature_layer": "feature_layer in the section student",
        "image_size": "a field of the section student",
    }

    @classmethod
    def read_section(cls, name, values):
        return (
            {"model": values} if name in ("teacher", "student") and isinstance(values, str) else mapping(name, values)
        )

    @classmethod
    def own_sections(cls, sections):
        probe = checked_section("probe", sections["probe"], ProbeRecipe)
        missing = [name for name in ("train", "test") if probe and name not in probe]
        if missing:
            raise ValueError(
                f"probe has no {' and no '.join(missing)}: it needs a data source for train and for test."
            )
        return {
            "teacher": TeacherRecipe(**checked_section("teacher", sections["teacher"], TeacherRecipe)),
            "student": StudentRecipe(**checked_section("student", sections["student"], StudentRecipe)),
            "probe": ProbeRecipe(**probe) if probe else None,
        }

    def arguments(self) -> FeatureDistillationConfig:
        return FeatureDistillationConfig(
            teacher_feature_layer=self.teacher.feature_layer,
            teacher_image_size=self.teacher.image_size,
            student_feature_layer=self.student.feature_layer,
            image_size=self.student.image_size,
            **self.training,
        )

    def prepare(self, args) -> PreparedRun:
        teacher, teacher_processor = load_teacher(self.teacher)
        student, processor = build_student(self.student, teacher, teacher_processor, args.seed)
        train_dataset = mix_data_sources(self.data.train, self.data.seed, self.data.stopping_strategy)
        eval_datasets = load_eval_datasets(self.data.eval)
        probe = None if self.probe is None else _Probe(self, args.seed)
        trainer = FeatureDistillationTrainer(
            model=student,
            teacher=teacher,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets or None,
            processing_class=processor,
            teacher_processing_class=teacher_processor,
        )
        return PreparedRun(
            trainer,
            train_dataset,
            eval_datasets,
            CURVE,
            count_parameters=lambda: count_parameters(student),
            measure=None if probe is None else lambda: {"representation": probe.measure(trainer, teacher_processor)},
        )


def load_teacher(recipe: TeacherRecipe) -> tuple[PreTrainedModel, Any]:
    """
    Loads a teacher and its image processor.

    Args:
        recipe ([`TeacherRecipe`]): which.

    Raises:
        ValueError: if the dtype is unknown.
        CheckpointError: if the checkpoint is no vision transformer.
        FetchError: if it is a base model of vistok that is not in the cache.
    """
    dtype = getattr(torch, recipe.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the teacher is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    options = {} if recipe.attn_implementation is None else {"attn_implementation": recipe.attn_implementation}
    teacher = load_vision_tower(recipe.model, dtype=dtype, **options)
    return teacher, AutoImageProcessor.from_pretrained(resolve_checkpoint(recipe.model))


def build_student(
    recipe: StudentRecipe, teacher: PreTrainedModel, teacher_processor: Any, seed: int = 0
) -> tuple[PreTrainedModel, Any]:
    """
    Makes a student and its image processor, or loads both.

    Args:
        recipe ([`StudentRecipe`]): which.
        teacher (`PreTrainedModel`): for its architecture.
        teacher_processor: its image processor, which students of random weights share.
        seed (`int`, *optional*, defaults to 0): of random weights.

    Raises:
        ValueError: if a field of the config is unknown, or goes with another kind of student.
        CheckpointError: if the checkpoint is no vision transformer.
    """
    options = {} if recipe.attn_implementation is None else {"attn_implementation": recipe.attn_implementation}
    if recipe.config and recipe.model != "same":
        raise ValueError(f"student.config changes the teacher's architecture, and student.model is {recipe.model!r}.")
    if recipe.model not in ("same", "wei"):
        student = load_vision_tower(recipe.model, dtype=torch.float32, **options)
        return student, AutoImageProcessor.from_pretrained(resolve_checkpoint(recipe.model))
    image_size = recipe.image_size or processor_size(teacher_processor)
    if recipe.model == "wei":
        student = wei_student(teacher.config, image_size, seed)
    else:
        config = _changed_config(teacher.config, recipe.config)
        student = random_student(config, image_size, seed)
    if recipe.attn_implementation is not None:
        student.set_attn_implementation(recipe.attn_implementation)
    return student, teacher_processor


def _changed_config(config: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    for name in fields:
        if not hasattr(config, name):
            raise ValueError(f"{name!r} is no field of {type(config).__name__}, the config of the teacher.")
    # Of a backbone these follow from the number of layers.
    kept = {name: value for name, value in config.to_dict().items() if name not in _BACKBONE_FIELDS}
    return type(config).from_dict({**kept, **fields}) if fields else config


class _Probe:
    """The labelled images of a recipe, loaded before the training, and what is measured on them after it."""

    def __init__(self, recipe: FeatureDistillationRecipe, seed: int):
        probe: Any = recipe.probe
        self.recipe, self.probe, self.seed = recipe, probe, seed
        self.train, self.test = (
            labelled_images(source, probe.label, probe.where) for source in (probe.train, probe.test)
        )

    def measure(self, trainer: FeatureDistillationTrainer, teacher_processor: Any) -> dict[str, Any]:
        """Before and after training, of the teacher, and of random weights where the student had none."""
        recipe, probe = self.recipe, self.probe
        arguments: Any = {"train": self.train, "test": self.test, "pooling": probe.pooling, "k": probe.k}
        teacher, processor = trainer.teacher, trainer.processing_class
        before, _ = build_student(recipe.student, teacher, teacher_processor, self.seed)
        students = {"before": before, "after": trainer.student}
        if recipe.student.model not in ("same", "wei"):
            students["random"] = random_student(before.config, recipe.student.image_size, self.seed)
        layer = recipe.student.feature_layer
        found = {
            name: representation_quality(student.to(trainer.args.device), processor, feature_layer=layer, **arguments)
            for name, student in students.items()
        }
        size = recipe.teacher.image_size or processor_size(processor)
        found["teacher"] = representation_quality(
            teacher, at_size(teacher_processor, size), feature_layer=recipe.teacher.feature_layer, **arguments
        )
        return {**label_floors(self.train[1], self.test[1]), **found}


def labelled_images(
    source: Mapping[str, Any], label: str | None = None, where: Mapping[str, Any] | None = None
) -> tuple[list[Any], list[str]]:
    """
    Images of a data source with a label each.

    Args:
        source (`Mapping`): fields of a [`DataSource`].
        label (`str`, *optional*): column with the label; by default the last answer of the conversation.
        where (`Mapping`, *optional*): only examples whose columns have these values.

    Returns:
        `tuple[list, list[str]]`: undecoded images and their labels, the first example of each image.

    Raises:
        ValueError: if a column is unknown, or no example is left.
    """
    described = DataSource.from_dict(source)
    dataset = load_data_source(described)
    for name in [*(where or {}), *([label] if label else [])]:
        if name not in (dataset.column_names or []):
            raise ValueError(f"data source {described.name!r} has no column {name!r}: {dataset.column_names}.")
    if where:
        columns = {name: list(dataset[name]) for name in where}
        rows = [
            row for row in range(len(dataset)) if all(columns[name][row] == value for name, value in where.items())
        ]
        dataset = dataset.select(rows)
    if len(dataset) == 0:
        raise ValueError(f"data source {described.name!r} has no example where {dict(where or {})}.")
    labels = list(dataset[label]) if label else [_last_answer(messages) for messages in dataset["messages"]]
    numbered = dataset.remove_columns("row").add_column("row", list(range(len(dataset))))
    chosen = distinct_images(numbered)
    images = [entry[0] for entry in chosen["images"]]
    return images, [str(labels[row]) for row in chosen["row"]]


def _last_answer(messages: list[Mapping[str, Any]]) -> str:
    answers = [message for message in messages if message["role"] == ROLES[-1]]
    return "".join(part["text"] or "" for part in answers[-1]["content"])


__all__ = [
    "FeatureDistillationRecipe",
    "ProbeRecipe",
    "StudentRecipe",
    "TeacherRecipe",
    "build_student",
    "labelled_images",
    "load_teacher",
]
