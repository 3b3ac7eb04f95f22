"""What DeepSpeed's ZeRO stage 3, which leaves each process a share of every weight, asks of loading."""

import contextlib
from collections.abc import Iterator
from typing import Any

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


__all__ = ["whole_models"]
