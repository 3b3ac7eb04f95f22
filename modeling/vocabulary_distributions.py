"""Distributions over the vocabulary, reduced to what is asked of them chunk by chunk over positions."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .vocabulary_chunks import LogitTransform, OutputHead, TileSoftmax, chunks, positions_per_chunk, rows_per_tile


class DistributionStatistics(NamedTuple):
    """
    What single numbers say of distributions over the vocabulary.

    Attributes:
        entropy (`torch.FloatTensor` of shape `(...)`): in nats.
        top_probability (`torch.FloatTensor` of shape `(...)`): of the most probable token.
        top_token (`torch.LongTensor` of shape `(...)`): its id.
    """

    entropy: torch.Tensor
    top_probability: torch.Tensor
    top_token: torch.Tensor


class TopTokens(NamedTuple):
    """
    The most probable tokens of distributions over the vocabulary, the most probable one first.

    Attributes:
        probabilities (`torch.FloatTensor` of shape `(..., k)`).
        token_ids (`torch.LongTensor` of shape `(..., k)`).
    """

    probabilities: torch.Tensor
    token_ids: torch.Tensor


@torch.no_grad()
def distribution_statistics(
    features: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
) -> DistributionStatistics:
    """
    Entropy and most probable token of softmax(features · weightᵀ) at every position, such as those of the visual-token
    distributions P' (VT-LMM, Eq. 5) with image features and the visual-modelling head. Computed in float32, or float64
    if the inputs are, without a matrix of all logits and without a graph.

    Args:
        features (`torch.FloatTensor` of shape `(..., width)`): what the head is applied to.
        weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head.
        bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head.
        transform_logits (`Callable`, *optional*): what is done to logits behind the head, row by row.

    Returns:
        [`DistributionStatistics`]: `entropy`, `top_probability` and `top_token`, each of the shape `(...)`.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    head = _flat_head(features, weight, bias, transform_logits)
    statistics = [torch.empty(len(head.features), dtype=head.loss_dtype, device=features.device) for _ in range(2)]
    entropy, top_probability = statistics
    top_token = torch.empty(len(head.features), dtype=torch.long, device=features.device)
    for rows, shifted, probabilities, log_sum in _tiles(head):
        top_probability[rows], top_token[rows] = probabilities.max(-1)
        entropy[rows] = log_sum - shifted.mul_(probabilities).sum(-1)
    return DistributionStatistics(*(value.view(features.shape[:-1]) for value in (*statistics, top_token)))


@torch.no_grad()
def top_k_tokens(
    features: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
) -> TopTokens:
    """
    The k most probable tokens of softmax(features · weightᵀ) at every position: exact, in float32, or float64 if the
    inputs are, without a matrix of all logits and without a graph.

    Args:
        features (`torch.FloatTensor` of shape `(..., width)`): what the head is applied to.
        weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head.
        k (`int`): how many tokens.
        bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head.
        transform_logits (`Callable`, *optional*): what is done to logits behind the head, row by row.

    Returns:
        [`TopTokens`]: `probabilities` and `token_ids`, both of the shape `(..., k)`.

    Raises:
        ValueError: if the shapes do not fit together, or the vocabulary has no k tokens.
    """
    head = _flat_head(features, weight, bias, transform_logits)
    if not 1 <= k <= head.vocab_size:
        raise ValueError(f"k is {k}, expected a number from 1 to the vocabulary's {head.vocab_size}.")
    size = (len(head.features), k)
    found = torch.empty(size, dtype=head.loss_dtype, device=features.device)
    token_ids = torch.empty(size, dtype=torch.long, device=features.device)
    for rows, _, probabilities, _ in _tiles(head):
        found[rows], token_ids[rows] = probabilities.topk(k, dim=-1)
    shape = (*features.shape[:-1], k)
    return TopTokens(found.view(shape), token_ids.view(shape))


def _flat_head(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transform: LogitTransform | None
) -> OutputHead:
    if features.ndim < 1 or weight.ndim != 2 or features.shape[-1] != weight.shape[1] or not weight.numel():
        raise ValueError(
            f"features have the shape {tuple(features.shape)} and weight {tuple(weight.shape)}: expected (..., width) "
            "and (vocab_size, width) with the same width."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has the shape {tuple(bias.shape)}, expected ({weight.shape[0]},).")
    return OutputHead.of(features.reshape(-1, features.shape[-1]), weight, bias, transform).detached()


def _tiles(head: OutputHead) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Positions with their shifted logits, probabilities and logarithm of the sum, as `TileSoftmax` returns them."""
    num_positions, device = len(head.features), head.features.device
    size = positions_per_chunk(num_positions, head.vocab_size, head.dtype)
    tile_rows = rows_per_tile(head, size)
    softmax = TileSoftmax(head, tile_rows)
    buffer = torch.empty(size, head.vocab_size, dtype=head.dtype, device=device)
    for positions in chunks(num_positions, size):
        products = head.products(positions, out=buffer[: positions.stop - positions.start])
        for tile in chunks(len(products), tile_rows):
            rows = slice(positions.start + tile.start, positions.start + tile.stop)
            yield rows, *softmax(products[tile])


__all__ = ["DistributionStatistics", "TopTokens", "distribution_statistics", "top_k_tokens"]
