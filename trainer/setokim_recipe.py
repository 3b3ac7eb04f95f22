"""Recipes of Setokim: stage II or III."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .data_formats import known
from .loss_curve import CurveLabels
from .model_recipe import ModelRecipe
from .setokim_config import STAGES, SetokimTrainingConfig, trained_in
from .setokim_trainer import SetokimTrainer
from .visual_language_recipe import VisualLanguageRecipe

KIND = "setokim"
TERMS = {
    "loss_lm": "text: language modelling loss",
    "loss_visual": "visual tokens: squared error",
    "loss_length": "one more visual token: cross-entropy",
    "loss_choice": "visual tokens among real ones: cross-entropy",
    "loss_mask_bce": "masks: cross-entropy",
    "loss_mask_dice": "masks: dice",
}


@dataclass
class SetokimRecipe(VisualLanguageRecipe):
    """
    A run of [`SetokimTrainer`]: the stage is `training.stage`.

    Args:
        model ([`ModelRecipe`]): what is trained, of the kind `"setokim"`: `vision` is a tower, or the folder or name
            (`vistok:setok-demo`) of a trained SeTok. Stage III starts from the `checkpoint` that stage II left.
        trainable (`dict[str, str]`): parts that are otherwise than the stage has them, such as `{"llm": "lora"}`.
        lora (`dict`, *optional*): fields of `peft.LoraConfig`.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`SetokimTrainingConfig`].
    """

    model: ModelRecipe = field(default_factory=lambda: ModelRecipe(kind=KIND))
    trainable: dict[str, str] = field(default_factory=dict)

    trainer: ClassVar[str] = KIND
    arguments_class: ClassVar[Any] = SetokimTrainingConfig
    trainer_class: ClassVar[Any] = SetokimTrainer
    kind: ClassVar[str] = KIND
    section_defaults: ClassVar[Any] = {}

    def __post_init__(self):
        if self.model.kind != KIND:
            raise ValueError(
                f"model.kind is {self.model.kind!r}, but the trainer {KIND} trains models of kind {KIND}."
            )
        self.trainable = trained_in(known("stage", self.training.get("stage", STAGES[0]), STAGES), self.trainable)

    @classmethod
    def default_trainable(cls, model: ModelRecipe) -> dict[str, str]:
        return {}

    @property
    def curve(self) -> CurveLabels:
        return CurveLabels("loss", "answer_accuracy", "answers right", "answers right (%)", 100, parts=TERMS)


__all__ = ["SetokimRecipe"]
