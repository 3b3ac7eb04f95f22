"""Which answers a model would give exactly right, from one pass over the right answers."""

from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import EvalPrediction

from ..processing.collator import IGNORED


def answer_numbers(labels: torch.Tensor) -> torch.Tensor:
    """
    Numbers the answers of each row: 0 at the tokens of its first supervised run, 1 at the second, -1 between.

    Args:
        labels (`torch.LongTensor` of shape `(batch, positions)`): -100 where unsupervised.
    """
    supervised = labels != IGNORED
    starts = supervised.clone()
    starts[:, 1:] &= ~supervised[:, :-1]
    return torch.where(supervised, starts.cumsum(1) - 1, -1)


def right_answers(predictions: torch.Tensor, targets: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """
    Which answers were predicted exactly.

    Args:
        predictions, targets, numbers (`torch.LongTensor` of shape `(batch, positions)`): predicted and right tokens,
            and the answer that each belongs to, from [`answer_numbers`].

    Returns:
        `torch.LongTensor` of shape `(batch, answers)`: 1 right, 0 wrong, -100 no such answer.
    """
    num_answers = max(int(numbers.max()) + 1, 1)
    tokens = torch.zeros(len(targets), num_answers, dtype=torch.long, device=targets.device)
    wrong = tokens.clone()
    supervised = numbers >= 0
    tokens.scatter_add_(1, numbers.clamp(min=0), supervised.long())
    wrong.scatter_add_(1, numbers.clamp(min=0), (supervised & (predictions != targets)).long())
    return torch.where(tokens > 0, (wrong == 0).long(), IGNORED)


def row_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    What the mean loss over any number of rows is made of.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, positions, vocab_size)`): predictions.
        targets (`torch.LongTensor` of shape `(batch, positions)`): right tokens, -100 where unsupervised.

    Returns:
        `torch.FloatTensor` of shape `(batch, 2)`: for each row the sum of the losses in nats, and of how many tokens.
    """
    losses = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).float()], dim=1)


def answer_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """
    Metrics of an evaluation: `answer_accuracy`, the share of answers that are exactly right, and `loss`, in nats per
    answer token, whatever the rows that share a batch.

    Args:
        prediction (`EvalPrediction`): what [`VisualLanguageTrainer.prediction_step`] returned: as predictions, those
            of [`right_answers`], and as labels, those of [`row_losses`].
    """
    right, losses = prediction.predictions, prediction.label_ids
    loss, num_tokens = losses.astype("float64").sum(0)
    return {
        "answer_accuracy": share_right(right),
        "loss": float(loss / max(num_tokens, 1)),
    }


def share_right(right: Any) -> float:
    """
    Share of answers that are exactly right.

    Args:
        right (`np.ndarray` of shape `(rows, answers)`): of [`right_answers`].
    """
    return float((right == 1).sum() / max((right >= 0).sum(), 1))


__all__ = ["answer_accuracy", "answer_numbers", "right_answers", "row_losses", "share_right"]
