"""Losses of masks: planted answers, and equality with their formulas in float64."""

import re

import pytest
import torch

from vistok.modeling.losses_segmentation import (
    mask_bce_loss,
    mask_consistency_loss,
    mask_dice_loss,
    pairwise_soft_iou,
    soft_iou,
)

SURE = 40.0  # a logit whose sigmoid is 1


def planted(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_losses_equal_their_formulas():
    logits = torch.randn(5, 30, dtype=torch.float64)
    objects = torch.rand(5, 30, dtype=torch.float64)
    p = 1 / (1 + (-logits).exp())
    bce = -(objects * p.log() + (1 - objects) * (1 - p).log()).mean(1)
    dice = 1 - (2 * (p * objects).sum(1) + 1) / (p.sum(1) + objects.sum(1) + 1)
    iou = (p * objects).sum(1) / (p + objects - p * objects).sum(1)
    assert torch.allclose(mask_bce_loss(logits, objects), bce, rtol=1e-12)
    assert torch.allclose(mask_dice_loss(logits, objects), dice, rtol=1e-12)
    assert torch.allclose(mask_consistency_loss(p, objects), (1 - iou).mean(), rtol=1e-12)


def test_dice_of_half_an_object_counts_one_more_in_both_sums():
    # Four points predicted, two of them right: 1 − (2·2 + 1) / (4 + 2 + 1).
    loss = mask_dice_loss(planted([SURE] * 4), planted([1, 1, 0, 0]))
    assert loss.item() == pytest.approx(1 - 5 / 7)


def test_dice_is_zero_for_a_perfect_mask_and_for_two_empty_ones():
    logits = planted([SURE, SURE, -SURE, -SURE], [-SURE] * 4)
    assert mask_dice_loss(logits, planted([1, 1, 0, 0], [0, 0, 0, 0])).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_every_mask_has_a_loss_of_its_own():
    logits, objects = planted([SURE, -SURE], [SURE, -SURE]), planted([1, 0], [0, 1])
    assert mask_bce_loss(logits, objects).tolist() == pytest.approx([0, SURE])


def test_consistency_is_one_minus_the_mean_overlap():
    clusters = planted([1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0.5])
    objects = planted([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1])
    assert soft_iou(clusters, objects).tolist() == pytest.approx([1, 1 / 3, 0.5])
    assert mask_consistency_loss(clusters, objects).item() == pytest.approx(1 - (1 + 1 / 3 + 0.5) / 3)


def test_overlaps_of_all_pairs_are_those_of_each_pair():
    clusters, objects = torch.rand(2, 3, 7).double(), torch.rand(2, 4, 7).double()
    clusters[0, 1] = objects[0, 2] = 0
    expected = torch.stack([soft_iou(clusters[:, i], objects[:, j]) for i in range(3) for j in range(4)], 1)
    assert torch.allclose(pairwise_soft_iou(clusters, objects).flatten(1), expected, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 3, 9), (3, 9)])
def test_shapes_of_which_there_are_no_pairs_are_named(shape):
    with pytest.raises(
        ValueError, match=rf"cluster_masks have .* \(2, 4, 9\) and object_masks {re.escape(str(shape))}: exp"
    ):
        pairwise_soft_iou(torch.zeros(2, 4, 9), torch.zeros(shape))


def test_masks_that_are_both_empty_overlap_in_nothing_and_give_no_nan():
    clusters = torch.zeros(1, 4, requires_grad=True)
    loss = mask_consistency_loss(clusters, torch.zeros(1, 4))
    loss.backward()
    assert loss.item() == 1
    assert clusters.grad.isfinite().all()


def test_without_pairs_the_loss_is_zero_and_so_is_its_gradient():
    clusters = torch.rand(2, 4, requires_grad=True)
    loss = mask_consistency_loss(clusters[:0], torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0
    assert clusters.grad.abs().sum() == 0


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(3, 5000)
    objects = torch.rand(3, 5000) > 0.5
    assert torch.allclose(mask_dice_loss(logits.bfloat16(), objects), mask_dice_loss(logits, objects), atol=1e-3)
    assert mask_bce_loss(logits.half(), objects).dtype == torch.float32


@pytest.mark.parametrize("loss", [mask_bce_loss, mask_dice_loss, mask_consistency_loss, soft_iou])
def test_shapes_that_do_not_agree_are_named(loss):
    with pytest.raises(ValueError, match=r"\(2, 9\).*\(3, 9\)"):
        loss(torch.zeros(2, 9), torch.zeros(3, 9))
