"""The demo, on tiny models and a planted easy-VQA; and on the shipped adapter where the real weights are."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny import tiny_image
from vistok import cli, demo
from vistok.configuration.shipped import shipped_path
from vistok.modeling.trained_weights import CheckpointError
from vistok.trainer.visual_language_trainer import VisualLanguageTrainer

COLORS = ("red", "blue", "green", "gray")


@pytest.fixture(scope="module")
def easy_vqa_folder(tmp_path_factory):
    """Every question of the test split is asked in training too, with the answer "red" most often."""
    data = tmp_path_factory.mktemp("easy-vqa")
    for split, count in {"train": 40, "test": 12}.items():
        folder = data / "easy_vqa" / "data" / split
        (folder / "images").mkdir(parents=True)
        questions = []
        for index in range(count):
            tiny_image(index).save(folder / "images" / f"{index}.png")
            answer = COLORS[index % 4] if index % 2 else "red"
            questions.append(["what color is the shape?", answer, index])
        (folder / "questions.json").write_text(json.dumps(questions))
    return data


def plant(monkeypatch, easy_vqa_folder):
    """The demo finds everything in the cache, and a small easy-VQA there."""
    load = demo.load_data_source
    monkeypatch.setattr(demo, "load_data_source", lambda source: load({**source, "path": str(easy_vqa_folder)}))
    monkeypatch.setattr(demo, "is_fetched", lambda name: True)
    monkeypatch.setattr(demo, "fetch", lambda names: {name: Path("/cache") / name for name in names})
    monkeypatch.setattr(demo, "fetch_package", lambda name: Path("/cache") / name)


@pytest.fixture
def planted_easy_vqa(easy_vqa_folder, monkeypatch):
    plant(monkeypatch, easy_vqa_folder)


@pytest.fixture
def arguments(planted_easy_vqa, adapter_folder, tmp_path):
    return {"output": tmp_path / "out", "model": adapter_folder, "num_questions": 8, "num_steps": 2}


@pytest.fixture(scope="module")
def whole_demo(easy_vqa_folder, adapter_folder, tmp_path_factory):
    """A demo that ran through: its results, what it printed, and the folder that it left."""
    output = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        plant(monkeypatch, easy_vqa_folder)
        results = demo.run_demo(output=output, model=adapter_folder, num_questions=8, num_steps=2)
    return results, printed.getvalue(), output


def test_the_demo_goes_through_all_its_steps_and_says_so(whole_demo):
    results, printed, _ = whole_demo
    for number in range(1, demo.NUM_STEPS + 1):
        assert f"\n[{number}/{demo.NUM_STEPS}] " in printed
    summary = printed.split(demo.RULE)[1]
    assert [line.split()[0] for line in summary.strip().splitlines()] == [*results["seconds"]]
    assert len(results["seconds"]) == demo.NUM_STEPS + 1
    assert "better than the best floor" in summary
    assert results["seconds"]["all"] == pytest.approx(sum(results["seconds"].values()) / 2, abs=2)


def test_what_the_demo_leaves_is_complete(whole_demo, adapter_folder):
    results, _, output = whole_demo
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(results))
    for picture in results["pictures"]:
        drawn = Image.open(output / picture).convert("RGB")
        assert drawn.width > 1000
        assert len(drawn.resize((120, 90)).getcolors(120 * 90)) > 1000
    assert len(results["losses"]) == 2
    tuned = AutoModelForImageTextToText.from_pretrained(output / "fine-tuned").state_dict()
    shipped = AutoModelForImageTextToText.from_pretrained(adapter_folder).state_dict()
    moved = {name for name in tuned if not torch.equal(tuned[name], shipped[name])}
    assert moved and all(name.startswith(("model.resampler", "model.projector")) for name in moved)
    AutoProcessor.from_pretrained(output / "fine-tuned")


def test_scores_are_those_of_the_sample_and_its_floors(whole_demo, planted_easy_vqa):
    evaluation = whole_demo[0]["evaluation"]
    test = demo.load_data_source({"format": "easy-vqa", "split": "test", "seed": 0, "max_samples": 8})
    red = sum(example["messages"][-1]["content"][0]["text"] == "red" for example in test) / len(test)
    assert evaluation["num_questions"] == 8
    assert evaluation["floors"]["question_only_prior"]["accuracy"] == red
    assert evaluation["floors"]["majority"]["accuracy"] == red
    assert set(evaluation["floors"]) == set(demo.FLOOR_LABELS)


def test_answers_are_marked_right_or_wrong(arguments, monkeypatch, capsys):
    replies = iter([photo.answer for photo in demo.PHOTOGRAPHS[:-1]] + ["a horse"] + ["violet"])
    monkeypatch.setattr(demo, "answer_question", lambda *inputs, **options: next(replies, "anything"))
    results = demo.run_demo(**arguments)
    assert [answer["right"] for answer in results["answers"]] == [True] * 6 + [False] * 2
    printed = capsys.readouterr().out
    assert f"a horse ✗ ({demo.PHOTOGRAPHS[-1].answer})" in printed
    assert printed.count("✓") == 6
    assert "6 of 8 questions" in printed.split(demo.RULE)[1]


def test_a_reloaded_model_that_differs_is_told_and_fails(arguments, monkeypatch, capsys):
    save_final = VisualLanguageTrainer.save_final

    def save_something_else(self, folder):
        save_final(self, folder)
        with torch.no_grad():
            self.model.model.projector.weight.add_(0.1)

    monkeypatch.setattr(VisualLanguageTrainer, "save_final", save_something_else)
    code = cli.main(
        [
            "demo",
            "--output",
            str(arguments["output"]),
            "--model",
            arguments["model"],
            "--questions",
            "8",
            "--steps",
            "1",
        ]
    )
    assert code == 1
    assert "DIFFER" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["num_questions", "num_steps"])
def test_nothing_to_do_is_refused_before_anything_is_loaded(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        demo.run_demo(tmp_path / "out", "no/such/model", **{name: 0})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "message"), [(None, "There is no folder"), ("llama", "a model of type llama, not gvt")]
)
def test_a_wrong_model_is_told_before_anything_is_made_or_fetched(
    arguments, tmp_path, monkeypatch, model_type, message
):
    model = tmp_path / "wrong"
    if model_type:
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"model_type": model_type}))
    monkeypatch.setattr(demo, "fetch", pytest.fail)
    with pytest.raises((FileNotFoundError, CheckpointError), match=message):
        demo.run_demo(**arguments | {"model": model})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.9, "15.0 points better than"), (0.75, "NO better than")])
def test_the_verdict_compares_with_the_best_floor(accuracy, verdict):
    floors = {"majority": {"accuracy": 0.5}, "question_only_prior": {"accuracy": 0.75}}
    told = demo._verdict({"accuracy": accuracy, "floors": floors})
    assert told == f"{verdict} the best floor ({demo.FLOOR_LABELS['question_only_prior']}: 75.0 %)"


def test_without_scikit_image_the_error_names_the_extra(arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ImportError, match=r'pip install "vistok\[demo\]"'):
        demo.run_demo(**arguments)
    assert not (tmp_path / "out").exists()


def shipped_adapter() -> bool:
    try:
        return (shipped_path("checkpoints/gvt-demo") / "config.json").is_file()
    except FileNotFoundError:
        return False


@pytest.mark.real_weights
@pytest.mark.real_data("easy-vqa")
@pytest.mark.skipif(not shipped_adapter(), reason="checkpoints/gvt-demo is not there")
def test_the_shipped_adapter_answers_better_than_the_question_alone(tmp_path):
    """Offline, as every test is: the whole demo needs no network once the cache is filled."""
    results = demo.run_demo(tmp_path, num_questions=96, num_steps=1)
    evaluation = results["evaluation"]
    assert evaluation["accuracy"] >= 0.97
    assert evaluation["accuracy"] > evaluation["floors"]["question_only_prior"]["accuracy"]
    assert evaluation["accuracy"] > evaluation["floors"]["blank_images"]["accuracy"]
    assert results["reloaded_equal"]
