"""How well a student predicts its teacher's features, measured on held-out images."""

import numpy as np
import torch
from torch import nn
from transformers.trainer_utils import EvalPrediction


def image_measures(predicted: torch.Tensor, target: torch.Tensor, beta: float, mask: torch.Tensor | None = None):
    """
    What the metrics of any number of images are made of.

    Args:
        predicted, target (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`):
            Projected features of the student and whitened features of the teacher.
        beta (`float`): of the loss.
        mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*): the tokens that count.

    Returns:
        `tuple[torch.FloatTensor, torch.FloatTensor]`: of each image cosine similarity, squared error and square of the
        target, followed by the mean of each of its channels, `(batch, 3 + hidden_size)`; and its loss, `(batch,)`.
    """
    predicted, target = predicted.float(), target.float()
    weight = torch.ones(target.shape[:2], device=target.device) if mask is None else mask.float()
    weight = (weight / weight.sum(1, keepdim=True)).unsqueeze(-1)  # of each token in its image
    cosine = nn.functional.cosine_similarity(predicted, target, dim=-1).unsqueeze(-1)
    error, square = (predicted - target).square(), target.square()
    loss = nn.functional.smooth_l1_loss(predicted, target, beta=beta, reduction="none")
    means = [(weight * value).sum(1).mean(-1, keepdim=True) for value in (cosine, error, square)]
    return torch.cat([*means, (weight * target).sum(1)], dim=1), (weight * loss).sum(1).mean(-1)


def distillation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """
    Metrics of an evaluation: `loss`; `cosine_similarity` of projected student features and whitened teacher features,
    mean over tokens; and `explained_variance`, the share of the variance of the teacher's features around their mean
    that the student predicts: 0 for one that always predicts that mean, which already has a cosine above 0.

    Args:
        prediction (`EvalPrediction`): the two results of [`image_measures`], as predictions and as labels.
    """
    measures = np.asarray(prediction.predictions, dtype=np.float64)
    cosine, error, square = measures[:, :3].mean(0)
    variance = square - np.square(measures[:, 3:].mean(0)).mean()
    return {
        "loss": float(np.asarray(prediction.label_ids, dtype=np.float64).mean()),
        "cosine_similarity": float(cosine),
        "explained_variance": float(1 - error / variance) if variance > 0 else 0.0,
    }


__all__ = ["distillation_metrics", "image_measures"]
