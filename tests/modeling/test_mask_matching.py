"""Hungarian matching: the least total cost, found by trying all, and planted matches."""

import itertools

import numpy as np
import pytest
import torch

from vistok.modeling.losses_segmentation import mask_bce_loss, mask_dice_loss
from vistok.modeling.mask_matching import linear_assignment, match_masks, pairwise_mask_costs


def least_cost(costs: np.ndarray) -> float:
    """By trying every way to pair the fewer with some of the more."""
    costs = costs if costs.shape[0] <= costs.shape[1] else costs.T
    rows = range(costs.shape[0])
    return min(sum(costs[rows, columns]) for columns in itertools.permutations(range(costs.shape[1]), len(rows)))


def test_costs_are_those_of_every_pair_by_itself():
    logits, objects = torch.randn(2, 4, 50, dtype=torch.float64), torch.rand(2, 3, 50, dtype=torch.float64)
    costs = pairwise_mask_costs(logits.requires_grad_(), objects)
    assert not costs.requires_grad
    for image, token, target in itertools.product(range(2), range(4), range(3)):
        pair = logits[image, token][None], objects[image, target][None]
        assert costs[image, token, target].item() == pytest.approx(
            (mask_bce_loss(*pair) + mask_dice_loss(*pair)).item(), rel=1e-12
        )


def test_costs_are_exact_in_mixed_precision_too():
    logits, objects = torch.randn(2, 4, 50), torch.rand(2, 3, 50)
    expected = pairwise_mask_costs(logits, objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pairwise_mask_costs(logits, objects), expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (4, 4), (3, 6), (6, 5)])
@pytest.mark.parametrize("draw", ["uniform", "normal", "ties"])
def test_an_assignment_costs_the_least_there_is(shape, draw):
    random = np.random.default_rng(sum(shape))
    for _ in range(5):
        costs = {
            "uniform": random.random(shape),
            "normal": random.normal(0, 1e3, shape),
            "ties": random.integers(0, 3, shape).astype(float),
        }[draw]
        rows, columns = linear_assignment(costs)
        assert len(rows) == len(set(rows)) == len(columns) == len(set(columns)) == min(shape)
        assert list(rows) == sorted(rows)
        assert costs[rows, columns].sum() == pytest.approx(least_cost(costs), rel=1e-12, abs=1e-9)


def test_large_assignments_equal_those_of_scipy():
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy comes with the extra demo")
    random = np.random.default_rng(0)
    for shape in ((64, 100), (100, 64), (64, 64)):
        costs = random.random(shape)
        for found, expected in zip(linear_assignment(costs), optimize.linear_sum_assignment(costs)):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing_is_assigned_where_there_is_nothing(shape):
    rows, columns = linear_assignment(np.zeros(shape))
    assert len(rows) == len(columns) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match="1 of 6 costs are NaN or infinite"):
        linear_assignment(np.array([[0, 1, value], [1, 2, 3]]))


def planted_masks(*order: int) -> torch.Tensor:
    """Masks of a fourth of 16 points each."""
    return torch.stack([(torch.arange(16) // 4 == part).float() for part in order])


def test_masks_are_matched_to_the_objects_they_show():
    shown = torch.stack([planted_masks(2, 0, 3, 1), planted_masks(1, 1, 0, 2)]) * 8 - 4
    objects = torch.stack([planted_masks(0, 1, 2), planted_masks(2, 0, 3)])
    is_token = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]).bool()
    is_object = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    images, tokens, targets = match_masks(pairwise_mask_costs(shown, objects), is_token, is_object)
    found = set(zip(images.tolist(), tokens.tolist(), targets.tolist()))
    assert found == {(0, 0, 2), (0, 1, 0), (0, 3, 1), (1, 2, 1), (1, 3, 0)}


def test_neither_padding_nor_its_cost_is_looked_at():
    costs = torch.full((1, 3, 2), float("nan"))
    costs[0, :2, 0] = torch.tensor([2.0, 1.0])
    pairs = match_masks(costs, torch.tensor([[True, True, False]]), torch.tensor([[True, False]]))
    assert [part.tolist() for part in pairs] == [[0], [1], [0]]


def test_shapes_that_do_not_agree_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4, 9\).*\(2, 3, 8\)"):
        pairwise_mask_costs(torch.zeros(2, 4, 9), torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*\(2, 4\).*\(2, 5\)"):
        match_masks(torch.zeros(2, 4, 3), torch.ones(2, 4).bool(), torch.ones(2, 5).bool())
