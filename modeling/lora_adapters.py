"""LoRA adapters of a composed model: put in, and merged into the weights of a model that needs them no more."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from .divided_weights import original_class
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


def whole_copy(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """
    A model like one whose weights are divided among processes, with whole weights. It is made to be saved.

    Args:
        model (`PreTrainedModel`): with or without LoRA adapters; it stays as it is.
        weights (`dict[str, torch.Tensor]`): all its weights, as [`whole_state_dict`] gathers them.
    """
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        whole = original_class(model)._from_config(config)
        if getattr(config, "lora_config", None) is not None:
            add_lora(whole, config.lora_config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in trained)
    whole.generation_config = getattr(model, "generation_config", None)
    whole.added_weights = getattr(model, "added_weights", set())
    return whole


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


__all__ = ["add_lora", "ordinary_model", "whole_copy"]
