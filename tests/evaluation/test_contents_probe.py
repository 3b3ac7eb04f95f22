"""The probe learns what planted scenes show, is kept, and says what it cannot read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.planted_images import CELL, GRID, NAMES, PixelProbe, planted_scenes
from vistok.evaluation import contents_probe, contents_probe_training
from vistok.evaluation.contents_probe import ContentsReading, ProbeReader
from vistok.evaluation.contents_probe_training import probe_of_scenes, read_scenes
from vistok.evaluation.contents_scores import CONTENTS_METRICS, check_contents, contents_score


class PixelTower:
    """In place of a vision tower: the features of a patch are its pixels."""

    name, feature_layer, grid_size = "pixels", -1, GRID

    def patch_features(self, images):
        pixels = torch.stack([torch.from_numpy(np.array(image)).float() / 255 for image in images])
        cells = pixels.unfold(1, CELL, CELL).unfold(2, CELL, CELL)
        return cells.reshape(len(images), 16, -1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe-scenes")
    planted_scenes(folder, 80)
    return folder


@pytest.fixture
def pixel_tower(monkeypatch):
    for module in (contents_probe, contents_probe_training):
        monkeypatch.setattr(module, "load_token_source", lambda *_, **__: PixelTower())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("probes")


def test_a_probe_learns_to_read_planted_scenes_and_is_trained_once(scenes, pixel_tower, cache, monkeypatch):
    reader = probe_of_scenes(scenes, 32, tower="pixels", num_scenes=70, cache_folder=cache)
    assert (reader.facts["num_scenes"], reader.facts["num_held_out"]) == (63, 7)
    unseen = read_scenes(scenes)[70:]
    readings = reader.read([scene.image.image() for scene in unseen])
    records = [contents_score(reading, scene.contents) for reading, scene in zip(readings, unseen)]
    values = {
        metric.name: metric.measured(metric.columns(records, records), range(10))[0] for metric in CONTENTS_METRICS
    }
    assert values["class_f1"] > 0.85 and values["color_accuracy"] > 0.75 and values["count_accuracy"] > 0.7, values
    (place,) = cache.iterdir()
    monkeypatch.setattr(contents_probe_training, "train_probe", None)  # is not called again
    again = probe_of_scenes(scenes, 32, tower="pixels", num_scenes=70, cache_folder=cache)
    torch.testing.assert_close(again.read([unseen[0].image.image()])[0].densities, readings[0].densities)
    grey = again.read([Image.new("RGB", (32, 32), (128, 128, 128))])[0]
    assert grey.shown == [] and grey.whole_count("apple") == 0
    (place / "probe.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is damaged .* remove the folder"):
        probe_of_scenes(scenes, 32, tower="pixels", num_scenes=70, cache_folder=cache)


def test_what_a_probe_cannot_be_trained_on_is_told(scenes, pixel_tower, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no drawing_captions\.json in .* --drawing-captions 1"):
        probe_of_scenes(tmp_path, 32, cache_folder=tmp_path)
    with pytest.raises(ValueError, match="holds 7 scenes, expected at least 20"):
        probe_of_scenes(scenes, 32, num_scenes=7, cache_folder=tmp_path)
    with pytest.raises(ValueError, match="image_size is 0"):
        probe_of_scenes(scenes, 0, cache_folder=tmp_path)
    (tmp_path / "drawing_captions.json").write_text('{"images": [], "annotations": [{"image_id": 1}]}')
    with pytest.raises(ValueError, match="no file of drawing captions with their contents"):
        probe_of_scenes(tmp_path, 32, cache_folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no probe in"):
        ProbeReader.load(tmp_path)


class TestScores:
    def reading(self, *objects):
        """Of objects by cell, class and colour."""
        densities, colors = torch.zeros(16, 3), torch.zeros(16, 4)
        for cell, name, color in objects:
            densities[cell, NAMES.index(name)] = 1
            colors[cell, ["", "red", "green", "blue"].index(color)] = 1
        return ContentsReading(densities, colors, PixelProbe().config)

    def test_classes_counts_and_colours_are_counted_apart(self):
        reading = self.reading((0, "apple", "red"), (1, "apple", "red"), (5, "bird", "blue"))
        right = [{"name": "apple", "color": "red", "count": 2}, {"name": "bird", "color": None, "count": 1}]
        assert contents_score(reading, right) == {
            "found": 2, "missing": 0, "extra": 0, "counts": 2, "counted": 2, "colors": 1, "colored": 1, "exact": 1,
        }  # fmt: skip
        wrong = [{"name": "apple", "color": "green", "count": 3}, {"name": "cow", "color": "blue", "count": 1}]
        assert contents_score(reading, wrong) == {
            "found": 1, "missing": 1, "extra": 1, "counts": 0, "counted": 2, "colors": 0, "colored": 2, "exact": 0,
        }  # fmt: skip

    def test_a_class_of_two_colours_has_both_first(self):
        reading = self.reading((0, "apple", "red"), (1, "apple", "blue"), (2, "apple", "blue"))
        both = [{"name": "apple", "color": "red", "count": 1}, {"name": "apple", "color": "blue", "count": 2}]
        assert contents_score(reading, both)["exact"] == 1
        assert reading.ranked_colors("apple")[:2] == ["blue", "red"]

    def test_a_box_counts_what_lies_in_it_however_small(self):
        reading = self.reading((5, "apple", "red"))
        assert reading.count("apple", [0.25, 0.25, 0.25, 0.25]) == 1
        assert reading.count("apple", [0.3, 0.3, 0.02, 0.02]) == 1
        assert reading.count("apple", [0.6, 0.6, 0.3, 0.3]) == 0

    def test_what_are_no_contents_is_told(self):
        with pytest.raises(ValueError, match="contents are None"):
            check_contents(None)
        with pytest.raises(ValueError, match="expected name, color and count"):
            check_contents(json.loads('[{"name": "dog"}]'))
