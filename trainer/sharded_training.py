"""What DeepSpeed's ZeRO stage 3, which leaves each process a share of every weight, asks of loading and saving."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.integrations import deepspeed as integration


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """
    Models that are loaded within have whole weights on every process, also where training will divide them: composing
    reads the weights of base models. DeepSpeed divides them when training begins.
    """
    reference: Any = getattr(integration, "_hf_deepspeed_config_weak_ref", None)
    config = None if reference is None else reference()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            integration.set_hf_deepspeed_config(config)


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """
    Within, the weights of a model that are divided among processes are whole. All processes have to enter.

    Args:
        model (`nn.Module`): divided by DeepSpeed, or not.
    """
    divided = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


__all__ = ["whole_models", "whole_weights"]
