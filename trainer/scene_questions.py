"""Questions about scenes, with answers that follow from what the scene holds."""

import random
from collections.abc import Mapping
from itertools import combinations
from math import prod
from typing import NamedTuple

from .cutout_vocabulary import CATEGORIES, Noun
from .cutouts import CutoutLibrary
from .scenes import Scene, draw_absent

# The wordings of each kind of question; one is drawn for each question.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "naming": (
        "What object is in the image?",
        "What kind of object does the image show?",
        "Which object do you see?",
    ),
    "existence": (
        "Is there {a_noun} in the image?",
        "Does the image show {a_noun}?",
        "Can you see {a_noun} in the image?",
    ),
    "counting": (
        "How many {nouns} are there in the image?",
        "How many {nouns} does the image show?",
        "What is the number of {nouns} in the image?",
    ),
    "caption": (
        "What does the image describe?",
        "Describe the image.",
        "Give a short caption for the image.",
    ),
    "category": (
        "Is the object {options}?",
        "What does the image show: {options}?",
    ),
}
KINDS = tuple(TEMPLATES)
NUMBERS = ("no", "one", "two", "three", "four", "five")
# Nouns whose first sound is not that of their first letter.
_SPOKEN_WITH_CONSONANT = ("uni", "use", "uku", "one")
_SPOKEN_WITH_VOWEL = ("hour", "heir", "honest")


class Question(NamedTuple):
    """A question about a scene.

    Args:
        kind (`str`): one of `KINDS`.
        question (`str`): its wording.
        answer (`str`): the answer.
    """

    kind: str
    question: str
    answer: str


def with_article(name: str) -> str:
    """Puts the indefinite article before a noun.

    Args:
        name (`str`): e.g. `"apple"`.

    Returns:
        `str`: e.g. `"an apple"`.
    """
    if name.startswith(_SPOKEN_WITH_CONSONANT):
        return f"a {name}"
    return f"an {name}" if name[0] in "aeiou" or name.startswith(_SPOKEN_WITH_VOWEL) else f"a {name}"


def caption(counts: Mapping[str, int], nouns: Mapping[str, Noun]) -> str:
    """Says what a scene holds: the most numerous first, nouns of equal number by the alphabet.

    Args:
        counts (`Mapping[str, int]`): number by noun, each at least 1.
        nouns (`Mapping[str, Noun]`): the vocabulary.

    Returns:
        `str`: e.g. `"two dogs and an apple"`.
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return _enumerate(
        [with_article(name) if count == 1 else f"{NUMBERS[count]} {nouns[name].plural}" for name, count in ordered],
        "and",
    )


def scene_questions(
    scene: Scene, rng: random.Random, vocabulary: CutoutLibrary, single_fraction: float = 0.5
) -> list[Question]:
    """Asks about a scene, so that over many scenes the questions alone tell little.

    Existence is asked about a noun present and an absent one, each noun equally often; every count is asked equally
    often; each of the categories that are offered is equally often the right one.

    Args:
        scene (`Scene`): the scene.
        rng (`random.Random`): random numbers.
        vocabulary (`CutoutLibrary`): the nouns that can be asked about.
        single_fraction (`float`): with which the scene was made, for the balance of the counts.

    Returns:
        `list[Question]`: four to six questions.
    """
    counts = scene.counts
    nouns = vocabulary.nouns
    questions: list[tuple[str, dict[str, str], str]] = []
    if len(counts) == 1:
        questions.append(("naming", {}, scene.asked))
    questions.append(("existence", {"a_noun": with_article(rng.choice(sorted(counts)))}, "yes"))
    absent = draw_absent(vocabulary, counts, rng)
    if absent is not None:
        questions.append(("existence", {"a_noun": with_article(absent)}, "no"))
    if len(scene.objects) > 1 or rng.random() < _share_of_single_counts(single_fraction):
        questions.append(("counting", {"nouns": nouns[scene.asked].plural}, str(counts[scene.asked])))
    questions.append(("caption", {}, caption(counts, nouns)))
    if len(counts) == 1:
        options = draw_options(nouns[scene.asked].category, vocabulary, rng)
        if options:
            text = _enumerate([CATEGORIES[option] for option in options], "or")
            questions.append(("category", {"options": text}, nouns[scene.asked].category))
    return [Question(kind, rng.choice(TEMPLATES[kind]).format(**words), answer) for kind, words, answer in questions]


def _share_of_single_counts(single_fraction: float) -> float:
    """How often a single object is counted, so that the answer 1 is as frequent as every other one.

    Among scenes with several objects, "1" is the answer half as often as 2, 3, 4 and 5 are: in 1/9 of them.
    """
    return min(1.0, (1 - single_fraction) / (9 * single_fraction)) if single_fraction else 0.0


def draw_options(category: str, vocabulary: CutoutLibrary, rng: random.Random, num_options: int = 3) -> list[str]:
    """Chooses the categories to offer, among them the right one, or declines to ask.

    With a category's share f of the nouns, three categories are offered with a probability proportional to the product
    of their shares, whichever of them is the right one: so each is right equally often.

    Args:
        category (`str`): the right category.
        vocabulary (`CutoutLibrary`): the nouns.
        rng (`random.Random`): random numbers.
        num_options (`int`): categories to offer.

    Returns:
        `list[str]`: categories in random order; empty if the question is not to be asked.
    """
    listed = [noun.category for noun in vocabulary.nouns.values()]
    shares = {name: listed.count(name) / len(listed) for name in CATEGORIES if name in listed}
    if category not in shares or len(shares) < num_options:
        return []

    def weighted(right: str) -> dict[tuple[str, ...], float]:
        others = sorted(shares.keys() - {right})
        return {wrong: prod(shares[name] for name in wrong) for wrong in combinations(others, num_options - 1)}

    totals = {right: sum(weighted(right).values()) for right in shares}
    if rng.random() >= totals[category] / max(totals.values()):
        return []
    choices = weighted(category)
    wrong = rng.choices(list(choices), list(choices.values()))[0]
    options = [category, *wrong]
    rng.shuffle(options)
    return options


def _enumerate(parts: list[str], conjunction: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"
