"""Masks of objects as supervision: what is matched, what is left out, and what is refused."""

import pytest
import torch

from tests.tiny import same
from vistok.modeling.losses_segmentation import mask_bce_loss, mask_consistency_loss, mask_dice_loss
from vistok.modeling.mask_matching import pairwise_mask_costs
from vistok.modeling.mask_supervision import mask_losses
from vistok.modeling.object_mask_batches import batch_object_masks, resize_object_masks

SIZE = (8, 8)
GRID = (2, 2)


def quadrants(*which: int) -> torch.Tensor:
    """Masks of quarters of an image of 8 × 8 pixels, which are the patches of a grid of 2 × 2; -1 is empty."""
    masks = torch.zeros(len(which), *SIZE, dtype=torch.bool)
    for mask, quarter in zip(masks, which):
        if quarter >= 0:
            row, column = divmod(quarter, 2)
            mask[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = True
    return masks


def logits_for(*which: int, sure: float = 3.0) -> torch.Tensor:
    """Predicted masks, of 4 × 4 points."""
    return resize_object_masks([quadrants(*which)], (4, 4))[0] * 2 * sure - sure


def clusters_for(*which: int) -> torch.Tensor:
    return torch.eye(4)[list(which)]


def losses(logits, clusters, labels, mask=None):
    mask = torch.ones(logits.shape[:2]).bool() if mask is None else mask
    return mask_losses(logits, mask, clusters, GRID, labels, SIZE)


def test_matched_pairs_are_compared_and_the_rest_is_left_alone():
    logits = torch.stack([logits_for(2, 0, 3), logits_for(1, 3, 0)]).requires_grad_()
    clusters = torch.stack([clusters_for(2, 1, 3), clusters_for(1, 3, 0)]).requires_grad_()
    result = losses(logits, clusters, [quadrants(0, 2), quadrants(3)])
    assert result.matches.tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 0]]
    pairs = logits[[0, 0, 1], [0, 1, 1]].flatten(1)
    objects = resize_object_masks([quadrants(2, 0, 3)], (4, 4))[0].flatten(1)
    assert torch.allclose(result.bce, mask_bce_loss(pairs, objects).mean())
    assert torch.allclose(result.dice, mask_dice_loss(pairs, objects).mean())
    # The second cluster lies elsewhere than the mask that its token predicts.
    assert torch.allclose(result.consistency, mask_consistency_loss(clusters_for(2, 1, 3), clusters_for(2, 0, 3)))
    (result.bce + result.dice).backward()
    assert logits.grad.flatten(2).abs().sum(2).ne(0).tolist() == [[True, True, False], [False, True, False]]


def test_clusters_decide_where_predicted_masks_do_not():
    undecided = torch.zeros(1, 3, 4, 4)
    clusters = torch.stack([clusters_for(3, 0, 2)])
    labels, mask = [quadrants(0, 2, 3)], torch.ones(1, 3).bool()
    result = mask_losses(undecided, mask, clusters, GRID, labels, SIZE, cluster_matching_weight=1.0)
    assert result.matches.tolist() == [[0, 0, 0], [0, 1, 2], [2, 0, 1]] and result.consistency == 0
    # What counts is what tokens are made of, where that is another thing than what is compared.
    spread = torch.full((1, 3, 4), 0.25, requires_grad=True)
    result = mask_losses(undecided, mask, spread, GRID, labels, SIZE, clusters, cluster_matching_weight=1.0)
    assert result.matches.tolist() == [[0, 0, 0], [0, 1, 2], [2, 0, 1]]


def test_clusters_have_the_weight_they_are_given_in_matching():
    # Tokens predict each other's objects. Both pairs together cost 2 · (1 − IoU) = 2 by their clusters if swapped.
    logits, clusters = torch.stack([logits_for(0, 1)]), torch.stack([clusters_for(1, 0)])
    labels, mask = [quadrants(0, 1)], torch.ones(1, 2).bool()
    by_masks = pairwise_mask_costs(logits.flatten(2), resize_object_masks([quadrants(0, 1)], (4, 4)).flatten(2))[0]
    gained = (by_masks[0, 1] + by_masks[1, 0] - by_masks.trace()).item()
    for weight, expected in ((0.0, [0, 1]), (gained / 2 - 0.01, [0, 1]), (gained / 2 + 0.01, [1, 0])):
        result = mask_losses(logits, mask, clusters, GRID, labels, SIZE, cluster_matching_weight=weight)
        assert result.matches[2].tolist() == expected


def test_without_any_object_all_losses_are_zero_and_have_a_gradient():
    logits, clusters = torch.randn(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, requires_grad=True)
    result = losses(logits, clusters, [torch.zeros(0, *SIZE).bool(), quadrants(-1)])
    assert (result.bce.item(), result.dice.item(), result.consistency.item()) == (0, 0, 0)
    assert result.matches.shape == (3, 0)
    (result.bce + result.dice + result.consistency).backward()
    assert logits.grad.abs().sum() == clusters.grad.abs().sum() == 0


def test_of_more_objects_than_tokens_the_best_are_matched():
    result = losses(logits_for(2, 0)[None], clusters_for(2, 0)[None], [quadrants(3, 0, 1, 2)])
    assert result.matches.tolist() == [[0, 0], [0, 1], [3, 1]]


def test_empty_masks_are_no_objects_so_padding_needs_no_mask():
    logits, clusters = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4)
    listed = losses(logits, clusters, [quadrants(1, 2), quadrants(0)])
    padded = losses(logits, clusters, torch.stack([quadrants(1, 2, -1), quadrants(0, -1, -1)]))
    between = losses(logits, clusters, [quadrants(-1, 1, 2), quadrants(0)])
    assert torch.equal(listed.matches, padded.matches)
    for other in (padded, between):
        assert same(listed.bce, other.bce)
        assert same(listed.dice, other.dice)
        assert same(listed.consistency, other.consistency)
    assert set(between.matches[2].tolist()) == {0, 1, 2}


def test_padded_tokens_are_never_matched():
    mask = torch.tensor([[True, True, False]])
    result = losses(logits_for(0, 1, 3)[None], clusters_for(0, 1, 3)[None], [quadrants(3, 1, 0)], mask)
    assert sorted(result.matches[1].tolist()) == [0, 1]


def test_an_object_smaller_than_a_patch_is_still_there():
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 5, 6] = True
    assert resize_object_masks([mask], GRID)[0, 0].tolist() == [[0, 0], [0, 1 / 16]]


def test_masks_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"image 1 have the shape \(2, 8, 9\).*8 × 8 pixels.*\(num_objects, 8, 8\)"):
        batch_object_masks([quadrants(0), torch.zeros(2, 8, 9)], SIZE, 2)
    with pytest.raises(ValueError, match=r"image 0 have the shape \(8, 8\)"):
        batch_object_masks([quadrants(0)[0]], SIZE, 1)


def test_masks_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="masks for 1 images, but 2 images"):
        batch_object_masks([quadrants(0)], SIZE, 2)


@pytest.mark.parametrize("values", [quadrants(0).float() * 255, quadrants(0).float() - 0.5, quadrants(0) * torch.nan])
def test_masks_that_are_not_between_0_and_1_are_refused(values):
    with pytest.raises(ValueError, match="image 0 have values from"):
        batch_object_masks([values], SIZE, 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_may_be_numbers(dtype):
    masks, present = batch_object_masks([quadrants(0, -1).to(dtype)], SIZE, 1)
    assert present.tolist() == [[True, False]]
    assert torch.equal(resize_object_masks(masks, GRID), resize_object_masks([quadrants(0, -1)], GRID))
