"""Recipes of feature distillation: teacher, student, and the labelled images that both are probed on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from ..evaluation.image_representations import POOLINGS, ImageTower
from ..modeling.base_checkpoints import load_vision_tower
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.distillation_students import random_student, wei_student
from ..modeling.vision_features import FINAL
from ..processing.pixel_statistics import with_statistics
from .data_sources import load_eval_datasets, mix_data_sources
from .distillation_collator import at_size, processor_size
from .distillation_probe import Probe
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
        feature_layer (`int`, *optional*):
            Index into its `hidden_states`, which have passed no final norm; by default, or by `"final"`, what its
            final norm returns.
        image_size (`int`, *optional*): side of its images in pixels; by default the student's.
        dtype (`str`, *optional*, defaults to `"float32"`): of its weights.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
    """

    model: str = DEFAULT_TEACHER
    feature_layer: int | None = None
    image_size: int | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None

    def __post_init__(self):
        self.feature_layer = _layer("teacher", self.feature_layer)


@dataclass
class StudentRecipe:
    """
    What learns them.

    Args:
        model (`str`): `"same"`, the teacher's architecture with random weights; `"wei"`, the student of Wei et al.
            (2022); or a vision checkpoint to go on from.
        feature_layer (`int`, *optional*):
            As of the teacher: the layer that learns. A GVT with this tower has to read the same one: by default
            `vision_feature_layer: final` in the config of its recipe's `model`.
        image_size (`int`, *optional*): side of its images in pixels; by default what its image processor says.
        image_mean, image_std (`list[float]`, *optional*):
            Pixel statistics that its images are normalised with; by default those of its image processor, which for
            random weights is the teacher's.
        config (`dict`): fields of the config that are to be otherwise in `"same"`, such as `num_hidden_layers`.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
    """

    model: str = "same"
    feature_layer: int | None = None
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    attn_implementation: str | None = None

    def __post_init__(self):
        self.feature_layer = _layer("student", self.feature_layer)


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

    A probe may change after the training: started again, the run is measured once more.
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
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"probe.k is {self.k!r}, expected a number of neighbours of at least 1.")


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
    measured_sections: ClassVar[tuple[str, ...]] = ("probe",)
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
        probe = None if self.probe is None else Probe(self.probe)
        trainer = FeatureDistillationTrainer(
            model=student,
            teacher=teacher,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets or None,
            processing_class=processor,
            teacher_processing_class=teacher_processor,
        )
        parameters = count_parameters(student)  # as it is trained: in the end it is as it was given
        measures = {}
        if probe is not None:
            probe.check(self._towers(trainer, teacher_processor))
            measures["representation"] = lambda: self._measure(probe, trainer, teacher_processor)
        return PreparedRun(trainer, train_dataset, eval_datasets, CURVE, lambda: parameters, measures=measures)

    def _measure(self, probe: Probe, trainer: FeatureDistillationTrainer, teacher_processor: Any) -> dict[str, Any]:
        """Before and after training, of the teacher, and of random weights where the student had none."""
        towers, args, processor = self._towers(trainer, teacher_processor), trainer.args, trainer.processing_class
        before, _ = build_student(self.student, trainer.teacher, teacher_processor, args.seed)
        others = {"before": before}
        if self.student.model not in ("same", "wei"):
            others["random"] = random_student(before.config, self.student.image_size, args.seed)
        for name, student in others.items():
            towers[name] = ImageTower(student.to(args.device), processor, self.student.feature_layer)
        return probe.measure(towers, args.dataloader_num_workers)

    def _towers(self, trainer: FeatureDistillationTrainer, teacher_processor: Any) -> dict[str, ImageTower]:
        processor = trainer.processing_class
        size = self.teacher.image_size or processor_size(processor)
        return {
            "after": ImageTower(trainer.student, processor, self.student.feature_layer),
            "teacher": ImageTower(trainer.teacher, at_size(teacher_processor, size), self.teacher.feature_layer),
        }


def _layer(section: str, layer: Any) -> int | None:
    if layer == FINAL:
        return None
    if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool)):
        raise ValueError(f"{section}.feature_layer is {layer!r}, expected a number of a layer, or {FINAL}.")
    return layer


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
        ValueError: if a field of the config is unknown, or goes with another kind of student, or pixel statistics are
            not of three channels.
        CheckpointError: if the checkpoint is no vision transformer.
    """
    options = {} if recipe.attn_implementation is None else {"attn_implementation": recipe.attn_implementation}
    if recipe.config and recipe.model != "same":
        raise ValueError(f"student.config changes the teacher's architecture, and student.model is {recipe.model!r}.")
    if recipe.model not in ("same", "wei"):
        student = load_vision_tower(recipe.model, dtype=torch.float32, **options)
        processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(recipe.model))
        return student, with_statistics(processor, recipe.image_mean, recipe.image_std)
    image_size = recipe.image_size or processor_size(teacher_processor)
    if recipe.model == "wei":
        student = wei_student(teacher.config, image_size, seed)
    else:
        config = changed_config(teacher.config, recipe.config)
        student = random_student(config, image_size, seed)
    if recipe.attn_implementation is not None:
        student.set_attn_implementation(recipe.attn_implementation)
    return student, with_statistics(teacher_processor, recipe.image_mean, recipe.image_std)


def changed_config(config: PreTrainedConfig, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """
    The config of a student of the teacher's architecture.

    Args:
        config (`PreTrainedConfig`): of the teacher.
        fields (`dict`): that are to be otherwise.

    Raises:
        ValueError: if one is no field of it.
    """
    for name in fields:
        if not hasattr(config, name):
            raise ValueError(f"{name!r} is no field of {type(config).__name__}, the config of the teacher.")
    # Of a backbone these follow from the number of layers.
    kept = {name: value for name, value in config.to_dict().items() if name not in _BACKBONE_FIELDS}
    return type(config).from_dict({**kept, **fields}) if fields else config


__all__ = [
    "FeatureDistillationRecipe",
    "ProbeRecipe",
    "StudentRecipe",
    "TeacherRecipe",
    "build_student",
    "changed_config",
    "load_teacher",
]
