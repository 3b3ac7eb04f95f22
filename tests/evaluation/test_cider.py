"""CIDEr-D: against the published formula written out over a vocabulary, and planted cases."""

import math
import random
import sys

import numpy as np
import pytest

from tests.tiny import calls
from vistok.evaluation import cider as cider_module
from vistok.evaluation.cider import cider, cider_scores, constant_scores, score_captions, tokenize_captions

WORDS = ["a", "the", "red", "blue", "dog", "cat", "bird", "on", "under", "near", "sofa", "table", "street", "runs"]


def captions(number, num_references, seed=0):
    generator = random.Random(seed)

    def caption():
        return " ".join(generator.choices(WORDS, k=generator.randint(0, 12)))

    references = [[caption() for _ in range(generator.randint(1, num_references))] for _ in range(number)]
    predictions = [generator.choice([of_image[0], caption(), f"{of_image[0]} {caption()}"]) for of_image in references]
    return predictions, references


def published_cider_d(predictions, references, sigma=6.0):
    """
    Eq. 1 to 6 of Vedantam et al. (2015), in float64 and over explicit vectors: g_k(s) counts the n-gram k in s, its
    weight is the logarithm of the number of images over that of images with it in a reference.
    """
    num_images = len(references)

    def ngrams(text, n):
        words = text.split()
        return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]

    scores = np.zeros(num_images)
    for n in (1, 2, 3, 4):
        texts = [text for of_image in references for text in of_image] + list(predictions)
        vocabulary = sorted({ngram for text in texts for ngram in ngrams(text, n)})
        of_images = [{ngram for text in of_image for ngram in ngrams(text, n)} for of_image in references]
        images_with = np.array([sum(ngram in of_image for of_image in of_images) for ngram in vocabulary], np.float64)
        idf = np.log(num_images / np.maximum(1, images_with))
        position = {ngram: index for index, ngram in enumerate(vocabulary)}

        def vector(text, n=n, position=position, idf=idf):
            counts = np.zeros(len(position))
            for ngram in ngrams(text, n):
                counts[position[ngram]] += 1
            return counts * idf

        for index, (prediction, of_image) in enumerate(zip(predictions, references)):
            for reference in of_image:
                given, right = vector(prediction), vector(reference)
                norm = np.linalg.norm(given) * np.linalg.norm(right)
                if norm > 0:
                    difference = len(prediction.split()) - len(reference.split())
                    penalty = math.exp(-(difference**2) / (2 * sigma**2))
                    scores[index] += 10 / 4 / len(of_image) * penalty * (np.minimum(given, right) @ right) / norm
    return 100 * scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_published_formula(seed):
    predictions, references = captions(40, 4, seed)
    expected = published_cider_d(predictions, references)
    assert expected.max() > 100
    np.testing.assert_allclose(cider_scores(predictions, references), expected, rtol=1e-12, atol=1e-10)
    assert cider(predictions, references) == pytest.approx(expected.mean(), rel=1e-12)


def test_a_caption_of_unique_words_that_equals_its_only_reference_scores_1000():
    predictions = ["red dog runs near sofa", "blue bird flies under table"]
    assert cider_scores(predictions, [[caption] for caption in predictions]) == pytest.approx([1000, 1000])


def test_repeating_a_word_does_not_pay():
    references = [["dog runs"], ["cat sits"]]
    once, often = (cider_scores([text, "cat sits"], references)[0] for text in ("dog runs", "dog dog dog dog runs"))
    assert often < once


def test_a_single_image_scores_zero_with_a_warning(caplog):
    with caplog.at_level("WARNING", logger="vistok"):
        assert cider(["a dog"], [["a dog", "the dog"]]) == 0
    assert "CIDEr of a single image is 0" in caplog.messages[0]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a horse.", "a man riding a horse"),
        ("It isn't a dog's bowl...", "it is n't a dog 's bowl"),
        ('"Two" dogs - one (old) cat?', "two dogs one ( old ) cat"),
        ("A cat. A dog.", "a cat a dog"),
        ("full of tea..", "full of tea"),
        ("The U.S. flag at 10:30", "the u.s. flag at 10:30"),
        ("3.5 miles; a red/white house", "3.5 miles a red/white house"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_captions_are_tokenised_as_the_coco_evaluation_does(caption, words):
    assert tokenize_captions([caption]) == [words.split()]


def test_constant_captions_are_scored_as_one_by_one():
    references = [["a dog runs", "a brown dog"], ["two cats sleep"], ["a dog and a cat", "cats", "a bird on a dog"]]
    captions = ["a dog", "two cats sleep", "a bird on a dog", ""]
    expected = [cider([caption] * len(references), references) for caption in captions]
    assert constant_scores(captions, references) == pytest.approx(expected)


def test_the_references_of_constant_captions_are_tokenised_once(monkeypatch):
    tokenised = calls(monkeypatch, cider_module, "tokenize_captions")
    constant_scores(["a dog"] * 16, [["a dog runs"], ["two cats"]])
    assert len(tokenised) == 2


def test_the_report_counts_images_and_empty_captions():
    result = score_captions(["", "a cat"], [["a dog"], ["a cat"]], per_question=True)
    assert (result["num_questions"], result["num_unanswered"]) == (2, 1)
    assert result["cider"] == pytest.approx(sum(result["values"]["cider"]) / 2)
    assert result["values"]["cider"][0] == 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 predictions for 2 lists of references"),
        ([], [], "0 predictions for 0 lists of references"),
        (["a", "b"], [["a"], []], r"references of image 1 are \[\]"),
        (["a"], ["a"], "references of image 0 are 'a'"),
        ([None], [["a"]], "prediction 0 is None"),
    ],
)
def test_what_cannot_be_scored_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        cider(predictions, references)


def test_without_nltk_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize.treebank", None)
    with pytest.raises(ImportError, match=r"vistok\[evaluation\]"):
        cider_module.cider(["a"], [["a"]])
