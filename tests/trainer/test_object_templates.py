"""Names of classes are said in English, whatever way an annotation file writes them."""

import pytest

from vistok.trainer.cutout_vocabulary import NOUNS
from vistok.trainer.object_templates import OBJECT_KINDS, TEMPLATE_SETS, check_templates, plural, spoken_classes


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.name)
def test_plurals_are_those_of_the_vocabulary_of_scenes(noun):
    assert plural(noun.name) == noun.plural


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("traffic light", "traffic lights"),
        ("person", "people"),
        ("wine glass", "wine glasses"),
        ("toothbrush", "toothbrushes"),
        ("knife", "knives"),
        ("teddy bear", "teddy bears"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("leather shoes", "leather shoes"),
        ("american football", "american footballs"),
        ("fire extinguisher", "fire extinguishers"),
        ("snowman", "snowmen"),
        ("human face", "human faces"),
        ("human", "humans"),
        ("toy", "toys"),
        ("canary", "canaries"),
        ("computer mouse", "computer mice"),
        ("bus", "buses"),
        ("lens", "lenses"),
        ("octopus", "octopuses"),
        ("TV", "TVs"),
    ],
)
def test_plurals_of_other_classes(singular, expected):
    assert plural(singular) == expected


@pytest.mark.parametrize(
    ("written", "noun", "nouns", "a_noun", "is_there"),
    [
        (
            "Cabinet/shelf",
            "cabinet or shelf",
            "cabinets or shelves",
            "a cabinet or shelf",
            "Is there a cabinet or shelf",
        ),
        ("Monitor/TV", "monitor or TV", "monitors or TVs", "a monitor or TV", "Is there a monitor or TV"),
        ("Human eye, eyelid", "human eye or eyelid", "human eyes or eyelids", "a human eye or eyelid", None),
        ("Orange", "orange", "oranges", "an orange", "Is there an orange"),
        ("ukulele", "ukulele", "ukuleles", "a ukulele", "Is there a ukulele"),
        ("Boots", "boots", "boots", "any boots", "Are there any boots"),
        ("bow_(weapon)", "bow", "bows", "a bow", "Is there a bow"),
        ("street_sign", "street sign", "street signs", "a street sign", "Is there a street sign"),
    ],
)
def test_names_become_phrases(written, noun, nouns, a_noun, is_there):
    spoken = spoken_classes([written])[written]
    assert (spoken.noun, spoken.nouns, spoken.a_noun) == (noun, nouns, a_noun)
    assert is_there is None or spoken.is_there == is_there


def test_two_classes_keep_what_tells_them_apart():
    spoken = spoken_classes(["bow_(weapon)", "bow_(decorative_ribbons)", "Cup"])
    assert {item.noun for item in spoken.values()} == {"bow (weapon)", "bow (decorative ribbons)", "cup"}


def test_classes_of_what_is_left_over_are_not_asked_about():
    assert list(spoken_classes(["Other Shoes", "Other", "Otter"])) == ["Otter"]


@pytest.mark.parametrize("name", TEMPLATE_SETS)
def test_every_set_words_every_kind(name):
    wordings = check_templates(name, OBJECT_KINDS)
    assert list(wordings) == list(OBJECT_KINDS) and all(wordings.values())
    assert all({"yes", "no"} <= wording.keys() for wording in wordings["existence"])


def test_a_kind_without_a_wording_of_its_own_is_worded_as_usual():
    wordings = check_templates({"counting": {"question": "{nouns}?", "answer": "{number}"}}, ["counting", "listing"])
    assert wordings["counting"] == [{"question": "{nouns}?", "answer": "{number}"}]
    assert wordings["listing"] == check_templates("vistok", ["listing"])["listing"]
