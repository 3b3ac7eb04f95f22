"""Pseudo image features: the language model's own embeddings, mixed by visual-token distributions (VT-LMM, Eq. 8)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .divided_weights import is_whole
from .plain_matrix import matrix_of
from .vm_head import LowRankVMHead
from .vocabulary_chunks import chunks

# Probabilities that are held at once.
PROBABILITIES = 2**23


def pseudo_image_features(image_features: torch.Tensor, vm_head: nn.Module, embeddings: nn.Module) -> torch.Tensor:
    """
    The mean text embedding under the visual-token distribution of each position, X_p = softmax(W_VM X_image) ·
    W_embeddings (VT-LMM, Eq. 8, Section 2.3). Head and embeddings are constants here; a gradient reaches
    `image_features` where one is asked for. Never more than a chunk of the distributions is held.

    Args:
        image_features (`torch.FloatTensor` of shape `(..., hidden_size)`): the adapter's output X_image.
        vm_head (`nn.Module`): visual modelling head, see [`build_vm_head`].
        embeddings (`nn.Module`): input embeddings of the language model, as text enters it.

    Returns:
        `torch.FloatTensor` of the same shape and dtype.
    """
    features = image_features.flatten(0, -2)
    if isinstance(vm_head, LowRankVMHead):
        down, _ = matrix_of(vm_head.down, features.shape[-1], features)
        features, vm_head = nn.functional.linear(features, down.detach().to(features.dtype)), vm_head.up
    with torch.no_grad():
        weight, _ = matrix_of(vm_head, features.shape[-1], features)
        table = embedding_table(embeddings, len(weight))
    dtype = torch.promote_types(features.dtype, weight.dtype)
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
    constants = [matrix.detach().to(features.device, dtype) for matrix in (weight, table)]
    if torch.is_grad_enabled() and features.requires_grad:
        mixed = _MeanEmbedding.apply(features.to(dtype), *constants)
    else:
        mixed = _mean_embeddings(features.to(dtype), *constants)
    return mixed.view_as(image_features).to(image_features.dtype)


def embedding_table(embeddings: nn.Module, vocab_size: int) -> torch.Tensor:
    """
    What every token of the vocabulary is embedded as, `(vocab_size, hidden_size)`, without a graph.

    Args:
        embeddings (`nn.Module`): input embeddings of a language model, which may scale what it looks up.
        vocab_size (`int`): number of tokens.
    """
    weight: Any = embeddings.weight
    if type(embeddings) is nn.Embedding and is_whole(weight):
        return weight.detach()[:vocab_size]
    with torch.no_grad():
        return embeddings(torch.arange(vocab_size, device=weight.device if not weight.is_meta else None))


def _distributions(features: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """P' of some positions after the other, in float32 at least."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    for rows in chunks(len(features), max(PROBABILITIES // len(weight), 1)):
        yield rows, nn.functional.softmax(features[rows] @ weight.t(), dim=-1, dtype=dtype)


def _mean_embeddings(features: torch.Tensor, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    mixed = [probabilities.to(table.dtype) @ table for _, probabilities in _distributions(features, weight)]
    return torch.cat(mixed) if mixed else table.new_zeros(0, table.shape[1])


class _MeanEmbedding(torch.autograd.Function):
    """With a gradient for the features alone, for which the distributions are computed again."""

    @staticmethod
    def forward(ctx, features, weight, table):
        ctx.save_for_backward(features, weight, table)
        return _mean_embeddings(features, weight, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, weight, table = ctx.saved_tensors
        of_features = torch.empty_like(features)
        for rows, probabilities in _distributions(features, weight):
            of_probabilities = (gradient[rows] @ table.t()).to(probabilities.dtype)
            mean = (probabilities * of_probabilities).sum(-1, keepdim=True)
            of_logits = probabilities * (of_probabilities - mean)
            of_features[rows] = of_logits.to(weight.dtype) @ weight
        return of_features, None, None


__all__ = ["embedding_table", "pseudo_image_features"]
