"""Predictions survive a kill, and are never taken for those of another evaluation."""

import json

import pytest
import torch

from tests.tiny import image_bytes
from vistok.evaluation.predictions import PredictionsFile, check_distinct, fingerprint

SETTINGS = {"seed": 0, "weights": "abc"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "predictions.jsonl"


def test_predictions_are_lines_that_can_be_read_without_us(path, questions):
    PredictionsFile(path, SETTINGS).append("given", questions[:2], ["red", "Größe\n\u2028"])
    settings, first, second = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert settings == {"settings": SETTINGS}
    assert first == {
        "id": "q0",
        "source": "planted",
        "images": "given",
        "question": "a?",
        "answer": "red",
        "prediction": "red",
        "right": True,
    }
    assert (second["prediction"], second["right"]) == ("Größe\n\u2028", False)


def test_predictions_are_known_by_images_source_and_id(path, questions):
    file = PredictionsFile(path, SETTINGS)
    file.append("given", questions[3:5], ["three", ""])
    file.append("blank", questions[3:4], ["grey"])
    for opened in (file, PredictionsFile(path, SETTINGS)):
        assert opened.known("given", questions) == {3: "three", 4: ""}
        assert opened.known("blank", questions) == {3: "grey"}
        assert opened.known("given", [{**questions[3], "source": "another"}]) == {}


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_cut_off_by_a_kill_is_dropped(path, questions, kept):
    file = PredictionsFile(path, SETTINGS)
    file.append("given", questions[:1], ["zero"])
    before = path.read_bytes()
    file.append("given", questions[1:2], ["one"])
    path.write_bytes(before + path.read_bytes()[len(before) :][:kept])
    resumed = PredictionsFile(path, SETTINGS)
    assert resumed.known("given", questions) == {0: "zero"}
    resumed.append("given", questions[1:2], ["again"])
    assert PredictionsFile(path, SETTINGS).known("given", questions) == {0: "zero", 1: "again"}


def test_a_first_line_cut_off_by_a_kill_is_written_anew(path, questions):
    path.parent.mkdir()
    path.write_text('{"setti')
    PredictionsFile(path, SETTINGS).append("given", questions[:1], ["zero"])
    assert PredictionsFile(path, SETTINGS).known("given", questions) == {0: "zero"}


def test_predictions_of_another_evaluation_are_refused(path):
    PredictionsFile(path, SETTINGS)
    with pytest.raises(ValueError, match=r"weights is 'abc' there and 'xyz' here.*give another predictions file"):
        PredictionsFile(path, {**SETTINGS, "weights": "xyz"})


def test_examples_of_equal_id_cannot_be_told_apart(questions):
    check_distinct(questions)
    check_distinct([questions[0], {**questions[0], "source": "another"}])
    with pytest.raises(ValueError, match="Two examples of 'planted' have the id 'q2'"):
        check_distinct([*questions, questions[2]])


def test_a_fingerprint_changes_with_the_images_of_the_same_questions(model, processor, questions):
    before = fingerprint(model, processor, questions)
    after = fingerprint(model, processor, [{**questions[0], "images": [image_bytes(99)]}, *questions[1:]])
    assert [name for name in before if after[name] != before[name]] == ["images"]


def test_a_fingerprint_changes_with_weights_processor_and_questions(model, processor, questions):
    before = fingerprint(model, processor, questions)
    assert fingerprint(model, processor, questions) == before
    assert fingerprint(model, processor, questions[1:])["questions"] != before["questions"]
    processor.chat_template, template = processor.chat_template + " ", processor.chat_template
    assert fingerprint(model, processor, questions)["processor"] != before["processor"]
    processor.chat_template = template
    for parameter in (model.model.projector.bias, model.get_input_embeddings().weight):
        before = fingerprint(model, processor, questions)
        with torch.no_grad():
            parameter.mul_(1.01).add_(0.01)
        assert fingerprint(model, processor, questions)["weights"] != before["weights"]
