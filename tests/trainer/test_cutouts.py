"""The table of nouns, the fixed split by picture, and the errors of loading cut-outs."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vistok.modeling.atomic_folder import FetchError
from vistok.trainer.cutout_vocabulary import CATEGORIES, NOUNS, Noun
from vistok.trainer.cutouts import COLLECTIONS, Cutout, CutoutLibrary, cutouts_of, held_out_pictures, load_cutouts
from vistok.trainer.scenes import load_cutout

ANYWHERE = {name: Path("/anywhere") / name for name in COLLECTIONS}
ALL = [cutout for noun in NOUNS for cutout in cutouts_of(noun, ANYWHERE)]


def pictures_in_table(noun):
    """The groups of variants as the table writes them, by an independent reading of it."""
    groups = []
    for cell, collections in (
        (noun.emoji, ("fluent-emoji", "noto-emoji")),
        (noun.photographs, ("tuxpaint-stamps",)),
        (noun.drawings, ("tuxpaint-stamps",)),
    ):
        for collection in collections:
            groups += [{f"{collection}/{file}" for file in group.split("=")} for group in cell.split()]
    return groups


def test_nouns_are_distinct_and_have_at_least_four_pictures():
    assert len({noun.name for noun in NOUNS}) == len({noun.plural for noun in NOUNS}) == len(NOUNS)
    assert {noun.name: len(pictures_in_table(noun)) for noun in NOUNS if len(pictures_in_table(noun)) < 4} == {}


def test_categories_and_related_nouns_exist():
    names = {noun.name for noun in NOUNS}
    assert {noun.category for noun in NOUNS} == {*CATEGORIES, "thing"}
    assert {other for noun in NOUNS for other in noun.related} <= names


def test_no_picture_shows_two_nouns():
    assert [key for key, count in Counter(cutout.key for cutout in ALL).items() if count > 1] == []


def test_every_noun_has_pictures_on_both_sides_and_about_one_in_four_is_held_out():
    for noun in NOUNS:
        groups = len(pictures_in_table(noun))
        held_out = len(held_out_pictures(noun))
        assert 1 <= held_out <= groups - 3, noun.name
        assert abs(held_out - groups / 4) <= 0.5, noun.name


def test_of_several_photographs_some_are_held_out_and_some_are_not():
    for noun in NOUNS:
        if len(noun.photographs.split()) > 1:
            sides = {cutout.split for cutout in cutouts_of(noun, ANYWHERE) if cutout.photograph}
            assert sides == {"train", "test"}, noun.name


def test_variants_of_a_picture_lie_on_one_side():
    side = {cutout.key: cutout.split for cutout in ALL}
    groups = [group for noun in NOUNS for group in pictures_in_table(noun)]
    assert any(len(group) > 1 for group in groups)
    assert all(len({side[key] for key in group}) == 1 for group in groups)


def test_the_side_of_a_picture_does_not_depend_on_the_collections_in_use():
    side = {cutout.key: cutout.split for cutout in ALL}
    for collection in COLLECTIONS:
        alone = [c for noun in NOUNS for c in cutouts_of(noun, {collection: ANYWHERE[collection]})]
        assert alone
        assert {cutout.key: cutout.split for cutout in alone} == {
            key: split for key, split in side.items() if key.startswith(collection)
        }


def test_the_split_never_changes():
    # A picture that changed sides would have been seen in training by checkpoints that exist.
    held_out = sorted(key for noun in NOUNS for key in held_out_pictures(noun))
    assert hashlib.sha256("\n".join(held_out).encode()).hexdigest()[:16] == "42f2584c95fcc8c7"


def library(*names):
    nouns = [Noun(name, f"{name}s", "animal", related=("bird",) if name == "duck" else ()) for name in names]
    return CutoutLibrary([Cutout(name, "animal", Path("x"), "own", "train", f"own/{name}") for name in names], nouns)


def test_related_holds_both_ways_and_includes_the_noun():
    cutouts = library("bird", "duck", "cow")
    assert cutouts.related("duck") == cutouts.related("bird") == {"bird", "duck"}
    assert cutouts.related("cow") == {"cow"}


def test_a_library_lists_the_pictures_of_a_noun():
    cutouts = library("bird", "cow")
    assert [cutout.key for cutout in cutouts.of("cow")] == ["own/cow"]
    assert len(cutouts) == 2 and cutouts.names == ["bird", "cow"]
    with pytest.raises(ValueError, match=r"unknown noun 'crow'.*'bird', 'cow'"):
        cutouts.of("crow")


def test_a_library_refuses_what_it_cannot_name():
    picture = Cutout("cow", "animal", Path("x"), "own", "train", "own/cow")
    cow = Noun("cow", "cows", "animal")
    with pytest.raises(ValueError, match="at least one"):
        CutoutLibrary([], [cow])
    with pytest.raises(ValueError, match="unknown noun of a cut-out 'cow'"):
        CutoutLibrary([picture], [Noun("dog", "dogs", "animal")])
    with pytest.raises(ValueError, match="must differ"):
        CutoutLibrary([picture], [cow, cow])


def test_missing_collections_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="`vistok fetch noto-emoji tuxpaint-stamps`"):
        load_cutouts(["noto-emoji", "tuxpaint-stamps"])


def test_unknown_collections_and_splits_name_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown collection of cut-outs 'fluent'.*'fluent-emoji'"):
        load_cutouts(["fluent"])
    with pytest.raises(ValueError, match=r"unknown split of the cut-outs 'validation'.*'train', 'test'"):
        load_cutouts(split="validation")


def test_without_a_collection_nothing_can_be_loaded():
    with pytest.raises(ValueError, match="no noun with pictures for training and for testing"):
        load_cutouts([])


@pytest.mark.real_data(*COLLECTIONS)
def test_every_picture_of_the_table_exists():
    both = [*load_cutouts(split="train"), *load_cutouts(split="test")]
    assert len(both) == len(ALL)
    assert [cutout.key for cutout in both if not cutout.path.is_file()] == []


@pytest.mark.real_data("fluent-emoji", "noto-emoji")
def test_both_sides_of_fewer_collections_have_the_same_vocabulary():
    train, test = (load_cutouts(["fluent-emoji", "noto-emoji"], split) for split in ("train", "test"))
    assert train.names == test.names and len(train.names) > 40
    assert not {cutout.key for cutout in train} & {cutout.key for cutout in test}


@pytest.mark.real_data(*COLLECTIONS)
def test_no_picture_of_the_test_side_looks_like_one_of_the_training_side():
    """Cropped, on grey, as 24 × 24 pixels, also mirrored: by colour, or by brightness alone as for recoloured ones."""

    def appearance(cutout, mirrored):
        picture = load_cutout(cutout.path).resize((24, 24))
        picture = ImageOps.mirror(picture) if mirrored else picture
        canvas = Image.new("RGB", (24, 24), "gray")
        canvas.paste(picture, (0, 0), picture)
        values = np.asarray(canvas, dtype=float)
        return values - values.mean()

    train, test = load_cutouts(split="train"), load_cutouts(split="test")
    seen = np.stack([appearance(cutout, mirrored).ravel() for cutout in train for mirrored in (False, True)])
    new = np.stack([appearance(cutout, False).ravel() for cutout in test])
    similarity = new @ seen.T / np.linalg.norm(new, axis=1)[:, None] / np.linalg.norm(seen, axis=1)
    alike = [
        (test[row].key, train[column // 2].key, round(float(similarity[row, column]), 3))
        for row, column in np.argwhere(similarity > 0.97)
    ]
    assert alike == []
