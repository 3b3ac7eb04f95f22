"""Cluster quality against formulas written from their definitions, pair by pair."""

import itertools

import numpy as np
import pytest
import torch

from vistok.evaluation.cluster_quality import (
    adjusted_rand_index,
    best_cluster_ious,
    image_quality,
    rank_correlation,
    rank_correlation_interval,
    summarise_quality,
    token_count_statistics,
)


def pair_counting_index(assignment, labels):
    """Over all pairs of patches: which are joined, and what chance would join (Hubert and Arabie, Eq. 5)."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    joined = [(assignment[i] == assignment[j], labels[i] == labels[j]) for i, j in pairs]
    both = np.float64(sum(a and b for a, b in joined))
    ours, theirs = (np.float64(sum(pair[side] for pair in joined)) for side in (0, 1))
    expected = ours * theirs / len(pairs)
    return (both - expected) / ((ours + theirs) / 2 - expected)


class TestAdjustedRandIndex:
    def test_it_is_that_of_the_definition_for_every_image_of_a_batch(self):
        generator = np.random.default_rng(0)
        assignment = generator.integers(-1, 4, (20, 30))
        labels = np.where(
            generator.random((20, 30)) < np.linspace(0, 1, 20)[:, None], assignment + 1, assignment[:, ::-1]
        )
        found = adjusted_rand_index(torch.from_numpy(assignment), torch.from_numpy(labels.copy()))
        expected = [pair_counting_index(*pair) for pair in zip(assignment, labels)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-13)
        assert found.dtype == torch.float64 and found.max() > 0.9 and found.min() < 0.1

    def test_it_is_that_of_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        generator = np.random.default_rng(1)
        assignment, labels = generator.integers(0, 9, (2, 8, 1024))
        labels[:4] = assignment[:4] % 3
        found = adjusted_rand_index(torch.from_numpy(assignment), torch.from_numpy(labels))
        expected = [metrics.adjusted_rand_score(*pair) for pair in zip(labels, assignment)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)

    def test_patches_that_do_not_count_change_nothing(self):
        generator = torch.Generator().manual_seed(0)
        assignment, labels = (torch.randint(0, 3, (4, 40), generator=generator) for _ in range(2))
        counted = torch.rand(4, 40, generator=generator) > 0.5
        found = adjusted_rand_index(assignment, labels, counted)
        for row in range(4):
            alone = adjusted_rand_index(assignment[row, counted[row]][None], labels[row, counted[row]][None])
            assert found[row] == alone[0]

    def test_equal_partitions_are_1_whatever_their_numbers_and_trivial_ones_too(self):
        labels = torch.tensor([[0, 0, 1, 1, 2], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]])
        assert adjusted_rand_index((labels + 3) % 5, labels).tolist() == [1, 1, 1]
        assert adjusted_rand_index(torch.zeros(1, 4).long(), torch.tensor([[0, 0, 1, 1]])).item() == 0
        assert torch.isnan(adjusted_rand_index(labels, labels, torch.zeros_like(labels, dtype=torch.bool))).all()

    @pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((1, 0), (1, 0))])
    def test_other_shapes_are_refused(self, shapes):
        with pytest.raises(ValueError, match="of shapes"):
            adjusted_rand_index(*(torch.zeros(shape).long() for shape in shapes))


class TestBestIoU:
    def test_clusters_of_patches_have_the_iou_of_their_pixels(self):
        generator = np.random.default_rng(0)
        pixels = generator.random((3, 12, 20)) > 0.6
        assignment = torch.from_numpy(generator.integers(-1, 4, (3, 5)))
        coverage = torch.from_numpy(pixels.reshape(3, 3, 4, 5, 4).mean((2, 4))).flatten(1)
        found = best_cluster_ious(assignment.flatten(), coverage)
        drawn = assignment.numpy().repeat(4, 0).repeat(4, 1)
        for mask, iou in zip(pixels, found.tolist()):
            each = [(mask & (drawn == n)).sum() / (mask | (drawn == n)).sum() for n in range(4)]
            assert iou == pytest.approx(max(each), abs=1e-12)

    def test_an_object_without_a_patch_has_none_and_ignored_patches_do_not_count(self):
        assignment = torch.tensor([0, 0, 1, 1])
        masks = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
        assert best_cluster_ious(assignment, masks).tolist() == pytest.approx([1, float("nan"), 0.5], nan_ok=True)
        counted = torch.tensor([True, True, True, False])
        assert best_cluster_ious(assignment, masks, counted)[2] == 1
        assert best_cluster_ious(torch.full((4,), -1), masks)[0] == 0

    def test_what_is_no_coverage_is_refused(self):
        with pytest.raises(ValueError, match="expected from 0 to 1"):
            best_cluster_ious(torch.zeros(2).long(), torch.tensor([[0.0, 4.0]]))
        with pytest.raises(ValueError, match="of shape"):
            best_cluster_ious(torch.zeros(2).long(), torch.zeros(1, 3))


class TestImages:
    LABELS = torch.tensor([0, 0, 1, 1, 2, -1])
    COVERAGE = torch.tensor([[0, 0.25, 1, 1, 0, 0], [0, 0, 0, 0, 0.75, 0], [0, 0.25, 0, 0, 0, 0]])

    def test_planted_clusters_have_planted_quality(self):
        found = image_quality("a", torch.tensor([0, 0, 1, 1, 1, 1]), self.LABELS, self.COVERAGE)
        assert (found.num_objects, found.num_tokens) == (3, 2)
        assert found.ari == pytest.approx(pair_counting_index([0, 0, 1, 1, 1], [0, 0, 1, 1, 2]))
        assert found.ari_objects == 0
        assert found.ious == pytest.approx((2 / 3, 1 / 3))
        assert found.pixel_ious == pytest.approx((2 / 3.25, 0.75 / 3, 0.25 / 2))

    def test_with_one_object_there_is_no_index_of_objects(self):
        found = image_quality("a", torch.zeros(6).long(), self.LABELS.clamp_max(1), self.COVERAGE[:1])
        assert found.ari_objects is None
        assert summarise_quality([found])["ari_objects"] is None

    def test_an_image_of_which_nothing_is_known_is_refused(self):
        with pytest.raises(ValueError, match="a: all patches are ignored"):
            image_quality("a", torch.zeros(6).long(), torch.full((6,), -1), self.COVERAGE)

    def test_means_are_over_images_or_objects_and_intervals_hold_them(self):
        clusterings = [torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 1, 1]), torch.zeros(6).long()]
        qualities = [image_quality("a", one, self.LABELS, self.COVERAGE) for one in clusterings]
        found = summarise_quality(qualities, num_resamples=200)
        assert found["ari"]["value"] == pytest.approx(np.mean([quality.ari for quality in qualities]))
        assert found["iou"]["value"] == pytest.approx(np.mean([1, 1, 2 / 3, 1 / 3, 2 / 5, 1 / 5]))
        assert found["num_tokens"]["value"] == 2 and found["rank_correlation"] is None
        assert found["num_images"] == 3 and found["num_objects"] == 9
        for name in ("ari", "ari_objects", "iou", "pixel_iou", "num_tokens"):
            low, high = found[name]["interval"]
            assert low <= found[name]["value"] <= high and low < high
        with pytest.raises(ValueError, match="no images"):
            summarise_quality([])

    def test_groups_are_resampled_as_a_whole(self):
        assignments = [torch.tensor([0, 0, 1, 1, 2, 2]), torch.zeros(6).long()]
        qualities = [
            image_quality(str(n), assignments[n % 2], self.LABELS, self.COVERAGE, group=f"photo {n % 2}")
            for n in range(40)
        ]
        apart, together = (summarise_quality(qualities, 300, by_group=by_group) for by_group in (False, True))
        assert apart["ari"]["value"] == together["ari"]["value"] == 0.5
        assert np.ptp(apart["ari"]["interval"]) < 0.4 and together["ari"]["interval"] == [0, 1]

    def test_correlations_resample_groups_as_a_whole(self):
        first, second = np.repeat([1, 2, 3, 4], 10), np.repeat([1, 2, 4, 3], 10)
        apart = rank_correlation_interval(first, second, 200)["interval"]
        together = rank_correlation_interval(first, second, 200, groups=list(map(str, first)))["interval"]
        assert together is None or np.ptp(together) > 2 * np.ptp(apart)


class TestCounts:
    def test_rank_correlation_is_that_of_scipy_with_ties(self):
        stats = pytest.importorskip("scipy.stats")
        first, second = np.random.default_rng(0).integers(0, 6, (2, 50))
        second = second + first
        assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
        assert rank_correlation([1, 2, 3], [1, 10, 11]) == 1 and rank_correlation([1, 2], [2, 1]) == -1
        assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([1], [1]) is None
        with pytest.raises(ValueError, match="2 and 3 values"):
            rank_correlation([1, 2], [1, 2, 3])

    def test_its_interval_narrows_with_images(self):
        first = np.random.default_rng(0).normal(size=400)
        second = first + np.random.default_rng(1).normal(size=400)
        few, many = (rank_correlation_interval(first[:n], second[:n], 300) for n in (40, 400))
        widths = [found["interval"][1] - found["interval"][0] for found in (few, many)]
        assert 2.2 < widths[0] / widths[1] < 6
        assert many["interval"][0] < many["value"] < many["interval"][1]
        assert rank_correlation_interval([1, 1, 1, 2], [1, 2, 3, 4], 300)["interval"] is None

    def test_token_counts_are_described(self):
        found = token_count_statistics([3, 5, 3, 9])
        assert found["histogram"] == {3: 2, 5: 1, 9: 1}
        assert (found["mean"], found["min"], found["median"], found["max"]) == (5, 3, 4, 9)
        assert found["std"] == pytest.approx(np.std([3, 5, 3, 9]))
        with pytest.raises(ValueError, match="no images"):
            token_count_statistics([])
