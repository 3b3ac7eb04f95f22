"""Recipes of visual-language training: what the model is composed of, and which of its parts are trained."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .data_sources import load_eval_datasets, mix_data_sources
from .freezing import count_parameters
from .loss_curve import CurveLabels
from .model_recipe import KINDS, ModelRecipe, build_model
from .recipe_sections import PreparedRun, Recipe, checked_section
from .sharded_training import whole_models
from .visual_language_config import VisualLanguageConfig
from .visual_language_trainer import VisualLanguageTrainer

GVT_TRAINABLE = {"vision": "frozen", "resampler": "full", "llm": "frozen"}
CURVE = CurveLabels("loss (nats per answer token)", "answer_accuracy", "answers right", "answers right (%)", 100)


@dataclass
class VisualLanguageRecipe(Recipe):
    """
    A run of [`VisualLanguageTrainer`].

    Args:
        model ([`ModelRecipe`]): what is trained.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"` or `"lora"`; by default the visual tokenizer
            is trained, and nothing else.
        lora (`dict`, *optional*): fields of `peft.LoraConfig`.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`VisualLanguageConfig`].
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    trainable: dict[str, str] = field(default_factory=lambda: dict(GVT_TRAINABLE))
    lora: dict[str, Any] | None = None

    trainer: ClassVar[str] = "visual-language"
    arguments_class: ClassVar[Any] = VisualLanguageConfig
    trainer_class: ClassVar[Any] = VisualLanguageTrainer
    kind: ClassVar[str] = "gvt"
    sections: ClassVar[tuple[str, ...]] = ("model", "trainable", "lora", "data", "training", "card")
    section_defaults: ClassVar[Any] = {"trainable": GVT_TRAINABLE}
    moved_fields: ClassVar[Any] = {"trainable": "a section of its own", "lora": "a section of its own"}

    @classmethod
    def own_sections(cls, sections):
        model = ModelRecipe(**{"kind": cls.kind, **checked_section("model", sections["model"], ModelRecipe)})
        return {
            "model": model,
            "trainable": sections["trainable"] or cls.default_trainable(model),
            "lora": sections["lora"] or None,
        }

    @classmethod
    def default_trainable(cls, model: ModelRecipe) -> dict[str, str]:
        """What is trained where the recipe does not say so."""
        return {"vision": "frozen", KINDS[model.kind].trained_part: "full", "llm": "frozen"}

    def _arguments(self) -> dict[str, Any]:
        return {"trainable": self.trainable, "lora": self.lora, **super()._arguments()}

    @property
    def curve(self) -> CurveLabels:
        """What the loss curve shows."""
        return CURVE

    def prepare(self, args) -> PreparedRun:
        with whole_models():
            model, processor = build_model(self.model, self.trainable, args)
        train_dataset = mix_data_sources(self.data.train, self.data.seed, self.data.stopping_strategy)
        eval_datasets = load_eval_datasets(self.data.eval)
        trainer = self.trainer_class(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets or None,
            processing_class=processor,
        )
        parameters = count_parameters(model)  # now, when no process has but its share of them
        return PreparedRun(
            trainer,
            train_dataset,
            eval_datasets,
            self.curve,
            count_parameters=lambda: parameters,
            base_models=model.config.base_models or {},
        )


__all__ = ["VisualLanguageRecipe"]
