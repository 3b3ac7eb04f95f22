"""Cells of a study, with tiny models on tiny scenes: trained, asked, looked at, and resumed."""

import json
import shutil

import numpy as np
import pytest

from tests.tiny import tiny_processor
from tests.trainer.conftest import RESAMPLER
from tests.trainer.planted_study import write_tiny_scenes
from vistok.evaluation.study_tasks import class_labels, load_task, scene_masks
from vistok.evaluation.vqa import answer_of
from vistok.trainer.study_cells import KINDS, _seen_mask
from vistok.trainer.study_process import do_job

TASKS = ("vqa", "caption", "oc", "mci")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


class TestTasks:
    def test_questions_are_those_of_the_annotations(self, scenes):
        oc = load_task("oc", scenes)
        asked = {
            (e["images"][0]["path"][-5], e["question"]): e["messages"][1]["content"][0]["text"] for e in oc.examples
        }
        assert asked["2", "How many apples are there in the image?"] == "2"
        assert asked["2", "How many balls are there in the image?"] == "1"
        mci = load_task("mci", scenes)
        assert {e["question"] for e in mci.examples} == {
            f"Does {name} exist in the image?" for name in ("apple", "ball")
        }
        assert len(load_task("vqa", scenes).examples) == len(load_task("caption", scenes).examples) == 6

    def test_questions_are_bare_because_the_chat_template_wraps_them(self, scenes):
        for task in TASKS:
            (example, *_) = load_task(task, scenes).examples
            assert example["messages"][0]["content"][-1]["text"] == example["question"]
            assert not example["question"].startswith("Question:")

    def test_right_answers_score_all_and_others_nothing(self, scenes):
        for task in ("vqa", "oc", "mci"):
            questions = load_task(task, scenes)
            right = [answer_of(example) for example in questions.examples]
            assert questions.values(right) == [100.0] * len(right)
            assert questions.values([""] * len(right)) == [0.0] * len(right)
            assert questions.num_unanswered([""] * len(right)) == len(right)

    def test_the_mode_decides_how_a_count_is_read(self, scenes):
        strict, reference = (load_task("oc", scenes, mode=mode) for mode in ("strict", "reference"))
        said = ["sixteen" if answer_of(example) == "1" else "" for example in strict.examples]
        assert sum(strict.values(said)) == 0
        assert strict.values(said, "accuracy_reference") == reference.values(said)

    def test_a_choice_of_questions_keeps_their_order_and_follows_the_seed(self, scenes):
        every = [example["id"] for example in load_task("mci", scenes).examples]
        some = [example["id"] for example in load_task("mci", scenes, 4, seed=1).examples]
        assert len(some) == 4 and some == [name for name in every if name in some]
        assert some == [example["id"] for example in load_task("mci", scenes, 4, seed=1).examples]

    def test_labels_and_masks_are_those_of_the_annotations(self, scenes):
        classes, files, labels = class_labels(scenes)
        assert classes == ["apple", "ball"] and len(files) == 6
        assert labels[:3] == [[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        first, third = scene_masks(scenes, [0, 2])
        assert first[2:10, :6].all() and first.sum() == 48 and third.sum() == 3 * 48

    @pytest.mark.parametrize(
        ("task", "options", "message"),
        [
            ("ocr", {}, "'ocr' is no task"),
            ("oc", {"mode": "lax"}, "mode is 'lax'"),
            ("oc", {"num_questions": 0}, "is 0"),
        ],
    )
    def test_what_cannot_be_asked_is_refused(self, scenes, task, options, message):
        with pytest.raises(ValueError, match=message):
            load_task(task, scenes, **options)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"instances\.json"):
            class_labels(tmp_path)


def test_a_mask_goes_the_way_of_the_image():
    mask = np.zeros((24, 24), dtype=bool)
    mask[:12, :8] = True
    processor = tiny_processor()
    np.testing.assert_allclose(_seen_mask(processor, mask), mask)
    processor.image_processor.size = {"height": 48, "width": 48}
    assert _seen_mask(processor, mask).shape == (48, 48)
    assert _seen_mask(processor, mask)[:20, :12].min() == 1


def configuration(base_models, tuning: str = "frozen") -> dict:
    _, text = base_models
    sources = [
        {"format": "vqa", "name": "vqa", "path": "{train}/vqa_questions.json", "images": "{train}/images"},
        {"format": "coco-captions", "name": "captions", "path": "{train}/captions.json", "images": "{train}/images"},
    ]
    training = {
        "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 1, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "conversations_per_row": 2, "cache_features": tuning == "frozen",
    }  # fmt: skip
    return {
        "encoder": "tiny",
        "feature_layer": -2,
        "tuning": tuning,
        "seed": 1,
        "protocol": {
            "model": {"text": text, "resampler": RESAMPLER, "image_size": 24},
            "trainable": {"vision": "frozen" if tuning == "frozen" else "full", "resampler": "full", "llm": "frozen"},
            "data": {"train": sources},
            "training": training,
        },
        "evaluation": {"tasks": dict.fromkeys(TASKS), "max_new_tokens": 3, "batch_size": 4, "num_shuffled": 4},
        "attention": {"num_scenes": 3, "shown": 2, "heads": [0, 1]},
    }


@pytest.fixture
def output(tmp_path, base_models, scenes):
    """A study whose scenes and encoder are made."""
    for split in ("train", "test"):
        shutil.copytree(scenes, tmp_path / "scenes" / split / "data")
    do(tmp_path, "encoders/tiny", "encoder", {"how": "pretrained", "model": base_models[0]})
    return tmp_path


def do(output, name: str, kind: str, config: dict) -> dict:
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.json").write_text(json.dumps({"job": name, "kind": kind, "config": config, "hash": "x"}))
    assert do_job(output, name, KINDS) == 0
    return json.loads((folder / "results.json").read_text())["results"]


@pytest.mark.parametrize("tuning", ["frozen", "tuned"])
def test_a_cell_is_trained_asked_and_looked_at(output, base_models, tuning):
    found = do(output, "cells/one", "cell", configuration(base_models, tuning))
    assert found["training"]["steps"] == 3
    for task in TASKS:
        measured = found["tasks"][task]
        assert len(measured["values"]) == len(measured["images"]) == measured["num_questions"]
        assert measured["score"] == pytest.approx(np.mean(measured["values"]), abs=1e-3)
        assert measured["num_shuffled"] == 4 and 0 <= measured["num_unanswered"] <= measured["num_questions"]
        answers = json.loads((output / "cells/one/predictions" / f"{task}-given.json").read_text())
        assert len(answers) == measured["num_questions"]
    attention = found["attention"]
    assert len(attention["images"]) == 3 and all(0 <= value <= 1 for value in attention["share_in_masks"])
    assert attention["mask_area"][0] == pytest.approx(48 / 24**2)
    kept = np.load(output / "cells/one/attention.npz")
    assert kept["maps"].shape == (2, 2, 3, 3, 3) and kept["pixels"].shape == (2, 24, 24, 3)
    assert not list((output / "cells/one/model").glob("checkpoint-*"))


def test_a_cell_that_was_interrupted_ends_as_one_that_was_not(output, base_models, monkeypatch):
    config = configuration(base_models)
    whole = do(output, "cells/whole", "cell", config)

    class Killed(Exception):
        pass

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as context:
        context.setattr("vistok.trainer.study_cells.evaluate_cell", killed)
        with pytest.raises(Killed):
            do(output, "cells/again", "cell", config)
    assert not (output / "cells/again/results.json").exists()
    again = do(output, "cells/again", "cell", config)
    assert again["tasks"] == whole["tasks"] and again["attention"] == whole["attention"]
    assert again["training"]["train_loss"] == pytest.approx(whole["training"]["train_loss"])


def test_floors_are_what_the_questions_yield_without_images(output, base_models):
    config = configuration(base_models)
    floors = do(output, "floors", "floors", {"evaluation": config["evaluation"], "data": config["protocol"]["data"]})
    # Every VQA question has a training answer that is right for a third or two of the images about it.
    asked = load_task("vqa", output / "scenes" / "test" / "data")
    right = [answer_of(example) for example in asked.examples]
    of_question = {}
    for example, answer in zip(asked.examples, right):
        of_question.setdefault(example["question"], []).append(answer)
    best = {question: max(answers.count(answer) for answer in answers) for question, answers in of_question.items()}
    assert floors["vqa"]["question_only_prior"] == pytest.approx(100 * sum(best.values()) / len(right), abs=0.1)
    assert floors["vqa"]["majority"] == pytest.approx(100 * max(map(right.count, right)) / len(right), abs=0.1)
    assert floors["mci"]["num_questions"] == len(load_task("mci", output / "scenes" / "test" / "data").examples)


def test_random_and_supervised_encoders_are_towers_that_a_cell_can_use(output, base_models):
    from transformers import AutoModel

    do(output, "encoders/random", "encoder", {"how": "random", "architecture": base_models[0], "seed": 4})
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
    config = {"how": "supervised", "architecture": base_models[0], "supervision": {"training": training}}
    made = do(output, "encoders/supervised", "encoder", config)
    assert made["steps"] == 2 and 0 <= made["mean_average_precision"] <= 100
    for name in ("random", "supervised"):
        tower = AutoModel.from_pretrained(output / "encoders" / name / "model")
        assert tower.config.model_type == "dinov2"
    config = {**configuration(base_models), "encoder": "supervised"}
    assert do(output, "cells/two", "cell", config)["training"]["steps"] == 3
