"""A recipe runs from base models and data to a folder that loads, with card, results, loss curve and log."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline

from tests.tiny import tiny_image
from tests.trainer.conftest import RESAMPLER
from tests.trainer.tiny_training import ANSWERS, QUESTIONS
from vistok import VisualLanguageTrainer
from vistok.hub_cards.run_results import merge_results
from vistok.modeling.trained_weights import read_trained_weights, save_trained_weights
from vistok.trainer.loss_curve import draw_loss_curve, mean_training_loss
from vistok.trainer.model_recipe import build_model
from vistok.trainer.recipe import recipe_from_dict
from vistok.trainer.run_recipe import run_recipe
from vistok.trainer.visual_language_recipe import CURVE


@pytest.fixture
def recipe(base_models, tmp_path, monkeypatch):
    """Makes a recipe on ten questions about images in a folder, of which one is no image."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for index in range(10):
        tiny_image(index // 2).save(images / f"{index // 2}.png")
        conversation = [
            {"from": "human", "value": f"<image>\n{QUESTIONS[index % 3]}"},
            {"from": "gpt", "value": ANSWERS[index % 4]},
        ]
        lines.append(json.dumps({"id": str(index), "image": f"{index // 2}.png", "conversations": conversation}))
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    (images / "bad.png").write_text("no image")
    lines.insert(3, lines[3].replace("1.png", "bad.png"))
    (tmp_path / "some bad.jsonl").write_text("\n".join(lines))

    def make(**sections):
        source = {"format": "llava", "images": str(images)}
        values = {
            "model": {"vision": base_models[0], "text": base_models[1], "resampler": dict(RESAMPLER)},
            "data": {
                "train": [{**source, "name": "train", "path": str(tmp_path / "some bad.jsonl"), "on_error": "skip"}],
                "eval": [{**source, "name": "held-out", "path": str(tmp_path / "good.jsonl"), "max_samples": 4}],
            },
            "card": {"title": "Tiny"},
        }
        training = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "disable_tqdm": True,
            "max_steps": 4,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "report_to": "none",
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if name != "training" else section
        return recipe_from_dict({**values, "training": {**training, **values.get("training", {})}})

    return make


def test_a_run_ends_with_a_folder_that_answers(recipe, tmp_path):
    results = run_recipe(recipe(training={"report_to": "tensorboard"}), command="vistok train tiny.yaml")
    folder = tmp_path / "run"
    expected = {"config.json", "trained_weights.safetensors", "processor_config.json", "tokenizer.json"}
    expected |= {"README.md", "results.json", "loss.png", "training_log.jsonl"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.name.startswith((".saving", ".loss", ".results"))]

    ask = pipeline("image-text-to-text", model=str(folder))
    assert type(ask.model).__name__ == "GVTForConditionalGeneration"
    content = [{"type": "image", "image": tiny_image(0)}, {"type": "text", "text": QUESTIONS[0]}]
    answer = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)

    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert stored["command"] == "vistok train tiny.yaml" and stored["steps"] == 4
    assert stored["skipped_samples"] == 1
    assert stored["recipe"]["model"]["resampler"] == RESAMPLER
    evaluations = [entry for entry in stored["log_history"] if "eval_held-out_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4]
    assert stored["metrics"].items() <= evaluations[-1].items()
    assert 0 <= stored["metrics"]["eval_held-out_answer_accuracy"] <= 1
    assert stored["parameters"]["trained"] < stored["parameters"]["all"]
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    logged = [entry["loss"] for entry in log if "loss" in entry]
    assert len(logged) == 4 and stored["train_loss"] == pytest.approx(sum(logged) / 4)
    card = (folder / "README.md").read_text()
    assert "# Tiny" in card and "vistok train tiny.yaml" in card and str(tmp_path) not in card
    with Image.open(folder / "loss.png") as picture:
        assert picture.size == (1200, 675) and len(picture.convert("L").getcolors()) > 10

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent)).Reload()
    assert [event.value for event in accumulator.Scalars("train/loss")] == pytest.approx(logged)
    assert len(accumulator.Scalars("eval/held-out_answer_accuracy")) >= 2


def test_everything_is_saved_if_asked_for(recipe, tmp_path):
    results = run_recipe(recipe(training={"save_trained_only": False, "max_steps": 1, "save_strategy": "no"}))
    assert results["metrics"]["eval_held-out_loss"] > 0  # measured once, at the end
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    assert loaded.config.base_models is None
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_stream_is_trained_on_past_its_bad_samples_which_are_counted_once(recipe):
    (source,) = recipe().data.train
    evaluation = {"eval_strategy": "no", "max_steps": 12, "save_strategy": "no"}  # two passes and a bit
    results = run_recipe(recipe(data={"train": [{**source, "streaming": True}]}, training=evaluation))
    assert results["steps"] == 12 and results["skipped_samples"] == 1
    assert results["epochs"] is None  # how long a pass is, nobody knows


@pytest.fixture
def killed(recipe, monkeypatch):
    """Starts a run that dies in its last step, with a checkpoint of its half behind it."""

    def kill():
        step = VisualLanguageTrainer.training_step

        def mortal(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as context:
            context.setattr(VisualLanguageTrainer, "training_step", mortal)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(recipe())

    return kill


def test_a_killed_run_that_is_started_again_ends_as_if_it_had_not_been_killed(recipe, tmp_path, killed, monkeypatch):
    step, clock = VisualLanguageTrainer.training_step, [0.0]

    def slow(self, *args, **kwargs):
        clock[0] += 10
        return step(self, *args, **kwargs)

    whole = run_recipe(recipe(training={"output_dir": str(tmp_path / "whole")}))
    monkeypatch.setattr("vistok.trainer.training_record.perf_counter", lambda: clock[0])
    monkeypatch.setattr(VisualLanguageTrainer, "training_step", slow)
    killed()
    assert not (tmp_path / "run" / "results.json").exists()
    again = run_recipe(recipe())
    assert again["steps"] == whole["steps"]
    assert again["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)

    def curve(results):
        return [entry["loss"] for entry in results["log_history"] if "loss" in entry]

    assert curve(again) == pytest.approx(curve(whole), abs=1e-5)
    first, second = read_trained_weights(tmp_path / "whole"), read_trained_weights(tmp_path / "run")
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert again["train_seconds"] == 40  # two steps of the first session and two of the second
    # And from the beginning it is another run, of the same outcome.
    assert curve(run_recipe(recipe(), resume=False)) == pytest.approx(curve(whole), abs=1e-5)


def test_a_finished_run_that_is_started_again_leaves_what_is_recorded_as_it_is(recipe, tmp_path, caplog):
    folder = tmp_path / "run"
    run_recipe(recipe(), command="vistok train tiny.yaml")
    report = {"task": "shapes", "split": "test", "num_questions": 100, "accuracy": 90.0}
    recorded = merge_results(folder, {"evaluation": [report]})
    content = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with caplog.at_level("WARNING", logger="vistok"):
        assert run_recipe(recipe(training={"save_steps": 3}), command="vistok train --resume auto") == recorded
    assert "no step left to take" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-4 is of .*: training\.learning_rate is 0\.5 and was 0\.01"):
        run_recipe(recipe(training={"learning_rate": 0.5}))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == content
    # A run that was killed before it recorded its end does so now, and one that is to be longer goes on.
    (folder / "results.json").unlink()
    assert run_recipe(recipe())["steps"] == 4 and (folder / "results.json").exists()
    assert run_recipe(recipe(training={"max_steps": 5}))["steps"] == 5


def test_a_run_cannot_be_changed_half_way(recipe, tmp_path, killed):
    killed()
    (source,) = recipe().data.train
    other = recipe(data={"train": [{**source, "on_error": "raise", "max_samples": 2}]})
    with pytest.raises(ValueError, match=r"data\.train\.0\.on_error is 'raise' and was 'skip'; .*max_samples is 2"):
        run_recipe(other)
    with pytest.raises(ValueError, match="checkpoint-2 is of a run with another recipe"):
        run_recipe(other, resume=str(tmp_path / "run" / "checkpoint-2"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_second_stage_starts_from_the_folder_of_the_first(recipe, tmp_path, base_models):
    first = recipe(training={"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"})
    run_recipe(first)
    stage = {"checkpoint": str(tmp_path / "run"), "image_size": 16, "chat_template": "vicuna", "dtype": "float32"}
    model, processor = build_model(recipe(model=stage).model)
    weights = read_trained_weights(tmp_path / "run")
    assert torch.equal(model.get_parameter("model.resampler.latents"), weights["model.resampler.latents"])
    assert processor.image_processor.size["height"] == 16 and "USER: " in processor.chat_template
    _, kept = build_model(recipe(model={"checkpoint": str(tmp_path / "run")}).model)
    assert "Question: " in kept.chat_template
    wrong = recipe(model={"checkpoint": str(tmp_path / "run"), "resampler": {"num_latents": 8}})
    with pytest.raises(ValueError, match=r"model\.resampler\.num_latents is 8, but .* has 3: leave it out"):
        build_model(wrong.model)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_the_base_models_of_a_checkpoint_are_its_own(recipe, tmp_path, base_models, model, processor, part):
    for folder in ("first", "whole"):
        processor.save_pretrained(tmp_path / folder)
    save_trained_weights(model.requires_grad_(False), tmp_path / "first")
    model.save_pretrained(tmp_path / "whole")
    stage = {"checkpoint": str(tmp_path / "first")}
    with pytest.raises(ValueError, match=rf"model\.{part} is 'other', but .*first has '.*': leave it out"):
        build_model(recipe(model={**stage, part: "other"}).model)
    build_model(recipe(model={**stage, part: os.path.relpath(base_models[part == "text"])}).model)
    with pytest.raises(ValueError, match=r"but .*whole has None"):
        build_model(recipe(model={"checkpoint": str(tmp_path / "whole")}).model)
    short = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no"}
    results = run_recipe(recipe(model={**stage, "vision": None, "text": None}, training=short, data={"eval": []}))
    recorded = results["recipe"]["model"]
    assert (recorded["vision"], recorded["text"]) == ("vision", "text")  # of the folders' paths what is published


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"kind": "clip"}}, "'clip' is no kind of model: choose gvt"),
        ({"model": {"dtype": "float15"}}, "dtype of the model is 'float15'"),
        ({"data": {"train": []}}, "no data sources to mix"),
        ({"trainable": {"tower": "full"}}, "'tower' is no part of"),
        ({"training": {"save_dtype": "bf16"}}, "save_dtype is 'bf16'"),
    ],
)
def test_what_does_not_fit_is_said_before_training(recipe, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe(**sections))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_without_matplotlib_a_run_says_so_before_it_starts(recipe, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"vistok\[train\]"):
        run_recipe(recipe())


def test_the_mean_loss_counts_every_step_once():
    history = [
        {"step": 2, "loss": 4.0},
        {"step": 2, "eval_loss": 9.0},
        {"step": 3, "loss": 1.0},
        {"step": 3, "train_loss": 7.0},
    ]
    assert mean_training_loss(history, 0.0) == pytest.approx((4 + 4 + 1) / 3)
    assert mean_training_loss([], 1.5) == 1.5


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": 2.0}, {"step": 1, "eval_a_loss": 3.0, "eval_a_answer_accuracy": 0.5}],
        [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0, "eval_answer_accuracy": math.nan}],
    ],
)
def test_a_loss_curve_is_drawn_of_whatever_was_logged(history, tmp_path):
    draw_loss_curve(history, tmp_path / "loss.png", CURVE)
    with Image.open(tmp_path / "loss.png") as picture:
        picture.load()
    assert os.listdir(tmp_path) == ["loss.png"] and Path(tmp_path, "loss.png").stat().st_size > 5000
