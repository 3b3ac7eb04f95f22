"""The questions about scenes: true answers, balance over many scenes, grammar."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from math import sqrt

import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_cutouts import NOUNS_OF_COLORS, planted_cutouts, unseen_library
from vistok.trainer import scene_questions
from vistok.trainer.cutout_vocabulary import CATEGORIES, NOUNS, Noun
from vistok.trainer.scene_questions import caption, draw_options, with_article
from vistok.trainer.scenes import Scene, SceneObject, draw_absent, draw_counts, make_scene, scene_rng


def ask(library, index, single_fraction=0.5):
    """The questions of a scene that is planned, but not drawn."""
    rng = scene_rng(0, "train", index)
    asked = rng.choice(library.names)
    counts = {asked: 1} if rng.random() < single_fraction else draw_counts(library, asked, rng)
    objects = [
        SceneObject(name, (0, 0, 1, 1), np.ones((1, 1)), name) for name, count in counts.items() for _ in range(count)
    ]
    return scene_questions.scene_questions(
        Scene(Image.new("RGB", (1, 1)), objects, asked), rng, library, single_fraction
    )


def test_what_is_asked_is_the_same_on_every_machine():
    library = unseen_library(NOUNS_OF_COLORS)
    text = json.dumps([ask(library, index) for index in range(20)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "484411f440aa566b"


def read_caption(text):
    """Counts of the nouns of `NOUNS_OF_COLORS` in a caption, by an independent reading of it."""
    counts = {}
    for part in text.replace(" and ", ", ").split(", "):
        word, noun = part.split()
        number = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}[word]
        counts[noun if number == 1 else noun.removesuffix("s")] = number
    return counts


def test_answers_follow_from_the_scene(tmp_path):
    planted = planted_cutouts(tmp_path)
    seen = set()
    for index in range(150):
        rng = scene_rng(6, "train", index)
        scene = make_scene(planted, rng, size=32)
        counts = Counter(item.name for item in scene.objects)
        for kind, question, answer in scene_questions.scene_questions(scene, rng, planted):
            named = [name for name in planted.names if name in question]
            seen.add((kind, answer))
            if kind == "naming":
                assert list(counts) == [answer]
            elif kind == "existence":
                assert answer == ("yes" if counts[named[0]] else "no")
            elif kind == "counting":
                assert answer == str(counts[named[0]])
            else:
                assert read_caption(answer) == counts
    assert {kind for kind, _ in seen} == {"naming", "existence", "counting", "caption"}  # two categories are too few
    assert {("counting", str(number)) for number in range(1, 6)} | {("existence", "yes"), ("existence", "no")} <= seen


@pytest.fixture(scope="module")
def many():
    """Questions about 6,000 scenes of the real vocabulary."""
    library = unseen_library()
    return [question for index in range(6000) for question in ask(library, index)]


def spread(values):
    """Largest deviation of the counts from their mean, in standard deviations of a fair draw."""
    values = list(values)
    mean = sum(values) / len(values)
    return max(abs(value - mean) for value in values) / sqrt(mean)


def words_in_question(kind, question):
    """What is left of a question without its template."""
    for template in scene_questions.TEMPLATES[kind]:
        before, after = template.split("{")[0], template.split("}")[1]
        if question.startswith(before) and question.endswith(after):
            return question.removeprefix(before).removesuffix(after)
    raise AssertionError(f"{question} has no template")


def guess_by_words(asked, kind):
    """Accuracy of the most frequent answer to each wording, learnt from one half and scored on the other."""
    pairs = [(words_in_question(kind, question), answer) for of, question, answer in asked if of == kind]
    half = len(pairs) // 2
    answers = defaultdict(Counter)
    for words, answer in pairs[:half]:
        answers[words][answer] += 1
    return np.mean([answers[words].most_common(1)[0][0] == answer for words, answer in pairs[half:]]), half


def test_existence_is_asked_of_every_noun_equally_often_with_both_answers(many):
    answers = {"yes": Counter(), "no": Counter()}
    for kind, question, answer in many:
        if kind == "existence":
            answers[answer][words_in_question(kind, question).split(" ", 1)[1]] += 1
    assert sum(answers["yes"].values()) == sum(answers["no"].values()) == 6000
    names = [noun.name for noun in NOUNS]
    for counts in answers.values():
        assert set(counts) == set(names)
        assert spread(counts.values()) < 4


def test_the_question_alone_does_not_tell_whether_something_exists(many):
    accuracy, number = guess_by_words(many, "existence")
    assert abs(accuracy - 0.5) < 4 * 0.5 / sqrt(number)


def test_related_nouns_are_never_absent_nor_beside_each_other():
    library = unseen_library([noun for noun in NOUNS if noun.name in ("bird", "duck", "penguin", "cow", "ball")])
    beside = set()
    for index in range(400):
        rng = scene_rng(7, "train", index)
        counts = draw_counts(library, rng.choice(library.names), rng)
        beside |= {(a, b) for a in counts for b in counts if a != b}
        assert draw_absent(library, {"duck": 1}, rng) in ("cow", "ball", "penguin")
    assert ("cow", "bird") in beside and ("duck", "penguin") in beside
    assert not beside & {("bird", "duck"), ("duck", "bird"), ("bird", "penguin"), ("penguin", "bird")}


def test_a_noun_with_many_related_ones_is_asked_for_as_absent_as_often_as_others():
    others = [Noun(f"n{index}", f"n{index}s", "thing") for index in range(19)]
    hub = Noun("hub", "hubs", "thing", related=tuple(noun.name for noun in others[:8]))
    library = unseen_library([hub, *others])
    rng = random.Random(0)
    absent = Counter(draw_absent(library, {rng.choice(library.names): 1}, rng) for _ in range(20000))
    # Chosen evenly among the nouns left in each scene, it would be absent in 11 of 20 scenes, and 40 % too seldom.
    assert abs(absent["hub"] - 1000) < 100


def test_every_count_is_the_answer_equally_often(many):
    counts = Counter(answer for kind, _, answer in many if kind == "counting")
    assert set(counts) == {"1", "2", "3", "4", "5"}
    assert spread(counts.values()) < 4


@pytest.mark.parametrize("single_fraction", [0.2, 0.8])
def test_counts_stay_balanced_for_other_shares_of_single_objects(single_fraction):
    library = unseen_library()
    asked = [question for index in range(3000) for question in ask(library, index, single_fraction)]
    assert spread(Counter(answer for kind, _, answer in asked if kind == "counting").values()) < 4


def test_the_question_alone_does_not_tell_the_count(many):
    accuracy, number = guess_by_words(many, "counting")
    assert abs(accuracy - 0.2) < 4 * 0.4 / sqrt(number)


def test_each_of_the_offered_categories_is_equally_often_the_right_one():
    library = unseen_library()
    rng = random.Random(0)
    right = defaultdict(Counter)
    for _ in range(20000):
        category = library.nouns[rng.choice(library.names)].category
        options = draw_options(category, library, rng)
        if options:
            assert category in options and len(set(options)) == 3
            right[tuple(sorted(options))][category] += 1
    assert "thing" not in {category for counts in right.values() for category in counts}
    frequent = {offer: counts for offer, counts in right.items() if sum(counts.values()) > 60}
    assert ("animal", "food", "vehicle") in frequent
    assert all(spread(counts[category] for category in offer) < 4 for offer, counts in frequent.items())


def test_category_questions_offer_their_answer(many):
    asked = [(question, answer) for kind, question, answer in many if kind == "category"]
    assert len(asked) > 300
    assert all(CATEGORIES[answer] in question and " or " in question for question, answer in asked)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a dog"),
        ("apple", "an apple"),
        ("ice cream", "an ice cream"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("ukulele", "a ukulele"),
        ("hourglass", "an hourglass"),
        ("horse", "a horse"),
        ("onion", "an onion"),
    ],
)
def test_article(name, expected):
    assert with_article(name) == expected


def test_articles_of_the_whole_vocabulary():
    spoken_with_vowel = {noun.name for noun in NOUNS if with_article(noun.name).startswith("an ")}
    assert spoken_with_vowel == {"airplane", "apple", "ice cream", "orange", "umbrella"}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"dog": 1}, "a dog"),
        ({"apple": 1, "dog": 2}, "two dogs and an apple"),
        ({"mouse": 1, "fish": 1}, "a fish and a mouse"),
        ({"mouse": 3}, "three mice"),
        ({"bus": 1, "sheep": 3, "apple": 1}, "three sheep, an apple and a bus"),
        ({"cow": 2, "butterfly": 2}, "two butterflies and two cows"),
    ],
)
def test_captions_are_ordered_by_number_then_alphabet(counts, expected):
    assert caption(counts, {noun.name: noun for noun in NOUNS}) == expected


def test_plurals_differ_from_the_singular_except_where_english_says_so():
    assert {noun.name for noun in NOUNS if noun.plural == noun.name} == {"deer", "fish", "sheep"}
    irregular = {noun.plural for noun in NOUNS if noun.plural != f"{noun.name}s"} - {"deer", "fish", "sheep"}
    assert irregular == {"buses", "butterflies", "glasses", "mailboxes", "mice", "strawberries", "wrenches"}
