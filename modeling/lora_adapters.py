"""LoRA adapters of a composed model: put in, and merged into the weights of a model that needs them no more."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from .trained_weights import is_lora_weight


def add_lora(model: PreTrainedModel, lora_config: Mapping[str, Any]) -> None:
    """
    Adds LoRA adapters in place.

    Args:
        model (`PreTrainedModel`): changed in place.
        lora_config (`dict`): fields of `peft.LoraConfig`.
    """
    from peft import LoraConfig

    model.add_adapter(LoraConfig(**lora_config))


def ordinary_model(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """
    A model with all weights, that needs neither adapters nor base models. It is made to be saved: what needs no change
    it shares with the given one, which stays as it is.

    Args:
        model (`PreTrainedModel`): a composed model, with or without LoRA adapters.
        dtype (`torch.dtype`, *optional*): of the weights; by default each keeps its own.
    """
    config = copy.deepcopy(model.config)
    config.lora_config = config.base_models = None
    weights = _merged_state_dict(model)
    if getattr(config, "trained_token_rows", False) and hasattr(model, "merge_rows_into"):
        weights, config.trained_token_rows = model.merge_rows_into(weights), False
    with torch.device("meta"):
        ordinary = type(model)._from_config(config)
    ordinary.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, assign=True)
    ordinary.tie_weights()
    ordinary.generation_config = model.generation_config
    return ordinary


def _merged_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights = {name: tensor for name, tensor in model.state_dict().items() if not is_lora_weight(name)}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            merged = copy.deepcopy(module)  # layer by layer: a second model might not fit
            merged.merge()
            for key, tensor in merged.get_base_layer().state_dict().items():
                del weights[f"{name}.base_layer.{key}"]
                weights[f"{name}.{key}"] = tensor
    return weights


__all__ = ["add_lora", "ordinary_model"]
