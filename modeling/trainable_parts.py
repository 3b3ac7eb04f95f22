"""The parts of a model that are trained or frozen as one: which parameters they have."""

import re

import torch
from transformers import PreTrainedModel

from .trained_weights import is_lora_weight

MODES = ("frozen", "full", "lora", "keys_values")
"""What a recipe may say of a part."""

# In the blocks of diffusers, attn1 is self-attention and attn2 attends to the condition.
_CROSS_ATTENTION_KEYS_VALUES = re.compile(r"\.attn2\.to_[kv]\.(weight|bias)$")


def part_prefixes(model: PreTrainedModel, part: str) -> tuple[str, ...]:
    """
    Prefixes of the parameter names that a part of a model consists of.

    Args:
        model (`PreTrainedModel`): a composed model of vistok.
        part (`str`): `"vision"`, `"resampler"`, `"llm"` …: a key of the model's `trainable_parts`.

    Raises:
        ValueError: if the model has no such part.
    """
    parts = type(model).trainable_parts
    if part not in parts:
        raise ValueError(f"{part!r} is no part of {type(model).__name__}, which has: {', '.join(parts)}.")
    prefixes = parts[part]
    return (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)


def parameters_to_train(model: PreTrainedModel, part: str, mode: str) -> dict[str, torch.nn.Parameter]:
    """
    The parameters of a part that its mode trains: all but adapters, only adapters, some, or none.

    Args:
        model (`PreTrainedModel`): a composed model of vistok.
        part (`str`): as in [`part_prefixes`].
        mode (`str`): `"frozen"`, `"full"`, `"lora"`, or `"keys_values"`: of the cross-attention of a U-Net.
    """
    prefixes = part_prefixes(model, part)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and _trains(mode, name)
    }


def _trains(mode: str, name: str) -> bool:
    if mode == "keys_values":
        return _CROSS_ATTENTION_KEYS_VALUES.search(name) is not None
    return mode == ("lora" if is_lora_weight(name) else "full")


__all__ = ["MODES", "parameters_to_train", "part_prefixes"]
