"""`vistok evaluate` on question files: several tasks, a card, a gallery of two models."""

import json
import shutil

import pytest

from tests.tiny import tiny_image
from tests.vistok.commands import fails
from vistok import cli


@pytest.fixture
def questions(tmp_path):
    """Questions of two tasks about four images."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    counting, identifying = [], []
    for number in range(4):
        tiny_image(number).save(tmp_path / "data" / "images" / f"{number:012d}.jpg")
        record = {"image_id": number, "n_obj_exist": 3}
        counting.append({**record, "text_in": "How many cups are there in the image?", "text_out": str(number + 1)})
        answer = ["Yes.", "No."][number % 2]
        identifying.append({**record, "text_in": "Does cup exist in the image?", "text_out": answer})
    (tmp_path / "data" / "coco_oc.json").write_text(json.dumps(counting))
    (tmp_path / "data" / "coco_mci.json").write_text(json.dumps(identifying))
    return tmp_path / "data"


@pytest.fixture
def arguments(questions):
    given = ["--task", "coco_oc,coco_mci", "--questions", str(questions), "--images", str(questions / "images")]
    return [*given, "--max-new-tokens", "3"]


def test_several_tasks_are_reported_and_put_on_the_card(adapter_folder, arguments, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(adapter_folder, folder)
    (folder / "results.json").write_text(json.dumps({"command": "vistok train mine.yaml", "steps": 1}))
    assert cli.main(["evaluate", "--model", str(folder), *arguments, "--update-card"]) == 0
    out = capsys.readouterr().out
    assert out.count("| all | 4 |") == 2
    assert "| coco_oc | 4 | right |" in out and "| coco_mci | 4 | right |" in out
    recorded = json.loads((folder / "results.json").read_text())["evaluation"]
    assert [report["task"] for report in recorded] == ["coco_oc", "coco_mci"]
    card = (folder / "README.md").read_text("utf-8")
    assert "| coco_oc | test | 4 |" in card and "| coco_mci | test | 4 |" in card and "MAE" in card


def test_two_models_make_a_gallery_which_measures_no_floors(adapter_folder, arguments, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(adapter_folder, other)
    out = str(tmp_path / "gallery")
    models = ["--model", adapter_folder, "--model", str(other)]
    assert cli.main(["evaluate", "--gallery", out, *models, *arguments, "--num-shown", "5"]) == 0
    assert capsys.readouterr().out == f"Gallery: {out}.png and {out}.html\n"
    page = (tmp_path / "gallery.html").read_text("utf-8")
    assert page.count("<article>") == 5
    assert "<b>other</b>" in page
    report = json.loads((tmp_path / "gallery.evaluations" / "2" / "coco_oc-test.json").read_text())
    assert report["floors"] == {}


def test_what_does_not_go_together_is_told(adapter_folder, arguments, tmp_path, capsys):
    two = ["--model", adapter_folder, "--model", adapter_folder]
    assert "give --gallery OUT" in fails(capsys, "evaluate", *two, *arguments)
    assert "--predictions is for a gallery" in fails(capsys, "evaluate", "--predictions", "a.jsonl", *arguments)
    assert "There is no task: give --task" in fails(capsys, "evaluate", "--model", adapter_folder)
    message = fails(capsys, "evaluate", "--model", adapter_folder, "--task", "coco_cmi")
    assert "Did you mean 'coco_mci'?" in message
    message = fails(capsys, "evaluate", "--model", adapter_folder, "--task", "refering")
    assert "reconstruction, referring, generation, editing. Did you mean 'referring'?" in message
    assert "1 models and 0 predictions files" in fails(
        capsys, "evaluate", "--gallery", str(tmp_path / "g"), "--model", adapter_folder, *arguments
    )


def test_a_missing_image_is_told_with_its_row_and_can_be_left_out(adapter_folder, arguments, questions, capsys):
    (questions / "images" / f"{2:012d}.jpg").unlink()
    given = ["evaluate", "--model", adapter_folder, *arguments]
    assert cli.main(given) == 2
    assert "data source 'coco_oc', row 2" in capsys.readouterr().err
    assert cli.main([*given, "--skip-missing-images", "--floors"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("| all | 3 |") == 2
    assert "1 further questions were left out, their image is missing" in captured.out
