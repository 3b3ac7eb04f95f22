"""Attention masks and positions of rows with images: padding, unused placeholders, conversations that share a row."""

from typing import Any

import torch
from transformers import PreTrainedModel


def is_tree(attention_mask: torch.Tensor | None) -> bool:
    """Whether a mask says for each pair of tokens who may attend to whom: `(batch, 1, length, length)`, boolean."""
    return attention_mask is not None and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool


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


def mask_unused_placeholders(
    placeholders: torch.Tensor, attention_mask: torch.Tensor | None, token_mask: torch.Tensor
) -> torch.Tensor:
    """
    Takes the placeholders that belong to a padding visual token out of an attention mask.

    Args:
        placeholders (`torch.BoolTensor` of shape `(batch, length)`): positions of image placeholders.
        attention_mask (`torch.Tensor`, *optional*): of two or four dimensions; by default all ones.
        token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`): True at real visual tokens.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(placeholders, dtype=torch.long)
    unused = torch.zeros_like(placeholders).masked_scatter(placeholders, ~token_mask.to(placeholders.device))
    return attention_mask.masked_fill(unused[:, None, None, :] if attention_mask.ndim == 4 else unused, 0)


def additive_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A boolean mask of four dimensions as numbers to add to scores, which is how eager attention takes it."""
    if attention_mask is None or not is_tree(attention_mask):
        return attention_mask
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, torch.finfo(dtype).min)


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


__all__ = ["additive_mask", "is_tree", "mask_unused_placeholders", "positions_from_mask", "refuse_tree"]
