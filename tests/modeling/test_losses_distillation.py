"""The loss of feature distillation is Equation 1, written out here in float64, element by element."""

import math

import pytest
import torch
from torch import nn

from vistok import feature_distillation_loss
from vistok.modeling.losses_distillation import whiten


def direct(student, teacher, weight, bias, beta, mask=None):
    """Equation 1 with plain Python numbers."""
    total, count = 0.0, 0
    for b in range(len(student)):
        for n in range(len(student[b])):
            if mask is not None and not mask[b][n]:
                continue
            t = teacher[b][n]
            mean = sum(t) / len(t)
            variance = sum((x - mean) ** 2 for x in t) / len(t)
            for d, row in enumerate(weight):
                predicted = sum(w * s for w, s in zip(row, student[b][n], strict=True)) + bias[d]
                e = predicted - (t[d] - mean) / math.sqrt(variance + 1e-5)
                total += 0.5 * e * e / beta if abs(e) <= beta else abs(e) - 0.5 * beta
                count += 1
    return total / count


@pytest.fixture
def features():
    student = torch.randn(2, 3, 4, dtype=torch.float64) * 2
    teacher = torch.randn(2, 3, 5, dtype=torch.float64) * 7 + 3
    return student, teacher, nn.Linear(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.3, 2.0])  # most elements on the linear side, and most on the quadratic one
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_equation_1(features, beta, masked):
    student, teacher, projector = features
    mask = torch.tensor([[True, False, True], [False, False, True]]) if masked else None
    found = feature_distillation_loss(student, teacher, projector, beta, mask)
    numbers = [tensor.tolist() for tensor in (student, teacher, projector.weight, projector.bias)]
    assert found.dtype == torch.float64 and found.shape == ()
    assert found.item() == pytest.approx(direct(*numbers, beta, mask.tolist() if masked else None), rel=1e-12)


def test_beta_is_2_unless_said_otherwise(features):
    assert feature_distillation_loss(*features) == feature_distillation_loss(*features, beta=2.0)
    assert feature_distillation_loss(*features) != feature_distillation_loss(*features, beta=1.0)


def test_its_gradient_is_that_of_the_equation_and_the_teacher_gets_none(features):
    student, teacher, projector = features
    student.requires_grad_(), teacher.requires_grad_()

    def loss(student, weight, bias):
        return feature_distillation_loss(student, teacher, lambda s: nn.functional.linear(s, weight, bias))

    weight, bias = projector.weight.detach().requires_grad_(), projector.bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, weight, bias))
    loss(student, weight, bias).backward()
    assert teacher.grad is None and student.grad is not None


def test_whitened_features_have_zero_mean_and_unit_variance_per_token():
    white = whiten(torch.randn(3, 7, 64) * 30 - 8)
    assert white.mean(-1).abs().max() < 1e-5
    assert torch.allclose(white.var(-1, unbiased=False), torch.ones(3, 7), atol=1e-4)


def test_scale_and_offset_of_the_teacher_do_not_matter(features):
    student, teacher, projector = features
    assert torch.allclose(
        feature_distillation_loss(student, teacher, projector),
        feature_distillation_loss(student, 50 * teacher - 9, projector),
        rtol=1e-4,
    )


def test_half_precision_features_are_compared_in_float32(features):
    student, teacher, projector = features
    exact = feature_distillation_loss(student, teacher, projector)
    found = feature_distillation_loss(student.bfloat16(), teacher.bfloat16(), projector.to(torch.bfloat16))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact.item(), rel=0.02)


def test_what_does_not_fit_together_is_named(features):
    student, teacher, projector = features
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and those of the teacher \(2, 2, 5\)"):
        feature_distillation_loss(student, teacher[:, :2], projector)
    with pytest.raises(ValueError, match="returns 4 channels and the teacher has 5"):
        feature_distillation_loss(student, teacher, nn.Identity())
    with pytest.raises(ValueError, match="beta is 0"):
        feature_distillation_loss(student, teacher, projector, beta=0)
    with pytest.raises(ValueError, match=r"torch.bool of shape \(2, 3\)"):
        feature_distillation_loss(student, teacher, projector, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="no token"):
        feature_distillation_loss(student, teacher, projector, mask=torch.zeros(2, 3, dtype=torch.bool))
