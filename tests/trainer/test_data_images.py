"""The data format `images` finds the images below a folder, and nothing else."""

import pytest

from tests.trainer.planted_data import colour, colours, png
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.data_sources import load_data_source


@pytest.fixture
def folder(tmp_path):
    for index, place in enumerate(["train/cat/a.PNG", "train/dog/b.png", "train/dog/c.png", "val/cat/d.png"]):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(index))
    (tmp_path / "train" / "list.txt").write_text("no image")
    (tmp_path / "train" / "dog" / "._b.png").write_bytes(b"what another system leaves beside files")
    return tmp_path


def test_images_are_found_with_their_folder_as_label(folder):
    dataset = load_data_source({"format": "images", "path": str(folder), "split": "train"})
    assert dataset["id"] == ["cat/a.PNG", "dog/b.png", "dog/c.png"]
    assert dataset["label"] == ["cat", "dog", "dog"]
    assert [colours(example) for example in dataset] == [[colour(index)] for index in range(3)]
    assert all(dataset.features[name] == feature for name, feature in FEATURES.items())
    assert len(load_data_source({"format": "images", "path": str(folder)})) == 4


def test_a_folder_without_images_is_named(folder):
    with pytest.raises(FileNotFoundError, match="needs a folder of images as `path`, got 'nowhere'"):
        load_data_source({"format": "images", "path": "nowhere"})
    with pytest.raises(ValueError, match=r"'test'.*train"):
        load_data_source({"format": "images", "path": str(folder), "split": "test"})
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image lies below .*empty"):
        load_data_source({"format": "images", "path": str(folder), "split": "empty"})


def test_an_unreadable_image_is_left_out_if_asked_for(folder):
    (folder / "val" / "bad.png").write_bytes(b"no image")
    dataset = load_data_source({"format": "images", "path": str(folder), "split": "val", "on_error": "skip"})
    assert dataset["id"] == ["cat/d.png"] and dataset.skipped_samples.count == 1
