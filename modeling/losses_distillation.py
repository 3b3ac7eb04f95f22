"""Feature distillation: the loss with which a vision tower learns the patch features of another (GVT, Eq. 1)."""

import torch
from torch import nn

WHITENING_EPS = 1e-5


def whiten(features: torch.Tensor, eps: float = WHITENING_EPS) -> torch.Tensor:
    """
    Brings the features of each token to zero mean and unit variance over its channels: layer normalisation without
    scale and bias, which makes the targets of different teachers alike in size (GVT, Section 3.2).

    Args:
        features (`torch.FloatTensor` of shape `(..., hidden_size)`): features of tokens.
        eps (`float`, *optional*, defaults to 1e-5): added to the variance.

    Returns:
        `torch.FloatTensor` of the same shape, in float32, or in float64 if the features are.
    """
    features = features if features.dtype == torch.float64 else features.float()
    return nn.functional.layer_norm(features, features.shape[-1:], eps=eps)


def feature_distillation_loss(
    student_features: torch.Tensor,
    teacher_features: torch.Tensor,
    projector: nn.Module,
    beta: float = 2.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Smooth L1 distance of projected student features to whitened teacher features (GVT, Eq. 1): with
    e = g(s) − whiten(t), the mean over all elements of ½e²/β where |e| ≤ β, and of |e| − ½β elsewhere. Computed in
    float32 (float64 if the features are); the teacher's features get no gradient.

    Args:
        student_features (`torch.FloatTensor` of shape `(batch, num_tokens, student_hidden_size)`): s.
        teacher_features (`torch.FloatTensor` of shape `(batch, num_tokens, teacher_hidden_size)`): t, not whitened.
        projector (`nn.Module`): g, a map of each token from the student's width to the teacher's.
        beta (`float`, *optional*, defaults to 2.0): where the loss turns from quadratic to linear.
        mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*):
            Restricts the mean to the tokens that are `True`, as masked image modelling does (GVT, Table 4).

    Returns:
        `torch.Tensor`: a scalar.

    Raises:
        ValueError: if the shapes do not agree, beta is not positive, or the mask leaves no token.
    """
    _check(student_features, teacher_features, beta, mask)
    if mask is not None:
        student_features, teacher_features = student_features[mask], teacher_features[mask]
    predicted, target = projector(student_features), whiten(teacher_features.detach())
    if predicted.shape != target.shape:
        raise ValueError(
            f"The projector returns {predicted.shape[-1]} channels and the teacher has {target.shape[-1]}: it has to "
            "map the student's width to the teacher's."
        )
    return nn.functional.smooth_l1_loss(predicted.to(target.dtype), target, beta=beta)


def _check(student: torch.Tensor, teacher: torch.Tensor, beta: float, mask: torch.Tensor | None) -> None:
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"Features of the student have the shape {tuple(student.shape)} and those of the teacher "
            f"{tuple(teacher.shape)}: expected (batch, num_tokens, hidden_size) with the same batch and tokens."
        )
    if not beta > 0:
        raise ValueError(f"beta is {beta}, expected a positive number such as 2.0.")
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != student.shape[:2]:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of shape "
            f"{tuple(student.shape[:2])}."
        )
    if not mask.any():
        raise ValueError("mask is False everywhere: there is no token to take the loss of.")


__all__ = ["WHITENING_EPS", "feature_distillation_loss", "whiten"]
