"""Recipes of visual modelling: one of its four stages each."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .data_formats import known
from .loss_curve import CurveLabels
from .model_recipe import ModelRecipe
from .visual_language_recipe import VisualLanguageRecipe
from .visual_modeling_config import STAGES, VISUAL_LOSSES, VisualModelingConfig, trained_in
from .visual_modeling_trainer import VisualModelingTrainer

KIND = "vtlmm"


@dataclass
class VisualModelingRecipe(VisualLanguageRecipe):
    """
    A run of [`VisualModelingTrainer`]: the stage is `training.stage`.

    Args:
        model ([`ModelRecipe`]): what is trained, of the kind `"vtlmm"`. Stages II to IV start from the `checkpoint`
            that the stage before them left.
        trainable (`dict[str, str]`): parts that are otherwise than the stage has them, such as `{"llm": "lora"}`.
        lora (`dict`, *optional*): fields of `peft.LoraConfig`.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`VisualModelingConfig`].
    """

    model: ModelRecipe = field(default_factory=lambda: ModelRecipe(kind=KIND))
    trainable: dict[str, str] = field(default_factory=dict)

    trainer: ClassVar[str] = "visual-modeling"
    arguments_class: ClassVar[Any] = VisualModelingConfig
    trainer_class: ClassVar[Any] = VisualModelingTrainer
    kind: ClassVar[str] = KIND
    section_defaults: ClassVar[Any] = {}

    def __post_init__(self):
        self.trainable = trained_in(known("stage", self.training.get("stage", STAGES[0]), STAGES), self.trainable)

    @classmethod
    def default_trainable(cls, model: ModelRecipe) -> dict[str, str]:
        return {}

    @property
    def curve(self) -> CurveLabels:
        parts = {"loss_lm": "text: language modelling loss"}
        if self.training.get("stage") in VISUAL_LOSSES:
            parts["loss_vm"] = "images: visual modelling loss"
        return CurveLabels(
            "loss (nats per token)", "answer_accuracy", "answers right", "answers right (%)", 100, parts=parts
        )


__all__ = ["VisualModelingRecipe"]
