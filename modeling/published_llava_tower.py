"""The vision tower of a published LLaVA or VW-LMM, whose checkpoint may lack it."""

import os
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from .base_checkpoints import load_vision_tower
from .base_weights import resolve_checkpoint
from .published_checkpoints import first_line
from .published_llava import PUBLISHED_TOWERS, PublishedLlava, PublishedNames
from .trained_weights import CheckpointError

_TOWER = "model.vision_tower."


@dataclass
class PublishedTower:
    """
    The vision tower of a published LLaVA or VW-LMM.

    Args:
        config (`PreTrainedConfig`): its configuration.
        name (`str`, *optional*): the other checkpoint that has its weights, where the published one lacks them.
        weights (`dict[str, torch.Tensor]`): these, by their names in [`VTLMMForCausalLM`].
    """

    config: PreTrainedConfig
    name: str | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def find_published_tower(
    source: str | os.PathLike, published: PublishedLlava, names: PublishedNames, vision: str | None = None
) -> PublishedTower:
    """
    The vision tower that belongs to a checkpoint, loaded where that lacks it.

    Args:
        source (`str` or `Path`): the checkpoint, as errors name it.
        published ([`PublishedLlava`]): its config.
        names ([`PublishedNames`]): its weights.
        vision (`str`, *optional*): folder or Hub id of the tower; by default what the config names.

    Raises:
        CheckpointError: if there is none, or it cannot be loaded.
        ValueError: if one is given beside the checkpoint's own.
    """
    has_weights = any(own.startswith(_TOWER) for own in names.published)
    named = published.vision_tower
    if vision is not None and (published.vision_config is not None or (has_weights and named in PUBLISHED_TOWERS)):
        raise ValueError(f"{source} has a vision tower of its own: leave out {vision} (vision, or --vision).")
    if published.vision_config is not None:
        return PublishedTower(published.vision_config)
    if vision is None and has_weights and named in PUBLISHED_TOWERS:
        return PublishedTower(CLIPVisionConfig(**PUBLISHED_TOWERS[named]))
    if vision is None and not named:
        raise CheckpointError(
            f"{source} lacks its vision tower, and its config names none: give the folder or Hub id of the tower as "
            "vision (--vision FOLDER)."
        )
    chosen = str(named) if vision is None else vision
    try:
        if has_weights:
            config = AutoConfig.from_pretrained(resolve_checkpoint(chosen))
            return PublishedTower(getattr(config, "vision_config", config))
        model = load_vision_tower(chosen, dtype="auto")
        return PublishedTower(
            model.config, chosen, {_TOWER + name: value for name, value in model.state_dict().items()}
        )
    except (OSError, ValueError) as error:
        what = "the config of its vision tower" if has_weights else "its vision tower"
        raise CheckpointError(
            f"{source} lacks {what}, and {chosen} cannot be loaded: its config names {named}, download that and give "
            f"its folder as vision (--vision FOLDER). ({type(error).__name__}: {first_line(error)})"
        ) from error


__all__ = ["PublishedTower", "find_published_tower"]
