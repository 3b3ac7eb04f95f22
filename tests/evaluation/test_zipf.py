"""Zipf's law by maximum likelihood: planted exponents, and the formula itself."""

import numpy as np
import pytest

from vistok.evaluation.zipf import fit_zipf, zipf_probabilities


def likelihood(counts: np.ndarray, exponent: float) -> float:
    ranks = np.arange(1, len(counts) + 1)
    return float(counts @ (-exponent * np.log(ranks) - np.log((ranks**-exponent).sum())))


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0, 1.7, 4.0])
def test_exact_counts_give_their_exponent(exponent):
    fit = fit_zipf(1e6 * zipf_probabilities(exponent, 300))
    assert fit.exponent == pytest.approx(exponent, abs=1e-6)
    assert fit.num_ranks == 300
    assert fit.distance < 1e-6


def test_no_other_exponent_is_more_likely():
    counts = np.sort(np.random.default_rng(0).geometric(0.02, 60))[::-1].astype(float)
    found = fit_zipf(counts).exponent
    best = likelihood(counts, found)
    assert all(likelihood(counts, found + step) < best for step in (-0.1, -1e-3, 1e-3, 0.1))


def test_the_distance_is_the_greatest_difference_of_the_cumulative_distributions():
    counts = np.array([50.0, 20, 20, 5, 5])
    fit = fit_zipf(counts)
    weights = np.arange(1, 6) ** -fit.exponent
    difference = np.cumsum(counts) / 100 - np.cumsum(weights) / weights.sum()
    assert fit.distance == pytest.approx(np.abs(difference).max())


def test_the_order_of_words_and_words_that_never_occurred_do_not_matter():
    counts = np.array([3.0, 0, 9, 1, 0, 4])
    assert fit_zipf(counts) == fit_zipf(np.array([9.0, 4, 3, 1]))


def test_the_first_ranks_of_a_power_law_have_its_exponent():
    counts = 1e6 * zipf_probabilities(1.2, 1000)
    fit = fit_zipf(counts, num_ranks=40)
    assert (fit.num_ranks, fit.exponent) == (40, pytest.approx(1.2, abs=1e-6))


def test_the_first_ranks_of_a_sample_are_nearer_to_the_truth_than_all():
    drawn = np.random.default_rng(0).multinomial(20_000, zipf_probabilities(1.0, 20_000))
    frequent = fit_zipf(drawn, num_ranks=int((drawn >= 20).sum())).exponent
    assert abs(frequent - 1) < 0.02 < abs(fit_zipf(drawn).exponent - 1)


def test_two_words_fit_no_law():
    assert fit_zipf(np.array([5.0, 3, 0])) is None


@pytest.mark.parametrize("counts", [[1.0, -1, 2], [1.0, np.nan, 2], [[1.0, 2, 3]]])
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="finite and not negative"):
        fit_zipf(np.array(counts))
