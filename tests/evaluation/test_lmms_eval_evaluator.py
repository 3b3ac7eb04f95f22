"""
lmms-eval's own evaluator with vistok's model and tasks, where it is installed. It is no dependency of vistok: in an
environment of its own, `python -c "from vistok.evaluation.lmms_eval_plugin import INSTALL; print(INSTALL)"` says how
to get it.
"""

import json
from statistics import fmean

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value

from tests.tiny import assistant, image_bytes, tiny_image, user
from vistok.evaluation import lmms_eval_plugin
from vistok.evaluation.gvtbench_questions import majority, two_fold_priors
from vistok.evaluation.gvtbench_scoring import score_multi_class_identification, score_object_counting
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.evaluation.pope import score_pope

evaluator = pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed")

NUM_IMAGES = 6
NAMES = ("dog", "cat")


def counting_record(number):
    image, name = number % NUM_IMAGES, NAMES[number // NUM_IMAGES]
    count = 1 + (image + number // NUM_IMAGES) % 3
    question = f"How many {name}s are there in the image?"
    return {"image_id": image, "text_in": question, "text_out": str(count), "n_obj_exist": 4 * image}


def identification_record(number):
    image, name = number % NUM_IMAGES, NAMES[number // NUM_IMAGES]
    answer = "Yes." if (image + number // NUM_IMAGES) % 2 else "No."
    return {"image_id": image, "text_in": f"Does {name} exist in the image?", "text_out": answer, "n_obj_exist": 9}


RECORDS = {
    "coco_oc": [counting_record(number) for number in range(2 * NUM_IMAGES)],
    "coco_mci": [identification_record(number) for number in range(2 * NUM_IMAGES)],
}
# What the model has learnt: the right answers, but for the last image, about which it says the same of all.
LEARNT = {"coco_oc": "2", "coco_mci": "yes"}


def learnt_answer(task, record):
    if record["image_id"] == NUM_IMAGES - 1:
        return LEARNT[task]
    return record["text_out"].rstrip(".").lower()


@pytest.fixture(scope="module")
def folder(teach, processor, tmp_path_factory):
    """A saved model that answers the records of both tasks by heart, and their images and questions."""
    folder = tmp_path_factory.mktemp("lmms-eval")
    examples = [
        {
            "id": f"{task}-{row}",
            "source": "planted",
            "row": row,
            "images": [image_bytes(record["image_id"])],
            "messages": [user("<image>", record["text_in"]), assistant(learnt_answer(task, record))],
        }
        for task, records in RECORDS.items()
        for row, record in enumerate(records)
    ]
    teach(None, processor, examples).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "val2017").mkdir()
    for seed in range(NUM_IMAGES):
        # PNG under COCO's names, because JPEG would change the few pixels
        tiny_image(seed).save(folder / "val2017" / f"{seed:012d}.jpg", format="PNG")
    for task, records in RECORDS.items():
        (folder / f"{task}.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(folder, monkeypatch):
    """Runs tasks with the model. Returns the results of each, with the logged samples."""
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    # As lmms-eval does with the entry point, which a checkout without an installation lacks.
    MODEL_REGISTRY_V2.register_manifest(lmms_eval_plugin.model_manifest(), overwrite=True)
    monkeypatch.setenv("VISTOK_GVTBENCH_QUESTIONS", str(folder))
    monkeypatch.setenv("VISTOK_COCO_IMAGES", str(folder))

    def run(*tasks, batch_size=5, **settings):
        path = str(lmms_eval_plugin.tasks_path())
        return evaluator.simple_evaluate(
            model="vistok",
            model_args=f"pretrained={folder / 'model'}",
            device="cpu",
            batch_size=batch_size,
            tasks=list(tasks),
            task_manager=TaskManager("ERROR", include_path=path, model_name="vistok"),
            **settings,
        )

    return run


def said(results, task):
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]


class TestGVTBench:
    @pytest.mark.parametrize(
        ("task", "score", "metrics"),
        [
            ("coco_oc", score_object_counting, ("accuracy", "mae", "rmse")),
            ("coco_mci", score_multi_class_identification, ("accuracy",)),
        ],
    )
    def test_its_numbers_are_those_of_the_scoring_functions(self, evaluate, task, score, metrics):
        results = evaluate(f"gvtbench_{task}")
        predictions, found = said(results, f"gvtbench_{task}"), results["results"][f"gvtbench_{task}"]
        records = RECORDS[task]
        assert predictions == [learnt_answer(task, record) for record in records]
        for mode in ("reference", "strict"):
            expected = score(predictions, records, mode=mode)
            assert {name: found[f"{mode}_{name},none"] for name in metrics} == {
                name: expected[name] for name in metrics
            }
        assert 0 < found["reference_accuracy,none"] < 100
        assert found["majority_accuracy,none"] == score(majority(records), records)["accuracy"]
        assert found["question_only_accuracy,none"] == fmean(
            score(guessed, records)["accuracy"] for guessed in two_fold_priors(records)
        )
        assert found["reference_accuracy_stderr_clustered,none"] > 0

    def test_answers_are_those_of_one_question_at_a_time(self, evaluate, folder):
        results = evaluate("gvtbench_coco_oc", batch_size=12)
        model = ImageTextModel.from_pretrained(folder / "model", device="cpu")
        alone = [
            model.generate([record["text_in"]], [[tiny_image(record["image_id"])]], max_new_tokens=32)[0]
            for record in RECORDS["coco_oc"]
        ]
        assert said(results, "gvtbench_coco_oc") == alone

    def test_missing_images_are_told_before_anything_is_asked(self, evaluate, monkeypatch, tmp_path):
        monkeypatch.setenv("VISTOK_COCO_IMAGES", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="No image for question"):
            evaluate("gvtbench_coco_oc")


def save_pope(folder):
    features = Features({**dict.fromkeys(["question_id", "question", "answer"], Value("string")), "image": Image()})
    rows = [
        {
            "question_id": str(row),
            "question": record["text_in"],
            "answer": record["text_out"].rstrip(".").lower(),
            "image": str(folder / "val2017" / f"{record['image_id']:012d}.jpg"),
        }
        for row, record in enumerate(RECORDS["coco_mci"])
    ]
    DatasetDict({"test": Dataset.from_list(rows, features=features)}).save_to_disk(folder / "pope")
    return rows


def test_pope_of_lmms_eval_gives_the_numbers_of_our_scoring(evaluate, folder):
    rows = save_pope(folder)
    bare = {"default": {"pre_prompt": "", "post_prompt": ""}}
    local = {"dataset_path": str(folder / "pope"), "dataset_kwargs": {"load_from_disk": True}}
    results = evaluate({"task": "pope", **local, "lmms_eval_specific_kwargs": bare})
    predictions, found = said(results, "pope"), results["results"]["pope"]
    expected = score_pope(predictions, [{"label": row["answer"]} for row in rows])
    names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1_score"}
    assert 50 < expected["accuracy"] < 100 and expected["precision"] != expected["recall"]
    for ours, theirs in names.items():
        assert 100 * found[f"pope_{theirs},none"] == pytest.approx(expected[ours])
    # lmms-eval's ratio is that of the right answers.
    assert found["pope_yes_ratio,none"] == 0.5 and expected["yes_ratio"] != 50


class TestLikelihood:
    CHOICES = ("yes", "no", "1", "2")

    def local_seed_bench(self, folder):
        """The identification questions in the form of SEED-Bench, which is scored by likelihood."""
        fields = ["question", "answer", *(f"choice_{letter}" for letter in "abcd")]
        features = Features({**dict.fromkeys(fields, Value("string")), "image": Sequence(Image())})
        rows = [
            {
                "question": record["text_in"],
                "answer": "A" if record["text_out"] == "Yes." else "B",
                **{f"choice_{letter}": choice for letter, choice in zip("abcd", self.CHOICES)},
                "image": [str(folder / "val2017" / f"{record['image_id']:012d}.jpg")],
            }
            for record in RECORDS["coco_mci"]
        ]
        DatasetDict({"test": Dataset.from_list(rows, features=features)}).save_to_disk(folder / "seed")
        local = {"dataset_path": str(folder / "seed"), "dataset_kwargs": {"load_from_disk": True}}
        return {"task": "seedbench_ppl", **local, "doc_to_text": "question"}

    def test_a_task_of_choices_gets_the_losses_of_one_choice_at_a_time(self, evaluate, folder):
        results = evaluate(self.local_seed_bench(folder), batch_size=7)
        model = ImageTextModel.from_pretrained(folder / "model", device="cpu")
        right = 0
        for record, sample in zip(RECORDS["coco_mci"], results["samples"]["seedbench_ppl"]):
            image = tiny_image(record["image_id"])
            losses = [
                -model.log_likelihoods([record["text_in"]], [[image]], [text])[0].per_token for text in self.CHOICES
            ]
            assert [loss for loss, _ in sample["filtered_resps"]] == pytest.approx(losses, abs=1e-4)
            chosen = self.CHOICES[losses.index(min(losses))]
            assert chosen == learnt_answer("coco_mci", record)
            right += chosen == record["text_out"].rstrip(".").lower()
        assert 0 < right < len(RECORDS["coco_mci"])
        assert results["results"]["seedbench_ppl"]["acc,none"] == pytest.approx(right / len(RECORDS["coco_mci"]))

    def test_a_cache_of_answers_changes_nothing(self, evaluate, folder, tmp_path):
        task = self.local_seed_bench(folder)
        runs = [evaluate(dict(task), "gvtbench_coco_oc", use_cache=str(tmp_path)) for _ in range(2)]
        first, second = [{name: run["results"][name] for name in run["results"]} for run in runs]
        assert first == second
