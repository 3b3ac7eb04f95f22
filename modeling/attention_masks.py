"""Attention masks and positions of rows with images: padding, unused placeholders, conversations that share a row."""

import torch


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


__all__ = ["additive_mask", "is_tree", "mask_unused_placeholders", "positions_from_mask"]
