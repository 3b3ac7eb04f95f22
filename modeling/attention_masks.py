"""Attention masks and positions of rows with images: padding, and conversations that share a row."""

from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

AttentionMask: TypeAlias = torch.Tensor | dict[str, torch.Tensor | None] | None


def is_tree(attention_mask: AttentionMask, past_key_values: Cache | None = None) -> bool:
    """
    Whether a mask is that of conversations which share a row: for each pair of tokens who may attend to whom.

    Args:
        attention_mask (`torch.Tensor`, `dict` or `None`): of a shared row `(batch, 1, length, length)`, boolean.
        past_key_values (`Cache`, *optional*): shared rows have none; `generate` writes such masks for static caches.
    """
    if not isinstance(attention_mask, torch.Tensor) or past_key_values is not None:
        return False
    return attention_mask.ndim == 4 and attention_mask.dtype == torch.bool


def positions_from_mask(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """
    Positions counted over what is attended to, so that padding on either side changes nothing.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch, total_length)` or `(batch, 1, length, length)`):
            0 at padding; or boolean, who may attend to whom: a token then stands behind all that it may attend to.
        length (`int`): number of the last tokens that positions are wanted for; the others are in the cache.

    Returns:
        `torch.LongTensor` of shape `(batch, length)`.
    """
    counts = attention_mask[:, 0].sum(-1) if attention_mask.ndim == 4 else attention_mask.long().cumsum(-1)
    return (counts - 1).clamp(min=0)[:, -length:]


def additive_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask of four dimensions as numbers to add to scores, which is how eager attention takes it."""
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, torch.finfo(dtype).min)


def decoder_arguments(
    language_model: PreTrainedModel,
    inputs_embeds: torch.Tensor,
    attention_mask: AttentionMask,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    takes_position_ids: bool,
) -> dict[str, Any]:
    """
    What a causal language model is told beside its embeddings: mask, positions and cache.

    Args:
        language_model (`PreTrainedModel`): about to read the embeddings.
        inputs_embeds (`torch.FloatTensor` of shape `(batch, length, hidden_size)`): to read.
        attention_mask (`torch.Tensor`, `dict` or `None`):
            Of two dimensions, or of a shared row (see [`is_tree`]). Any other is the language model's own business, as
            `generate` writes it for a static cache: a tensor of four dimensions, or one for each kind of layer.
        position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*): by default counted over the mask.
        past_key_values (`Cache`, *optional*): what was read before.
        takes_position_ids (`bool`): whether the language model lets itself be told positions.

    Raises:
        ValueError: if the language model cannot read a shared row.
    """
    shared = is_tree(attention_mask, past_key_values)
    if isinstance(attention_mask, torch.Tensor) and (shared or attention_mask.ndim == 2):
        if position_ids is None:
            position_ids = positions_from_mask(attention_mask, inputs_embeds.shape[1])
        if shared:
            refuse_tree(language_model, position_ids, takes_position_ids)
            attention_mask = additive_mask(attention_mask, inputs_embeds.dtype)
    arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values}
    return {**arguments, "position_ids": position_ids} if takes_position_ids else arguments


def check_length(attention_mask: AttentionMask, past_key_values: Cache | None, length: int) -> None:
    """
    Makes sure that a mask of two dimensions has no more columns than there are tokens in the cache and new ones.

    Args:
        attention_mask (`torch.Tensor`, `dict` or `None`): of two dimensions, or of any other kind, which passes.
        past_key_values (`Cache`, *optional*): what was read before.
        length (`int`): number of new tokens.

    Raises:
        ValueError: if it has more, as that of a prompt whose unused placeholders never reached the cache.
    """
    if past_key_values is None or not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return
    past = past_key_values.get_seq_length()
    if past > 0 and attention_mask.shape[1] > past + length:
        raise ValueError(
            f"The attention mask has {attention_mask.shape[1]} columns for {past} tokens in the cache and {length} "
            "new ones. Placeholders that an image left unused are not in the cache: let generate go on from it, or "
            "fill it from what compact_prompt returns."
        )


def refuse_tree(language_model: PreTrainedModel, position_ids: torch.Tensor, takes_position_ids: bool) -> None:
    """
    Makes sure that a language model can tell conversations that share a row apart.

    Args:
        language_model (`PreTrainedModel`): about to read the row.
        position_ids (`torch.LongTensor` of shape `(batch, length)`): of the row.
        takes_position_ids (`bool`): whether the model lets itself be told positions.

    Raises:
        ValueError: if it takes no positions or no such mask, or attends within a window shorter than the row.
    """
    config: Any = language_model.config
    window = getattr(config, "sliding_window", None)
    problem = None
    if not takes_position_ids:
        problem = "takes no position_ids"
    elif "flash" in str(config._attn_implementation):
        problem = f"runs {config._attn_implementation}, which takes no mask of who may attend to whom"
    elif window is not None and (length := int(position_ids.max()) + 1) > window:
        problem = f"attends within a window of {window} tokens, which conversations of {length} tokens do not fit"
    if problem is not None:
        raise ValueError(
            f"{type(language_model).__name__} {problem}, so conversations cannot share a row: give each a row of its "
            "own (conversations_per_row=1)."
        )


__all__ = ["check_length", "decoder_arguments", "is_tree", "positions_from_mask", "refuse_tree"]
