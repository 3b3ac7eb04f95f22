"""Recipes of SeTok's stage I: one of its two sub-phases each."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import AutoImageProcessor, PreTrainedConfig

from ..configuration.configuration_setok import SeTokConfig
from ..evaluation.cluster_measurement import measure_clusters
from ..evaluation.token_sources import TokenSource, resized_processor
from ..evaluation.token_variants import TokenVariant
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.image_detokenizer import ImageDetokenizer
from ..modeling.modeling_setok import SeTokForPreTraining
from .data_sources import load_eval_datasets, mix_data_sources
from .freezing import count_parameters
from .loss_curve import CurveLabels
from .masked_images import masked_image_of
from .recipe_sections import PreparedRun, Recipe, checked_section
from .setok_config import SeTokTrainingConfig
from .setok_trainer import SeTokTrainer

KIND = "setok"
DEFAULT_VISION = "vistok:dinov2-small"
TERMS = {
    "loss_reconstruction": "reconstruction",
    "loss_mask_bce": "masks: cross-entropy",
    "loss_mask_dice": "masks: dice",
    "loss_mask_consistency": "mask consistency",
    "loss_object_contrast": "object contrast",
    "loss_preview": "preview",
    "loss_placement": "placement",
}

SWITCHED = ("condition_dropout", "snr_bounds", "guidance_scale", "num_inference_steps")
"""Of a detokenizer's config: what weights do not depend on."""


@dataclass
class SeTokModelRecipe:
    """
    What a SeTok is composed of.

    Args:
        kind (`str`): `"setok"`.
        vision (`str`, *optional*): vision tower: name of a base model of vistok, folder or Hub id; by default
            `vistok:dinov2-small`, or that of the checkpoint.
        diffusion (`str`, *optional*): folder or Hub id of a diffusion checkpoint in the format of diffusers. Without
            one the detokenizer is new, if `config` has a `detokenizer_config`, or there is none.
        bert (`str`, *optional*): folder or Hub id of the BERT that the feature mapper starts from.
        checkpoint (`str`, *optional*): starts from the SeTok in this folder, or that ships with vistok
            (`vistok:setok-demo`). Fields of `config` that training may change, weights of losses and how the
            detokenizer is trained and sampled from, are then switched as they say, and a `detokenizer_config` gives
            one to a SeTok that has none; all others must be true of it.
        dtype (`str`, *optional*): of the frozen weights; by default that of the tower.
        image_size (`int`, *optional*): side in pixels that images are resized to, as squares and without a crop; by
            default what the tower's processor says.
        config (`dict`): fields of [`SeTokConfig`] and [`SeTokVisionConfig`].
    """

    kind: str = KIND
    vision: str | None = None
    diffusion: str | None = None
    bert: str | None = None
    checkpoint: str | None = None
    dtype: str | None = None
    image_size: int | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind != KIND:
            raise ValueError(f"model.kind is {self.kind!r}, but the trainer setok trains models of kind {KIND}.")
        if self.checkpoint is None:
            self.vision = self.vision or DEFAULT_VISION
        elif given := [name for name in ("diffusion", "bert") if getattr(self, name) is not None]:
            raise ValueError(f"model.{given[0]} starts a new model, and model.checkpoint has its own: leave one out.")


@dataclass
class SeTokRecipe(Recipe):
    """
    A run of [`SeTokTrainer`]: the sub-phase is `training.phase`.

    Args:
        model ([`SeTokModelRecipe`]): what is trained. I-b may start from the `checkpoint` that I-a left.
        data, training, card: as in [`Recipe`]; `training` has the fields of [`SeTokTrainingConfig`]. Images to
            evaluate on that have masks are also measured with [`measure_clusters`] in the end.
    """

    model: SeTokModelRecipe = field(default_factory=SeTokModelRecipe)

    trainer: ClassVar[str] = KIND
    arguments_class: ClassVar[Any] = SeTokTrainingConfig
    sections: ClassVar[tuple[str, ...]] = ("model", "data", "training", "card")

    @classmethod
    def own_sections(cls, sections: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": SeTokModelRecipe(**checked_section("model", sections["model"], SeTokModelRecipe))}

    def prepare(self, args) -> PreparedRun:
        model, processor = build_setok(self.model)
        train_dataset = mix_data_sources(self.data.train, self.data.seed, self.data.stopping_strategy)
        eval_datasets = load_eval_datasets(self.data.eval)
        trainer = SeTokTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets or None,
            processing_class=processor,
        )
        masked = {name: found for name, part in eval_datasets.items() if (found := _masked(part))}
        measures = {"clusters": lambda: _measured(trainer, masked)} if masked else {}
        curve = CurveLabels("loss", "ari", "adjusted Rand index", "adjusted Rand index", 1, parts=TERMS)
        parameters = count_parameters(model)
        return PreparedRun(
            trainer,
            train_dataset,
            eval_datasets,
            curve,
            lambda: parameters,
            base_models=dict(model.config.base_models or {}),
            measures=measures,
        )


def build_setok(recipe: SeTokModelRecipe) -> tuple[SeTokForPreTraining, Any]:
    """
    Composes the model of a recipe and its image processor, or loads both from its checkpoint.

    Args:
        recipe ([`SeTokModelRecipe`]): what to compose.

    Returns:
        The model, in evaluation mode, and its image processor.

    Raises:
        ValueError: if the dtype or a field of the config is unknown, or the checkpoint is otherwise.
        FileNotFoundError: if there is no such checkpoint.
    """
    dtype = getattr(torch, recipe.dtype, None) if recipe.dtype else None
    if recipe.dtype and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the model is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    if recipe.checkpoint is None:
        vision = str(recipe.vision)
        model = SeTokForPreTraining.from_vision_pretrained(
            vision, diffusion=recipe.diffusion, bert=recipe.bert, dtype=dtype, **recipe.config
        )
        processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(vision))
    else:
        checkpoint = resolve_checkpoint(recipe.checkpoint)
        model = _from_checkpoint(recipe, checkpoint, dtype)
        processor = AutoImageProcessor.from_pretrained(checkpoint)
    if recipe.image_size is not None:
        processor = resized_processor(processor, recipe.image_size)
    return model, processor


def _from_checkpoint(recipe: SeTokModelRecipe, checkpoint: str, dtype: torch.dtype | None) -> SeTokForPreTraining:
    if not os.path.isdir(checkpoint):
        raise FileNotFoundError(
            f"model.checkpoint is {recipe.checkpoint}, which is not here: run the recipe that leaves this folder "
            "first."
        )
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = SeTokForPreTraining.from_pretrained(checkpoint, **options)
    switch_config(model.config, recipe)
    if model.config.detokenizer_config is not None and model.detokenizer is None:
        _add_detokenizer(model)
    return model


def switch_config(config: Any, recipe: SeTokModelRecipe) -> None:
    """
    Switches what training may change of the config of a checkpoint as a recipe says, in place; with its
    `detokenizer_config` where there is none.

    Args:
        config ([`SeTokConfig`]): of the checkpoint.
        recipe ([`SeTokModelRecipe`]): whose `config` it is.

    Raises:
        ValueError: if another field is asked for than the checkpoint has.
    """
    fields = dict(recipe.config)
    if (detokenizer_config := fields.get("detokenizer_config")) is not None:
        if config.detokenizer_config is None:
            new = {**config.to_dict(), "detokenizer_config": dict(fields.pop("detokenizer_config"))}
            config.detokenizer_config = SeTokConfig.from_dict(new).detokenizer_config
        else:
            fields["detokenizer_config"] = _switched(config.detokenizer_config, detokenizer_config)
    for name, value in fields.items():
        is_own = name in SeTokConfig.__dataclass_fields__
        if is_own and name.endswith("_weight"):
            setattr(config, name, value)
            continue
        owner = config if is_own else config.vision_config
        for field_name, asked, found in _differences(name, value, getattr(owner, name, None)):
            raise ValueError(
                f"model.config.{field_name} is {asked!r}, but {recipe.checkpoint} has {found!r}: leave it out of the "
                "recipe, or start from the base models."
            )


def _differences(name: str, asked: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    """Fields that are asked for, also of the configs of parts, where a model has them otherwise."""
    found = found.to_dict() if isinstance(found, PreTrainedConfig) else found
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        for key, value in asked.items():
            yield from _differences(f"{name}.{key}", value, found.get(key))
    elif asked != found:
        yield name, asked, found


def _switched(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Switches what may be switched of the config of a detokenizer, in place; returns the other fields."""
    switched = {name: fields[name] for name in SWITCHED if name in fields}
    type(config).from_dict({**config.to_dict(), **switched})  # which checks them together
    for name, value in switched.items():
        setattr(config, name, value)
    return {name: value for name, value in fields.items() if name not in switched}


def _add_detokenizer(model: SeTokForPreTraining) -> None:
    """Gives the new one of its config to a SeTok that draws nothing yet, in place."""
    config: Any = model.config.detokenizer_config
    model.detokenizer = ImageDetokenizer(config).to(model.device, model.dtype).eval()
    model._no_split_modules |= model.detokenizer._no_split_modules  # what FSDP divides, gathered when it was built
    new = {f"detokenizer.{name}" for name, _ in model.detokenizer.named_parameters()}
    model.added_weights = getattr(model, "added_weights", set()) | new


def _masked(dataset: Any) -> list[Any]:
    return [found for example in dataset if (found := masked_image_of(example)) is not None]


def _measured(trainer: SeTokTrainer, masked: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Cluster quality of the trained model beside k-means and a plain grid of as many tokens, by data set."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    source = TokenSource("trained", model.vision_model, trainer.processing_class, True)
    variant = TokenVariant("trained", label="trained")
    measured = {}
    for name, images in masked.items():
        found = measure_clusters(
            images, [variant], {("trained", None): source}, seed=trainer.args.seed, skip_empty=True,
            cache_folder=trainer.args.feature_cache_dir,
        )  # fmt: skip
        measured[name] = {key: value for key, value in found.items() if key != "images"}
    return measured


__all__ = ["SeTokModelRecipe", "SeTokRecipe", "build_setok", "switch_config"]
