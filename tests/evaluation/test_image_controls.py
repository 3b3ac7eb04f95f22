"""Blank images say nothing, shuffled ones something else."""

import random

import numpy as np
import pytest

from tests.tiny import image_bytes, tiny_image
from vistok.evaluation.image_controls import control_images, derange
from vistok.processing.images import image_key, load_image


def keys(example):
    return [image_key(image) for image in example["images"]]


def test_given_images_stay(questions):
    assert control_images(questions, "given") == questions


def test_blank_images_are_grey_and_of_the_same_size(make_question, tmp_path):
    tiny_image(0, (20, 31)).save(tmp_path / "wide.png")
    sizes = [(20, 31), (24, 24)]
    examples = [
        make_question(0, "a?", "b", {"path": str(tmp_path / "wide.png"), "bytes": None}, image_bytes(1)),
        make_question(1, "a?", "b"),
    ]
    blank, without = control_images(examples, "blank")
    assert [load_image(image).size for image in blank["images"]] == sizes
    assert all((np.asarray(load_image(image)) == 128).all() for image in blank["images"])
    assert blank["messages"] == examples[0]["messages"]
    assert without["images"] == []


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_images_are_nobodys_own_and_each_is_dealt_once(questions, seed):
    shuffled = control_images(questions, "shuffled", seed)
    dealt = {(*keys(own), *keys(other)) for own, other in zip(questions, shuffled)}
    assert len(dealt) == 6, "questions about one image are all asked about one other"
    assert all(own != other for own, other in dealt)
    assert sorted(own for own, _ in dealt) == sorted(other for _, other in dealt)
    assert [example["messages"] for example in shuffled] == [example["messages"] for example in questions]


def test_the_seed_decides_on_the_shuffling(questions):
    dealt = [[keys(example) for example in control_images(questions, "shuffled", seed)] for seed in (1, 1, 2)]
    assert dealt[0] == dealt[1] != dealt[2]


@pytest.mark.parametrize("seed", range(20))
def test_no_example_keeps_any_of_several_images(make_question, seed):
    examples = [make_question(i, "a?", "b", *(image_bytes(i + step) for step in range(2))) for i in range(5)]
    for own, other in zip(examples, control_images(examples, "shuffled", seed)):
        assert not set(keys(own)) & set(keys(other))


def test_every_derangement_can_come_up():
    found = {
        tuple(derange(list("abc"), {key: {key} for key in "abc"}, random.Random(seed)).values()) for seed in range(40)
    }
    assert found == {("b", "c", "a"), ("c", "a", "b")}


def test_too_few_images_are_refused(make_question):
    with pytest.raises(ValueError, match="1 distinct images, too few"):
        control_images([make_question(0, "a?", "b", image_bytes(0))], "shuffled")
    with pytest.raises(ValueError, match="2 distinct images, too few"):
        control_images([make_question(0, "a?", "b", image_bytes(0), image_bytes(1))], "shuffled")


def test_an_unknown_control_is_refused(questions):
    with pytest.raises(ValueError, match="images is 'black', expected one of given, blank, shuffled"):
        control_images(questions, "black")
