"""Linear layers as the matrices that they are, for what multiplies with these in another way."""

from typing import Any

import torch
from torch import nn

from .divided_weights import is_whole


def is_plain_matrix(projection: nn.Module) -> bool:
    """
    Whether a projection is its weight, and that is here to be read. A quantised or LoRA-adapted one is another thing;
    an offloaded one (on the device "meta") or one that ZeRO-3 (`ds_id`) or FSDP (a `DTensor`) shards gets its weight
    while it is called.

    Args:
        projection (`nn.Module`): a linear layer.
    """
    return type(projection) is nn.Linear and is_whole(projection.weight)


def matrix_of(projection: Any, in_features: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Weight and bias of a linear layer. Of one that is no plain matrix (see [`is_plain_matrix`]) they are found by
    calling it, on the unit vectors, through which gradients reach whatever it consists of. A LoRA adapter that drops
    out entries of its input in training does so here, too, but by one draw for each entry: the weight is what the
    layer is with these entries dropped, and all that is multiplied by it shares the draw. The layer itself would draw
    anew for each position. Evaluation knows no dropout, and there the weight is exact.

    Args:
        projection (`nn.Module`): computes `x · weightᵀ + bias`, but for dropout of `x` in training.
        in_features (`int`): width of what it reads.
        like (`torch.Tensor`): something that it reads: its device and dtype.

    Returns:
        `tuple`: the weight, `(out_features, in_features)`, and the bias, `(out_features,)`, or `None`.
    """
    if is_plain_matrix(projection):
        return projection.weight, projection.bias
    units = torch.eye(in_features, dtype=like.dtype, device=like.device)
    if getattr(projection, "bias", None) is None:
        return projection(units).t(), None
    bias = projection(units.new_zeros(1, in_features))
    return (projection(units) - bias).t(), bias[0]


__all__ = ["is_plain_matrix", "matrix_of"]
