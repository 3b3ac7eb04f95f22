"""Which image positions are predicted, and by what (VT-LMM, the set S_VM of Eq. 6 and 9)."""

from typing import Any

import torch


def used_placeholders(placeholders: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """
    Placeholders that became visual tokens.

    Args:
        placeholders (`torch.BoolTensor` of shape `(batch, sequence_length)`): of all images of a batch.
        token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`, *optional*):
            True at real tokens of each image, in the order of the placeholders; by default all are.

    Returns:
        `torch.BoolTensor` of shape `(batch, sequence_length)`.
    """
    if token_mask is None:
        return placeholders
    return torch.zeros_like(placeholders).masked_scatter(placeholders, token_mask.to(placeholders.device))


def predicted_image_positions(
    placeholders: torch.Tensor,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    unused: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Image positions that have a prediction: the token before each, in its own sequence, predicts it. An image at the
    very beginning has none for its first token.

    Args:
        placeholders (`torch.BoolTensor` of shape `(batch, sequence_length)`): positions of real tokens of images.
        attention_mask (`torch.Tensor`, *optional*):
            Of shape `(batch, sequence_length)`: 0 at padding, which predicts nothing. Or boolean, of shape `(batch, 1,
            sequence_length, sequence_length)`: a token is predicted by the one before it if it may attend to it.
        position_ids (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
            Where several sequences share a row: a token belongs to that of the one before it if it counts on from it.
        unused (`torch.BoolTensor` of shape `(batch, sequence_length)`, *optional*):
            Placeholders that a shorter image left over: they predict nothing.

    Returns:
        `torch.BoolTensor` of shape `(batch, sequence_length)`.
    """
    length = placeholders.shape[1]
    follows = torch.ones_like(placeholders[:, 1:])
    predicts = torch.ones_like(placeholders)
    if unused is not None:
        predicts = predicts & ~unused
    if isinstance(attention_mask, torch.Tensor):
        if attention_mask.ndim == 2:
            attended = attention_mask[:, -length:].bool()
            placeholders, predicts = placeholders & attended, predicts & attended
        elif attention_mask.dtype == torch.bool and attention_mask.shape[-2:] == (length, length):
            follows = follows & attention_mask[:, 0].diagonal(-1, 1, 2)
    if position_ids is not None:
        follows = follows & (position_ids[:, 1:] == position_ids[:, :-1] + 1)
    first = torch.zeros_like(placeholders[:, :1])
    return torch.cat([first, placeholders[:, 1:] & predicts[:, :-1] & follows], dim=1)


__all__ = ["predicted_image_positions", "used_placeholders"]
