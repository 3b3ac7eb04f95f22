"""Language statistics of visual tokens: what the words of many images have in common with the words of a language."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..processing.token_labels import KINDS
from .zipf import ZipfFit, fit_zipf

FREQUENT = 20
"""In so many images, at least, a word has to be found, or so often be expected, for its rank to be certain."""
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
CURVE_POINTS = 100
TOP_WORDS = 50


class TokenStatistics:
    """
    Statistics of the visual-token distributions P' (VT-LMM, Eq. 5) of images that are read one after the other. Kept
    are sums over the vocabulary, for the intervals such sums of `num_resamples` resamples, and one number for each
    image. A resample counts each image as often as a Poisson variable of mean 1 says, which is a bootstrap of whole
    images: patches of one image are alike, and resampling single ones would make intervals too narrow.

    Args:
        vocab_size (`int`): V, how many tokens there are.
        num_resamples (`int`, *optional*, defaults to 200): resamples, of 8 V bytes each.
        seed (`int`, *optional*, defaults to 0): of the resampling.

    Raises:
        ValueError: if the vocabulary is empty or `num_resamples` is negative.
    """

    def __init__(self, vocab_size: int, num_resamples: int = 200, seed: int = 0):
        if vocab_size < 1 or num_resamples < 0:
            raise ValueError(
                f"vocab_size is {vocab_size} and num_resamples {num_resamples}: expected at least 1 and at least 0."
            )
        self.vocab_size, self.num_resamples, self.seed = vocab_size, num_resamples, seed
        self.num_images = self.num_patches = 0
        self.top_counts = np.zeros(vocab_size, dtype=np.int64)
        self.expected_counts = np.zeros(vocab_size)
        self.image_counts = np.zeros(vocab_size, dtype=np.int64)  # images in which a word is a most probable one
        self.distinct_words: list[int] = []  # after each image
        self._entropy_sum = 0.0
        self._generator = np.random.default_rng(seed)
        # In float32: a resample tells how uncertain a number is, and not the number.
        self._top_resamples = np.zeros((num_resamples, vocab_size), dtype=np.float32)
        self._expected_resamples = np.zeros((num_resamples, vocab_size), dtype=np.float32)
        self._entropy_resamples = np.zeros(num_resamples)

    def add(self, top_tokens: np.ndarray, expected_counts: np.ndarray, entropy: np.ndarray) -> None:
        """
        Counts the words of an image.

        Args:
            top_tokens (`np.ndarray` of shape `(num_patches,)`): the most probable token of each patch.
            expected_counts (`np.ndarray` of shape `(vocab_size,)`): sum of the patches' distributions.
            entropy (`np.ndarray` of shape `(num_patches,)`): of each patch's distribution, in nats.

        Raises:
            ValueError: if there is no patch, a number is not finite, an id lies beyond the vocabulary, or the expected
                counts do not sum to the number of patches.
        """
        top_tokens, expected_counts = np.asarray(top_tokens), np.asarray(expected_counts, dtype=np.float64)
        self._check(top_tokens, expected_counts, np.asarray(entropy))
        words, counts = np.unique(top_tokens, return_counts=True)
        times = self._generator.poisson(1.0, self.num_resamples).astype(np.float32)
        self.top_counts[words] += counts
        self.expected_counts += expected_counts
        self.image_counts[words] += 1
        self._top_resamples[:, words] += times[:, None] * counts.astype(np.float32)
        # In place: the product of the two would be as large as the resamples themselves.
        torch.from_numpy(self._expected_resamples).addr_(
            torch.from_numpy(times), torch.from_numpy(expected_counts.astype(np.float32))
        )
        self._entropy_sum += float(np.sum(entropy, dtype=np.float64))
        self._entropy_resamples += times * float(np.sum(entropy, dtype=np.float64))
        self.num_images += 1
        self.num_patches += len(top_tokens)
        self.distinct_words.append(int(np.count_nonzero(self.image_counts)))

    def _check(self, top_tokens: np.ndarray, expected_counts: np.ndarray, entropy: np.ndarray) -> None:
        number = self.num_images + 1
        if expected_counts.shape != (self.vocab_size,) or top_tokens.shape != entropy.shape or top_tokens.ndim != 1:
            raise ValueError(
                f"Image {number} has most probable tokens, expected counts and entropies of the shapes "
                f"{top_tokens.shape}, {expected_counts.shape} and {entropy.shape}: expected (num_patches,), "
                f"({self.vocab_size},) and (num_patches,)."
            )
        if not len(top_tokens) or top_tokens.min() < 0 or top_tokens.max() >= self.vocab_size:
            raise ValueError(
                f"Image {number} has no patch, or one with a token beyond the {self.vocab_size} there are."
            )
        total = expected_counts.sum()
        if not (np.isfinite(entropy).all() and abs(total - len(top_tokens)) <= 1e-2 * len(top_tokens)):
            raise ValueError(
                f"The distributions of image {number} sum to {total:g} over {len(top_tokens)} patches, or have an "
                "entropy that is not finite: the weights of the model may be damaged, or overflow in its dtype."
            )

    def results(self, labels: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """
        All numbers, as they are written to JSON. Entropies are in nats. Intervals are of 95 %, by the bootstrap
        over images; `None` for one image. Resamples lack words that the images have, so that all are off by the same
        bias: the interval is what they differ by, laid around the number, and around the corrected one for entropies,
        see [`TokenStatistics.entropies`]. What the images lack themselves the others do not tell: while further ones
        bring new words, exponents over all ranks are too small.

        Args:
            labels (`list[tuple[str, str]]`): text and kind of every token, as [`TokenLabels`] gives them.

        Returns:
            `dict`: `num_images`, `num_patches`, `vocab_size`, `distinct_words`; `rank_frequency` and `zipf`, of the
            most probable words and of the expected counts, over all ranks and over the frequent ones; `entropy` of the
            pooled distribution, mean of the patches, and their difference, the mutual information of patch and word;
            `kinds`, the shares of words, punctuation marks and so on; `new_words`; `top_words`; `num_resamples` and
            `seed`.

        Raises:
            ValueError: if no image was added, or there is not a label for every token.
        """
        if not self.num_images:
            raise ValueError("There are no statistics of no image: add at least one.")
        if len(labels) != self.vocab_size:
            raise ValueError(f"{len(labels)} labels were given for a vocabulary of {self.vocab_size}.")
        kinds = np.array([KINDS.index(label[1]) for label in labels])
        return {
            "num_images": self.num_images,
            "num_patches": self.num_patches,
            "vocab_size": self.vocab_size,
            "distinct_words": self.distinct_words[-1],
            "rank_frequency": {
                "most_probable": rank_frequency(self.top_counts),
                "expected": rank_frequency(self.expected_counts),
            },
            "zipf": self._zipf(),
            "entropy": self.entropies(),
            "kinds": self._kinds(kinds),
            "new_words": self._new_words(),
            "top_words": self._top_words(labels),
            "num_resamples": self.num_resamples,
            "seed": self.seed,
        }

    def _zipf(self) -> dict[str, Any]:
        certain = {
            "most_probable": int(np.count_nonzero(self.image_counts >= FREQUENT)),
            "expected": int(np.count_nonzero(self.expected_counts >= FREQUENT)),
        }
        counted = {
            "most_probable": (self.top_counts, self._top_resamples),
            "expected": (self.expected_counts, self._expected_resamples),
        }
        return {
            name: {
                "all_ranks": self._fit(*counts, None),
                "frequent_ranks": self._fit(*counts, certain[name]),
            }
            for name, counts in counted.items()
        }

    def _fit(self, counts: np.ndarray, resamples: np.ndarray, num_ranks: int | None) -> dict[str, Any] | None:
        fit = fit_zipf(counts, num_ranks)
        if fit is None:
            return None
        refitted = [fit_zipf(resample, num_ranks) for resample in resamples]
        exponents = [other.exponent for other in refitted if other is not None]
        return {
            **ZipfFit._asdict(fit),
            "interval": self._interval(fit.exponent, np.array(exponents)),
            "share_fitted": float(np.sort(counts)[::-1][: fit.num_ranks].sum() / counts.sum()),
        }

    def entropies(self) -> dict[str, Any]:
        """
        Entropies in nats, with 95 % intervals of those of all images there could be. The entropy of counts is too
        small on average, and so is the difference of pooled and mean entropy: resamples fall short of the counts by
        about as much as these fall short of the truth, which is the correction of the bootstrap. It falls short
        itself, and so the upper end has it twice. Of words it knows only those that were found. The share of patches
        that others have is that of words of a single image (Good and Turing); the upper end of the interval of the
        most probable words has them spread evenly over all tokens that were not found.

        Returns:
            `dict`: for each name `value`, of the counts as they are, `corrected` and `interval`, in which the value
            need not lie; `None` for one image.
        """
        pooled, of_patches = entropy_of(self.expected_counts), self._entropy_sum / self.num_patches
        drawn = self._expected_resamples.sum(1)  # patches in a resample
        is_drawn = drawn > 0
        pooled_resamples = np.array([entropy_of(row) for row in self._expected_resamples[is_drawn]])
        patch_resamples = self._entropy_resamples[is_drawn] / drawn[is_drawn]
        of_words = np.array([entropy_of(row) for row in self._top_resamples[is_drawn]])
        return {
            "most_probable_words": self._corrected(entropy_of(self.top_counts), of_words, self._with_unseen_words),
            "pooled": self._corrected(pooled, pooled_resamples),
            "mean_of_patches": self._estimate(of_patches, patch_resamples, low=0.0),
            "mutual_information": self._corrected(pooled - of_patches, pooled_resamples - patch_resamples),
            "of_uniform": {"value": math.log(self.vocab_size)},
        }

    def _corrected(
        self, value: float, resampled: np.ndarray, at_most: Callable[[float], float] | None = None
    ) -> dict[str, Any]:
        """An entropy with its correction; `at_most` gives the largest it may be, if what was found has so much."""
        if self.num_images < 2 or len(resampled) < 2:
            return {"value": value, "corrected": None, "interval": None}
        most = math.log(self.vocab_size)
        corrected = min(max(2 * value - float(resampled.mean()), 0.0), most)
        below, above = np.quantile(resampled, TAILS) - resampled.mean()
        largest = max(corrected, 2 * corrected - value if at_most is None else at_most(corrected))
        ends = np.array([corrected + below, largest + above]).clip(0.0, most)
        return {"value": value, "corrected": corrected, "interval": ends.tolist()}

    def _with_unseen_words(self, entropy: float) -> float:
        unseen = float(self.top_counts[self.image_counts == 1].sum() / self.num_patches)
        num_unseen = self.vocab_size - self.distinct_words[-1]
        if not unseen or not num_unseen:
            return entropy
        return entropy_of(np.array([unseen, 1 - unseen])) + (1 - unseen) * entropy + unseen * math.log(num_unseen)

    def _kinds(self, kinds: np.ndarray) -> dict[str, Any]:
        shares = {}
        for number, kind in enumerate(KINDS):
            chosen = kinds == number
            shares[kind] = {
                "num_tokens": int(chosen.sum()),
                "most_probable": self._share(chosen, self.top_counts, self._top_resamples),
                "expected": self._share(chosen, self.expected_counts, self._expected_resamples),
            }
        return shares

    def _share(self, chosen: np.ndarray, counts: np.ndarray, resamples: np.ndarray) -> dict[str, Any]:
        totals = resamples.sum(1)
        drawn = totals > 0
        shares = resamples[drawn][:, chosen].sum(1) / totals[drawn]
        return self._estimate(float(counts[chosen].sum() / counts.sum()), shares, low=0.0, high=1.0)

    def _new_words(self) -> dict[str, Any]:
        points = curve_points(self.num_images)
        expected = expected_distinct_words(self.image_counts, points, self.num_images)
        before = expected_distinct_words(self.image_counts, points - 1, self.num_images)
        return {
            "images": points.tolist(),
            "distinct_words_in_order": [self.distinct_words[point - 1] for point in points],
            "distinct_words_expected": expected.tolist(),
            "new_words_expected": (expected - before).tolist(),
            # Good and Turing: a word that is in one image only is new when that image comes last.
            "expected_in_another_image": float(np.count_nonzero(self.image_counts == 1) / self.num_images),
        }

    def _top_words(self, labels: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        order = np.argsort(-self.top_counts, kind="stable")[:TOP_WORDS]
        return [
            {
                "rank": rank,
                "token_id": int(word),
                "word": labels[word][0],
                "kind": labels[word][1],
                "count": int(self.top_counts[word]),
                "share": float(self.top_counts[word] / self.num_patches),
                "expected_share": float(self.expected_counts[word] / self.expected_counts.sum()),
                "num_images": int(self.image_counts[word]),
            }
            for rank, word in enumerate(order, start=1)
            if self.top_counts[word]
        ]

    def _estimate(self, value: float, resampled: np.ndarray, **bounds: float) -> dict[str, Any]:
        return {"value": value, "interval": self._interval(value, resampled, **bounds)}

    def _interval(self, value: float, resampled: np.ndarray, low: float = -math.inf, high: float = math.inf):
        if self.num_images < 2 or len(resampled) < 2:
            return None
        ends = value + np.quantile(resampled, TAILS) - resampled.mean()
        return [float(end) for end in ends.clip(low, high)]


def entropy_of(counts: np.ndarray) -> float:
    """
    Entropy of the distribution that counts are in proportion to.

    Args:
        counts (`np.ndarray` of shape `(vocab_size,)`): not negative, not all 0.

    Returns:
        `float`: in nats.
    """
    shares = np.asarray(counts, dtype=np.float64)
    shares = shares[shares > 0] / shares.sum()
    return max(0.0, -float(shares @ np.log(shares)))


def expected_distinct_words(image_counts: np.ndarray, points: np.ndarray, num_images: int) -> np.ndarray:
    """
    How many distinct words a part of the images has: the mean over all choices of so many images, exactly, and so
    without the chance of an order. A word in D of M images is in none of m of them with the probability
    C(M - D, m) / C(M, m).

    Args:
        image_counts (`np.ndarray` of shape `(vocab_size,)`): in how many images each word is.
        points (`np.ndarray` of shape `(num_points,)`): numbers of images m, from 0 to `num_images`.
        num_images (`int`): M.

    Returns:
        `np.ndarray` of shape `(num_points,)`.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_images + 1)))])
    in_images, num_words = np.unique(image_counts[image_counts > 0], return_counts=True)
    left = num_images - in_images  # images without the word
    missing = np.zeros((len(points), len(in_images)))
    for place, point in enumerate(points):
        can_miss = left >= point
        log_share = (
            log_factorial[left[can_miss]]
            - log_factorial[left[can_miss] - point]
            - log_factorial[num_images]
            + log_factorial[num_images - point]
        )
        missing[place, can_miss] = np.exp(log_share)
    return (1 - missing) @ num_words


def rank_frequency(counts: np.ndarray) -> dict[str, list]:
    """
    Shares by rank: all of the first ranks, and of the further ones about a hundred.

    Args:
        counts (`np.ndarray` of shape `(vocab_size,)`): not negative, not all 0.

    Returns:
        `dict`: `rank`, from 1, and `share`, of all counts. Words that never occurred have no rank.
    """
    by_rank = np.sort(counts[counts > 0])[::-1] / counts.sum()
    ranks = curve_points(len(by_rank))
    return {"rank": ranks.tolist(), "share": by_rank[ranks - 1].tolist()}


def curve_points(last: int) -> np.ndarray:
    """
    Numbers at which a curve is told: all of a few, and of many about a hundred, closer at the beginning.

    Args:
        last (`int`): the last one.

    Returns:
        `np.ndarray` of shape `(num_points,)`: rising, from 1.
    """
    if last <= CURVE_POINTS:
        return np.arange(1, last + 1)
    return np.unique(np.rint(np.geomspace(1, last, CURVE_POINTS)).astype(np.int64))


__all__ = ["TokenStatistics", "curve_points", "entropy_of", "expected_distinct_words", "rank_frequency"]
