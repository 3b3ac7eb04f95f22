"""Clusters to compare with: planted groups are found, grids have equal cells, and nothing depends on chance."""

import sys

import pytest
import torch

from vistok.evaluation.cluster_baselines import grid_clusters, kmeans_clusters, oracle_clusters, single_cluster


def groups(found):
    return {tuple(torch.nonzero(found == number).flatten().tolist()) for number in found.unique().tolist()}


def test_kmeans_finds_planted_groups():
    generator = torch.Generator().manual_seed(0)
    planted = torch.arange(60) % 5
    features = 10 * torch.randn(5, 8, generator=generator)[planted] + torch.randn(60, 8, generator=generator)
    found = kmeans_clusters(features, 5)
    assert groups(found) == groups(planted)
    assert torch.equal(found, kmeans_clusters(features, 5))


def test_kmeans_of_equal_features_has_one_cluster_and_no_warning(recwarn):
    assert kmeans_clusters(torch.ones(6, 3), 4).unique().tolist() == [0]
    assert not recwarn.list


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        kmeans_clusters(torch.full((4, 2), float("nan")), 2)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"vistok\[evaluation\]"):
        kmeans_clusters(torch.ones(6, 3), 4)


@pytest.mark.parametrize("grid_size", [(24, 24), (16, 30), (5, 2), (1, 9), (9, 1)])
def test_a_grid_has_exactly_as_many_cells_and_all_are_rectangles(grid_size):
    num_patches = grid_size[0] * grid_size[1]
    for number in range(1, num_patches + 1):
        cells = grid_clusters(grid_size, number).reshape(grid_size)
        assert cells.unique().tolist() == list(range(number))
        for cell in range(number):
            rows, columns = torch.nonzero(cells == cell, as_tuple=True)
            box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert len(rows) == box


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6, 7, 9, 16])
def test_the_cells_of_a_grid_have_nearly_the_same_area(number):
    areas = torch.bincount(grid_clusters((24, 24), number)).double()
    assert areas.max() / areas.min() < 1.35


def test_squares_are_divided_into_squares():
    assert grid_clusters((4, 4), 4).reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


def test_the_oracle_is_the_objects_and_the_floor_a_single_cluster():
    assert oracle_clusters(torch.tensor([0, 3, -1, 3, 1])).tolist() == [0, 2, 0, 2, 1]
    assert single_cluster(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("number", [0, 7])
def test_more_clusters_than_patches_are_refused(number):
    for cluster in (lambda: grid_clusters((2, 3), number), lambda: kmeans_clusters(torch.randn(6, 2), number)):
        with pytest.raises(ValueError, match=f"6 patches cannot make {number} clusters"):
            cluster()
