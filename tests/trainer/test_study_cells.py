"""Cells of a study, with tiny models on tiny scenes: trained, asked, looked at, and resumed."""

import json
import shutil

import numpy as np
import pytest

from tests.tiny import tiny_processor
from tests.trainer.conftest import RESAMPLER
from tests.trainer.planted_study import write_tiny_scenes
from vistok.evaluation.generation import generate_answers
from vistok.evaluation.study_tasks import class_labels, load_task, scene_objects
from vistok.evaluation.vqa import answer_of
from vistok.trainer.study_cells import KINDS, make_scenes
from vistok.trainer.study_measures import _numbered, _seen_mask, probe_images
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
        (first,), third = scene_objects(scenes, [0, 2])
        assert first[2:10, :6].all() and first.sum() == 48 and [mask.sum() for mask in third] == [48] * 3

    def test_vqa_questions_keep_what_they_ask_about(self, tmp_path):
        folder = write_tiny_scenes(tmp_path / "scenes")
        assert load_task("vqa", folder).parts == [None] * 6  # no type in these annotations
        path = folder / "vqa_annotations.json"
        document = json.loads(path.read_text())
        kinds = ("naming", "category", "relation", "threshold", "place", "naming")
        for answer, kind in zip(document["annotations"], kinds):
            answer["question_type"] = kind
        path.write_text(json.dumps(document))
        expected = ["semantic", "semantic", "spatial", "counting", "spatial", "semantic"]
        assert load_task("vqa", folder).parts == [f"vqa_{part}" for part in expected]
        fewer = load_task("vqa", folder, 3, seed=2)
        places = load_task("vqa", folder).places(fewer)
        assert [f"vqa_{expected[place]}" for place in places] == fewer.parts

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
    other = np.zeros((24, 24), dtype=bool)
    other[20:, 20:] = True
    numbers = _numbered(tiny_processor(), [mask, other], (24, 24))
    assert (numbers == 1).sum() == mask.sum() and (numbers[20:, 20:] == 2).all() and numbers[14, 14] == 0


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
        "attention": {"num_scenes": 3, "layer": -1},
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


CELL = ("encoder", "feature_layer", "tuning", "seed", "protocol")


def do_cell(output, name: str, config: dict) -> dict[str, dict]:
    """Trains a cell, asks it and looks at it; returns the results of these jobs."""
    training = f"cells/{name}/training"
    found = {"training": do(output, training, "training", {key: config[key] for key in CELL})}
    asked = {"model": training, "evaluation": config["evaluation"]}
    found["answers"] = do(output, f"cells/{name}/answers", "answers", asked)
    looked = {"model": training, **config["attention"]}
    return {**found, "attention": do(output, f"cells/{name}/attention", "attention", looked)}


@pytest.mark.parametrize("tuning", ["frozen", "tuned"])
def test_a_cell_is_trained_asked_and_looked_at(output, base_models, tuning):
    found = do_cell(output, "one", configuration(base_models, tuning))
    assert found["training"]["steps"] == 3
    for task in TASKS:
        measured = found["answers"][task]
        assert len(measured["values"]) == len(measured["images"]) == measured["num_questions"]
        assert measured["score"] == pytest.approx(np.mean(measured["values"]), abs=1e-3)
        assert measured["num_shuffled"] == 4 and 0 <= measured["num_unanswered"] <= measured["num_questions"]
        paired = [measured["values"][place] for place in measured["shuffled_places"]]
        assert measured["gain"] == pytest.approx(np.mean(paired) - np.mean(measured["shuffled_values"]), abs=1e-3)
        answers = json.loads((output / "cells/one/answers/predictions" / f"{task}-given.json").read_text())
        assert len(answers) == measured["num_questions"]
        others = json.loads((output / "cells/one/answers/predictions" / f"{task}-shuffled.json").read_text())
        assert [entry["question"] for entry in others] == [
            answers[place]["question"] for place in measured["shuffled_places"]
        ]
    attention = found["attention"]
    assert len(attention["images"]) == 3 and all(0 <= value <= 1 for value in attention["share_in_masks"])
    assert attention["mask_area"][0] == pytest.approx(48 / 24**2)
    kept = np.load(output / "cells/one/attention/attention.npz")
    assert kept["maps"].shape == (3, 2, 3, 3, 3) and kept["pixels"].shape == (3, 24, 24, 3)
    assert [kept["objects"][scene].max() for scene in range(3)] == [1, 2, 3]
    assert not list((output / "cells/one/training/model").glob("checkpoint-*"))


def test_answers_that_were_interrupted_end_as_those_that_were_not(output, base_models, monkeypatch):
    whole = do_cell(output, "whole", configuration(base_models))
    config = {"model": "cells/whole/training", "evaluation": configuration(base_models)["evaluation"]}

    class Killed(Exception):
        pass

    asked = []

    def killed(model, processor, examples, **options):
        asked.append(options["images"])
        if len(asked) == 4:
            raise Killed
        return generate_answers(model, processor, examples, **options)

    with monkeypatch.context() as context:
        context.setattr("vistok.trainer.study_measures.generate_answers", killed)
        with pytest.raises(Killed):
            do(output, "cells/again/answers", "answers", config)
    assert not (output / "cells/again/answers/results.json").exists()
    assert do(output, "cells/again/answers", "answers", config) == whole["answers"]


def test_a_tower_is_probed_on_nouns_outside_the_classes(output, base_models, monkeypatch):
    rows = {"train": (list("abcd"), ["apple", "dog", "cat", "dog"]), "test": (list("efg"), ["dog", "bus", "apple"])}
    monkeypatch.setattr("vistok.trainer.study_measures.labelled_images", lambda source, *_: rows[source["split"]])
    assert probe_images({"num_train": 4, "num_test": 3}, ["apple"]) == ((["b", "d"], ["dog"] * 2), (["e"], ["dog"]))
    files = sorted(str(path) for path in (output / "scenes/test/data/images").iterdir())
    for split, places in (("train", files[:4]), ("test", files[4:])):
        rows[split] = (places, ["dog", "cat"] * (len(places) // 2))
    probe = {"num_train": 4, "num_test": 2}
    config = {"encoder": "tiny", "feature_layer": -1, "image_size": 24, "probe": probe, "random_seed": 3}
    found = do(output, "probes/tiny", "probe", config)
    assert found["floors"] == {"majority": 50.0, "num_train": 4, "num_test": 2, "num_classes": 2}
    assert set(found["tower"]) == set(found["random"]) == {"knn", "linear_probe"}
    cell = configuration(base_models)
    do(output, "cells/one/training", "training", {key: cell[key] for key in CELL})
    config = {"model": "cells/one/training", "feature_layer": -1, "probe": probe}
    assert do(output, "cells/one/probe", "probe", config)["tower"] == found["tower"]  # frozen, it is the same


def test_what_a_killed_process_left_of_scenes_is_removed(tmp_path, scenes, monkeypatch):
    (tmp_path / ".data.0123" / "images").mkdir(parents=True)

    def write(folder, **settings):
        shutil.copytree(scenes, folder)
        (folder / "SOURCE.json").write_text(json.dumps({"cutouts": ["a", "b"], "backgrounds": {"c": "d"}}))

    monkeypatch.setattr("vistok.trainer.study_cells.write_scenes", write)
    made = make_scenes({"split": "train"}, tmp_path, tmp_path)
    assert made == {"images": 6, "objects": 12, "classes": 2, "cutouts": 2, "backgrounds": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


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
    values = floors["vqa"]["values"]
    assert np.mean(values["majority"]) == pytest.approx(floors["vqa"]["majority"], abs=1e-3)
    assert len(values["question_only_prior"]) == len(floors["vqa"]["images"]) == len(right)
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
    assert do(output, "cells/two/training", "training", {key: config[key] for key in CELL})["steps"] == 3
