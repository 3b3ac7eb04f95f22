"""Recipes of visual-language training: what the model is composed of, and which of its parts are trained."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..modeling.modeling_gvt import GVTForConditionalGeneration
from ..processing.chat_templates import get_chat_template
from ..processing.processing_gvt import GVTProcessor
from .data_sources import load_eval_datasets, mix_data_sources
from .freezing import count_parameters
from .loss_curve import CurveLabels
from .recipe_sections import PreparedRun, Recipe, checked_section
from .visual_language_config import VisualLanguageConfig
from .visual_language_trainer import VisualLanguageTrainer

DEFAULT_VISION, DEFAULT_TEXT = "vistok:dinov2-small", "vistok:smollm2-135m"
GVT_TRAINABLE = {"vision": "frozen", "resampler": "full", "llm": "frozen"}
CURVE = CurveLabels("loss (nats per answer token)", "answer_accuracy", "answers right", "answers right (%)", 100)
KINDS = {"gvt": (GVTForConditionalGeneration, GVTProcessor)}


@dataclass
class ModelRecipe:
    """
    What the model is composed of.

    Args:
        vision, text (`str`, *optional*): base models: names of vistok, folders or Hub ids. By default the small ones
            of `vistok fetch`, or those of the checkpoint.
        kind (`str`): `"gvt"`.
        checkpoint (`str`, *optional*):
            Starts from the model in this folder. What `vision`, `text`, `config` and `resampler` say must then be true
            of it.
        dtype (`str`, *optional*): of the frozen weights; by default that of the language model.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
        image_size (`int`, *optional*): side of the images in pixels; by default what the tower's processor says.
        chat_template (`str`, *optional*): name of a chat template, or Jinja; by default `"question-answer"`, or that
            of the checkpoint.
        processor (`dict`): further arguments of the processor.
        config (`dict`): fields of the model's config.
        resampler (`dict`): fields of the visual tokenizer's config.
    """

    vision: str | None = None
    text: str | None = None
    kind: str = "gvt"
    checkpoint: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    image_size: int | None = None
    chat_template: str | None = None
    processor: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    resampler: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.checkpoint is None:
            self.vision, self.text = self.vision or DEFAULT_VISION, self.text or DEFAULT_TEXT


@dataclass
class VisualLanguageRecipe(Recipe):
    """
    A run of [`VisualLanguageTrainer`].

    Args:
        model ([`ModelRecipe`]): what is trained.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"` or `"lora"`.
        lora (`dict`, *optional*): fields of `peft.LoraConfig`.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`VisualLanguageConfig`].
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    trainable: dict[str, str] = field(default_factory=lambda: dict(GVT_TRAINABLE))
    lora: dict[str, Any] | None = None

    trainer: ClassVar[str] = "visual-language"
    arguments_class: ClassVar[Any] = VisualLanguageConfig
    sections: ClassVar[tuple[str, ...]] = ("model", "trainable", "lora", "data", "training", "card")
    section_defaults: ClassVar[Any] = {"trainable": GVT_TRAINABLE}
    moved_fields: ClassVar[Any] = {"trainable": "a section of its own", "lora": "a section of its own"}

    @classmethod
    def own_sections(cls, sections):
        return {
            "model": ModelRecipe(**checked_section("model", sections["model"], ModelRecipe)),
            "trainable": sections["trainable"] or dict(GVT_TRAINABLE),
            "lora": sections["lora"] or None,
        }

    def arguments(self) -> VisualLanguageConfig:
        return VisualLanguageConfig(**{"trainable": self.trainable, "lora": self.lora, **self.training})

    def prepare(self, args) -> PreparedRun:
        model, processor = build_model(self.model)
        train_dataset = mix_data_sources(self.data.train, self.data.seed, self.data.stopping_strategy)
        eval_datasets = load_eval_datasets(self.data.eval)
        trainer = VisualLanguageTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets or None,
            processing_class=processor,
        )
        return PreparedRun(
            trainer,
            train_dataset,
            eval_datasets,
            CURVE,
            count_parameters=lambda: count_parameters(model),
            base_models=model.config.base_models or {},
        )


def build_model(recipe: ModelRecipe) -> tuple[Any, Any]:
    """
    Composes the model of a recipe and its processor, or loads both from its checkpoint.

    Args:
        recipe ([`ModelRecipe`]): what to compose.

    Returns:
        The model and its processor.

    Raises:
        ValueError: if the kind or the dtype is unknown, or the checkpoint is another model than the recipe describes.
    """
    if recipe.kind not in KINDS:
        raise ValueError(f"{recipe.kind!r} is no kind of model: choose {', '.join(KINDS)}.")
    dtype = getattr(torch, recipe.dtype, None) if recipe.dtype else None
    if recipe.dtype and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the model is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    if recipe.checkpoint is not None or recipe.vision is None or recipe.text is None:  # without one, both are set
        return _load_checkpoint(recipe, dtype)
    model_class, processor_class = KINDS[recipe.kind]
    model = model_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        dtype=dtype,
        attn_implementation=recipe.attn_implementation,
        **recipe.config,
        resampler_config=recipe.resampler,
    )
    processor = processor_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        image_size=recipe.image_size,
        num_image_tokens=model.model.resampler.max_num_tokens,
        chat_template=recipe.chat_template,
        **recipe.processor,
    )
    return model, processor


def _load_checkpoint(recipe: ModelRecipe, dtype: torch.dtype | None) -> tuple[Any, Any]:
    model_class, processor_class = KINDS[recipe.kind]
    options = {"dtype": dtype, "attn_implementation": recipe.attn_implementation}
    model = model_class.from_pretrained(
        recipe.checkpoint, **{name: value for name, value in options.items() if value is not None}
    )
    parts = {"config": (recipe.config, model.config), "resampler": (recipe.resampler, model.config.resampler_config)}
    for section, (fields, config) in parts.items():
        for name, value in fields.items():
            found = getattr(config, name, None)
            if found != value:
                raise _is_otherwise(recipe, f"{section}.{name}", value, found)
    for part in ("vision", "text"):
        value, found = getattr(recipe, part), (model.config.base_models or {}).get(part)
        if value is not None and (found is None or os.path.realpath(found) != os.path.realpath(value)):
            raise _is_otherwise(recipe, part, value, found)
    processor = processor_class.from_pretrained(recipe.checkpoint, **recipe.processor)
    if recipe.chat_template is not None:
        processor.chat_template = get_chat_template(recipe.chat_template, processor.image_token)
    if recipe.image_size is not None:
        processor.image_processor.size = {"height": recipe.image_size, "width": recipe.image_size}
    return model, processor


def _is_otherwise(recipe: ModelRecipe, name: str, value: Any, found: Any) -> ValueError:
    return ValueError(
        f"model.{name} is {value!r}, but {recipe.checkpoint} has {found!r}: leave it out of the recipe, or start from "
        "the base models."
    )


__all__ = ["ModelRecipe", "VisualLanguageRecipe", "build_model"]
