"""Numbers of attention maps, on maps whose numbers are known."""

import math

import numpy as np
import pytest

from vistok.evaluation.attention_statistics import (
    attention_numbers,
    head_divergence,
    jensen_shannon,
    mask_on_grid,
    share_in_mask,
)


def one_patch(*places: tuple[int, int], grid=(2, 3)) -> np.ndarray:
    """Heads of one query, each of which looks at one patch only."""
    maps = np.zeros((len(places), 1, *grid))
    for head, (row, column) in enumerate(places):
        maps[head, 0, row, column] = 0.3  # the rest of a query's attention is not on patches
    return maps


def test_heads_that_look_at_the_same_patch_do_not_diverge():
    assert head_divergence(one_patch((0, 1), (0, 1), (0, 1))) == 0


def test_heads_that_look_at_different_patches_diverge_by_one_bit():
    assert head_divergence(one_patch((0, 1), (1, 1))) == pytest.approx(1)


def test_the_mean_is_over_pairs_of_heads_and_over_queries():
    first = one_patch((0, 0), (0, 0), (1, 2))  # pairs: 0, 1, 1
    second = one_patch((0, 0), (0, 0), (0, 0))  # pairs: 0, 0, 0
    assert head_divergence(np.concatenate([first, second], axis=1)) == pytest.approx(1 / 3)


def test_the_divergence_is_that_of_the_definition():
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    middle = [0.375, 0.375, 0.25]
    expected = 0.5 * 2 * 0.5 * math.log2(0.5 / 0.375)
    expected += 0.5 * (2 * 0.25 * math.log2(0.25 / 0.375) + 0.5 * math.log2(0.5 / 0.25))
    assert middle == [(a + b) / 2 for a, b in zip(first, second)]
    assert jensen_shannon(first, second) == pytest.approx(expected)


def test_half_a_map_on_an_object_is_a_share_of_one_half():
    attention = np.zeros((2, 1, 2, 2))
    attention[0, 0, 0] = 0.2  # both patches of the upper row
    attention[1, 0] = 0.1  # all four alike
    mask = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(share_in_mask(attention, mask), [[0.5], [0.25]])


def test_even_attention_reaches_the_share_of_the_area():
    mask = np.random.default_rng(0).random((4, 4))
    assert share_in_mask(np.full((1, 1, 4, 4), 0.01), mask)[0, 0] == pytest.approx(mask.mean())


def test_a_patch_that_is_covered_in_part_counts_in_part():
    mask = np.zeros((4, 6), dtype=bool)
    mask[0, 0] = mask[0, 1] = mask[1, 0] = True  # three of the four pixels of the first patch
    mask[:2, 4:] = True
    np.testing.assert_allclose(mask_on_grid(mask, (2, 3)), [[0.75, 0, 1], [0, 0, 0]])


def test_numbers_come_image_by_image_with_the_floor():
    numbers = attention_numbers([one_patch((0, 0), (1, 1)), one_patch((0, 0), (0, 0))], [np.eye(2, 3)] * 2)
    assert numbers["head_divergence"] == pytest.approx([1, 0])
    assert numbers["share_in_masks"] == pytest.approx([1, 1])
    assert numbers["mask_area"] == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("maps", [np.zeros((2, 1, 2, 2)), np.full((2, 1, 2, 2), np.nan), -np.ones((2, 1, 2, 2))])
def test_what_is_no_distribution_is_refused(maps):
    with pytest.raises(ValueError, match="no distribution"):
        head_divergence(maps)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="at least 2 heads, got 1"):
        head_divergence(one_patch((0, 0)))
    with pytest.raises(ValueError, match="grid"):
        share_in_mask(one_patch((0, 0)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="5 × 6 pixels"):
        mask_on_grid(np.ones((5, 6)), (2, 3))
    with pytest.raises(ValueError, match="1 attention maps and 0 masks"):
        attention_numbers([one_patch((0, 0))], [])
