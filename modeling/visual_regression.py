"""The loss of images that a language model writes: its visual tokens are regressed (SeTok, Section 2.2, stage II)."""

import torch


def visual_regression_loss(
    predictions: torch.Tensor, targets: torch.Tensor, *, num_items: int | float | torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean squared error of predicted visual tokens, in float32. The target receives no gradient.

    Args:
        predictions (`torch.FloatTensor` of shape `(num_positions, token_size)`):
            Row t is the output projection of the state that predicts position t, one token before it.
        targets (`torch.FloatTensor` of shape `(num_positions, token_size)`): Row t is the tokenizer's token there.
        num_items (`int` or `torch.Tensor`, *optional*):
            Divides the sum over positions instead of their number here: the number over all micro-batches and ranks.

    Returns:
        `torch.Tensor`: a scalar, mean over channels and positions; without positions 0, with a graph.

    Raises:
        ValueError: if the shapes differ, or `num_items` is not above 0.
    """
    if predictions.shape != targets.shape or predictions.ndim != 2:
        raise ValueError(
            f"predictions have the shape {tuple(predictions.shape)} and targets {tuple(targets.shape)}: expected both "
            "(num_positions, token_size)."
        )
    if num_items is not None and not num_items > 0:
        raise ValueError(f"num_items is {num_items}, expected a number of visual tokens above 0.")
    errors = (predictions.float() - targets.detach().float()).square().mean(-1)
    return errors.sum() / (max(len(errors), 1) if num_items is None else num_items)


__all__ = ["visual_regression_loss"]
