"""`vistok tokens`: what it writes and measures, and what it tells before a model is loaded."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_dinov2_config, tiny_image, tiny_image_processor
from tests.vistok.commands import fails
from vistok import cli
from vistok.evaluation.cluster_quality import rank_correlation
from vistok.modeling.modeling_setok_vision import SeTokVisionModel
from vistok.modeling.vision_features import build_vision_tower
from vistok.trainer.scene_annotations import run_lengths


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tower")
    build_vision_tower(tiny_dinov2_config()).save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def setok(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("setok")
    model = SeTokVisionModel.from_vision_pretrained(tower, max_tokens=5, merger_num_heads=2)
    model.save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scenes(tmp_path):
    """Four images with two or three rectangles each, in one of which an object is one patch only."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(4):
        image = np.asarray(tiny_image(number, size=(32, 32))).copy() // 8
        boxes = [(0, 0, 12, 12), (16, 16, 30, 28), (20, 2, 24, 6)][: 2 + number % 2]
        for place, (top, left, bottom, right) in enumerate(boxes):
            mask = np.zeros((32, 32), bool)
            mask[top:bottom, left:right] = True
            image[mask] = 60 + 90 * place
            record = {"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append({**record, "segmentation": run_lengths(mask)})
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))


SMALL = ["--image-size", "32", "--layer", "-1", "--device", "cpu"]


class TestPictures:
    def test_without_names_a_picture_and_a_table_are_written_here(
        self, tower, image_file, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["tokens", image_file, "--model", tower, *SMALL]) == 0
        assert capsys.readouterr().out.split() == ["tokens.png", "tokens.csv"]
        with open("tokens.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["variant"] for row in rows} == {"threshold"} and {row["image"] for row in rows} == {"photo.png"}
        side = 32 // tiny_dinov2_config().patch_size
        assert sum(int(row["patches"]) for row in rows) == side * side

    def test_variants_share_a_picture_and_images_a_table(self, tower, setok, image_file, tmp_path, capsys):
        tiny_image(5, size=(30, 50)).save(tmp_path / "other.png")
        images = [image_file, str(tmp_path / "other.png")]
        output, table = tmp_path / "out" / "t.png", tmp_path / "out" / "t.json"
        compared = ["threshold,tokens=4", "kmeans", "grid", "iterative,kernel_scale=0.5", f"model={setok}"]
        arguments = ["tokens", *images, "--model", tower, *SMALL, "--output", str(output), "--table", str(table)]
        # The layer is the tower's: a SeTok has its own.
        assert cli.main([*arguments, "--compare", *compared]) == 0
        pictures = [str(output.with_name(f"t-{name}.png")) for name in ("photo", "other")]
        assert capsys.readouterr().out.split() == [*pictures, str(table)]
        documents = json.loads(table.read_text(encoding="utf-8"))
        assert [document["variant"] for document in documents] == 2 * compared
        assert [document["num_tokens"] for document in documents[:3]] == [4, 4, 4]

    def test_a_setok_is_drawn_as_it_is(self, setok, image_file, tmp_path):
        table = tmp_path / "t.json"
        assert cli.main(["tokens", image_file, "--model", setok, "--device", "cpu", "--table", str(table)]) == 0
        (document,) = json.loads(table.read_text())
        assert document["variant"] == "iterative" and 1 <= document["num_tokens"] <= 5


class TestMeasures:
    def test_tokens_are_compared_with_objects_beside_the_floors(self, tower, scenes, cache, capsys):
        arguments = ["tokens", str(scenes / "images"), "--measure", str(scenes / "instances.json"), "--model", tower]
        arguments += [*SMALL, "--resamples", "50", "--tokens", "objects+1", "--report", str(scenes / "report")]
        assert cli.main([*arguments, "--compare", "threshold", "iterative"]) == 0
        printed = capsys.readouterr().out
        results = json.loads((scenes / "report" / "cluster_quality.json").read_text())
        assert printed.strip() == (scenes / "report" / "cluster_quality.md").read_text(encoding="utf-8").strip()
        rows = {row["label"]: row for row in results["rows"]}
        assert list(rows)[:2] == ["threshold", "iterative"] and len(rows) == 7
        assert results["num_images"] == 4 and results["num_objects"] == 10
        assert rows["threshold"]["num_tokens"]["value"] == 3.5
        assert {row["rank_correlation"] for row in rows.values()} == {None}, "all are told how many tokens to make"
        assert rows["the objects themselves"]["ari"] == {"value": 1.0, "interval": None}
        assert rows["the objects themselves"]["iou"]["value"] == 1
        assert rows["one token"]["ari"]["value"] == 0 and rows["one token"]["rank_correlation"] is None
        for floor in ("plain grid", "k-means", "k-means on the clustered features"):
            assert rows[f"{floor}, as many tokens"]["num_tokens"]["value"] == 3.5
        with Image.open(scenes / "report" / "cluster_quality.png") as picture:
            assert picture.width < 1.5 * picture.height  # one panel
        found = json.loads((scenes / "report" / "cluster_quality.json").read_text())["images"]["threshold"]
        assert rank_correlation(*([one[name] for one in found] for name in ("num_tokens", "num_objects"))) == 1
        assert len(results["images"]["threshold"]) == 4

    def test_the_tower_sees_every_image_once(self, tower, scenes, cache, capsys, monkeypatch):
        from vistok.evaluation import token_sources

        arguments = ["tokens", str(scenes / "images"), "--measure", str(scenes / "instances.json"), "--model", tower]
        arguments += [*SMALL, "--resamples", "10", "--limit", "3"]
        assert cli.main(arguments) == 0
        seen = []
        original = token_sources.TokenSource._extract

        def counted(self, images):
            seen.append(len(images))
            return original(self, images)

        monkeypatch.setattr(token_sources.TokenSource, "_extract", counted)
        assert cli.main([*arguments, "--method", "iterative"]) == 0
        assert seen == [1]  # which tells the grid

    def test_photographs_behind_scenes_are_resampled_if_they_are_known(self, tower, scenes, cache, capsys):
        arguments = ["tokens", str(scenes / "images"), "--measure", str(scenes / "instances.json"), "--model", tower]
        arguments += [*SMALL, "--resamples", "10", "--by-background"]
        assert cli.main(arguments) == 2
        assert "The photograph behind 0.png is not known" in capsys.readouterr().err
        document = json.loads((scenes / "instances.json").read_text())
        for number, image in enumerate(document["images"]):
            image["background"] = f"photo {number % 2}"
        (scenes / "instances.json").write_text(json.dumps(document))
        assert cli.main(arguments) == 0
        assert "10 resamples of the 2 photographs behind them" in capsys.readouterr().out

    def test_a_wrong_mask_is_named_and_nothing_is_written(self, tower, scenes, cache, capsys):
        document = json.loads((scenes / "instances.json").read_text())
        document["annotations"][3]["segmentation"]["size"] = [3, 3]
        (scenes / "instances.json").write_text(json.dumps(document))
        arguments = ["tokens", str(scenes / "images"), "--measure", str(scenes / "instances.json"), "--model", tower]
        assert cli.main([*arguments, *SMALL, "--report", str(scenes / "report")]) == 2
        told = capsys.readouterr().err.splitlines()[-1]  # behind a progress bar
        assert "annotation 3 of 1.png: A mask is of size [3, 3]" in told
        assert not (scenes / "report").exists() and not (scenes / "cache" / "features").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["nowhere.png"], "nowhere.png"),
            (["{image}", "--output", "t.jpg"], "let it end with .png"),
            (["{image}", "--output", "{folder}"], "a folder"),
            (["{image}", "--table", "t.xls"], "let it end with .csv or .json"),
            (["{image}", "--tokens", "many"], "--tokens: 'many' is no whole number"),
            (["{image}", "--tokens", "objects+1"], "needs objects that are known"),
            (["{image}", "--method", "kmeans"], "kmeans makes no number of tokens of its own"),
            (["{image}", "--method", "best"], "method is 'best'"),
            (["{image}", "--compare", "grid=3"], "'grid' is none of"),
            (["{image}", "--image-size", "0"], "image_size is 0"),
            (["{image}", "--report", "r"], "--report is for cluster quality"),
            (["{image}", "--limit", "3"], "--limit is for cluster quality"),
            (["{folder}", "--measure", "gone.json"], "no annotation file 'gone.json'"),
            (["{image}", "--measure", "gone.json"], "IMAGE is the folder"),
            (["{folder}", "--measure", "gone.json", "--table", "t.csv"], "--table is for pictures"),
        ],
    )
    def test_what_is_wrong_is_told_before_a_model_is_loaded(self, arguments, told, image_file, tmp_path, capsys):
        arguments = [argument.format(image=image_file, folder=tmp_path) for argument in arguments]
        assert told in fails(capsys, "tokens", *arguments, "--model", "no/such/model")

    def test_a_file_that_is_no_image_and_a_missing_extra_are_told(self, image_file, tmp_path, monkeypatch, capsys):
        (tmp_path / "bad.png").write_text("not a picture")
        assert "not an image" in fails(capsys, "tokens", str(tmp_path / "bad.png"), "--model", "no/such/model")
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert "vistok[draw]" in fails(capsys, "tokens", image_file, "--model", "no/such/model")
        monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
        arguments = ["--compare", "threshold", "kmeans"]
        assert "vistok[evaluation]" in fails(capsys, "tokens", image_file, "--model", "no/such/model", *arguments)

    def test_a_folder_without_a_model_is_told(self, image_file, tmp_path, capsys):
        assert "holds no model" in fails(capsys, "tokens", image_file, "--model", str(tmp_path))
