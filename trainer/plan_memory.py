"""What weights, gradients and the optimizer's state take on each GPU, by how a training is spread over several."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
# Bytes of state for each trained parameter in float32, by what optimizers are called.
STATE_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_apex_fused": 8,
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "lion_32bit": 4,
    "sgd": 0,
    "adagrad": 4,
    "rmsprop": 4,
}
STATE_NUMBERS = {"adamw_torch", "adamw_torch_fused"}
"""Of which each trained tensor has, beside its state, a step counter of four bytes."""


@dataclass(frozen=True)
class MemoryPlan:
    """
    Bytes on each GPU.

    Args:
        weights (`int`): of all parameters and buffers, or this GPU's share of them.
        gradients (`int`): of what is trained.
        optimizer (`int`): its state, and copies in float32 of weights that are trained in 16 bits.
        communication (`int`): copies of gradients that are being exchanged, or of weights that were gathered.
        activations (`int`): what a step holds at most, above these.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, which no moment needs quite."""
        return self.weights + self.gradients + self.optimizer + self.communication + self.activations


def planned_memory(model: Any, strategy: str, num_gpus: int, optimizer: str, activations: int) -> MemoryPlan:
    """
    Adds up what a model takes on each GPU.

    Args:
        model (`nn.Module`): frozen and opened, in the types in which it is trained.
        strategy (`str`): one of [`STRATEGIES`]: a whole copy on each GPU (`ddp`); gradients and optimizer spread
            (`zero2`), in DeepSpeed's mixed precision; or weights as well (`zero3`, `fsdp`).
        num_gpus (`int`): that share.
        optimizer (`str`): as `TrainingArguments.optim` has it.
        activations (`int`): bytes, of a step.

    Raises:
        ValueError: if the optimizer's state is not known.
    """
    parameters = list({id(p): p for p in model.parameters()}.values())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights, gradients = _bytes(parameters), _bytes(trained)
    buffers = _bytes(model.buffers())
    copied = [parameter for parameter in trained if parameter.element_size() < 4 and strategy.startswith("zero")]
    state = optimizer_bytes(trained, optimizer, in_float32=bool(copied)) + sum(4 * copy.numel() for copy in copied)
    communication, shares = 0, num_gpus
    if num_gpus == 1:
        shares = 1
    elif strategy == "ddp":
        communication, shares = gradients, 1
    elif strategy in ("fsdp", "zero3"):
        communication = 2 * _largest_layer(model)  # one is computed with while the next is gathered
    share_of_weights = shares if strategy in ("fsdp", "zero3") else 1
    return MemoryPlan(
        weights=-(-weights // share_of_weights) + buffers,
        gradients=-(-gradients // shares),
        optimizer=-(-state // shares),
        communication=communication,
        activations=activations,
    )


def optimizer_bytes(trained: Iterable[torch.Tensor], optimizer: str, in_float32: bool = False) -> int:
    """
    Size of an optimizer's state.

    Args:
        trained (iterable of `torch.Tensor`): the parameters that it updates.
        optimizer (`str`): as `TrainingArguments.optim` has it.
        in_float32 (`bool`, *optional*, defaults to `False`): whether it updates copies in float32, as with DeepSpeed
            (deepspeedai/DeepSpeed, deepspeed/runtime/zero/stage_1_and_2.py), and not the parameters themselves.

    Raises:
        ValueError: if it is not known.
    """
    trained = list(trained)
    if optimizer == "adafactor":  # rows and columns of a matrix, each element of a vector
        return sum(4 * (sum(p.shape[-2:]) * p.shape[:-2].numel() if p.ndim > 1 else p.numel()) for p in trained)
    if optimizer not in STATE_BYTES:
        raise ValueError(
            f"How much the state of the optimizer {optimizer!r} takes is not known; known: "
            f"{', '.join(sorted([*STATE_BYTES, 'adafactor']))}. Plan with one that takes as much: --training.optim …"
        )
    numbers = 4 * len(trained) if optimizer in STATE_NUMBERS else 0
    # In 16 bits the state of an optimizer that keeps it in the type of its weights is half as much.
    halved = not in_float32 and optimizer.startswith(("adamw_torch", "sgd", "adagrad", "rmsprop"))
    per_number = STATE_BYTES[optimizer]
    return numbers + sum(p.numel() * (per_number * p.element_size() // 4 if halved else per_number) for p in trained)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _largest_layer(model: Any) -> int:
    """Of the units that weights are gathered in."""
    names = set(getattr(model, "_no_split_modules", None) or [])
    found = [_bytes(module.parameters()) for module in model.modules() if type(module).__name__ in names]
    return max(found, default=_bytes(model.parameters()))


__all__ = ["STRATEGIES", "MemoryPlan", "optimizer_bytes", "planned_memory"]
