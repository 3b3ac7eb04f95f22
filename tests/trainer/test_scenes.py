"""Scenes of planted cut-outs, recounted from their pixels."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_cutouts import COLORS, planted_cutouts
from vistok.processing.images import BadSampleError
from vistok.trainer import scenes
from vistok.trainer.cutouts import Cutout, CutoutLibrary, load_cutouts
from vistok.trainer.scenes import make_scene, scene_rng


@pytest.fixture
def planted(tmp_path):
    return planted_cutouts(tmp_path)


@pytest.fixture
def on_white(monkeypatch):
    monkeypatch.setattr(scenes, "_BACKGROUNDS", ("white",))


def blobs(mask):
    """Connected regions of a boolean array, as lists of (row, column)."""
    left = set(zip(*map(list, np.nonzero(mask))))
    found = []
    while left:
        stack = [left.pop()]
        blob = []
        while stack:
            row, column = stack.pop()
            blob.append((row, column))
            for step in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if step in left:
                    left.remove(step)
                    stack.append(step)
        found.append(blob)
    return found


def recount(image):
    """Counts the black dots on a white image by the colour around them."""
    pixels = np.asarray(image).astype(int)
    counts = Counter()
    for blob in blobs(pixels.sum(axis=2) < 150):
        rows, columns = zip(*blob)
        around = pixels[min(rows) - 3 : max(rows) + 4, min(columns) - 3 : max(columns) + 4].sum(axis=(0, 1))
        counts[list(COLORS)[int(around.argmax())]] += 1
    return counts


def test_a_recount_of_the_pixels_finds_the_objects_that_the_scene_lists(planted, on_white):
    numbers = set()
    for index in range(60):
        scene = make_scene(planted, scene_rng(0, "train", index), size=128, min_visible=1)
        assert recount(scene.image) == scene.counts
        numbers.add(len(scene.objects))
    assert numbers == {1, 2, 3, 4, 5}


def test_masks_cover_what_is_not_background(planted, on_white):
    for index in range(40):
        scene = make_scene(planted, scene_rng(1, "train", index), size=128)
        union = np.any([item.mask for item in scene.objects], axis=0)
        drawn = np.asarray(scene.image).min(axis=2) < 128  # the half transparent rim belongs to either side
        assert (union != drawn).sum() <= 0.02 * drawn.sum() + 4


def test_masks_are_disjoint_and_show_the_front_most_object(planted, on_white):
    overlapping = 0
    for index in range(80):
        scene = make_scene(planted, scene_rng(2, "train", index), size=128, single_fraction=0, min_visible=0.6)
        assert np.sum([item.mask for item in scene.objects], axis=0).max() == 1
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.objects:
            shown = pixels[item.mask]
            own = shown[:, list(COLORS).index(item.name)]
            others = np.delete(shown, list(COLORS).index(item.name), axis=1).max(axis=1)
            # Rims blend with what lies behind; the dot is black.
            assert np.mean((own >= others) | (shown.sum(axis=1) < 200)) > 0.93
        overlapping += recount(scene.image) != scene.counts
    assert overlapping  # else nothing was in front of anything


def test_boxes_are_the_smallest_around_the_masks(planted):
    for index in range(30):
        for item in make_scene(planted, scene_rng(3, "train", index), size=96).objects:
            left, top, width, height = item.box
            inside = {(row, column) for row in range(top, top + height) for column in range(left, left + width)}
            marked = set(zip(*map(list, np.nonzero(item.mask))))
            assert marked <= inside
            rows, columns = zip(*marked)
            assert (min(columns), min(rows), max(columns) + 1, max(rows) + 1) == (
                left,
                top,
                left + width,
                top + height,
            )


@pytest.mark.parametrize("min_visible", [0.6, 0.9])
def test_enough_of_every_object_stays_visible(planted, monkeypatch, min_visible):
    whole = []
    original = scenes._mask
    monkeypatch.setattr(scenes, "_mask", lambda *arguments: whole.append(original(*arguments)) or whole[-1])
    least = 1.0
    for index in range(60):
        scene = make_scene(planted, scene_rng(4, "train", index), 96, single_fraction=0, min_visible=min_visible)
        areas = [mask.sum() for mask in whole[-len(scene.objects) :]]  # the last ones are those that were pasted
        least = min(least, *(item.mask.sum() / area for item, area in zip(scene.objects, areas)))
    assert min_visible <= least < 1


def test_objects_lie_inside_and_a_single_one_is_large(planted):
    for index in range(40):
        scene = make_scene(planted, scene_rng(5, "train", index), size=112, single_fraction=1)
        (item,) = scene.objects
        left, top, width, height = item.box
        assert left >= 0 and top >= 0 and left + width <= 112 and top + height <= 112
        assert max(width, height) >= 0.4 * 112
        assert scene.image.size == (112, 112) and scene.image.mode == "RGB"


def test_an_index_gives_the_same_scene_whatever_was_drawn_before(planted):
    def draw(index, seed=0, split="train"):
        scene = make_scene(planted, scene_rng(seed, split, index), size=96)
        return scene.image.tobytes(), [(item.name, item.box, item.cutout) for item in scene.objects]

    several = [draw(index) for index in range(5)]
    random.seed(1)
    np.random.seed(1)
    assert draw(3) == several[3]
    assert len({image for image, _ in several}) == 5
    assert draw(3, seed=1) != several[3] and draw(3, split="test") != several[3]


def test_numbers_out_of_range_are_refused(planted):
    rng = random.Random(0)
    with pytest.raises(ValueError, match="size must be at least 32 pixels, got 8"):
        make_scene(planted, rng, size=8)
    with pytest.raises(ValueError, match="single_fraction must lie between 0 and 1, got 2"):
        make_scene(planted, rng, single_fraction=2)
    with pytest.raises(ValueError, match="min_visible must be greater than 0 and at most 1, got 0"):
        make_scene(planted, rng, min_visible=0)


def test_a_picture_too_thin_for_the_image_is_refused_instead_of_shrunk_forever(tmp_path):
    picture = Image.new("RGBA", (200, 200))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.putpixel((199, 199), (255, 0, 0, 255))
    picture.save(tmp_path / "cow.png")
    cow = Cutout("cow", "animal", tmp_path / "cow.png", "planted", "train", "planted/cow")
    with pytest.raises(ValueError, match="do not fit into 32 pixels"):
        make_scene(CutoutLibrary([cow]), random.Random(0), size=32)


def test_a_broken_or_empty_picture_names_its_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGBA", (9, 9)).save(tmp_path / "empty.png")
    with pytest.raises(BadSampleError, match=r"broken\.png: the cut-out cannot be read"):
        scenes.load_cutout(tmp_path / "broken.png")
    with pytest.raises(BadSampleError, match=r"empty\.png: the cut-out is fully transparent"):
        scenes.load_cutout(tmp_path / "empty.png")


@pytest.mark.real_data("fluent-emoji", "noto-emoji", "tuxpaint-stamps")
def test_scenes_of_the_test_side_show_no_picture_of_the_training_side():
    shown = {}
    for split in ("train", "test"):
        library = load_cutouts(split=split)
        shown[split] = {
            item.cutout
            for index in range(40)
            for item in make_scene(library, scene_rng(0, split, index), size=32).objects
        }
    assert len(shown["train"]) > 40 and len(shown["test"]) > 30
    assert not shown["train"] & shown["test"]
