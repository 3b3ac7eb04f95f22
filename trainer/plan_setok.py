"""Plans of SeTok's stage I: its model without weights, and what a step of one of its phases costs."""

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..modeling.modeling_setok import SeTokForPreTraining
from ..modeling.modeling_setok_vision import SeTokVisionOutput
from ..modeling.setok_composition import compose_setok_config
from ..modeling.vision_features import extract_vision_features
from .freezing import rest_frozen_parts, set_trainable, upcast_trained
from .kept_tokens import KEPT
from .known_architectures import architecture, diffusion_configs
from .plan_clusters import CLUSTERS, Part, fixed_clusters, named_parts, num_clusters, real_tensors
from .plan_model import checkpoint_config, one_side, weights_dtype, without_weights
from .plan_step import StepCosts, checkpoint_layers, run_step
from .setok_recipe import SeTokModelRecipe, SeTokRecipe, switch_config


@dataclass(frozen=True)
class SeTokStep:
    """
    What a process sees in a batch of stage I.

    Args:
        phase (`str`): `"reconstruction"` or `"boundaries"`.
        rows (`int`): images.
        image_size (`int`): side of the images that the tower reads, in pixels.
        image_tokens (`int`, *optional*): of an image; by default the most.
        num_objects (`int`): of an image, in the phase `"boundaries"`.
        mask_scale (`int`): pixels of masks per side of a patch.
        draws (`bool`): whether images are reconstructed.
        cached_features (`bool`): whether the tower's features are read from a cache.
        kept_tokens (`bool`): whether the tokens of all images are there already.
    """

    phase: str
    rows: int
    image_size: int
    image_tokens: int | None
    num_objects: int
    mask_scale: int
    draws: bool
    cached_features: bool
    kept_tokens: bool


def planned_setok_config(recipe: SeTokModelRecipe, earlier: Mapping[str, PreTrainedConfig]) -> tuple[Any, int]:
    """
    The configuration of a recipe's SeTok.

    Args:
        recipe ([`SeTokModelRecipe`]): what is trained.
        earlier (`dict[str, PreTrainedConfig]`): of the models that earlier recipes leave, by their output folders.

    Returns:
        `tuple`: the configuration, and the side of its images in pixels.

    Raises:
        FileNotFoundError: if it starts from a folder that is not there, or from what nobody here knows.
        ValueError: if a field is unknown or otherwise in the checkpoint, or images have no one size.
    """
    if recipe.checkpoint is not None:
        config, side = checkpoint_config(recipe, earlier)
        switch_config(config, recipe)
    else:
        found = architecture(str(recipe.vision))
        diffusion = None if recipe.diffusion is None else diffusion_configs(recipe.diffusion)
        config = compose_setok_config(found.vision_config, diffusion, recipe.config)
        config.dtype = found.vision_config.dtype
        side = one_side(recipe.image_size or found.image_size, str(recipe.vision))
    return config, side


def planned_setok(recipe: SeTokRecipe, config: Any, phase: str, uses_deepspeed: bool) -> tuple[Any, dict[str, str]]:
    """
    The model of a recipe as its trainer freezes and opens it, on the device `meta`.

    Args:
        recipe ([`SeTokRecipe`]): with the sections `model` and `training`.
        config ([`SeTokConfig`]): of [`planned_setok_config`].
        phase (`str`): of its training.
        uses_deepspeed (`bool`): it keeps weights that are trained as they are, and a copy in float32.

    Returns:
        `tuple`: the model, and how each of its parts is trained that is.

    Raises:
        ImportError: if there is a detokenizer and the extra `generation` is not installed.
        ValueError: if the model lacks what the phase trains.
    """
    trainable = {**config.phase_trainable(phase), **(recipe.training.get("trainable") or {})}
    with without_weights(config):
        model = SeTokForPreTraining._from_config(copy.deepcopy(config), dtype=weights_dtype(recipe.model, config))
    with torch.device("meta"):
        set_trainable(model, trainable)
        if not uses_deepspeed:
            upcast_trained(model)
    return model, trainable


def setok_step(
    model: Any,
    trainable: Mapping[str, str],
    shape: SeTokStep,
    autocast: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
) -> StepCosts:
    """
    A step of [`SeTokTrainer`]: the model's own forward pass, but that clusters, and pairs of tokens and objects, are
    given; called within [`fake_tensors`].

    Args:
        model ([`SeTokForPreTraining`]): frozen and opened, of fake tensors.
        trainable (`dict[str, str]`): how parts are trained.
        shape ([`SeTokStep`]): of its batch.
        autocast (`torch.dtype`, *optional*): of mixed precision.
        gradient_checkpointing (`bool`): whether layers are computed twice.
    """
    model.train()
    if gradient_checkpointing:
        checkpoint_layers(model)
    rest_frozen_parts(model, trainable)
    model.match_masks = _first_pairs
    vision = model.vision_model
    pixels = torch.empty(shape.rows, 3, shape.image_size, shape.image_size)
    with torch.no_grad():
        seen = _features(vision, pixels)
        height, width = seen.grid_size
        count = num_clusters(vision.tokenizer, shape.image_tokens, height * width)
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if shape.cached_features:
            inputs = {"patch_features": seen.patch_features, "grid_size": seen.grid_size}
        if shape.kept_tokens:
            with fixed_clusters(vision.tokenizer, count, _nothing):
                encoded = vision(**inputs, return_dict=True)
            inputs = {"encoded": SeTokVisionOutput(**{name: encoded[name] for name in (*KEPT, "grid_size")})}
    with real_tensors():
        inputs |= _targets(model, shape, (height * shape.mask_scale, width * shape.mask_scale))

    def step(part: Part) -> torch.Tensor:
        with fixed_clusters(vision.tokenizer, count, part), named_parts(part, _parts(model)), part("losses"):
            return model(**inputs, phase=shape.phase, return_dict=True).loss

    costs = run_step(step, model.parameters(), autocast)
    return StepCosts(costs.flops, costs.peak, 0, count, _notes(shape, count))


def _features(vision: Any, pixels: torch.Tensor) -> Any:
    layer = vision.config.vision_feature_layer
    return extract_vision_features(vision.vision_tower, pixels, feature_layer=layer, select_strategy="default")


def _targets(model: Any, shape: SeTokStep, mask_size: tuple[int, int]) -> dict[str, Any]:
    """What is to be drawn and outlined, with content: its range is checked."""
    targets: dict[str, Any] = {}
    if shape.draws:
        side = model.config.detokenizer_config.image_size
        targets["target_pixel_values"] = torch.full((shape.rows, 3, side, side), 0.5)
        targets["generator"] = torch.Generator()
    if shape.phase == "boundaries":
        targets["mask_labels"] = torch.ones(shape.rows, shape.num_objects, *mask_size)
        targets["mask_size"] = mask_size
    return targets


def _parts(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """What a step consists of, beside clustering and losses."""
    vision, detokenizer = model.vision_model, model.detokenizer
    parts = [("vision tower", vision.vision_tower), ("merger", vision.tokenizer.merger)]
    if detokenizer is not None:
        parts += [("feature mapper", detokenizer.mapper), ("U-Net", detokenizer.unet)]
        parts += [] if detokenizer.vae is None else [("VAE", detokenizer.vae.encoder)]
    return [*parts, ("mask decoder", model.mask_decoder)]


def _first_pairs(costs: torch.Tensor, token_mask: torch.Tensor, object_mask: torch.Tensor) -> tuple:
    """As many pairs of each image as [`match_masks`] finds, without looking at costs."""
    num_pairs = min(costs.shape[1:])
    numbers = torch.arange(num_pairs).repeat(len(costs))
    return torch.arange(len(costs)).repeat_interleave(num_pairs), numbers, numbers


def _nothing(name: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def _notes(shape: SeTokStep, count: int) -> list[str]:
    notes = [CLUSTERS.format(count)]
    if shape.phase == "boundaries":
        notes.append(
            f"Planned with {shape.num_objects} objects of each image, the most that training.max_objects keeps."
        )
    if shape.kept_tokens:
        notes.append("The tokens of all images are there: the pass in which they are computed is not counted.")
    return notes


__all__ = ["SeTokStep", "planned_setok", "planned_setok_config", "setok_step"]
