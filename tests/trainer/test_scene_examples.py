"""The data format `cutout-scenes`: rendered once, whole or not at all, one example per question."""

import pytest

from tests.trainer.planted_cutouts import planted_cutouts
from vistok.processing.images import load_image
from vistok.trainer import scene_examples, scenes
from vistok.trainer.data_sources import load_data_source


@pytest.fixture
def rendered(tmp_path, monkeypatch):
    """The planted cut-outs in place of the real collections, and a cache of their own."""
    planted = planted_cutouts(tmp_path)
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scene_examples, "load_cutouts", lambda collections, split: planted)
    return {"num_scenes": 6, "size": 48}


def test_examples_are_canonical_and_one_per_question(rendered):
    examples = list(scene_examples.cutout_scene_examples("train", **rendered))
    assert {example["scene"] for example in examples} == set(range(6))
    assert [example["row"] for example in examples] == list(range(len(examples)))
    assert len({example["id"] for example in examples}) == len(examples)
    user, assistant = examples[0]["messages"]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert assistant["content"] == [{"type": "text", "text": examples[0]["answer"]}]
    assert load_image(examples[0]["images"][0]).size == (48, 48)
    assert not examples[0]["photograph"]


def test_scenes_are_rendered_once(rendered, monkeypatch):
    first = scene_examples.render_scenes("train", **rendered)
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr(scenes, "make_scene", None)  # would fail if called
    assert scene_examples.render_scenes("train", **rendered) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == stamps


def test_another_size_seed_or_split_is_another_set(rendered):
    folders = {
        scene_examples.render_scenes(split, 2, seed=seed, size=size)
        for split, seed, size in (("train", 0, 48), ("test", 0, 48), ("train", 1, 48), ("train", 0, 64))
    }
    assert len(folders) == 4
    assert len({(folder / "images" / "000000.jpg").read_bytes() for folder in folders}) == 4


def test_an_interrupted_rendering_leaves_nothing_behind(rendered, monkeypatch, tmp_path):
    original, drawn = scenes.make_scene, []

    def fail_at_the_third(*arguments):
        drawn.append(arguments)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(scenes, "make_scene", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        scene_examples.render_scenes("train", **rendered)
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_a_smaller_set_is_the_beginning_of_a_larger_one(rendered):
    small, large = (scene_examples.render_scenes("train", number, size=48) for number in (2, 4))
    for index in range(2):
        name = f"images/{index:06d}.jpg"
        assert (small / name).read_bytes() == (large / name).read_bytes()


def test_the_format_is_a_data_source_with_options_and_prompt(rendered):
    source = {"format": "cutout-scenes", "name": "objects", "options": rendered, "prompt": "Q: {question} A:"}
    dataset = load_data_source(source)
    examples = list(scene_examples.cutout_scene_examples("train", **rendered))
    assert len(dataset) == len(examples)
    assert dataset[0]["messages"][0]["content"][1]["text"].startswith("Q: ")
    assert dataset["answer"] == [example["answer"] for example in examples]
    assert dataset[0]["source"] == "objects"


def test_wrong_options_of_the_format_are_explained(rendered):
    with pytest.raises(ValueError, match="unknown split of cutout-scenes 'dev'"):
        load_data_source({"format": "cutout-scenes", "split": "dev"})
    with pytest.raises(ValueError, match=r"option of data format 'cutout-scenes' 'scenes'.*'num_scenes'"):
        load_data_source({"format": "cutout-scenes", "options": {"scenes": 3}})
    with pytest.raises(ValueError, match="num_scenes must be at least 1, got 0"):
        load_data_source({"format": "cutout-scenes", "options": {"num_scenes": 0}})
