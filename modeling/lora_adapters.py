"""LoRA adapters of a composed model: put in, and merged into the weights of a model that needs them no more."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from .divided_weights import original_class
from .quantized_weights import dequantized_weight, is_quantized
from .trained_weights import LORA_MARK, is_lora_weight


def add_lora(model: PreTrainedModel, lora_config: Mapping[str, Any]) -> None:
    """
    Adds LoRA adapters in place.

    Args:
        model (`PreTrainedModel`): changed in place.
        lora_config (`dict`): fields of `peft.LoraConfig`.
    """
    from peft import LoraConfig

    model.add_adapter(LoraConfig(**lora_config))


def adapted_modules(lora_weights: Iterable[str]) -> list[str]:
    """
    The layers that have adapters.

    Args:
        lora_weights (iterable of `str`): names of weights of adapters.
    """
    return sorted({name.split(LORA_MARK)[0] for name in lora_weights})


def ordinary_model(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """
    A model with all weights in plain numbers, that needs neither adapters nor base models nor what quantised them. It
    is made to be saved: what needs no change it shares with the given one, which stays as it is. Adapters of a
    quantised layer are added to the numbers that they were trained on.

    Args:
        model (`PreTrainedModel`): a composed model, with or without adapters, quantised or not.
        dtype (`torch.dtype`, *optional*): of the weights; by default each keeps its own, and quantised ones get that
            of the model.

    Raises:
        ValueError: if adapters of quantised layers are more than low-rank matrices (DoRA).
    """
    config = copy.deepcopy(model.config)
    config.lora_config = config.base_models = None
    vars(config).pop("quantization_config", None)
    weights = _merged_state_dict(model)
    if getattr(config, "trained_token_rows", False) and hasattr(model, "merge_rows_into"):
        weights, config.trained_token_rows = model.merge_rows_into(weights), False
    with torch.device("meta"):
        ordinary = type(model)._from_config(config)
    ordinary.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, assign=True)
    ordinary.tie_weights()
    ordinary.generation_config = getattr(model, "generation_config", None)  # SeTok writes no text
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


@torch.no_grad()
def _merged_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    weights = {name: tensor for name, tensor in model.state_dict().items() if not is_lora_weight(name)}

    def replace(name: str, plain: Mapping[str, torch.Tensor]) -> None:
        for key in [key for key in weights if key.startswith(f"{name}.")]:
            del weights[key]
        weights.update({f"{name}.{key}": tensor for key, tensor in plain.items()})

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            replace(name, _quantized_merged(name, module, model.dtype) if is_quantized(base) else _merged(module))
        elif is_quantized(module) and f"{name}.weight" in weights:
            replace(name, _plain(module, dequantized_weight(module, model.dtype)))
        elif isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[module.active_adapters[0]].state_dict()
            replace(name, {key: tensor for key, tensor in trained.items() if not is_lora_weight(key)})
    return weights


def _merged(layer: Any) -> dict[str, torch.Tensor]:
    merged = copy.deepcopy(layer)  # layer by layer: a second model might not fit
    merged.merge()
    return merged.get_base_layer().state_dict()


def _quantized_merged(name: str, layer: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if any(layer.use_dora.get(adapter) for adapter in layer.active_adapters):
        raise ValueError(
            f"{name} is quantised and has a DoRA adapter, which is not merged: save what was trained "
            "(save_trained_weights), and merge it where the model is loaded without quantisation."
        )
    weight = dequantized_weight(layer.get_base_layer(), torch.float32)
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight += layer.get_delta_weight(adapter).to(weight.device, weight.dtype)
    return _plain(layer.get_base_layer(), weight.to(dtype))


def _plain(layer: Any, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias.detach()}


__all__ = ["adapted_modules", "add_lora", "ordinary_model", "whole_copy"]
