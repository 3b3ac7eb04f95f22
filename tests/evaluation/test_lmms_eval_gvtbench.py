"""GVTBench's tasks for lmms-eval, read as lmms-eval reads them, without it."""

import inspect
import json
import math
import random
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from tests.tiny import tiny_image
from vistok.evaluation import lmms_eval_gvtbench
from vistok.evaluation.gvtbench_questions import drop_duplicates, majority, two_fold_priors
from vistok.evaluation.gvtbench_scoring import score_multi_class_identification, score_object_counting
from vistok.evaluation.lmms_eval_plugin import tasks_path

FOLDER = tasks_path()
TASKS = {
    "gvtbench_coco_oc": score_object_counting,
    "gvtbench_coco_mci": score_multi_class_identification,
    "gvtbench_vcr_oc": score_object_counting,
    "gvtbench_vcr_mci": score_multi_class_identification,
    "gvtbench_vcr_mci_without_typos": score_multi_class_identification,
}
# Records of the official files (TencentARC/GVT, GVTBench, Apache-2.0), vcr_mci's with its typo.
COCO_OC = {"image_id": 397133, "text_in": "How many bowls are there in the image?", "text_out": "4", "n_obj_exist": 19}
VCR_MCI = {
    "image_id": "lsmdc_3088_WHATS_YOUR_NUMBER/3088_WHATS_YOUR_NUMBER_00.13.03.285-00.13.04.911@0.jpg",
    "text_in": "Does stopsigns exis in the image?",
    "text_out": "No.",
    "n_obj_exist": 3,
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with a question file of each task and the images they are about."""
    for task in lmms_eval_gvtbench.TASKS:
        record = {"coco": COCO_OC, "vcr": VCR_MCI}[task.partition("_")[0]]
        answer = "4" if task.endswith("oc") else "No."
        (tmp_path / f"{task}.json").write_text(json.dumps([{**record, "text_out": answer}]), encoding="utf-8")
    for image in (f"val2017/{COCO_OC['image_id']:012d}.jpg", f"vcr1images/{VCR_MCI['image_id']}"):
        (tmp_path / image).parent.mkdir(parents=True)
        tiny_image(3).convert("L").save(tmp_path / image)
    for variable in (lmms_eval_gvtbench.QUESTIONS, *lmms_eval_gvtbench.IMAGES.values()):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def read_task(file: str) -> dict:
    """A task's file as lmms-eval reads it: `!function` gets an attribute of a file beside it, `include` a template."""

    class Loader(yaml.SafeLoader):
        pass

    def attribute(loader, node):
        module, name = loader.construct_scalar(node).rsplit(".", 1)
        assert (FOLDER / f"{module}.py").resolve() == Path(lmms_eval_gvtbench.__file__).resolve()
        return getattr(lmms_eval_gvtbench, name)

    Loader.add_constructor("!function", attribute)
    with open(FOLDER / file, encoding="utf-8") as stream:
        config = yaml.load(stream, Loader)
    included = config.pop("include", None)
    return {**(read_task(included) if included else {}), **config}


def answers_and_records(task: str, number: int = 60):
    """Records of a task with repetitions, and answers that are right, wrong, none, or right by the reference only."""
    rng = random.Random(task)
    counting = TASKS[task] is score_object_counting
    records = []
    for _ in range(number):
        name = rng.choice(("dog", "cat", "cup"))
        asked = f"How many {name}s are there in the image?" if counting else f"Does {name} exist in the image?"
        answer = str(rng.randint(1, 9)) if counting else rng.choice(("Yes.", "No."))
        record = {"image_id": rng.randint(1, 9), "text_in": asked, "text_out": answer}
        records.append({**record, "n_obj_exist": rng.randint(1, 30)})
    records += [dict(record) for record in rng.sample(records, number // 4)]
    said = ("phone", "Three", "12 dogs", "", "none") if counting else ("yes, no doubt", "I do not know", "a dog", "")
    answers = [rng.choice((record["text_out"], *said)) for record in records]
    by_question = {json.dumps(record): answer for record, answer in zip(records, answers)}
    return [by_question[json.dumps(record)] for record in records], records


class TestTasks:
    def test_there_is_one_of_each_question_file_and_a_group_of_all(self, data):
        files = {file.stem: read_task(file.name) for file in FOLDER.glob("*.yaml")}
        group = files.pop("gvtbench")
        assert {name: config["task"] for name, config in files.items()} == {name: name for name in TASKS}
        assert group == {"group": "gvtbench", "task": list(TASKS)}

    @pytest.mark.parametrize("task", TASKS)
    def test_its_questions_and_images_are_the_official_ones(self, data, task):
        config = read_task(f"{task}.yaml")
        file = task.removeprefix("gvtbench_").removesuffix("_without_typos")
        assert config["dataset_path"] == "json" and config["test_split"] == "test"
        assert config["dataset_kwargs"] == {"data_files": {"test": str(data / f"{file}.json")}}
        (record,) = json.loads((data / f"{file}.json").read_text(encoding="utf-8"))
        (image,) = config["doc_to_visual"](record)
        assert (image.mode, image.size) == ("RGB", tiny_image(3).size)
        assert config["doc_to_target"] in record
        assert config["doc_to_text"](record) == record["text_in"]
        prompts = {"pre_prompt": "Question: ", "post_prompt": " Answer:"}
        assert config["doc_to_text"](record, prompts) == f"Question: {record['text_in']} Answer:"

    def test_they_decode_as_the_released_code_does(self, data):
        for task in TASKS:
            settings = read_task(f"{task}.yaml")["generation_kwargs"]
            assert settings["max_new_tokens"] == 32 and not settings["do_sample"] and settings["num_beams"] == 1
            assert settings["until"] == []  # the released code drops line breaks, it does not stop at them

    def test_only_one_corrects_the_typo(self, data):
        from datasets import Dataset

        configs = {task: read_task(f"{task}.yaml") for task in TASKS}
        assert [task for task in TASKS if "process_docs" in configs[task]] == ["gvtbench_vcr_mci_without_typos"]
        records = [VCR_MCI, {**VCR_MCI, "text_in": "Does ties exist in the image?", "text_out": "Yes."}]
        corrected = configs["gvtbench_vcr_mci_without_typos"]["process_docs"](Dataset.from_list(records))
        assert corrected.to_list() == [{**VCR_MCI, "text_in": "Does stopsigns exist in the image?"}, records[1]]


class TestScores:
    @pytest.mark.parametrize("task", TASKS)
    def test_every_metric_is_that_of_the_scoring_functions(self, data, task):
        config, score = read_task(f"{task}.yaml"), TASKS[task]
        answers, records = answers_and_records(task)
        entries = [config["process_results"](record, [answer]) for record, answer in zip(records, answers)]
        random.Random(1).shuffle(entries)  # as they come from several processes
        found = {
            metric["metric"]: metric["aggregation"]([entry[metric["metric"]] for entry in entries])
            for metric in config["metric_list"]
        }
        reference, strict = (score(answers, records, mode=mode) for mode in ("reference", "strict"))
        known = {json.dumps(record): answer for record, answer in zip(records, answers)}
        once = drop_duplicates(records)
        expected = {
            "reference_accuracy": reference["accuracy"],
            "strict_accuracy": strict["accuracy"],
            "unanswered": strict["num_unanswered"],
            "deduplicated_accuracy": score([known[json.dumps(record)] for record in once], once)["accuracy"],
            "majority_accuracy": score(majority(records), records)["accuracy"],
            "question_only_accuracy": fmean(
                score(guessed, records)["accuracy"] for guessed in two_fold_priors(records)
            ),
        }
        if score is score_object_counting:
            expected |= {f"reference_{name}": reference[name] for name in ("mae", "rmse")}
            expected |= {f"strict_{name}": strict[name] for name in ("mae", "rmse")}
        assert found == pytest.approx(expected)
        assert expected["reference_accuracy"] != expected["strict_accuracy"]
        assert expected["reference_accuracy"] != expected["deduplicated_accuracy"]

    @pytest.mark.parametrize("task", TASKS)
    def test_scores_of_single_questions_have_the_accuracy_as_their_mean(self, data, task):
        config = read_task(f"{task}.yaml")
        answers, records = answers_and_records(task)
        for mode in ("reference", "strict"):
            entries = [
                config["process_results"](record, [answer])[f"{mode}_accuracy"]
                for record, answer in zip(records, answers)
            ]
            accuracy = TASKS[task](answers, records, mode=mode)["accuracy"]
            assert sum(entry["score"] for entry in entries) / len(entries) == pytest.approx(accuracy)
            assert all(config["cluster_key"] in entry for entry in entries)

    def test_lmms_eval_can_call_and_hash_what_the_files_name(self, data):
        for task in TASKS:
            for metric in read_task(f"{task}.yaml")["metric_list"]:
                assert "args" not in inspect.signature(metric["aggregation"]).parameters
                assert isinstance(hash(metric["aggregation"]), int)

    def test_lower_is_better_for_errors_and_silence_only(self, data):
        metrics = [metric for task in TASKS for metric in read_task(f"{task}.yaml")["metric_list"]]
        lower = {metric["metric"] for metric in metrics if not metric["higher_is_better"]}
        errors = {f"{mode}_{name}" for mode in ("reference", "strict") for name in ("mae", "rmse")}
        assert lower == {*errors, "unanswered"}

    def test_one_image_has_no_question_only_prior(self, data):
        entry = lmms_eval_gvtbench.counting_results(COCO_OC, ["4"])["question_only_accuracy"]
        assert math.isnan(lmms_eval_gvtbench.counting_question_only([entry]))


class TestMissingData:
    @pytest.mark.parametrize("value", ["", "nowhere"])
    @pytest.mark.parametrize(
        ("variable", "what"),
        [
            ("VISTOK_GVTBENCH_QUESTIONS", "question files \\(coco_oc.json, "),
            ("VISTOK_VCR_IMAGES", "VCR's images: vcr1images"),
        ],
    )
    def test_a_variable_that_names_no_folder_is_named(self, data, monkeypatch, value, variable, what):
        monkeypatch.setenv(variable, value)
        with pytest.raises(
            ValueError, match=f"{variable} is '{value}', expected in this environment variable.*{what}"
        ):
            read_task("gvtbench_vcr_oc.yaml")

    def test_images_of_other_tasks_may_be_missing(self, data, monkeypatch):
        monkeypatch.delenv("VISTOK_VCR_IMAGES")
        assert read_task("gvtbench_coco_mci.yaml")["task"] == "gvtbench_coco_mci"

    def test_a_missing_image_is_told_when_the_task_is_loaded(self, data):
        next((data / "val2017").iterdir()).unlink()
        with pytest.raises(FileNotFoundError, match="397133"):
            read_task("gvtbench_coco_oc.yaml")

    def test_a_missing_question_file_is_named(self, data):
        (data / "coco_oc.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"coco_oc\.json"):
            read_task("gvtbench_coco_oc.yaml")

    def test_a_truncated_question_file_is_refused(self, data):
        (data / "coco_oc.json").write_text('[{"image_id": 3', encoding="utf-8")
        with pytest.raises(ValueError, match=r"coco_oc\.json is not JSON"):
            read_task("gvtbench_coco_oc.yaml")

    def test_an_unknown_name_is_an_attribute_error(self):
        for name in ("gqa_files", "coco_oc", "nothing"):
            with pytest.raises(AttributeError, match=name):
                getattr(lmms_eval_gvtbench, name)
