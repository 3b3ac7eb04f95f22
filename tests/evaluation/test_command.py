"""What `vistok evaluate` does: a saved model, its questions, a folder with the report."""

import json
import sys

import pytest
from datasets import Dataset

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
