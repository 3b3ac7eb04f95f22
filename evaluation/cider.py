"""CIDEr-D of image captions, as the COCO caption evaluation computes it, without Java."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from ..configuration.optional import require
from .prediction_checks import check_predictions, check_text_lists

logger = logging.get_logger(__name__)

LONGEST_NGRAM = 4
LENGTH_SIGMA = 6.0
"""Standard deviation of the penalty on captions of other lengths, in words."""

# What the COCO caption evaluation drops. Brackets stay: it looks for names that they have in upper case only.
DROPPED_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# NLTK's tokenizer takes a text for one sentence. Stops after single letters may be those of an abbreviation.
_FULL_STOPS = re.compile(r"(?<=\w\w)\.+(?=\s|$)")

Ngram = tuple[str, ...]
Vector = Mapping[Ngram, float]


def tokenize_captions(captions: Iterable[str]) -> list[list[str]]:
    """
    Words of captions: Penn Treebank tokens in lower case, without punctuation.

    Args:
        captions (`list[str]`): text.

    Returns:
        `list[list[str]]`: words of each.

    Raises:
        ImportError: if nltk is not installed; names the extra.
    """
    tokenizer = require("nltk.tokenize.treebank", "evaluation").TreebankWordTokenizer()
    return [
        [token.lower() for token in tokenizer.tokenize(sentences) if token not in DROPPED_PUNCTUATION]
        for sentences in (_FULL_STOPS.sub(" . ", caption) for caption in captions)
    ]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """
    CIDEr-D of captions, times 100, as papers print it: the mean of [`cider_scores`].

    It depends on the set of images: words that the references of many images use count little. Of a single image it is
    0. Compare numbers of the same images only.

    Args:
        predictions (`list[str]`): a caption for each image.
        references (`list[list[str]]`): the reference captions of each image, one or more.

    Returns:
        `float`: 0 or greater; 100 is about as much as people agree with each other on COCO.

    Raises:
        ValueError: if there are no images, not as many predictions, or an image without references.
        ImportError: if nltk is not installed; names the extra.
    """
    scores = cider_scores(predictions, references)
    return sum(scores) / len(scores)


def cider_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """
    CIDEr-D of each image, times 100 (Vedantam et al. 2015, Eq. 3 to 6, in the "D" variant).

    For n from 1 to 4, captions are vectors of n-gram counts times inverse document frequencies, `log(images / images
    whose references have the n-gram)`. The similarity of a prediction c to a reference r is the clipped cosine
    `Σ min(c, r) · r / (‖c‖ ‖r‖)` times `exp(-(difference of lengths)² / (2 · 6²))`. The score is 10 times its mean
    over n and over references.

    Args:
        predictions, references: see [`cider`].

    Returns:
        `list[float]`: for each image.

    Raises:
        ValueError, ImportError: see [`cider`].
    """
    check_predictions(predictions, references, "lists of references")
    check_text_lists(references, "references of image")
    if len(predictions) == 1:
        logger.warning("CIDEr of a single image is 0: the weights of words come from the references of many images.")
    counts = [_ngram_counts(words) for words in tokenize_captions(predictions)]
    reference_counts, weights, unseen = _prepared(references)
    scores = []
    for candidate, of_image in zip(counts, reference_counts):
        weighted = _Weighted(candidate, weights, unseen)
        total = sum(weighted.similarity(_Weighted(reference, weights, unseen)) for reference in of_image)
        scores.append(100 * 10 * total / len(of_image))
    return scores


def constant_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """
    CIDEr-D of each caption if it is predicted for every image. The references are prepared once for all captions.

    Args:
        captions (`list[str]`): candidates.
        references: see [`cider`].

    Returns:
        `list[float]`: [`cider`] of each.

    Raises:
        ValueError, ImportError: see [`cider`].
    """
    check_predictions(captions, captions, "captions")
    check_text_lists(references, "references of image")
    reference_counts, weights, unseen = _prepared(references)
    candidates = [_Weighted(_ngram_counts(words), weights, unseen) for words in tokenize_captions(captions)]
    totals = [0.0] * len(candidates)
    for of_image in reference_counts:
        for counts in of_image:
            reference = _Weighted(counts, weights, unseen)
            for number, candidate in enumerate(candidates):
                totals[number] += candidate.similarity(reference) / len(of_image)
    return [100 * 10 * total / len(references) for total in totals]


def score_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], per_question: bool = False
) -> dict[str, Any]:
    """
    CIDEr-D as a report of it.

    Args:
        predictions, references: see [`cider`].
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each image.

    Returns:
        `dict`: `cider` (×100), `num_questions` (images), `num_unanswered` (captions without a word). With
        `per_question` also `values`: `cider` of each image, of which the total is the mean.

    Raises:
        ValueError, ImportError: see [`cider`].
    """
    scores = cider_scores(predictions, references)
    result: dict[str, Any] = {
        "cider": sum(scores) / len(scores),
        "num_questions": len(scores),
        "num_unanswered": sum(not words for words in tokenize_captions(predictions)),
    }
    return {**result, "values": {"cider": scores}} if per_question else result


def _prepared(references: Sequence[Sequence[str]]) -> tuple[list[list[Counter[Ngram]]], Vector, float]:
    """N-grams of each reference, and the weights of n-grams: of those that references have, and of all others."""
    words = iter(tokenize_captions(caption for captions in references for caption in captions))
    counts = [[_ngram_counts(next(words)) for _ in captions] for captions in references]
    return counts, _inverse_document_frequencies(counts), math.log(len(references))


def _ngram_counts(words: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST_NGRAM + 1)
        for start in range(len(words) - length + 1)
    )


def _inverse_document_frequencies(reference_counts: Sequence[Sequence[Counter[Ngram]]]) -> dict[Ngram, float]:
    images: Counter[Ngram] = Counter()
    for of_image in reference_counts:
        images.update({ngram for counts in of_image for ngram in counts})
    logarithms = {number: math.log(len(reference_counts)) - math.log(number) for number in set(images.values())}
    return {ngram: logarithms[number] for ngram, number in images.items()}


class _Weighted:
    """A caption as vectors of weighted n-gram counts, one for each n."""

    def __init__(self, counts: Counter[Ngram], weights: Vector, unseen: float):
        self.vectors: list[dict[Ngram, float]] = [{} for _ in range(LONGEST_NGRAM)]
        for ngram, count in counts.items():
            self.vectors[len(ngram) - 1][ngram] = count * weights.get(ngram, unseen)
        self.norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in self.vectors]
        self.num_words = sum(count for ngram, count in counts.items() if len(ngram) == 1)

    def similarity(self, reference: "_Weighted") -> float:
        """Mean over n of the clipped cosine, times the penalty on the difference in length."""
        total = 0.0
        for vector, other, norm, other_norm in zip(self.vectors, reference.vectors, self.norms, reference.norms):
            if norm and other_norm:
                product = sum(
                    min(value, other[ngram]) * other[ngram] for ngram, value in vector.items() if ngram in other
                )
                total += product / (norm * other_norm)
        difference = self.num_words - reference.num_words
        return total / LONGEST_NGRAM * math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))


__all__ = ["cider", "cider_scores", "constant_scores", "score_captions", "tokenize_captions"]
