"""The data format `captioned-photographs`: which pictures, on which side, with which words, rendered once."""

import numpy as np
import pytest
from PIL import Image

from vistok.processing.images import BadSampleError, load_image
from vistok.trainer import captioned_photographs as photographs
from vistok.trainer.cutout_vocabulary import NOUNS
from vistok.trainer.cutouts import cutouts_of
from vistok.trainer.data_sources import load_data_source

DOGS = ("animals/mammals/dogs/dingo", "animals/mammals/dogs/dog")  # of the table, one on each side of the split
OTHERS = tuple(f"food/fruit/unknown{number}" for number in range(8))


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    """A collection of red squares, with captions in several languages."""
    root = tmp_path / "stamps"

    def put(name, caption="A red square."):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        picture.paste((255, 0, 0, 255), (4, 4, 36, 36))
        picture.save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Ein rotes Quadrat.\n", encoding="utf-8")

    for number, name in enumerate([*DOGS, *OTHERS]):
        put(name, f"Picture “{number}”.")
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(photographs, "collection_folders", lambda names: {names[0]: root})
    put.root = root
    return put


def keys(split):
    return {cutout.name for cutout, _ in photographs.captioned_photographs_of(split)}


def test_the_sides_share_no_photograph_and_those_of_the_table_are_where_scenes_have_them(stamps):
    train, test = keys("train"), keys("test")
    assert train | test == {*DOGS, *OTHERS} and not train & test
    (noun,) = [noun for noun in NOUNS if noun.name == "dog"]
    for cutout in cutouts_of(noun, {"tuxpaint-stamps": stamps.root}):
        name = cutout.key.removeprefix("tuxpaint-stamps/")
        if name in DOGS:
            assert name in (train if cutout.split == "train" else test)
    assert {*DOGS} & train and {*DOGS} & test


def test_drawings_and_pictures_without_a_caption_are_left_out(stamps):
    for name in ("animals/cartoon/dog", photographs.DRAWINGS[0], "symbols/letter"):
        stamps(name)
    stamps("food/fruit/silent", caption=None)
    assert keys("train") | keys("test") == {*DOGS, *OTHERS}


def test_each_photograph_is_shown_several_times_with_its_own_caption(stamps):
    data = load_data_source({"format": "captioned-photographs", "options": {"per_photograph": 3, "size": 48}})
    captions = {cutout.key: caption for cutout, caption in photographs.captioned_photographs_of("train")}
    assert len(data) == 3 * len(captions) and set(data["picture"]) == set(captions)
    contents = set()
    for example in data:
        question, answer = example["messages"]
        assert [part["type"] for part in question["content"]] == ["image", "text"]
        assert answer["content"][0]["text"] == example["answer"] == captions[example["picture"]]
        image = load_image(example["images"][0])
        colors = np.asarray(image.convert("RGB"))
        red = ((colors[..., 0] > 180) & (colors[..., 1:] < 70).all(-1)).sum()
        assert image.size == (48, 48) and red > 200
        contents.add(image.tobytes())
    assert len(contents) == len(data)


def test_they_are_rendered_once(stamps, monkeypatch):
    folder = photographs.render_captioned_photographs("train", 1, size=48)
    monkeypatch.setattr(photographs.scenes, "make_scene", None)  # would fail if called
    assert photographs.render_captioned_photographs("train", 1, size=48) == folder


def test_what_cannot_be_used_is_explained(stamps):
    with pytest.raises(ValueError, match=r"unknown split of captioned-photographs 'val'"):
        load_data_source({"format": "captioned-photographs", "split": "val"})
    with pytest.raises(ValueError, match="per_photograph must be a whole number of at least 1, got 0"):
        load_data_source({"format": "captioned-photographs", "options": {"per_photograph": 0}})
    stamps("animals/empty", caption=" ")
    with pytest.raises(BadSampleError, match="the caption is empty"):
        [photographs.captioned_photographs_of(split) for split in ("train", "test")]
