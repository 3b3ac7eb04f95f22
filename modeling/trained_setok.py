"""A trained SeTok as the tower and the visual tokenizer of another composed model."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .adapter_folders import adapter_and_model
from .base_checkpoints import hub_arguments, load_vision_tower
from .base_weights import resolve_checkpoint
from .modeling_setok import SeTokForPreTraining
from .modeling_setok_vision import SeTokVisionModel
from .trained_weights import one_checkpoint_error

_KINDS: dict[str, Any] = {"setok": SeTokForPreTraining, "setok_vision": SeTokVisionModel}


def without_detokenizer(name_or_path: str, **where) -> dict[str, Any]:
    """
    What `from_pretrained` is given where nothing is to be drawn: then the detokenizer of a SeTok, or of a model with
    one, is neither built nor loaded, and the extra `generation` not needed.

    Args:
        name_or_path (`str`): folder or Hub id of any model.
        where: `revision`, `token`, … as in `from_pretrained`.

    Returns:
        `dict`: a `config` without detokenizer; empty for a model that has none, which is loaded as ever.
    """
    _, folder, where = adapter_and_model(name_or_path, where)  # the revision of an adapter is not its model's
    config = AutoConfig.from_pretrained(folder, **where)
    setok = getattr(config, "setok_config", config)
    if getattr(setok, "detokenizer_config", None) is None:
        return {}
    setok.detokenizer_config = None
    return {"config": config}


def load_tower_or_setok(vision: str, **kwargs) -> PreTrainedModel:
    """
    Loads a vision checkpoint: a tower, or, of a SeTok with or without its decoders, tower and tokenizer. Decoders that
    draw images are left out.

    Args:
        vision (`str`): name of a base model of vistok, folder, or Hub id.
        kwargs: passed to `from_pretrained`.

    Raises:
        CheckpointError: as [`load_vision_tower`].
    """
    path = resolve_checkpoint(vision)
    kind = _KINDS.get(AutoConfig.from_pretrained(path, **hub_arguments(kwargs)).model_type)
    if kind is None:
        return load_vision_tower(vision, **kwargs)
    with one_checkpoint_error(path):
        model = kind.from_pretrained(path, **{**without_detokenizer(path, **hub_arguments(kwargs)), **kwargs})
    return getattr(model, "vision_model", model)


def as_parts(
    vision_config: PreTrainedConfig, overrides: Mapping[str, Any], tokenizer_key: str
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """
    What a composed model is configured with: the tower's config as it is, or, of a SeTok, that of its tower, and the
    other fields with its tokenizer among them, unless they say otherwise.

    Args:
        vision_config (`PreTrainedConfig`): of what [`load_tower_or_setok`] returned.
        overrides (`dict`): fields of the composed model's config.
        tokenizer_key (`str`): which of them is its visual tokenizer's, such as `"resampler_config"`.
    """
    if vision_config.model_type != "setok_vision":
        return vision_config, dict(overrides)
    setok: Any = vision_config
    given = overrides.get(tokenizer_key) or {}
    given = given.to_dict() if isinstance(given, PreTrainedConfig) else given
    return setok.vision_config, {
        "vision_feature_layer": setok.vision_feature_layer,
        "vision_feature_select_strategy": "default",
        **overrides,
        tokenizer_key: {**setok.tokenizer_config.to_dict(), **given},
    }


def vision_weights(vision_model: PreTrainedModel, tokenizer: str) -> dict[str, torch.Tensor]:
    """
    Weights of what [`load_tower_or_setok`] returned, under the names that a composed model has for them.

    Args:
        vision_model (`PreTrainedModel`): a tower or SeTok.
        tokenizer (`str`): what the composed model calls its visual tokenizer, such as `"resampler"`.
    """
    prefixes = {"": "model.vision_tower."}
    if isinstance(vision_model, SeTokVisionModel):
        prefixes = {"vision_tower.": "model.vision_tower.", "tokenizer.": f"model.{tokenizer}."}
    return {
        ours + name.removeprefix(theirs): tensor
        for name, tensor in vision_model.state_dict().items()
        for theirs, ours in prefixes.items()
        if name.startswith(theirs)
    }


__all__ = ["as_parts", "load_tower_or_setok", "vision_weights", "without_detokenizer"]
