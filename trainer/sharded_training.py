"""What DeepSpeed's ZeRO stage 3, which leaves each process a share of every weight, asks of loading and saving."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """
    Models that are loaded within have whole weights on every process, also where training will divide them: composing
    reads the weights of base models. DeepSpeed divides them when training begins.
    """
    from transformers.integrations import deepspeed as integration

    reference: Any = getattr(integration, "_hf_deepspeed_config_weak_ref", None)
    config = None if reference is None else reference()
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


@contextlib.contextmanager
def whole_weights(*tensors: torch.Tensor) -> Iterator[None]:
    """
    Within, weights that are divided among processes are whole. All processes have to enter.

    Args:
        tensors (`torch.Tensor`): parameters, divided or not.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor for tensor in tensors if hasattr(tensor, "ds_id")]):
        yield


__all__ = ["whole_models", "whole_weights"]
