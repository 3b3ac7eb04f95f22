"""The command `vistok scenes`: what it writes, draws and refuses."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.trainer.planted_scenes import planted_pictures
from tests.vistok.commands import fails
from vistok import cli
from vistok.trainer import scene_set
from vistok.trainer.cutouts import Cutout, CutoutLibrary
from vistok.trainer.scene_preview import scene_sheet


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Cut-outs and photographs that need not be fetched, different on the two sides."""
    cutouts, backgrounds = planted_pictures(tmp_path)

    def side(split, **unused):
        nouns = list(cutouts.nouns.values())
        return CutoutLibrary(
            [Cutout(c.name, c.category, c.path, c.collection, split, f"{split}/{c.name}") for c in cutouts], nouns
        )

    monkeypatch.setattr(scene_set, "load_cutouts", side)
    monkeypatch.setattr(
        scene_set, "load_backgrounds", lambda split, *a, **k: backgrounds[:1] if split == "test" else backgrounds[1:]
    )
    return tmp_path


def test_train_and_test_are_written_apart_and_drawn(planted, capsys):
    train, test, sheet = planted / "train", planted / "test", planted / "sheet.png"
    common = ["--num-scenes", "5", "--num-classes", "2", "--size", "64"]
    assert cli.main(["scenes", str(train), *common, "--preview", str(sheet)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"5 scenes (train): {train}", f"Preview: {sheet}"]
    assert cli.main(["scenes", str(test), "--split", "test", *common, "--apart-from", str(train)]) == 0
    assert len(json.loads((test / "instances.json").read_text())["images"]) == 5
    with Image.open(sheet) as drawn:
        assert drawn.width == 6 * 224 and drawn.height > 224 + 12


def test_options_reach_the_settings(planted):
    arguments = ["--classes", "cow, apple", "--max-objects", "2", "--count-weights", "1,0", "--classes-weights", "1,1"]
    arguments += ["--object-sizes", "0.3", "0.5"]
    arguments += ["--seed", "3", "--questions", "1", "--captions", "2", "--max-overlap", "0", "--size", "80"]
    assert cli.main(["scenes", str(planted / "set"), "--num-scenes", "8", *arguments]) == 0
    settings = json.loads((planted / "set" / "SOURCE.json").read_text())["settings"]
    assert settings["classes"] == ["apple", "cow"] and settings["seed"] == 3
    assert settings["object_sizes"] == [0.3, 0.5]
    assert settings["count_weights"] == [1, 0] and settings["captions_per_scene"] == 2
    instances = json.loads((planted / "set" / "instances.json").read_text())
    assert {image["width"] for image in instances["images"]} == {80}
    assert {item["hidden"] for item in instances["annotations"]} == {0.0}


def test_the_preview_shows_the_masks(planted):
    """A sheet of one image: where the outline of a mask is, the image was drawn over."""
    assert cli.main(["scenes", str(planted / "set"), "--num-scenes", "1", "--num-classes", "1", "--size", "64"]) == 0
    (file,) = (planted / "set" / "images").iterdir()
    with Image.open(scene_sheet(planted / "set", planted / "one.png", columns=1)) as drawn, Image.open(file) as image:
        plain = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        box = json.loads((planted / "set" / "instances.json").read_text())["annotations"][0]["bbox"]
        corner = (round(box[0] * 3.5), round((box[1] + box[3] / 2) * 3.5))
        assert drawn.getpixel(corner) != plain.getpixel(corner)


def test_the_preview_shows_every_question_with_its_answer_within_its_column(planted, monkeypatch):
    """What is drawn is put together again, column by column, and compared with the files."""
    folder, drawn = planted / "set", []
    assert cli.main(["scenes", str(folder), "--num-scenes", "9", "--num-classes", "3", "--size", "64"]) == 0
    draw_text = ImageDraw.ImageDraw.text

    def draw_and_note(self, place, text, *arguments, **options):
        draw_text(self, place, text, *arguments, **options)
        if options["fill"] == "black":
            drawn.append((*place, place[0] + self.textlength(text), text))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", draw_and_note)
    with Image.open(scene_sheet(folder, planted / "sheet.png", columns=4)) as sheet:
        assert max(top for _, top, _, _ in drawn) + 12 <= sheet.height
    assert len({(left, top) for left, top, _, _ in drawn}) == len(drawn)
    assert all(left // 224 == right // 224 for left, _, right, _ in drawn)
    shown = " ".join(" ".join(text for *_, text in drawn).split())
    questions = json.loads((folder / "vqa_questions.json").read_text())["questions"]
    answers = json.loads((folder / "vqa_annotations.json").read_text())["annotations"]
    assert any(len(item["question"]) > 40 for item in questions)
    for question, answer in zip(questions, answers):
        assert f"{question['question']} ({answer['multiple_choice_answer']})" in shown


def test_the_folder_of_the_preview_is_made(planted):
    sheet = planted / "not" / "yet" / "sheet.png"
    assert cli.main(["scenes", str(planted / "set"), "--num-scenes", "1", "--preview", str(sheet)] + TWO) == 0
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize(
    ("place", "message"), [("pictures", "is a folder: give a PNG file"), ("file/sheet.png", "is no folder")]
)
def test_a_preview_that_cannot_be_written_is_refused_before_rendering(planted, capsys, place, message):
    (planted / "file").write_text("mine")
    before = sorted(planted.rglob("*"))
    assert message in fails(capsys, "scenes", str(planted / "set"), "--preview", str(planted / place), *TWO)
    assert sorted(planted.rglob("*")) == before


TWO = ["--num-classes", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--object-sizes", "0.5", "0.3"], "object_sizes must be the smallest and the largest longer side"),
        (["--num-scenes", "0"], "num_scenes must be a whole number between 1"),
        (["--count-weights", "a,b"], "--count-weights takes numbers separated by commas, got 'a,b'"),
        (["--max-objects", "12"], "max_objects must lie between 1 and 9, got 12"),
        (["--num-classes", "9"], "num_classes must be at most 3"),
        (["--classes", "unicorn"], "unknown class of scenes 'unicorn'"),
        (["--apart-from", "nowhere"], "nowhere is no set of scenes"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_written(planted, capsys, arguments, message):
    before = sorted(planted.rglob("*"))
    assert message in fails(capsys, "scenes", str(planted / "set"), "--num-classes", "2", *arguments)
    assert sorted(planted.rglob("*")) == before


def test_a_preview_of_another_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no set of scenes"):
        scene_sheet(tmp_path, Path(tmp_path) / "sheet.png")
