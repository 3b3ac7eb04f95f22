"""Distributions over the vocabulary, reduced to what is asked of them chunk by chunk over positions."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .vocabulary_chunks import LogitTransform, OutputHead, TileSoftmax, chunks, positions_per_chunk, rows_per_tile


class DistinctiveTokens(NamedTuple):
    """
    The tokens by which distributions P stand out against a reference R: those with the largest terms of KL(P ‖ R) =
    Σ P log(P/R). Such a term is the pointwise KL divergence, by which Tomokiyo and Hurst rank phrases as informative
    (A Language Model Approach to Keyphrase Extraction, 2003). A token that is as probable everywhere has the term 0,
    and one that is hardly probable here a small term, while P/R alone, the lift, puts the rarest tokens first.

    Attributes:
        divergence (`torch.FloatTensor` of shape `(...)`): KL(P ‖ R), the sum over all tokens, in nats.
        terms (`torch.FloatTensor` of shape `(..., k)`): P log(P/R) of the tokens, in nats, falling.
        token_ids (`torch.LongTensor` of shape `(..., k)`): their ids.
        probabilities (`torch.FloatTensor` of shape `(..., k)`): P of each.
    """

    divergence: torch.Tensor
    terms: torch.Tensor
    token_ids: torch.Tensor
    probabilities: torch.Tensor


class DistributionStatistics(NamedTuple):
    """
    What is asked of distributions over the vocabulary.

    Attributes:
        entropy (`torch.FloatTensor` of shape `(...)`): in nats.
        probabilities (`torch.FloatTensor` of shape `(..., k)`): of the most probable tokens, falling.
        token_ids (`torch.LongTensor` of shape `(..., k)`): their ids.
        distribution (`torch.FloatTensor` of shape `(..., vocab_size)`, *optional*): all of it, if that was asked for.
        distinctive ([`DistinctiveTokens`], *optional*): by which tokens they stand out, if a reference was given.
    """

    entropy: torch.Tensor
    probabilities: torch.Tensor
    token_ids: torch.Tensor
    distribution: torch.Tensor | None = None
    distinctive: DistinctiveTokens | None = None

    @property
    def top_token(self) -> torch.Tensor:
        """Id of the most probable token, `(...)`."""
        return self.token_ids[..., 0]


class DistributionDivergences(NamedTuple):
    """
    How far predictions Q are from distributions P over the same vocabulary, each of shape `(num_positions,)`, in nats.

    Attributes:
        entropy (`torch.FloatTensor`): −Σ P log P.
        forward (`torch.FloatTensor`): KL(P ‖ Q).
        reverse (`torch.FloatTensor`): KL(Q ‖ P).
        top_token (`torch.LongTensor`): id of the most probable token of P.
    """

    entropy: torch.Tensor
    forward: torch.Tensor
    reverse: torch.Tensor
    top_token: torch.Tensor


@torch.no_grad()
def distribution_divergences(
    features: torch.Tensor,
    weight: torch.Tensor,
    predicting_features: torch.Tensor,
    predicting_weight: torch.Tensor,
    *,
    predicting_bias: torch.Tensor | None = None,
    transform_predictions: LogitTransform | None = None,
) -> DistributionDivergences:
    """
    Divergences of every position in both directions (VT-LMM, Eq. 6 and 9), each head multiplied once; in float32, or
    float64 if the inputs are, and with no matrix of all logits.

    Args:
        features (`torch.FloatTensor` of shape `(num_positions, width)`): what the head of P is applied to.
        weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head of P.
        predicting_features, predicting_weight: the same of Q; the width may be another.
        predicting_bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head of Q.
        transform_predictions (`Callable`, *optional*): what is done to logits of Q behind the head, row by row.

    Returns:
        [`DistributionDivergences`].

    Raises:
        ValueError: if the shapes do not fit together.
    """
    target = _flat_head(features, weight, None, None)
    prediction = _flat_head(predicting_features, predicting_weight, predicting_bias, transform_predictions)
    if len(target.features) != len(prediction.features) or target.vocab_size != prediction.vocab_size:
        raise ValueError(
            f"There are {len(target.features)} positions of {target.vocab_size} tokens and {len(prediction.features)} "
            f"predictions of {prediction.vocab_size}: row t of one has to predict row t of the other."
        )
    num_positions, dtype = len(target.features), torch.promote_types(target.loss_dtype, prediction.loss_dtype)
    found = torch.empty(3, num_positions, dtype=dtype, device=features.device)
    top_token = torch.empty(num_positions, dtype=torch.long, device=features.device)
    size = positions_per_chunk(num_positions, target.vocab_size, target.dtype, prediction.dtype)
    tile_rows = min(rows_per_tile(target, size), rows_per_tile(prediction, size))
    for (rows, p_logits, p, p_sum), (_, q_logits, q, q_sum) in zip(
        _tiles(target, size, tile_rows), _tiles(prediction, size, tile_rows), strict=True
    ):
        top_token[rows] = p.argmax(-1)
        found[0, rows] = p_sum - (p_logits * p).sum(-1)
        apart, normalisers = p_logits.sub_(q_logits), p_sum - q_sum
        found[1, rows] = (p * apart).sum(-1) - normalisers
        found[2, rows] = normalisers - (q * apart).sum(-1)
    return DistributionDivergences(found[0], found[1], found[2], top_token)


@torch.no_grad()
def distribution_statistics(
    features: torch.Tensor,
    weight: torch.Tensor,
    *,
    top_k: int = 1,
    return_distribution: bool = False,
    reference: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    transform_logits: LogitTransform | None = None,
    add_to: torch.Tensor | None = None,
) -> DistributionStatistics:
    """
    Entropy and most probable tokens of softmax(features · weightᵀ) at every position, such as those of the
    visual-token distributions P' (VT-LMM, Eq. 5) with image features and the visual-modelling head. Exact, in float32,
    or float64 if the inputs are; in one pass, without a graph, and with a matrix of all logits only if whole
    distributions are asked for.

    Args:
        features (`torch.FloatTensor` of shape `(..., width)`): what the head is applied to.
        weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head.
        top_k (`int`, *optional*, defaults to 1): how many tokens of each distribution.
        return_distribution (`bool`, *optional*, defaults to `False`): whether to return whole distributions too.
        reference (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): a distribution, such as the mean of many
            positions, against which [`DistinctiveTokens`] are found, `top_k` of each position. Numbers that are too
            small for the type of the result, as 1e-38 is for float32, count as the smallest there is.
        bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head.
        transform_logits (`Callable`, *optional*): what is done to logits behind the head, row by row.
        add_to (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): the distributions are added to it, in its
            dtype.

    Returns:
        [`DistributionStatistics`].

    Raises:
        ValueError: if the shapes do not fit together, the vocabulary has no `top_k` tokens, or the reference is no
            distribution.
    """
    head = _flat_head(features, weight, bias, transform_logits)
    if not 1 <= top_k <= head.vocab_size:
        raise ValueError(f"top_k is {top_k}, expected a number from 1 to the vocabulary's {head.vocab_size}.")
    num_positions, shape, device = len(head.features), features.shape[:-1], features.device
    entropy = torch.empty(num_positions, dtype=head.loss_dtype, device=device)
    found = torch.empty(num_positions, top_k, dtype=head.loss_dtype, device=device)
    token_ids = torch.empty(num_positions, top_k, dtype=torch.long, device=device)
    whole = None
    if return_distribution:
        whole = torch.empty(num_positions, head.vocab_size, dtype=head.loss_dtype, device=device)
    terms = None if reference is None else _ReferenceTerms(reference, head, num_positions, top_k)
    size = positions_per_chunk(num_positions, head.vocab_size, head.dtype)
    for rows, shifted, probabilities, log_sum in _tiles(head, size, rows_per_tile(head, size)):
        if terms is not None:
            terms.find(rows, shifted, probabilities, log_sum)
        found[rows], token_ids[rows] = probabilities.topk(top_k, dim=-1)
        entropy[rows] = log_sum - shifted.mul_(probabilities).sum(-1)
        if whole is not None:
            whole[rows] = probabilities
        if add_to is not None:
            add_to += probabilities.sum(0, dtype=add_to.dtype)
    return DistributionStatistics(
        entropy.view(shape),
        found.view(*shape, top_k),
        token_ids.view(*shape, top_k),
        None if whole is None else whole.view(*shape, head.vocab_size),
        None if terms is None else terms.found(shape),
    )


class _ReferenceTerms:
    """Of a head's distributions P the largest terms of KL(P ‖ R), tile by tile."""

    def __init__(self, reference: torch.Tensor, head: OutputHead, num_positions: int, top_k: int):
        if reference.shape != (head.vocab_size,):
            raise ValueError(
                f"reference has the shape {tuple(reference.shape)}, expected ({head.vocab_size},): a probability for "
                "each token of the vocabulary."
            )
        total = float(reference.sum(dtype=torch.float64))
        if not (reference >= 0).all() or not abs(total - 1) <= 1e-2:
            raise ValueError(
                f"reference sums to {total:g}, its smallest number is {float(reference.min()):g}: expected a "
                "distribution, such as the mean of those of many positions."
            )
        dtype, device = head.loss_dtype, head.features.device
        smallest = torch.finfo(dtype).tiny
        self._log_reference = reference.to(device, torch.float64).clamp(min=smallest).log_().to(dtype)
        self._divergence = torch.empty(num_positions, dtype=dtype, device=device)
        self._found = torch.empty(2, num_positions, top_k, dtype=dtype, device=device)
        self._token_ids = torch.empty(num_positions, top_k, dtype=torch.long, device=device)

    def find(self, rows: slice, shifted: torch.Tensor, probabilities: torch.Tensor, log_sum: torch.Tensor) -> None:
        """Takes what `TileSoftmax` returns, and leaves it as it is."""
        terms = (shifted - log_sum.unsqueeze(-1)).sub_(self._log_reference).mul_(probabilities)
        self._divergence[rows] = terms.sum(-1)
        self._found[0, rows], self._token_ids[rows] = terms.topk(self._token_ids.shape[-1], dim=-1)
        self._found[1, rows] = probabilities.gather(-1, self._token_ids[rows])

    def found(self, shape: torch.Size) -> DistinctiveTokens:
        terms, token_ids, probabilities = (
            value.view(*shape, value.shape[-1]) for value in (self._found[0], self._token_ids, self._found[1])
        )
        return DistinctiveTokens(self._divergence.view(shape), terms, token_ids, probabilities)


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


def _tiles(
    head: OutputHead, size: int, tile_rows: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Positions with their shifted logits, probabilities and logarithm of the sum, as `TileSoftmax` returns them."""
    num_positions, device = len(head.features), head.features.device
    softmax = TileSoftmax(head, tile_rows)
    buffer = torch.empty(size, head.vocab_size, dtype=head.dtype, device=device)
    for positions in chunks(num_positions, size):
        products = head.products(positions, out=buffer[: positions.stop - positions.start])
        for tile in chunks(len(products), tile_rows):
            rows = slice(positions.start + tile.start, positions.start + tile.stop)
            yield rows, *softmax(products[tile])


__all__ = [
    "DistinctiveTokens",
    "DistributionDivergences",
    "DistributionStatistics",
    "distribution_divergences",
    "distribution_statistics",
]
