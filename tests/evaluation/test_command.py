"""What `vistok evaluate` does: a saved model, its questions, a folder with the report."""

import json
import sys

import pytest
from datasets import Dataset

from tests.tiny import tiny_image
from vistok.evaluation.command import evaluate_command
from vistok.evaluation.tasks import data_source_task


@pytest.fixture
def folder(taught, processor, tmp_path):
    taught.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_is_evaluated_and_reported(folder, questions, tmp_path):
    task = data_source_task("planted", {"format": "test"}, {"format": "train"})
    arguments = {
        "load_source": lambda described: Dataset.from_list(questions),
        "max_questions": 12,
        "floors": ["question_only_prior", "blank_images"],
        "seed": 1,
    }
    arguments |= {"output": tmp_path / "out", "batch_size": 5, "progress_bar": False, "command": "as told"}
    results = evaluate_command(folder, [task], **arguments)["planted"]
    assert (results["accuracy"], results["num_questions"]) == (1.0, 12)
    assert results["floors"]["question_only_prior"]["accuracy"] < 0.7
    assert results["settings"]["dtype"] == "float32"
    names = ["planted-test.json", "planted-test.md", "planted-test.png", "planted-test.predictions.jsonl"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    assert json.loads((tmp_path / "out" / names[0]).read_text("utf-8")) == results
    asked = [json.loads(line) for line in (tmp_path / "out" / names[-1]).read_text("utf-8").splitlines()[1:]]
    assert len({line["id"] for line in asked if line["images"] == "given"}) == 12
    again = evaluate_command(folder, [task], **arguments)["planted"]
    assert (again["accuracy"], again["floors"]) == (results["accuracy"], results["floors"])


def test_a_missing_matplotlib_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="vistok\\[draw\\]"):
        evaluate_command("no such model", "easy-vqa", output=tmp_path / "out")


def test_the_dtype_can_be_chosen(folder, questions):
    task = data_source_task("planted", {"format": "test"})
    arguments = {"load_source": lambda described: questions, "floors": [], "progress_bar": False}
    results = evaluate_command(folder, [task], dtype="bfloat16", **arguments)["planted"]
    assert results["settings"]["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype is 'int4', expected auto"):
        evaluate_command(folder, [task], dtype="int4", **arguments)


@pytest.mark.parametrize("name", ["max_questions", "max_floor_questions", "batch_size", "max_new_tokens"])
def test_numbers_out_of_range_are_told_before_anything_is_loaded(name):
    with pytest.raises(ValueError, match=f"{name} is -3, expected at least 1"):
        evaluate_command("no such model", "easy-vqa", **{name: -3})
    with pytest.raises(ValueError, match="'ceiling' is no floor"):
        evaluate_command("no such model", "easy-vqa", floors=["ceiling"])


def test_a_question_that_two_splits_share_is_asked_once(folder, tmp_path, monkeypatch):
    """Of vcr_mci, the right questions are spelt alike in both of its reports."""
    (tmp_path / "vcr1images").mkdir()
    records = []
    for number in range(4):
        tiny_image(number).save(tmp_path / "vcr1images" / f"{number}.jpg")
        for verb, answer in (("exist", "Yes."), ("exis", "No.")):
            text = f"Does {answer.lower()} {verb} in the image?"
            records.append({"image_id": f"{number}.jpg", "text_in": text, "text_out": answer, "n_obj_exist": 3})
    (tmp_path / "vcr_mci.json").write_text(json.dumps(records))
    asked = {"questions": tmp_path, "images": tmp_path, "floors": [], "progress_bar": False, "max_new_tokens": 3}
    found = evaluate_command(folder, "vcr_mci", output=tmp_path / "out", **asked)
    assert [results["num_generated"] for results in found.values()] == [8, 4]
    lines = (tmp_path / "out" / "vcr_mci-typos-fixed.predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 1 + 8
    alone = evaluate_command(folder, "vcr_mci", fix_typos="yes", **asked)["vcr_mci-typos-fixed"]
    assert (alone["accuracy"], alone["num_generated"]) == (found["vcr_mci-typos-fixed"]["accuracy"], 8)
