"""Predictions survive a kill, and are never taken for those of another evaluation."""

import copy
import json

import pytest
import torch

from tests.tiny import image_bytes
from vistok.evaluation.predictions import PredictionsFile, check_distinct, fingerprint, read_predictions

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


def settings_of_model(model, processor):
    """Ways to change what a model answers without touching a weight, the image processor or the chat template."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["<new>"])
    other = copy.deepcopy(processor)
    other.tokenizer = tokenizer
    longer = copy.deepcopy(processor)
    longer.num_image_tokens += 1
    return [
        ("configuration", lambda: setattr(model.config, "vision_feature_layer", -1), processor),
        ("configuration", lambda: setattr(model.generation_config, "no_repeat_ngram_size", 3), processor),
        ("processor", lambda: None, other),
        ("processor", lambda: None, longer),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_fingerprint_changes_with_what_is_configured(model, processor, questions, number):
    model.config.vision_feature_layer = -2
    before = fingerprint(model, processor, questions)
    model.config._name_or_path = "elsewhere"
    processor.tokenizer(["a", "b c"], padding=True)
    assert fingerprint(model, processor, questions) == before
    changes, change, other = settings_of_model(model, processor)[number]
    change()
    after = fingerprint(model, other, questions)
    assert [name for name in before if after[name] != before[name]] == [changes]


FOREIGN = {
    "no line end": b'{"a": 1, ',
    "numbers": b"[1,2]\n[3]",
    "no JSON": b"{torn\n",
    "settings of something else": b'{"settings": 3}\n{}\n',
    "no prediction": json.dumps({"settings": SETTINGS}).encode() + b'\n{"id": "q0"}\n[1',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_ours_is_told_by_name_and_stays_as_it_is(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for read in (read_predictions, lambda file: PredictionsFile(file, SETTINGS)):
        with pytest.raises(ValueError, match=r"predictions\.jsonl (is no|holds no) predictions"):
            read(path)
        assert path.read_bytes() == content


def test_reading_leaves_a_file_that_is_being_written_as_it_is(path, questions):
    PredictionsFile(path, SETTINGS).append("given", questions[:2], ["zero", "one"])
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()
    assert [line["prediction"] for line in read_predictions(path)] == ["zero"]
    assert path.read_bytes() == before
