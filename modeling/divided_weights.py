"""Weights that are divided among processes, by FSDP or by DeepSpeed's ZeRO stage 3: how to have them whole."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


def is_whole(weight: torch.Tensor) -> bool:
    """Whether a weight is here to be read, neither offloaded nor a part that ZeRO-3 or FSDP left on this process."""
    return type(weight) in (torch.Tensor, nn.Parameter) and not weight.is_meta and not hasattr(weight, "ds_id")


@contextlib.contextmanager
def whole_weights(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """
    Within, weights that DeepSpeed's ZeRO stage 3 divides among processes are whole. All processes have to enter.

    Args:
        parameters (`Iterable[torch.Tensor]`): divided, or not.
    """
    divided = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


@contextlib.contextmanager
def writable_weight(weight: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """
    Within, a weight can be written; one that DeepSpeed's ZeRO stage 3 divides is whole, and what the first process has
    written is that of all. All processes have to enter.

    Args:
        weight (`torch.Tensor`): divided, or not.

    Yields:
        `torch.Tensor`: to be written; `None` in the processes that write nothing.
    """
    if not hasattr(weight, "ds_id"):
        yield weight
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        yield weight if torch.distributed.get_rank() == 0 else None


@contextlib.contextmanager
def whole_root(model: Any) -> Iterator[None]:
    """
    Within, parts of a model can be called without the model: what FSDP gathers when the model is called, all but its
    layers, is whole. All processes have to enter, and to call the same layers.

    Args:
        model (`nn.Module`): divided by FSDP, or not.
    """
    if not hasattr(model, "unshard"):
        yield
        return
    model.unshard()
    # As Trainer registers it with FSDP, it would divide the root again when it ends.
    registered = vars(model).pop("generate", None)
    try:
        yield
    finally:
        if registered is not None:
            model.generate = registered
        model.reshard()


def whole_tensor(tensor: Any) -> torch.Tensor:
    """
    A weight with the parts of all processes, which all have to call this. One that is whole is returned as it is.

    Args:
        tensor (`torch.Tensor`): divided, or not.
    """
    if hasattr(tensor, "full_tensor"):
        return tensor.detach().full_tensor()
    if hasattr(tensor, "ds_id"):
        with whole_weights([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def whole_state_dict(model: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """
    The `state_dict` of a model with whole weights; one after the other is gathered, by all processes together.

    Args:
        model (`nn.Module`): divided, or not.
        keep (`bool`, *optional*, defaults to `True`): whether this process wants them.

    Returns:
        `dict[str, torch.Tensor]`: those that were divided on the CPU, in all names that share one the same. Empty if
        they are not wanted.
    """
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            whole = whole_tensor(tensor)
            seen[id(tensor)] = whole if not keep or is_whole(tensor) else whole.cpu()
        if keep:
            found[name] = seen[id(tensor)]
        else:
            seen[id(tensor)] = torch.empty(0)
    return found


def original_class(model: nn.Module) -> Any:
    """The class of a model as its author wrote it: FSDP makes one of its own of it."""
    of_fsdp = "torch.distributed.fsdp"
    return next(kind for kind in type(model).__mro__ if not kind.__module__.startswith(of_fsdp))


__all__ = [
    "is_whole",
    "original_class",
    "whole_root",
    "whole_state_dict",
    "whole_tensor",
    "whole_weights",
    "writable_weight",
]
