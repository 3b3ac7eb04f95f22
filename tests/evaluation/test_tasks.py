"""Tasks read their questions, write their prompts and score as their benchmarks do."""

# ruff: noqa: F811 (fixtures that are imported)

import copy
import hashlib
import json
import sys

import numpy as np
import pytest

from tests.evaluation.task_files import CAPTIONS, IDS, MCI, OC, folder, load  # noqa: F401
from tests.tiny import tiny_image
from vistok.evaluation import task_questions
from vistok.evaluation.bootstrap import bootstrap_interval
from vistok.evaluation.gvtbench_scoring import score_multi_class_identification, score_object_counting
from vistok.evaluation.measures import measure
from vistok.evaluation.pope import score_pope
from vistok.evaluation.seed_bench import score_seed_bench
from vistok.evaluation.task_questions import mark_distinct
from vistok.evaluation.tasks import TASKS, QuestionFiles, find_tasks
from vistok.evaluation.vqa import answer_of, two_fold_priors
from vistok.evaluation.vqa_accuracy import vqa_accuracy
from vistok.processing.images import BadSampleError


def prompts(examples):
    return [example["messages"][0]["content"][-1]["text"] for example in examples]


FILE_TASKS = ("coco_oc", "coco_mci", "vcr_mci", "vqa", "caption", "pope", "seed_bench")


@pytest.fixture(autouse=True)
def captions_can_be_tokenized(request):
    if "caption" in request.node.name:
        pytest.importorskip("nltk")


@pytest.mark.parametrize("task", FILE_TASKS)
def test_a_folder_that_holds_the_files_of_all_tasks_serves_each(load, task):
    for split in load(task):
        assert {example["source"] for example in split.test} == {task}
        assert all(example["messages"][0]["content"][0]["type"] == "image" for example in split.test)
        assert len({example["id"] for example in split.test}) == len(split.test)


def test_a_file_can_be_given_whatever_it_is_called(folder, load):
    (folder / "coco_mci.json").rename(folder / "mine.json")
    (split,) = load("coco_mci", questions=folder / "mine.json")
    assert [answer_of(example) for example in split.test] == ["Yes.", "No.", "Yes.", "No."]


def test_questions_are_built_from_instances_where_there_are_none(folder, load):
    (folder / "coco_oc.json").unlink()
    boxes = [(139, 1), (139, 1), (285, 2)]
    instances = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in IDS],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bear"}],
        "annotations": [
            {"id": row, "image_id": image, "category_id": kind, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
            for row, (image, kind) in enumerate(boxes)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (split,) = load("coco_oc")
    asked = {(example["question"], answer_of(example)) for example in split.test}
    assert asked == {
        ("How many people are there in the image?", "2"),
        ("How many bears are there in the image?", "1"),
    }


def test_questions_are_built_from_instances_of_any_name_by_the_seed(folder, load, caplog):
    classes = ["person", "bear", "cup", "dog", "cat", "book", "bed", "tie"]
    instances = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in IDS],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [{"id": row, "image_id": number, "category_id": row} for row, number in enumerate(IDS)],
    }
    (folder / "my annotations.json").write_text(json.dumps(instances))

    def built(seed):
        (split,) = load("coco_mci", questions=folder / "my annotations.json", seed=seed)
        return [(example["question"], answer_of(example)) for example in split.test]

    with caplog.at_level("WARNING", logger="vistok"):
        assert len(built(0)) == 2 * len(IDS)
    assert "built 6 questions from" in caplog.text and "not the official ones" in caplog.text
    assert built(0) == built(0)
    assert any(built(seed) != built(0) for seed in range(1, 5))


@pytest.mark.parametrize("given", ["val.jsonl", ".", "vcr1images"])
def test_questions_are_built_from_the_metadata_of_vcr(tmp_path, given):
    (tmp_path / "vcr1images" / "a").mkdir(parents=True)
    tiny_image(0).save(tmp_path / "vcr1images" / "a" / "1.jpg")
    if given == "val.jsonl":
        line = {"img_fn": "a/1.jpg", "objects": ["person", "person", "diningtable"]}
        (tmp_path / "val.jsonl").write_text(json.dumps(line) + "\n")
    else:
        (tmp_path / "vcr1images" / "a" / "1.json").write_text('{"names": ["person", "person", "diningtable"]}')
    (split,) = TASKS["vcr_oc"].splits(QuestionFiles(questions=tmp_path / given, images=tmp_path))
    assert {(example["question"], answer_of(example)) for example in split.test} == {
        ("How many people are there in the image?", "2"),
        ("How many diningtables are there in the image?", "1"),
    }


# Prompts and decoding


@pytest.mark.parametrize(
    ("task", "style", "expected"),
    [
        ("coco_oc", "paper", "Question: How many chairs are there in the image? Answer:"),
        ("coco_oc", "reference", "How many chairs are there in the image?"),
        ("coco_mci", "reference", "Does bear exist in the image?"),
        ("vqa", "paper", "Question: What colour is it? Answer:"),
        ("vqa", "reference", "Question: What colour is it? Answer:"),
        ("caption", "paper", "Question: what does the image describe? Answer:"),
        ("caption", "reference", "Descibe the image in detail in a sentence: This is an image of "),
    ],
)
def test_prompts_are_written_as_the_style_says(load, task, style, expected):
    (split,) = load(task, prompt_style=style)
    assert prompts(split.test)[0] == expected
    assert TASKS[task].asked(style).own_prompt


def test_the_reference_style_decodes_and_resizes_as_the_released_code():
    assert TASKS["vqa"].asked("reference").settings.repetition_penalty == 1.5
    assert TASKS["caption"].asked("reference").settings.num_beams == 5
    assert TASKS["coco_oc"].asked("reference").settings.to_dict() == {
        "max_new_tokens": 32, "num_beams": 1, "repetition_penalty": 1.0,
    }  # fmt: skip
    for task in FILE_TASKS:
        assert TASKS[task].asked("reference").image_size == (224, 224)
        assert TASKS[task].asked("paper").image_size is None
        assert TASKS[task].asked("paper").settings.num_beams == 1


# Scores


def of(protocol, measured):
    """All metrics of a measurement by name."""
    others = {name: entry["value"] for name, entry in measured.get("metrics", {}).items()}
    return {protocol.primary.name: measured[protocol.primary.name], **others}


@pytest.mark.parametrize(("mode", "other"), [("reference", "strict"), ("strict", "reference")])
def test_counts_are_scored_as_by_the_benchmark(load, mode, other):
    (split,) = load("coco_oc")
    predictions = ["Three chairs.", "There are 2.", "one bear", "phone"]
    protocol = TASKS["coco_oc"].asked(mode=mode)
    measured = measure(predictions, split.test, "counted", metrics=protocol.metrics, unanswered=protocol.unanswered)
    expected, beside = (score_object_counting(predictions, OC, which) for which in (mode, other))
    assert of(protocol, measured) == {
        "accuracy": pytest.approx(expected["accuracy"] / 100),
        "mae": pytest.approx(expected["mae"]),
        "rmse": pytest.approx(expected["rmse"]),
        f"accuracy_{other}": pytest.approx(beside["accuracy"] / 100),
    }
    assert measured["unanswered"] == expected["num_unanswered"] == 1
    bins = [entry["accuracy"] for entry in expected["bins"].values()]
    assert [100 * entry["accuracy"] for entry in measured["per_type"].values()] == pytest.approx(bins)
    assert list(measured["per_type"]) == ["1–2 objects", "6–8 objects"]


@pytest.mark.parametrize(("mode", "other"), [("reference", "strict"), ("strict", "reference")])
def test_identifications_are_scored_as_by_the_benchmark(load, mode, other):
    (split,) = load("coco_mci")
    predictions = ["Yes, no doubt", "Yes, no doubt", "yes", "I do not know"]
    protocol = TASKS["coco_mci"].asked(mode=mode)
    measured = measure(predictions, split.test, "objects", metrics=protocol.metrics, unanswered=protocol.unanswered)
    expected, beside = (score_multi_class_identification(predictions, MCI, which) for which in (mode, other))
    assert expected["accuracy"] != beside["accuracy"]
    assert of(protocol, measured) == {
        "accuracy": expected["accuracy"] / 100,
        f"accuracy_{other}": beside["accuracy"] / 100,
    }
    assert list(measured["per_type"]) == ["<10 objects", "10–19 objects", "≥20 objects"]
    bins = [entry["accuracy"] for entry in expected["bins"].values()]
    assert [100 * entry["accuracy"] for entry in measured["per_type"].values()] == bins


def test_pope_is_scored_as_by_its_authors(load):
    splits = load("pope")
    assert [split.name for split in splits] == ["random", "adversarial"]
    predictions = ["Yes, there is.", "There is a bear", "No."]
    protocol = TASKS["pope"].asked()
    labels = [{"label": answer_of(example)} for example in splits[0].test]
    expected = score_pope(predictions, labels)
    found = of(protocol, measure(predictions, splits[0].test, metrics=protocol.metrics))
    assert found == {name: pytest.approx(expected[name] / 100) for name in found}
    assert set(found) == {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    silent = of(protocol, measure(["no"] * 3, splits[0].test, metrics=protocol.metrics))
    assert (silent["precision"], silent["f1"]) == (0, 0)


def test_vqa_and_its_other_way_of_matching_stand_beside_each_other(load):
    (split,) = load("vqa")
    predictions = ["red", "a dark red one", "blue"]
    answers = [example["answers"] for example in split.test]
    protocol = TASKS["vqa"].asked()
    assert of(protocol, measure(predictions, split.test, metrics=protocol.metrics)) == {
        "accuracy": pytest.approx(vqa_accuracy(predictions, answers) / 100),
        "accuracy_contains": pytest.approx(vqa_accuracy(predictions, answers, match="contains") / 100),
    }


def test_a_count_beyond_all_measure_is_an_error_that_can_be_averaged(load):
    (split,) = load("coco_oc")
    predictions = ["9" * 400, "2", "1", "1"]
    metrics = TASKS["coco_oc"].asked().metrics
    measured = measure(predictions, split.test, "counted", metrics=metrics)
    assert measured["accuracy"] == 3 / 4
    assert measured["metrics"]["mae"]["value"] == pytest.approx(1e150 / 4)
    assert np.isfinite(measured["metrics"]["rmse"]["value"])


def test_the_constant_answer_of_vqa_is_the_best_by_its_own_accuracy(load):
    """The answer "maybe" is no question's most frequent answer, and right by degrees about all of them."""
    (split,) = load("vqa")
    answers = [[word] * 6 + ["Maybe."] * 4 for word in ("yes", "no", "red")]
    test = [{**example, "answers": given} for example, given in zip(split.test, answers)]
    (constant,) = set(TASKS["vqa"].asked().constant(test))
    scores = {word: vqa_accuracy([word] * 3, answers) for word in ("yes", "no", "red", "maybe")}
    assert constant == "maybe" and scores["maybe"] == max(scores.values()) > scores["yes"]


def test_answers_outside_of_the_vocabulary_are_left_out_of_the_contained_ones_only(folder, load):
    annotations = [{"multiple_choice_answer": "red"}] * 9 + [{"multiple_choice_answer": "blue"}] * 8
    (folder / "train.json").write_text(json.dumps({"annotations": annotations}))
    questions = json.loads((folder / "vqa_annotations.json").read_text())
    questions["annotations"][2]["answers"] = [{"answer": "blue"}] * 10
    (folder / "vqa_annotations.json").write_text(json.dumps(questions))
    predictions = ["a red one", "green", "blue"]
    (split,) = load("vqa", vocabulary=folder / "train.json")
    measured = measure(predictions, split.test, metrics=split.metrics)
    answers = [example["answers"] for example in split.test]
    assert 100 * measured["metrics"]["accuracy_contains"]["value"] == pytest.approx(
        vqa_accuracy(predictions, answers, "contains", {"red"})
    )
    assert 100 * measured["accuracy"] == pytest.approx(vqa_accuracy(predictions, answers))
    assert "in the vocabulary" in split.metrics[1].label
    (whole,) = load("vqa")
    assert whole.metrics is None and "no question dropped" in TASKS["vqa"].asked().metrics[1].label
    with pytest.raises(FileNotFoundError, match="given as --vocabulary"):
        load("vqa", vocabulary=folder / "nothing.json")
    with pytest.raises(ValueError, match="expected VQAv2's format"):
        load("vqa", vocabulary=folder / "coco_oc.json")


def test_the_unanswered_of_pope_are_those_that_say_neither_yes_nor_no(load):
    split, predictions = load("pope")[0], ["It is not there.", "", "No."]
    protocol = TASKS["pope"].asked()
    measured = measure(predictions, split.test, metrics=protocol.metrics, unanswered=protocol.unanswered)
    labels = [{"label": answer_of(example)} for example in split.test]
    assert measured["unanswered"] == score_pope(predictions, labels)["num_unanswered"] == 2


def test_perfect_ratios_have_no_interval_of_no_width(load):
    split = load("seed_bench")[0]
    right = [answer_of(example) for example in split.test]
    measured = measure(right, split.test, metrics=TASKS["seed_bench"].asked().metrics)
    assert (measured["accuracy"], measured["interval"]) == (1.0, None)
    low, high = measured["metrics"]["pooled_accuracy"]["interval"]
    assert low < high == 1.0


def test_of_chosen_questions_the_copies_among_these_are_marked(load):
    raw = load("vcr_mci")[0].test
    assert [example["distinct"] for example in mark_distinct(raw[1:])] == [True, False, True]
    assert [example.get("distinct") for example in mark_distinct(raw[2:])] == [None, None]


def test_seed_bench_is_the_mean_of_its_dimensions(load):
    (split,) = load("seed_bench")
    assert [answer_of(example) for example in split.test] == ["C", "A", "B"]
    protocol = TASKS["seed_bench"].asked()
    measured = measure(["C", "B", "B"], split.test, "dimension", metrics=protocol.metrics)
    questions = [{**example, "answer": "ABCD".index(answer_of(example))} for example in split.test]
    expected = score_seed_bench([2, 1, 1], questions)
    assert of(protocol, measured) == {
        "accuracy": pytest.approx(expected["accuracy"] / 100),
        "pooled_accuracy": pytest.approx(expected["pooled_accuracy"] / 100),
    }
    assert {name: 100 * entry["accuracy"] for name, entry in measured["per_type"].items()} == {
        name: entry["accuracy"] for name, entry in expected["bins"].items()
    }


def test_captions_are_scored_by_cider_and_a_constant_one_is_their_floor(load):
    pytest.importorskip("nltk")
    from vistok.evaluation.cider import cider

    (split,) = load("caption")
    protocol = TASKS["caption"].asked()
    predictions = ["a living room", "a bear in the grass", "nothing"]
    measured = measure(predictions, split.test, metrics=protocol.metrics)
    assert 100 * measured["cider"] == pytest.approx(cider(predictions, list(CAPTIONS.values())))
    (constant,) = set(protocol.constant(split.test))
    scores = {text: cider([text] * 3, list(CAPTIONS.values())) for texts in CAPTIONS.values() for text in texts}
    assert scores[constant] == max(scores.values())


# Floors and their traps


def test_typos_of_vcr_are_asked_both_ways_and_duplicates_counted_apart(load):
    raw, fixed = load("vcr_mci")
    assert (raw.name, fixed.name) == ("test", "typos-fixed")
    assert [example["question"].count("exist") for example in raw.test] == [1, 0, 0, 0]
    assert [example["question"].count("exist") for example in fixed.test] == [1, 1, 1, 1]
    assert [example["distinct"] for example in raw.test] == [True, True, False, True]
    assert [split.name for split in load("vcr_mci", fix_typos="no")] == ["test"]
    assert [split.name for split in load("vcr_mci", fix_typos="yes")] == ["typos-fixed"]
    protocol = TASKS["vcr_mci"].asked()
    measured = measure(["yes", "no", "no", "yes"], raw.test, "objects", metrics=protocol.metrics)
    assert measured["accuracy"] == 3 / 4
    apart = measured["breakdowns"]["distinct"]["without exact duplicates"]
    assert (apart["num_questions"], apart["accuracy"]) == (3, pytest.approx(2 / 3))


def test_the_prior_knows_questions_about_other_images_only(make_question):
    answers = {"is it?": "yes", "how many?": "2"}
    asked = [
        make_question(index, text, answers[text] if index < 40 else "never", f"image {index // 2}")
        for index, text in enumerate(["is it?", "how many?"] * 22)
    ]
    for index, example in enumerate(asked):
        example["images"] = [tiny_image(index // 2, (3, 3))]
    for guessed in two_fold_priors(asked, seed=0):
        assert [guess == answers[text] for guess, text in zip(guessed, ["is it?", "how many?"] * 20)] == [True] * 40
    unseen = copy.deepcopy(asked)
    unseen[0]["messages"][0]["content"][-1]["text"] = "what is said of one image only?"
    assert {guessed[0] for guessed in two_fold_priors(unseen)} <= {"yes", "2"}
    with pytest.raises(ValueError, match="questions about two images, these are about 1"):
        two_fold_priors(asked[:2])


def test_an_interval_of_a_root_mean_square_is_the_one_of_its_resamples():
    generator = np.random.default_rng(0)
    errors, images = generator.normal(size=200) ** 2, np.repeat(np.arange(50), 4)
    low, high = bootstrap_interval(errors, images, bounds=None, statistic=lambda means: np.sqrt(means[..., 0]))
    resampled = [
        np.sqrt(np.concatenate([errors[images == image] for image in generator.integers(0, 50, 50)]).mean())
        for _ in range(2000)
    ]
    assert [low, high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.02)
    assert bootstrap_interval([1.0] * 4, [0, 0, 1, 1], bounds=None) is None


# Refusals


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("coco_oc", {"questions": None}, "give --questions, a folder with coco_oc.json"),
        ("coco_oc", {"images": None}, "Task coco_oc shows images: give --images"),
        ("coco_oc", {"questions": "nowhere"}, "no question file or folder nowhere"),
        ("coco_oc", {"images": "nowhere"}, "no folder of images nowhere"),
        (
            "vcr_oc",
            {},
            "holds no questions of task vcr_oc: expected vcr_oc.json or val.jsonl or vcr1images there. It does hold",
        ),
        ("coco_oc", {"prompt_style": "loud"}, "prompt_style is 'loud', expected paper or reference"),
    ],
)
def test_what_is_not_there_is_told(load, task, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(task, **options)


def test_the_question_file_of_another_task_is_refused(folder, load, monkeypatch):
    with pytest.raises(ValueError, match="row 0: 'Does bear exist in the image\\?' is no question of task coco_oc"):
        load("coco_oc", questions=folder / "coco_mci.json")
    official = hashlib.sha256((folder / "coco_mci.json").read_bytes()).hexdigest()
    from vistok.evaluation import gvtbench_questions

    monkeypatch.setattr(gvtbench_questions, "OFFICIAL_FILES", {"coco_mci": official})
    with pytest.raises(ValueError, match="is the official question file of task coco_mci, not of coco_oc"):
        load("coco_oc", questions=folder / "coco_mci.json")
    pytest.importorskip("nltk")
    for task in ("caption", "vqa", "pope"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"expected|not JSON|malformed|missing"):
            load(task, questions=folder / "coco_mci.json")


@pytest.mark.parametrize("task", ["coco_oc", "vqa", "caption", "pope", "seed_bench"])
def test_a_missing_image_is_told_with_its_row_or_left_out(folder, load, task):
    (folder / "images" / f"{285:012d}.jpg").unlink()
    row = 2 if task == "coco_oc" else 1
    with pytest.raises(BadSampleError, match=rf"{task}', row {row}: .*0285.*--skip-missing-images"):
        load(task)
    split = load(task, missing_images=task_questions.SKIP)[0]
    assert split.num_missing == 1
    assert len(split.test) == (3 if task == "coco_oc" else 2)


def test_a_missing_tokenizer_of_captions_is_told_before_anything_is_asked(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ImportError, match=r"vistok\[evaluation\]"):
        load("caption")


def test_unknown_tasks_are_told_with_the_closest():
    assert [task.name for task in find_tasks("coco_oc, pope")] == ["coco_oc", "pope"]
    with pytest.raises(ValueError, match=r"There is no task 'coco_mc': .* Did you mean 'coco_mci'"):
        find_tasks("coco_oc,coco_mc")
    with pytest.raises(ValueError, match="expected one or more, each once"):
        find_tasks(["pope", "pope"])
    with pytest.raises(ValueError, match="mode is 'lenient', expected reference or strict"):
        TASKS["pope"].asked(mode="lenient")
