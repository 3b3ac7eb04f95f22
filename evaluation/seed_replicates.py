"""Scores of models that were trained several times: means over seeds, and intervals for both seeds and images.

Two things make a score uncertain: the images that were asked about, and the seed that a model was trained with. Images
are resampled, all questions about one together, and the same ones for all models, so that differences are paired.
Seeds are few, and what resampling two of them says about their spread is mostly noise: their variance is pooled over
all kinds of models of a study instead (as the residual variance of an analysis of variance, which takes it to be the
same for all), and drawn with the degrees of freedom that the pool has. Models of two seeds also differ because each is
wrong about other images. That part of their variance is seen when images are resampled, and is not counted twice.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

AVERAGE = "average"
"""Name of the mean over all tasks, as in the last column of the tables of GVT."""


@dataclass(frozen=True)
class ImageScores:
    """
    The score of one trained model in one task, image by image.

    Args:
        sums (`np.ndarray` of shape `(num_images,)`): sum of the scores of the questions about an image.
        counts (`np.ndarray` of shape `(num_images,)`): number of these questions; may be 0.
    """

    sums: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_questions(
        cls, scores: Sequence[float], images: Sequence[Hashable], all_images: Sequence[Hashable]
    ) -> "ImageScores":
        """
        Gathers the scores of questions by image.

        Args:
            scores (`list[float]`): of each question, in the unit of the task.
            images (`list`): the image of each question.
            all_images (`list`): images in the order that all models share.

        Raises:
            ValueError: if there is not an image for each score, no question at all, or an unknown image.
        """
        if len(scores) != len(images) or not len(scores):
            raise ValueError(f"{len(scores)} scores and {len(images)} images were given, expected one for each score.")
        places = {image: place for place, image in enumerate(all_images)}
        if unknown := [image for image in images if image not in places]:
            raise ValueError(
                f"{len(unknown)} scores are of images that are not among all images, such as {unknown[0]!r}."
            )
        where = np.array([places[image] for image in images])
        values = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} scores are no finite numbers.")
        return cls(
            np.bincount(where, weights=values, minlength=len(places)), np.bincount(where, minlength=len(places))
        )


Replicates = Mapping[str, Sequence[ImageScores]]
"""Of one kind of model: by task, the scores of its replicates in the order of their seeds."""


@dataclass(frozen=True)
class SeedVariance:
    """
    How much scores of models that differ in the seed alone vary.

    Args:
        variance (`float`): of a single model's score.
        degrees (`int`): of freedom; 0 if no kind of model has several seeds, and the variance is unknown.
        of_images (`float`, *optional*, defaults to 0): the part of it that there would be with other images only.
    """

    variance: float
    degrees: int
    of_images: float = 0.0

    def draw(self, share: float, count: int) -> np.ndarray:
        """
        Draws what other seeds would add to a score: normally distributed, with a variance as uncertain as it is.

        Args:
            share (`float`): of the variance that the score has: 1 / number of seeds, for their mean.
            count (`int`): number of draws.
        """
        if not self.degrees or not self.variance:
            return np.zeros(count)
        generator = np.random.default_rng(1)
        drawn = self.variance * self.degrees / generator.chisquare(self.degrees, count) - self.of_images
        return np.sqrt(share * np.maximum(drawn, 0)) * generator.standard_normal(count)


@dataclass(frozen=True)
class Estimate:
    """
    A score, or a difference of scores, with its interval.

    Args:
        value (`float`): mean over seeds.
        low, high (`float`): ends of the interval; `None` where resampling tells nothing: all images are alike, and
            there is no greatest value to go by.
        seeds (`tuple[float, ...]`): the value of each seed; empty where models were not paired by seed.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...] = ()

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def score(one: ImageScores, weights: np.ndarray | None = None) -> np.ndarray:
    """
    Mean score over questions.

    Args:
        one ([`ImageScores`]): of a model in a task.
        weights (`np.ndarray` of shape `(num_resamples, num_images)`, *optional*): how often each image was drawn.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`, or of shape `()` without weights.
    """
    if weights is None:
        return np.asarray(one.sums.sum() / one.counts.sum())
    return (weights @ one.sums) / np.maximum(weights @ one.counts, 1e-9)


def scores_of_seeds(replicates: Replicates, measure: str, weights: np.ndarray | None = None) -> np.ndarray:
    """
    Scores of the replicates of one kind of model.

    Args:
        replicates (`dict[str, list[ImageScores]]`): by task.
        measure (`str`): a task, or [`AVERAGE`].
        weights (`np.ndarray`, *optional*): as in [`score`].

    Returns:
        `np.ndarray` of shape `(num_seeds,)` or `(num_seeds, num_resamples)`.

    Raises:
        ValueError: if the measure is unknown, or tasks have not the same number of replicates.
    """
    if measure != AVERAGE:
        if measure not in replicates:
            raise ValueError(f"{measure!r} is no task of these models: choose {', '.join([*replicates, AVERAGE])}.")
        return np.stack([score(one, weights) for one in replicates[measure]])
    if len({len(of_task) for of_task in replicates.values()}) != 1:
        raise ValueError(
            f"Tasks have {[len(of_task) for of_task in replicates.values()]} replicates, expected as many."
        )
    return np.mean([scores_of_seeds(replicates, task, weights) for task in replicates], axis=0)


def pooled_seed_variance(kinds: Iterable[Replicates], measure: str, weights: np.ndarray | None = None) -> SeedVariance:
    """
    Variance between seeds, pooled over kinds of models.

    Args:
        kinds (`list[dict]`): [`Replicates`] of each kind of model.
        measure (`str`): a task, or [`AVERAGE`].
        weights (`np.ndarray`, *optional*): from [`draw_images`], to tell which part of the variance is that of images.
    """
    squares, of_images, degrees = 0.0, 0.0, 0
    for replicates in kinds:
        scores = scores_of_seeds(replicates, measure)
        squares += float(((scores - scores.mean()) ** 2).sum())
        degrees += len(scores) - 1
        if weights is not None and len(scores) > 1:
            resampled = scores_of_seeds(replicates, measure, weights)
            of_images += float((resampled - resampled.mean(0)).var(1).sum())
    if not degrees:
        return SeedVariance(0.0, 0)
    return SeedVariance(squares / degrees, degrees, of_images / degrees)


def draw_images(num_images: int, num_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """
    Draws images with replacement, as many as there are.

    Args:
        num_images (`int`): images of the study.
        num_resamples (`int`, *optional*, defaults to 2000): how often.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_images)`: how often each image was drawn.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples).astype(np.float64)


def estimate_score(
    replicates: Replicates,
    measure: str,
    weights: np.ndarray,
    seeds: SeedVariance,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """
    Mean score over seeds, with the interval for other images and other seeds.

    Where all images score alike, resamples do, too, which is no proof that there are no others: the interval then has
    the exact ends of Clopper and Pearson, as in [`bootstrap_interval`].

    Args:
        replicates (`dict[str, list[ImageScores]]`): by task.
        measure (`str`): a task, or [`AVERAGE`].
        weights (`np.ndarray`): from [`draw_images`].
        seeds ([`SeedVariance`]): of this measure.
        level (`float`, *optional*, defaults to 0.95): coverage.
        bounds (`tuple[float, float]`, *optional*): the least and the greatest score that there can be.
    """
    found = scores_of_seeds(replicates, measure)
    resampled = scores_of_seeds(replicates, measure, weights).mean(0)
    low, high = _interval(resampled, seeds, 1 / len(found), level, _num_images(replicates, measure), bounds)
    return Estimate(float(found.mean()), low, high, tuple(map(float, found)))


def estimate_difference(
    first: Replicates,
    second: Replicates,
    measure: str,
    weights: np.ndarray,
    seeds: SeedVariance,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
    without_seeds: Sequence[Replicates] = (),
) -> Estimate:
    """
    How much higher the first kind of model scores than the second, paired by images.

    Args:
        first, second (`dict[str, list[ImageScores]]`): on the same images.
        measure, weights, seeds, level: see [`estimate_score`].
        bounds (`tuple[float, float]`, *optional*): the least and the greatest difference that there can be.
        without_seeds: see [`estimate_contrast`].
    """
    terms = [(first, 1.0), (second, -1.0)]
    found = estimate_contrast(terms, measure, weights, seeds, level, bounds, without_seeds)
    of_seeds = [scores_of_seeds(replicates, measure) for replicates in (first, second)]
    by_seed = of_seeds[0] - of_seeds[1] if len(of_seeds[0]) == len(of_seeds[1]) else ()
    return replace(found, seeds=tuple(map(float, by_seed)))


def estimate_contrast(
    terms: Sequence[tuple[Replicates, float]],
    measure: str,
    weights: np.ndarray,
    seeds: SeedVariance,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
    without_seeds: Sequence[Replicates] = (),
) -> Estimate:
    """
    A sum of the scores of several kinds of models, each with a factor, such as a difference of differences.

    Args:
        terms (`list[tuple]`): [`Replicates`] with their factors. A kind of model may be in several terms.
        measure, weights, seeds, level, bounds: see [`estimate_difference`].
        without_seeds (`list[dict]`, *optional*): [`Replicates`] among them of the one model that there is, which other
            seeds would not change: a start that all others share.
    """
    shares: dict[int, float] = {}  # of each model: one that is in two terms counts twice, or cancels out
    members: dict[int, Replicates] = {}
    for replicates, factor in terms:
        members[id(replicates)] = replicates
        shares[id(replicates)] = shares.get(id(replicates), 0.0) + factor
    value, of_variance, resampled = 0.0, 0.0, np.zeros(len(weights))
    for key, share in shares.items():
        found = scores_of_seeds(members[key], measure)
        value += share * float(found.mean())
        of_variance += 0.0 if any(members[key] is fixed for fixed in without_seeds) else share**2 / len(found)
        resampled += share * scores_of_seeds(members[key], measure, weights).mean(0)
    num_images = _num_images(terms[0][0], measure)
    return Estimate(value, *_interval(resampled, seeds, of_variance, level, num_images, bounds))


def _num_images(replicates: Replicates, measure: str) -> int:
    """The number of images that a task asks about; of the mean of all tasks the least."""
    of_tasks = replicates.values() if measure == AVERAGE else [replicates[measure]]
    return min(int((one.counts > 0).sum()) for of_task in of_tasks for one in of_task)


def _interval(
    resampled: np.ndarray,
    seeds: SeedVariance,
    share: float,
    level: float,
    num_images: int,
    bounds: tuple[float, float] | None,
) -> tuple[float | None, float | None]:
    """Percentiles of what other images and, independently of them, other seeds would have given."""
    tail = (1 - level) / 2
    if not seeds.variance and np.ptp(resampled) < 1e-9:
        if bounds is None:
            return None, None
        value, others = float(resampled[0]), 1 - tail ** (1 / num_images)
        return value - others * (value - bounds[0]), value + others * (bounds[1] - value)
    low, high = np.quantile(resampled + seeds.draw(share, len(resampled)), [tail, 1 - tail])
    return float(low), float(high)


__all__ = [
    "AVERAGE",
    "Estimate",
    "ImageScores",
    "Replicates",
    "SeedVariance",
    "draw_images",
    "estimate_contrast",
    "estimate_difference",
    "estimate_score",
    "pooled_seed_variance",
    "score",
    "scores_of_seeds",
]
