"""Zipf's law: the exponent of a power law over ranks, by maximum likelihood, and its distance from the counts."""

from typing import NamedTuple

import numpy as np

FEWEST_RANKS = 3
"""Two ranks fit any exponent exactly."""
_MOST_STEPS = 100
_PRECISION = 1e-10


class ZipfFit(NamedTuple):
    """
    A power law over the ranks 1 to K, p(r) = r^-s / (1^-s + … + K^-s).

    Attributes:
        exponent (`float`): s; 0 means that all words are equally frequent.
        num_ranks (`int`): K, how many ranks were fitted.
        distance (`float`): Kolmogorov-Smirnov distance, the greatest difference of the two cumulative distributions
            over ranks, from 0 to 1.
    """

    exponent: float
    num_ranks: int
    distance: float


def fit_zipf(counts: np.ndarray, num_ranks: int | None = None) -> ZipfFit | None:
    """
    Fits Zipf's law to counts of words by maximum likelihood: the discrete power law, truncated behind the last rank
    that is fitted. The exponent is the one under which the mean logarithm of the rank is the observed one.

    Fitted to all ranks of a small sample the exponent is too small: rare words that were not seen are missing at the
    end, and those that were seen have their rank by chance. A power law that is cut is a power law of the same
    exponent, so that the first ranks, whose order is certain, tell it without that error.

    Args:
        counts (`np.ndarray` of shape `(vocab_size,)`): how often each word occurred, or was expected to; in any order.
            Words that never occurred have no rank.
        num_ranks (`int`, *optional*): how many of the first ranks to fit; by default all.

    Returns:
        [`ZipfFit`] or `None`: `None` with fewer than three ranks.

    Raises:
        ValueError: if a count is negative or not finite.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("Counts of words are one number for each word of the vocabulary, finite and not negative.")
    by_rank = np.sort(counts[counts > 0])[::-1][:num_ranks]
    if len(by_rank) < FEWEST_RANKS:
        return None
    log_ranks = np.log(np.arange(1, len(by_rank) + 1))
    shares = by_rank / by_rank.sum()
    exponent = _exponent(float(shares @ log_ranks), log_ranks)
    distance = np.abs(np.cumsum(shares) - np.cumsum(_law(exponent, log_ranks))).max()
    return ZipfFit(exponent, len(by_rank), float(distance))


def zipf_probabilities(exponent: float, num_ranks: int) -> np.ndarray:
    """
    Zipf's law over the first ranks.

    Args:
        exponent (`float`): s.
        num_ranks (`int`): how many.

    Returns:
        `np.ndarray` of shape `(num_ranks,)`: sums to 1.
    """
    return _law(exponent, np.log(np.arange(1, num_ranks + 1)))


def _exponent(mean_log_rank: float, log_ranks: np.ndarray) -> float:
    """The exponent under which the mean logarithm of the rank, which falls with it, is the given one: Newton's steps,
    kept between bounds that close in on it."""
    low, high, exponent = -1.0, 2.0, 1.0  # it is not negative, as counts fall with the rank
    while high < 1e3 and _mean_log_rank(high, log_ranks)[0] > mean_log_rank:
        high *= 2
    for _ in range(_MOST_STEPS):
        mean, variance = _mean_log_rank(exponent, log_ranks)
        if mean > mean_log_rank:
            low = exponent
        else:
            high = exponent
        step = (mean - mean_log_rank) / max(variance, 1e-300)
        newton = exponent + step
        new = newton if low < newton < high else (low + high) / 2
        if abs(new - exponent) < _PRECISION * max(1.0, abs(exponent)):
            return new
        exponent = new
    return exponent


def _mean_log_rank(exponent: float, log_ranks: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the logarithm of the rank under the law."""
    probabilities = _law(exponent, log_ranks)
    mean = float(probabilities @ log_ranks)
    return mean, float(probabilities @ (log_ranks - mean) ** 2)


def _law(exponent: float, log_ranks: np.ndarray) -> np.ndarray:
    weights = -exponent * log_ranks
    weights = np.exp(weights - weights.max())
    return weights / weights.sum()


__all__ = ["ZipfFit", "fit_zipf", "zipf_probabilities"]
