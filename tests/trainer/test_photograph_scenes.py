"""The data format `photograph-scenes`: the scenes of `vistok scenes`, rendered once, told in captions or questions."""

import json

import numpy as np
import pytest

from tests.trainer.planted_cutouts import planted_cutouts
from tests.trainer.planted_scenes import planted_backgrounds
from vistok.processing.images import load_example_images
from vistok.trainer import photograph_scenes, scene_set
from vistok.trainer.data_sources import load_data_source
from vistok.trainer.masked_images import masked_image_of


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Planted cut-outs and backgrounds in place of the real ones, and a cache of their own."""
    cutouts, backgrounds = planted_cutouts(tmp_path), planted_backgrounds(tmp_path)
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(scene_set, "load_cutouts", lambda split: cutouts)
    monkeypatch.setattr(scene_set, "load_backgrounds", lambda split, folders, without: backgrounds)
    return {"num_scenes": 5, "size": 64, "num_classes": 3}


def test_captions_and_questions_are_those_of_the_same_scenes(planted, monkeypatch):
    captions = load_data_source({"format": "photograph-scenes", "options": planted})
    monkeypatch.setattr(scene_set, "write_scenes", None)  # would fail if called: they are rendered once
    questions = load_data_source({"format": "photograph-scenes", "options": {**planted, "tell": "questions"}})
    folder = photograph_scenes.render_photograph_scenes("train", **planted)
    told = json.loads((folder / "captions.json").read_text())["annotations"]
    assert len(captions) == 5 and [entry["caption"] for entry in told] == [
        example["messages"][1]["content"][0]["text"] for example in captions
    ]
    asked = json.loads((folder / "vqa_questions.json").read_text())["questions"]
    assert len(questions) == len(asked) > 5
    paths = [{example["images"][0]["path"] for example in data} for data in (captions, questions)]
    assert paths[0] == paths[1] and len(paths[0]) == 5


def test_what_is_to_be_drawn_cut_out_and_edited_is_of_the_same_scenes(planted, monkeypatch):
    captions = load_data_source({"format": "photograph-scenes", "options": planted})
    options = [{**planted, "tell": tell} for tell in ("drawing captions", "expressions", "edits")]
    drawn = load_data_source({"format": "photograph-scenes", "options": options[0]})
    monkeypatch.setattr(scene_set, "write_scenes", None)  # would fail if called: all three are rendered together
    referred, edited = (load_data_source({"format": "photograph-scenes", "options": some}) for some in options[1:])
    assert [{*data["task"]} for data in (drawn, referred, edited)] == [{"generate"}, {"segment"}, {"edit"}]
    assert len(drawn) == 5 and len(referred) > 5 and len(edited) > 5
    assert [len(data[0]["images"]) for data in (drawn, referred, edited)] == [1, 2, 2]
    pictures = [[load_example_images(example)[0].tobytes() for example in data] for data in (captions, drawn)]
    assert pictures[0] == pictures[1]
    assert {load_example_images(example)[0].tobytes() for data in (referred, edited) for example in data} <= {
        *pictures[0]
    }


def test_plain_scenes_are_the_same_objects_on_one_colour(planted):
    options = {**planted, "plain_backgrounds": True}
    plain = load_data_source({"format": "scene-masks", "options": options})
    over_photographs = load_data_source({"format": "scene-masks", "options": planted})
    held_out = photograph_scenes.render_photograph_scenes("test", 5, 0, 64, 3, plain_backgrounds=True)
    for example, other in zip(plain, over_photographs):
        masked, pictured = masked_image_of(example), masked_image_of(other)
        objects = masked.objects()
        assert masked.background.startswith("plain/") and pictured.background.startswith("planted/")
        assert np.array_equal(objects.masks, pictured.objects().masks)
        color = np.array([int(masked.background[n : n + 2], 16) for n in (6, 8, 10)])
        around = np.asarray(masked.image(), dtype=int)[~objects.masks.any(0)]
        assert np.median(np.abs(around - color).max(1)) <= 2, "but for JPEG, and soft edges of objects"
    assert len({masked_image_of(example).background for example in plain}) == 5
    folder = photograph_scenes.render_photograph_scenes("train", 5, 0, 64, 3, plain_backgrounds=True)
    assert "backgrounds" in json.loads((folder / "SOURCE.json").read_text())
    with pytest.raises(ValueError, match="cut-outs"):  # planted ones have no split; colours are never shared
        scene_set.check_scenes_apart(folder, held_out)


def test_plain_backgrounds_are_no_photographs(planted, tmp_path):
    with pytest.raises(ValueError, match="leave backgrounds out"):
        scene_set.write_scenes(tmp_path / "out", num_classes=3, backgrounds=[tmp_path], plain_backgrounds=True)


def test_another_split_seed_or_size_is_another_set(planted):
    folders = {
        photograph_scenes.render_photograph_scenes(split, 2, seed, size, num_classes=3)
        for split, seed, size in (("train", 0, 64), ("test", 0, 64), ("train", 1, 64), ("train", 0, 72))
    }
    assert len(folders) == 4


def test_wrong_options_are_explained(planted):
    with pytest.raises(ValueError, match=r"unknown value of tell 'caption'.*Did you mean 'captions'"):
        load_data_source({"format": "photograph-scenes", "options": {"tell": "caption"}})
    with pytest.raises(ValueError, match=r"num_scenes must be a whole number between 1 and"):
        load_data_source({"format": "photograph-scenes", "options": {**planted, "num_scenes": 0}})
    with pytest.raises(ValueError, match="unknown split of photograph-scenes 'val'"):
        load_data_source({"format": "photograph-scenes", "split": "val"})
