"""`vistok words`: what it writes, and what it tells before a model is loaded."""

import json
import shutil
import sys

import pytest
from PIL import Image

from tests.tiny import tiny_image
from tests.vistok.commands import fails
from vistok import VTLMMForCausalLM, VTLMMProcessor, cli
from vistok.cli_words import SHIPPED_MODEL
from vistok.configuration import shipped
from vistok.evaluation.word_map import read_word_map


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        tiny_image(number, size=(40, 30)).save(folder / f"{number}.png")
    return folder


class TestMaps:
    def test_without_names_a_picture_and_a_page_are_written_here(
        self, words_folder, image_file, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["words", image_file, "--model", words_folder, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.split() == ["words.png", "words.html"]
        model = VTLMMForCausalLM.from_pretrained(words_folder)
        expected = read_word_map(model, VTLMMProcessor.from_pretrained(words_folder), image_file)
        page = (tmp_path / "words.html").read_text(encoding="utf-8")
        assert f"row 1, column 1: {expected.words[0, 0, 0]} " in page.replace("&lt;", "<").replace("&gt;", ">")
        rows, columns = expected.grid_size
        assert page.count('role="gridcell"') == rows * columns
        assert page.count('class="bar"') == rows * columns * 5
        with Image.open("words.png") as picture:
            assert picture.size[0] % columns == 0 and max(picture.size) >= 1600

    def test_only_what_is_named_is_written(self, words_folder, image_file, tmp_path, capsys):
        page = tmp_path / "new" / "nearest.html"
        arguments = ["words", image_file, "--model", words_folder, "--nearest", "--top-k", "2", "--html", str(page)]
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.split() == [str(page)]
        text = page.read_text(encoding="utf-8")
        assert "cosine similarity" in text and "nats" not in text
        assert text.count('class="bar"') == 2 * text.count('role="gridcell"')

    def test_several_images_have_a_picture_each_and_share_a_page(self, words_folder, photos, tmp_path, capsys):
        output, page = tmp_path / "out.png", tmp_path / "out.html"
        arguments = ["words", str(photos), "--model", words_folder, "--output", str(output), "--html", str(page)]
        assert cli.main([*arguments, "--shading", "--patch-size", "60"]) == 0
        pictures = [tmp_path / f"out-{number}.png" for number in range(4)]
        assert capsys.readouterr().out.split() == [*map(str, pictures), str(page)]
        assert all(file.is_file() for file in pictures) and not output.exists()
        assert page.read_text(encoding="utf-8").count("<section>") == 4


class TestDistinctiveWords:
    def test_of_one_image_they_are_relative_to_its_own_patches(self, words_folder, image_file, tmp_path, capsys):
        page, picture = tmp_path / "words.html", tmp_path / "words.png"
        arguments = ["words", image_file, "--model", words_folder, "--distinctive", "--top-k", "3"]
        assert cli.main([*arguments, "--html", str(page), "--output", str(picture)]) == 0
        text = page.read_text(encoding="utf-8")
        assert "<title>Images as distinctive words: " in text and "P̄: mean over the 9 patches of this image" in text
        assert text.count('class="bar"') == 9 * 2 * 3
        with Image.open(picture) as drawn:
            assert drawn.height > drawn.width  # the line below the image

    def test_they_may_be_relative_to_other_images(self, words_folder, image_file, photos, tmp_path):
        page = tmp_path / "words.html"
        arguments = ["words", image_file, "--model", words_folder, "--distinctive", "--relative-to", str(photos)]
        assert cli.main([*arguments, "--html", str(page)]) == 0
        assert "P̄: mean over the 36 patches of 4 images (photos)" in page.read_text(encoding="utf-8")


class TestShippedModel:
    """Where no model is named."""

    @pytest.fixture
    def shipping(self, words_folder, tmp_path, monkeypatch):
        """A tiny VT-LMM ships."""
        (tmp_path / "package" / "checkpoints").mkdir(parents=True)
        shutil.copytree(words_folder, tmp_path / "package" / SHIPPED_MODEL)
        monkeypatch.setattr(shipped, "_SHIPPED_IN", tmp_path / "package")

    def test_it_reads_the_image_and_is_named(self, shipping, image_file, tmp_path, capsys):
        page = tmp_path / "words.html"
        assert cli.main(["words", image_file, "--html", str(page)]) == 0
        assert "<title>Images as words: vtlmm-demo</title>" in page.read_text(encoding="utf-8")
        out = tmp_path / "statistics"
        assert cli.main(["words", image_file, "--statistics", str(out), "--resamples", "0"]) == 0
        results = json.loads((out / "token_statistics.json").read_text(encoding="utf-8"))
        assert results["model"] == "checkpoints/vtlmm-demo"

    def test_where_none_ships_it_is_named(self, image_file, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(shipped, "_SHIPPED_IN", tmp_path)
        assert "'checkpoints/vtlmm-demo'" in fails(capsys, "words", image_file)


class TestStatistics:
    def test_a_folder_is_counted(self, words_folder, photos, tmp_path, capsys):
        out = tmp_path / "statistics"
        arguments = ["words", str(photos), "--model", words_folder, "--statistics", str(out), "--resamples", "10"]
        assert cli.main([*arguments, "--batch-size", "3"]) == 0
        captured = capsys.readouterr()
        results = json.loads((out / "token_statistics.json").read_text(encoding="utf-8"))
        assert results["num_images"] == 4 and results["model"] == words_folder
        assert results["command"].startswith("vistok words ")
        assert captured.out.strip() == (out / "token_statistics.md").read_text(encoding="utf-8").strip()
        assert Image.open(out / "token_statistics.png").format == "PNG"

    def test_a_damaged_image_is_named_and_nothing_is_written(self, words_folder, photos, tmp_path, capsys):
        (photos / "2.png").write_bytes(b"damaged")
        out = tmp_path / "statistics"
        arguments = ["words", str(photos), "--model", words_folder, "--statistics", str(out)]
        assert cli.main(arguments) == 2
        assert "2.png" in capsys.readouterr().err and not out.exists()
        assert cli.main([*arguments, "--resamples", "0", "--skip-unreadable"]) == 0
        assert json.loads((out / "token_statistics.json").read_text())["num_images"] == 3

    @pytest.mark.parametrize(
        "option",
        [
            ["--output", "a.png"],
            ["--html", "a.html"],
            ["--nearest"],
            ["--top-k", "3"],
            ["--shading"],
            ["--distinctive"],
        ],
    )
    def test_options_of_maps_are_refused(self, image_file, option, capsys):
        line = fails(capsys, "words", image_file, "--model", "no/model", "--statistics", "out", *option)
        assert option[0] in line and "--statistics" in line

    @pytest.mark.parametrize("option", [["--skip-unreadable"], ["--batch-size", "2"], ["--seed", "1"]])
    def test_its_own_options_are_refused_where_maps_are_drawn(self, image_file, option, capsys):
        line = fails(capsys, "words", image_file, "--model", "no/model", *option)
        assert f"{option[0]} is for language statistics" in line


class TestRefusals:
    def test_a_model_without_the_head_is_told(self, adapter_folder, image_file, capsys):
        line = fails(capsys, "words", image_file, "--model", adapter_folder)
        assert "kind gvt" in line and "no visual modelling head" in line

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["nowhere/photo.png"], "nowhere/photo.png"),
            (["{image}", "--top-k", "0"], "top_k is 0"),
            (["{image}", "--patch-size", "10"], "patch_size is 10"),
            (["{image}", "--font", "gone.ttf"], "gone.ttf"),
            (["{image}", "--output", "{folder}"], "a folder"),
            (["{image}", "--output", "words.jpg"], "let it end with .png"),
            (["{folder}/none"], "no image file or folder"),
            (["{image}", "--distinctive", "--nearest"], "leave out one of them"),
            (["{image}", "--relative-to", "{folder}"], "--relative-to is for --distinctive"),
            (["{image}", "--distinctive", "--relative-to", "{folder}/none"], "no image file or folder"),
            (["{image}", "--output", "{image}"], "is one of the images"),
            (["{image}", "--html", "{image}"], "is one of the images"),
            (["{image}", "--output", "{folder}/a.png", "--html", "{folder}/a.png"], "name two files"),
        ],
    )
    def test_what_is_wrong_is_told_before_a_model_is_loaded(self, arguments, told, image_file, tmp_path, capsys):
        arguments = [argument.format(image=image_file, folder=tmp_path) for argument in arguments]
        assert told in fails(capsys, "words", *arguments, "--model", "no/such/model")

    def test_an_image_that_is_named_like_the_picture_is_not_written_over(
        self, image_file, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        shutil.copy(image_file, "words.png")
        before = (tmp_path / "words.png").read_bytes()
        assert "words.png is one of the images" in fails(capsys, "words", "words.png", "--model", "no/such/model")
        assert (tmp_path / "words.png").read_bytes() == before

    def test_a_file_that_is_no_image_is_told(self, tmp_path, capsys):
        (tmp_path / "photo.png").write_text("not a picture")
        assert "not an image" in fails(capsys, "words", str(tmp_path / "photo.png"), "--model", "no/such/model")

    def test_more_words_than_there_are_leave_no_file(self, words_folder, image_file, tmp_path, capsys):
        output = tmp_path / "out.png"
        line = fails(capsys, "words", image_file, "--model", words_folder, "--top-k", "9999", "--output", str(output))
        assert "9999" in line and not output.exists()

    def test_without_matplotlib_the_extra_is_named(self, image_file, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert 'pip install "vistok[draw]"' in fails(capsys, "words", image_file, "--model", "no/such/model")
