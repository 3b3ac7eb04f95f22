"""Confidence intervals of any statistic of means, by resampling whole images."""

import functools
from collections.abc import Callable, Hashable, Sequence

import numpy as np

MAX_REMEMBERED = 8192  # clusters: 128 MiB
ROUNDING = 1e-12  # relative difference of sums of the same numbers

Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes means of columns, `(…, num_columns)`, and returns the statistic, `(…)`."""


def first_column(means: np.ndarray) -> np.ndarray:
    """The statistic that is a mean itself."""
    return means[..., 0]


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    statistic: Statistic = first_column,
) -> list[float] | None:
    """
    Percentile interval of a mean, or of a statistic of several means (an F1, the root of a mean square), by resampling
    whole clusters: questions about one image are right or wrong together, and resampling single ones would make the
    interval too narrow.

    Where all resamples are alike, as those of clusters that are all alike, that is no proof that there are no others.
    The interval of a mean with known bounds then has the exact ends of Clopper and Pearson for the share of other
    clusters, of which `n` were drawn and none was found: at most `1 - ((1 - level) / 2) ** (1 / n)`. These may have
    any value within `bounds`. Any other statistic, such as a ratio of sums, has no interval then: how many clusters
    its denominator comes from is not known here.

    Args:
        values (`list[float]` or `np.ndarray` of shape `(num_values,)` or `(num_values, num_columns)`): for instance 1
            for each right and 0 for each wrong answer.
        clusters (`list`): the cluster of each value, such as its image.
        level (`float`, *optional*, defaults to 0.95): coverage.
        num_resamples (`int`, *optional*, defaults to 2000): number of resamples.
        seed (`int`, *optional*, defaults to 0): of the resampling.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`): the least and the greatest value there
            can be; `None` if there are none.
        statistic (`Callable`, *optional*): of the means of the columns; by default the first one itself.

    Returns:
        `list[float]` or `None`: lower and upper end; `None` with fewer than two clusters, or if all resamples are
        alike and there are no bounds or the statistic is no mean.

    Raises:
        ValueError: if there are not as many clusters as values.
    """
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    numbers, sums, counts = _clusters(columns, clusters)
    if numbers < 2:
        return None
    tail = (1 - level) / 2
    found = float(statistic(sums.sum(0) / counts.sum()))
    resampled = statistic(_resampled_means(sums, counts, num_resamples, seed))
    if np.ptp(resampled) <= ROUNDING * max(1.0, abs(found)):
        if bounds is None or statistic is not first_column:
            return None
        others = 1 - tail ** (1 / numbers)
        return [found - others * (found - bounds[0]), found + others * (bounds[1] - found)]
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return [float(min(low, found)), float(max(high, found))]


def _resampled_means(sums: np.ndarray, counts: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Means of the columns over clusters drawn with repetition, `(num_resamples, num_columns)`."""
    if len(counts) <= MAX_REMEMBERED:
        times = _times_drawn(len(counts), num_resamples, seed)
        return (times @ sums) / (times @ counts)[:, None]
    generator = np.random.default_rng(seed)
    means = np.empty((num_resamples, sums.shape[1]))
    for row in range(num_resamples):
        drawn = generator.integers(0, len(counts), len(counts))
        means[row] = sums[drawn].sum(0) / counts[drawn].sum()
    return means


@functools.lru_cache(maxsize=2)
def _times_drawn(number: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each of so many clusters is drawn in each resample: the same for all metrics of the same questions."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(generator.integers(0, number, number), minlength=number) for _ in range(num_resamples)]
    ).astype(np.float64)


def _clusters(columns: np.ndarray, clusters: Sequence[Hashable]) -> tuple[int, np.ndarray, np.ndarray]:
    """How many clusters there are, the sums of each, and its size."""
    if len(columns) != len(clusters):
        raise ValueError(f"{len(columns)} values and {len(clusters)} clusters were given: give each value one.")
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    members = np.array([numbers[cluster] for cluster in clusters], dtype=np.int64)
    sums = np.stack([np.bincount(members, weights=column) for column in columns.T], axis=1)
    return len(numbers), sums, np.bincount(members)


__all__ = ["Statistic", "bootstrap_interval", "first_column"]
