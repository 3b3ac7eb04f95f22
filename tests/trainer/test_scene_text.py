"""What is said and asked about scenes follows from where their objects are planted."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_cutouts import unseen_library
from vistok.trainer.backgrounds import Background
from vistok.trainer.cutout_vocabulary import NOUNS
from vistok.trainer.cutouts import Cutout
from vistok.trainer.scene_layout import PhotographScene, PlacedObject
from vistok.trainer.scene_text import scene_captions, scene_vqa

LIBRARY = unseen_library([n for n in NOUNS if n.name in ("apple", "bird", "cow", "car", "hat", "mouse")])
SIZE = 100


def scene(*objects):
    """A scene of objects, each a name and a box: left, top, width, height."""
    placed = []
    for name, box in objects:
        left, top, width, height = box
        mask = np.zeros((SIZE, SIZE), bool)
        mask[top : top + height, left : left + width] = True
        cutout = Cutout(name, LIBRARY.nouns[name].category, Path("none"), "x", "train", f"x/{name}")
        placed.append(PlacedObject(name, cutout, mask, box, 0.0))
    photograph = Background("x/sky", Path("none"), "0" * 64, "train")
    return PhotographScene(Image.new("RGB", (SIZE, SIZE)), placed, photograph)


def all_answers(of, rounds=60):
    """Every question that is asked of a scene, with its answers."""
    rng = random.Random(0)
    found = {}
    for _ in range(rounds):
        for item in scene_vqa(of, LIBRARY, 50, rng):
            assert found.setdefault(item.question, item.answer) == item.answer or item.kind == "category"
            found[item.question] = item.answer
    return found


APPLE_LEFT_OF_TWO_BIRDS = scene(("apple", (5, 40, 30, 30)), ("bird", (60, 10, 12, 12)), ("bird", (80, 60, 12, 12)))


class TestQuestions:
    @pytest.mark.parametrize(
        ("question", "answer"),
        [
            ("What is the largest object in the image?", "apple"),
            ("Which object is the smallest?", "bird"),
            ("What is the leftmost object?", "apple"),
            ("Which object is rightmost in the image?", "bird"),
            ("What is the topmost object?", "bird"),
            ("What is to the right of the apple?", "bird"),
            ("Are there more birds than apples?", "yes"),
            ("Are there more apples than birds?", "no"),
            ("Which are there more of, apples or birds?", "birds"),
            ("Is the apple in the left or the right half of the image?", "left"),
        ],
    )
    def test_the_answer_is_what_was_planted(self, question, answer):
        assert all_answers(APPLE_LEFT_OF_TWO_BIRDS)[question] == answer

    def test_what_is_not_plain_is_not_asked(self):
        """One of the birds is about as low as the apple: which is lowest, or what is below, cannot be said."""
        near = scene(("apple", (5, 40, 30, 30)), ("bird", (60, 10, 12, 12)), ("bird", (80, 52, 12, 12)))
        asked = all_answers(near)
        assert not any("lowest" in q or "below the apple" in q or "lower half" in q for q in asked)
        assert asked["What is above the apple?"] == "bird"

    def test_relations_are_asked_both_ways_of_single_objects(self):
        asked = all_answers(scene(("cow", (10, 10, 20, 20)), ("car", (60, 60, 20, 20))))
        assert asked["Is the cow above the car?"] == asked["Is the car below the cow?"] == "yes"
        assert asked["Is the car above the cow?"] == asked["Is the cow to the right of the car?"] == "no"

    def test_the_nearest_object_is_clearly_nearer_than_others(self):
        of = scene(("cow", (0, 0, 10, 10)), ("car", (15, 0, 10, 10)), ("hat", (80, 80, 10, 10)))
        asked = all_answers(of)
        assert {asked.get("What is nearest to the cow?"), asked.get("Which object is closest to the cow?")} == {"car"}
        middle = scene(("cow", (40, 40, 10, 10)), ("car", (0, 40, 10, 10)), ("hat", (80, 40, 10, 10)))
        assert not any("closest to the cow" in question for question in all_answers(middle))

    def test_thresholds_are_asked_on_both_sides_of_the_number(self):
        asked = all_answers(scene(*(("mouse", (20 * n, 5, 10, 10)) for n in range(3))))
        assert asked["Are there more than two mice?"] == "yes" and asked["Are there more than three mice?"] == "no"
        assert "What does the image show?" in asked

    def test_the_category_offered_is_that_of_the_object(self):
        questions = [
            item
            for seed in range(300)
            for item in scene_vqa(scene(("cow", (10, 10, 20, 20))), LIBRARY, 9, random.Random(seed))
            if item.kind == "category"
        ]
        assert questions and {item.answer for item in questions} == {"animal"}
        assert all("an animal" in item.question for item in questions)

    def test_a_synonym_is_among_the_ten_answers(self):
        items = scene_vqa(scene(*(("mouse", (20 * n, 5, 10, 10)) for n in range(3))), LIBRARY, 9, random.Random(0))
        naming = next(item for item in items if item.kind == "naming")
        assert Counter(naming.answers) == {"mouse": 6, "mice": 4}

    def test_no_more_questions_than_wanted_and_of_different_kinds(self):
        items = scene_vqa(APPLE_LEFT_OF_TWO_BIRDS, LIBRARY, 4, random.Random(0))
        assert len(items) == 4 == len({item.kind for item in items})
        assert scene_vqa(APPLE_LEFT_OF_TWO_BIRDS, LIBRARY, 0, random.Random(0)) == []


class TestCaptions:
    def test_captions_say_where_things_are_if_that_is_plain(self):
        captions = scene_captions(APPLE_LEFT_OF_TWO_BIRDS, LIBRARY.nouns, 20, random.Random(0))
        assert "Two birds to the right of an apple." in captions
        assert "Two birds and an apple; the largest object is an apple." in captions
        assert not any("above" in caption or "below" in caption for caption in captions)

    def test_the_verb_agrees_with_what_comes_first(self):
        captions = scene_captions(APPLE_LEFT_OF_TWO_BIRDS, LIBRARY.nouns, 20, random.Random(0))
        assert "There are two birds and an apple in the image." in captions
        assert "There is an apple and two birds in this picture." in captions

    def test_animals_of_several_kinds_are_summed_up(self):
        of = scene(("cow", (0, 0, 10, 10)), ("bird", (50, 0, 10, 10)), ("bird", (70, 0, 10, 10)))
        assert "Three animals: two birds and a cow." in scene_captions(of, LIBRARY.nouns, 20, random.Random(0))
