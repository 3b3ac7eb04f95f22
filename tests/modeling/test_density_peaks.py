"""Density peaks against the formulas written down patch by patch in exact arithmetic."""

import pytest
import torch

from tests.modeling.slow_clusters import slow_density_peaks
from vistok import density_peaks
from vistok.modeling.density_peaks import find_density_peaks


def assert_equals_the_slow_form(features, num_neighbors, **tolerance):
    for image, *found in zip(features, *density_peaks(features, num_neighbors)):
        for name, values, expected in zip(
            ("scores", "densities", "distances"), found, slow_density_peaks(image, num_neighbors)
        ):
            expected = torch.tensor(expected, dtype=torch.float64)
            assert torch.allclose(values.double(), expected, **tolerance), name


@pytest.mark.parametrize("num_neighbors", [1, 2, 5, 40])
def test_scores_densities_and_distances_are_those_of_the_formulas(num_neighbors):
    features = torch.randn(3, 17, 6, dtype=torch.float64)
    assert_equals_the_slow_form(features, num_neighbors, rtol=1e-12, atol=1e-13)
    assert_equals_the_slow_form(features.float(), num_neighbors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_neighbors", [1, 2, 3, 6])
def test_of_equally_dense_patches_the_lower_index_counts_as_denser(num_neighbors, dtype):
    lattice = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0), torch.arange(2.0))
    few_values = torch.randint(0, 2, (24, 3)).to(torch.float32)
    pairs = torch.randn(12, 3).repeat_interleave(2, dim=0)  # with two neighbours, each its partner's equal
    features = torch.stack([lattice, few_values, pairs, lattice[torch.randperm(24)]]).to(dtype)
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert_equals_the_slow_form(features, num_neighbors, **tolerance)


@pytest.mark.parametrize("num_patches", [1, 2, 3])
def test_images_of_few_patches_have_peaks_too(num_patches):
    assert_equals_the_slow_form(torch.randn(2, num_patches, 4, dtype=torch.float64), 5, rtol=1e-12, atol=1e-13)


def test_patches_that_are_all_alike_are_dense_and_score_nothing():
    for value in (0.0, 1.0, 1e3, 0.1):
        scores, densities, distances = density_peaks(torch.full((1, 9, 5), value), 3)
        assert not scores.any()
        assert not distances.any()
        assert (densities == 1).all()
    same = (100 * torch.randn(1, 1, 300)).expand(2, 50, 300)
    assert not density_peaks(same, 3)[0].any(), "equal features are exactly 0 apart, whatever they are"


def test_a_common_offset_of_all_features_costs_few_digits():
    features = torch.randn(1, 30, 16, dtype=torch.float64)
    expected = density_peaks(features, 4)[0]
    found = density_peaks((features + 100).float(), 4)[0]
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_densities_too_small_to_represent_still_have_an_order():
    features = 50 * torch.randn(1, 20, 8, dtype=torch.float64)
    _, densities, distances = density_peaks(features.float(), 4)
    assert not densities.any()
    assert torch.allclose(
        distances[0].double(), torch.tensor(slow_density_peaks(features[0], 4)[2]).double(), rtol=1e-4
    )


def test_distances_are_symmetric_and_zero_on_the_diagonal():
    squared = find_density_peaks(torch.randn(2, 61, 37), 5).squared
    assert torch.equal(squared, squared.transpose(1, 2))
    assert not squared.diagonal(dim1=1, dim2=2).any()
    assert (squared >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 16, 24), (4, 49, 70), (7, 100, 384)])
def test_an_image_scores_the_same_alone_and_in_any_batch_bit_by_bit(shape, dtype):
    features = torch.randn(shape).to(dtype)
    together = density_peaks(features, 5)
    for index in range(len(features)):
        alone = density_peaks(features[index : index + 1], 5)
        assert all(torch.equal(a[0], b[index]) for a, b in zip(alone, together))


def test_more_images_than_a_block_holds_are_all_computed():
    features = torch.randn(10, 64, 8192)  # two megabytes each
    together = find_density_peaks(features, 3)
    last = find_density_peaks(features[-1:], 3)
    assert torch.equal(together.squared[-1:], last.squared)
    assert torch.equal(together.scores[-1:], last.scores)


def test_half_precision_is_computed_in_single():
    features = torch.randn(2, 20, 16).bfloat16()
    scores = density_peaks(features, 5)[0]
    assert scores.dtype == torch.float32
    assert torch.equal(scores, density_peaks(features.float(), 5)[0])


def test_what_cannot_be_clustered_is_named():
    with pytest.raises(ValueError, match=r"shape \(4, 3\), expected .*\(batch, num_patches, hidden_size\)"):
        density_peaks(torch.randn(4, 3), 5)
    for shape in ((2, 0, 3), (0, 2, 3)):
        with pytest.raises(ValueError, match=r"at least one image and one patch"):
            density_peaks(torch.randn(shape), 5)
    with pytest.raises(ValueError, match="num_neighbors is 0"):
        density_peaks(torch.randn(1, 4, 3), 0)
    for value in (torch.nan, torch.inf):
        features = torch.randn(3, 4, 2)
        features[1, 2, 0] = value
        for num_neighbors in (1, 2, 4):
            with pytest.raises(ValueError, match=r"1 of 3 images \(the first is number 1\) are not finite"):
                density_peaks(features, num_neighbors)
