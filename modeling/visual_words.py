"""Reading visual tokens as words: distributions over the vocabulary, and the nearest text embeddings (VT-LMM)."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from .vm_head import last_layer
from .vocabulary_chunks import chunks
from .vocabulary_distributions import DistinctiveTokens, distribution_statistics

# Similarities that are held at once, or numbers of embeddings.
SIMILARITIES = 2**24


@dataclass
class VisualTokenDistributions(ModelOutput):
    """
    What the visual modelling head makes of images: a distribution over the vocabulary for each visual token (VT-LMM,
    Eq. 5).

    Args:
        probabilities (`torch.FloatTensor` of shape `(num_images, num_tokens, k)`):
            Of the k most probable tokens of the vocabulary, the most probable first.
        token_ids (`torch.LongTensor` of shape `(num_images, num_tokens, k)`): their ids.
        entropy (`torch.FloatTensor` of shape `(num_images, num_tokens)`): of each distribution, in nats.
        grid_size (`tuple[int, int]`, *optional*):
            Height and width of an image in patches, whose order is row by row; unknown of cached features whose number
            is no square, or with [CLS] and registers among them.
        num_prefix_tokens (`int`, *optional*):
            How many visual tokens precede those of the patches: [CLS] and registers, of a model with
            `vision_feature_select_strategy="full"`; unknown of its cached features.
        distribution (`torch.FloatTensor` of shape `(num_images, num_tokens, vocab_size)`, *optional*):
            The distributions as a whole, if they were asked for.
        distinctive ([`DistinctiveTokens`], *optional*):
            The tokens by which each distribution stands out against a reference, if one was given: `terms`,
            `token_ids` and `probabilities` of shape `(num_images, num_tokens, k)`, and `divergence` of shape
            `(num_images, num_tokens)`, in nats.
    """

    probabilities: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    grid_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None
    distribution: torch.Tensor | None = None
    distinctive: DistinctiveTokens | None = None


@torch.no_grad()
def visual_token_distributions(
    image_features: torch.Tensor,
    vm_head: nn.Module,
    top_k: int = 5,
    return_distribution: bool = False,
    grid_size: tuple[int, int] | None = None,
    num_prefix_tokens: int | None = 0,
    reference: torch.Tensor | None = None,
) -> VisualTokenDistributions:
    """
    Reads visual tokens with the visual modelling head, chunk by chunk: P' = softmax(W_VM X_image) (VT-LMM, Eq. 5).

    Args:
        image_features (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`): the adapter's output.
        vm_head (`nn.Module`): see [`build_vm_head`].
        top_k (`int`, *optional*, defaults to 5): how many tokens of the vocabulary to return for each visual token.
        return_distribution (`bool`, *optional*, defaults to `False`): whether to return whole distributions too.
        grid_size (`tuple[int, int]`, *optional*): height and width of an image in patches.
        num_prefix_tokens (`int`, *optional*, defaults to 0): how many tokens are no patches and come first.
        reference (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): see [`distribution_statistics`].

    Returns:
        [`VisualTokenDistributions`], in float32 at least.

    Raises:
        ValueError: if the vocabulary has no `top_k` tokens, or the reference is no distribution over it.
    """
    features, weight = last_layer(vm_head, image_features)
    found = distribution_statistics(
        features.to(weight.device),
        weight,
        top_k=top_k,
        return_distribution=return_distribution,
        reference=reference,
    )
    num_tokens = image_features.shape[1]
    if (
        grid_size is None and num_prefix_tokens == 0 and math.isqrt(num_tokens) ** 2 == num_tokens
    ):  # images are padded to squares
        grid_size = (math.isqrt(num_tokens),) * 2
    return VisualTokenDistributions(
        found.probabilities,
        found.token_ids,
        found.entropy,
        grid_size,
        num_prefix_tokens,
        found.distribution,
        found.distinctive,
    )


@torch.no_grad()
def nearest_tokens(
    image_features: torch.Tensor, table: torch.Tensor, top_k: int = 1, no_word: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The tokens of the vocabulary whose embeddings have the highest cosine similarity to each visual token (VT-LMM, Eq.
    3, which prints argmin and means the closest), chunk by chunk over both.

    Args:
        image_features (`torch.FloatTensor` of shape `(..., hidden_size)`): the adapter's output.
        table (`torch.FloatTensor` of shape `(vocab_size, hidden_size)`): text embeddings.
        top_k (`int`, *optional*, defaults to 1): how many tokens for each.
        no_word (`torch.FloatTensor` of shape `(hidden_size,)`, *optional*): rows that equal it are passed over.

    Returns:
        `tuple`: similarities from −1 to 1 and token ids, both `(..., top_k)`, the closest first.

    Raises:
        ValueError: if the vocabulary has no `top_k` words, or their embeddings are of another width.
    """
    if image_features.shape[-1] != table.shape[1]:
        raise ValueError(
            f"image_features have the shape {tuple(image_features.shape)}, expected (..., {table.shape[1]}), the "
            "width of text embeddings: give the adapter's output."
        )
    word_ids = torch.arange(len(table), device=table.device)
    if no_word is not None:
        parts = chunks(len(table), max(SIMILARITIES // max(table.shape[1], 1), 1))
        is_word = torch.cat([(table[rows] != no_word.to(table)).any(-1) for rows in parts])
        word_ids = is_word.nonzero().squeeze(-1)
    if not 1 <= top_k <= len(word_ids):
        raise ValueError(f"top_k is {top_k}, expected a number from 1 to the vocabulary's {len(word_ids)} words.")
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    queries = nn.functional.normalize(image_features.flatten(0, -2).to(table.device, dtype), dim=-1)
    rows = min(len(queries), 1024)
    num_words = max(SIMILARITIES // max(rows, table.shape[1]), 1)
    found = []
    for chosen in chunks(len(queries), max(rows, 1)):
        similarities = queries.new_empty(chosen.stop - chosen.start, 0)
        token_ids = word_ids.new_empty(chosen.stop - chosen.start, 0)
        for some in chunks(len(word_ids), num_words):
            words = nn.functional.normalize(table[word_ids[some]].to(dtype), dim=-1)
            closest, order = (queries[chosen] @ words.t()).topk(min(top_k, len(words)), dim=1)
            similarities = torch.cat([similarities, closest], dim=1)
            token_ids = torch.cat([token_ids, word_ids[some][order]], dim=1)
            similarities, order = similarities.topk(min(top_k, similarities.shape[1]), dim=1)
            token_ids = token_ids.gather(1, order)
        found.append((similarities, token_ids))
    if not found:
        found = [(queries.new_empty(0, top_k), word_ids.new_empty(0, top_k))]
    shape = (*image_features.shape[:-1], top_k)
    similarities, token_ids = (torch.cat(parts).view(shape) for parts in zip(*found))
    return similarities, token_ids


__all__ = ["VisualTokenDistributions", "nearest_tokens", "visual_token_distributions"]
