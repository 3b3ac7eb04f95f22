"""A report tells a model that looks from one that guesses, and a killed evaluation ends as it would have."""

import copy
import json
import os

import pytest
from PIL import Image

from tests.tiny import assistant, calls
from vistok.evaluation import report_table
from vistok.evaluation.generation_settings import GenerationSettings
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.evaluation.measures import measure
from vistok.evaluation.protocol import Protocol
from vistok.evaluation.report import FLOORS, evaluate_questions
from vistok.evaluation.report_table import report_markdown, save_report
from vistok.evaluation.vqa import answer_of, two_fold_priors


@pytest.fixture
def evaluate(taught, processor, questions):
    def run(examples=questions, **arguments):
        defaults = {"task": "planted", "split": "test", "progress_bar": False, "max_new_tokens": 4, "batch_size": 4}
        return evaluate_questions(taught, processor, examples, **{"train": questions, **defaults, **arguments})

    return run


def without_times(results):
    return {name: value for name, value in results.items() if name not in ("num_generated", "seconds")}


@pytest.fixture
def evaluate_scenes(model, processor, questions, monkeypatch):
    """Of questions about photographs, whose images are mostly red, all are answered right, and of the others none."""
    examples = [{**question, "photograph": index % 6 in (0, 1, 3)} for index, question in enumerate(questions)]

    def answer(answerer, examples, settings, run, **kwargs):
        run.add(enumerate(answer_of(example) if example["photograph"] else "?!" for example in examples))
        return run.answers

    monkeypatch.setattr(ImageTextModel, "answer", answer)

    def evaluate(**arguments):
        return evaluate_questions(model, processor, examples, examples, task="scenes", **arguments)

    return evaluate


def test_photographs_are_reported_beside_the_others(evaluate_scenes):
    results = evaluate_scenes()
    groups = results["breakdowns"]["photograph"]
    names = ["photographs only", "not only photographs"]
    assert [groups[name]["num_questions"] for name in names] == [9, 9]
    assert [groups[name]["accuracy"] for name in names] == [1.0, 0.0]
    assert groups["photographs only"]["interval"] == pytest.approx([0.025 ** (1 / 3), 1])
    floors = {floor: measured["breakdowns"]["photograph"] for floor, measured in results["floors"].items()}
    assert tuple(floors) == FLOORS
    assert results["floors"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert [floors["majority"][name]["accuracy"] for name in names] == pytest.approx([2 / 3, 2 / 3])
    rows = [line for line in report_markdown(results).splitlines() if line.startswith("|")]
    assert rows[-1].startswith("| photographs only | 9 | 100.0 (29.2–100.0) | 66.7 |")
    assert rows[-2].startswith("| not only photographs | 9 | 0.0 (0.0–70.8) | 66.7 |")
    assert json.loads(json.dumps(results)) == results


def test_answers_from_the_file_are_not_counted_as_generated(evaluate_scenes, tmp_path):
    arguments = {"floors": ["blank_images"], "predictions_file": tmp_path / "predictions.jsonl"}
    assert [evaluate_scenes(**arguments)["num_generated"] for _ in range(2)] == [18, 0]


@pytest.mark.parametrize("suffix", ["json", "md", "png"])
def test_an_interrupted_save_leaves_the_former_report_and_nothing_else(evaluate_scenes, tmp_path, monkeypatch, suffix):
    former = {path: path.read_bytes() for path in save_report(evaluate_scenes(), tmp_path).values()}
    replace = os.replace

    def interrupt(source, target):
        if str(target).endswith(suffix):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        save_report(evaluate_scenes(seed=1), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(former)
    assert next(path.read_bytes() == content for path, content in former.items() if path.suffix == f".{suffix}")


def test_a_model_that_looks_beats_every_floor(evaluate):
    results = evaluate(command="vistok evaluate …")
    assert (results["accuracy"], results["num_questions"], results["num_images"]) == (1.0, 18, 6)
    assert tuple(results["floors"]) == FLOORS
    floors = {name: floor["accuracy"] for name, floor in results["floors"].items()}
    assert floors["majority"] == floors["question_only_prior"] == pytest.approx(1 / 3)
    assert max(floors["blank_images"], floors["shuffled_images"]) < 0.7
    assert all(floor["num_questions"] == 18 and floor["interval"] for floor in results["floors"].values())
    assert results["per_type"]["colour"]["num_questions"] == 12
    assert results["floors"]["blank_images"]["per_type"]["other"]["num_questions"] == 6
    assert list(results["gains"]) == ["majority", "question_only_prior"]
    for gain in results["gains"].values():
        assert gain["accuracy"] == pytest.approx(2 / 3)
        low, high = gain["interval"]
        assert 0 < low < 2 / 3 < high <= 1
    assert results["command"] == "vistok evaluate …"
    assert json.loads(json.dumps(results)) == results


def test_the_majority_of_a_type_is_that_of_its_own_questions(evaluate, questions):
    examples = copy.deepcopy(questions)
    for index, example in enumerate(examples):
        example["answer_type"] = "most" if index < 14 else "few"
        example["messages"][-1] = assistant("x" if index < 14 else "y")
    majority = evaluate(examples, floors=["majority"])["floors"]["majority"]
    assert (majority["answer"], majority["accuracy"]) == ("x", pytest.approx(14 / 18))
    assert majority["per_type"]["few"]["accuracy"] == 1.0


def test_floors_can_be_chosen(evaluate):
    results = evaluate(floors=["majority", "shuffled_images"], max_floor_questions=7)
    assert list(results["floors"]) == ["majority", "shuffled_images"]
    assert results["floors"]["shuffled_images"]["num_questions"] == 7
    assert list(results["gains"]) == ["majority"]
    assert evaluate(floors=[])["gains"] == {}


def test_without_training_examples_there_is_no_prior(evaluate):
    assert list(evaluate(train=None)["floors"]) == ["majority", "blank_images", "shuffled_images"]


def test_answers_are_read_again_in_another_mode_and_with_another_number_of_floor_questions(
    taught, processor, questions, tmp_path, monkeypatch
):
    generated = calls(monkeypatch, type(taught), "generate")

    def run(mode, **arguments):
        protocol = Protocol(GenerationSettings(4), recorded={"prompt_style": "paper", "mode": mode})
        return evaluate_questions(
            taught, processor, questions, questions, protocol=protocol, predictions_file=tmp_path / "file.jsonl",
            progress_bar=False, **arguments,
        )  # fmt: skip

    first = run("reference")
    before = len(generated)
    again = run("strict", max_floor_questions=5)
    assert len(generated) == before > 0
    assert again["settings"]["mode"] == "strict" and again["accuracy"] == first["accuracy"]
    assert again["floors"]["shuffled_images"]["num_questions"] == 5
    lines = (tmp_path / "file.jsonl").read_text("utf-8").splitlines()
    assert not any("right" in json.loads(line) for line in lines)


def test_images_are_dealt_alike_however_few_questions_are_asked(evaluate, tmp_path):
    for name, number in (("all", None), ("few", 7)):
        evaluate(floors=["shuffled_images"], max_floor_questions=number, predictions_file=tmp_path / name)
    lines = [[json.loads(line) for line in (tmp_path / name).read_text().splitlines()[1:]] for name in ("all", "few")]
    every, few = ({line["id"]: line["prediction"] for line in of if line["images"] == "shuffled"} for of in lines)
    assert len(few) == 7 and few.items() <= every.items()


def test_what_was_asked_before_is_not_asked_again(evaluate, questions, taught, tmp_path, monkeypatch):
    answered = {}
    first = evaluate(questions[:12], floors=["blank_images"], answered=answered)
    generated = calls(monkeypatch, type(taught), "generate")
    again = evaluate(questions[:12], floors=["blank_images"], answered=answered, predictions_file=tmp_path / "file")
    assert generated == [] and again["num_generated"] == 0
    assert again["floors"] == first["floors"] and again["accuracy"] == first["accuracy"]
    assert len((tmp_path / "file").read_text().splitlines()) == 1 + 24
    assert evaluate(answered=answered, floors=[])["num_generated"] == 6


def test_too_few_images_to_be_dealt_are_told_in_the_report(evaluate, questions):
    results = evaluate([questions[0], questions[6]])
    assert "shuffled_images" not in results["floors"] and "blank_images" in results["floors"]
    (note,) = results["notes"]
    assert "The shuffled images are left out: the examples have 1 distinct images, too few" in note
    assert note in report_markdown(results)


@pytest.mark.parametrize("name", ["max_floor_questions", "max_new_tokens"])
def test_numbers_out_of_range_are_told_before_anything_is_asked(evaluate, taught, monkeypatch, name):
    generated = calls(monkeypatch, type(taught), "generate")
    with pytest.raises(ValueError, match=f"{name} is -3, expected at least 1"):
        evaluate(**{name: -3})
    assert generated == []


def test_the_prior_of_two_halves_is_the_mean_over_its_divisions(evaluate, questions):
    results = evaluate(protocol=Protocol(GenerationSettings(4), prior="two_fold"), floors=["question_only_prior"])
    shares = [measure(guessed, questions)["accuracy"] for guessed in two_fold_priors(questions)]
    assert len(set(shares)) > 1
    assert results["floors"]["question_only_prior"]["accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert results["gains"]["question_only_prior"]["accuracy"] == pytest.approx(1 - sum(shares) / len(shares))


def test_a_floor_is_called_what_it_is_and_a_missing_one_is_explained(evaluate):
    protocol = Protocol(GenerationSettings(4), constant_label="best constant caption", prior="none", no_prior="Why.")
    text = report_markdown(evaluate(protocol=protocol, floors=["majority", "question_only_prior"]))
    assert "| best constant caption |" in text and "The best constant caption is “blue”. Why. " in text
    assert "over the best constant caption" in text and "majority" not in text


def test_an_unknown_floor_and_an_empty_split_are_refused(evaluate, taught, processor):
    with pytest.raises(ValueError, match="'ceiling' is no floor: choose majority"):
        evaluate(floors=["ceiling"])
    with pytest.raises(ValueError, match="dev split of nothing has no questions"):
        evaluate_questions(taught, processor, [], task="nothing", split="dev")


@pytest.mark.parametrize("batches", [1, 4, 5])
def test_a_killed_evaluation_continues_with_the_same_result(evaluate, taught, tmp_path, monkeypatch, batches):
    expected = evaluate(predictions_file=tmp_path / "whole.jsonl")
    generate, count = type(taught).generate, iter(range(batches))

    def dies(model, *args, **kwargs):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return generate(model, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(taught), "generate", dies)
        evaluate(predictions_file=tmp_path / "killed.jsonl")
    lines = len((tmp_path / "killed.jsonl").read_text().splitlines())
    assert 1 < lines < 1 + 3 * 18
    generated = calls(monkeypatch, type(taught), "generate")
    assert without_times(evaluate(predictions_file=tmp_path / "killed.jsonl")) == without_times(expected)
    whole, killed = ((tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "killed.jsonl"))
    assert killed == whole
    before = len(generated)
    assert before > 0
    assert without_times(evaluate(predictions_file=tmp_path / "killed.jsonl")) == without_times(expected)
    assert len(generated) == before, "nothing is asked twice"


def test_predictions_of_other_settings_are_not_taken_over(evaluate, tmp_path):
    evaluate(predictions_file=tmp_path / "file.jsonl", floors=[])
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        evaluate(predictions_file=tmp_path / "file.jsonl", floors=[], seed=1)


# On paper


@pytest.fixture
def results(evaluate):
    return evaluate(command="vistok evaluate --task planted", max_floor_questions=7)


def test_the_table_has_a_row_for_each_type_and_a_column_for_each_floor(results):
    text = report_markdown(results)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [row[0].strip("| ") for row in table] == ["questions", "---", "all", "colour", "other"]
    assert {len(row) for row in table} == {3 + len(FLOORS)}
    assert table[2][1:3] == ["18", "100.0 (54.1–100.0)"]
    assert table[2][3] == "33.3"
    assert "18 questions about 6 images" in text
    assert "+66.7 points" in text
    assert "Blank images: on 7 questions" in text
    assert "`vistok evaluate --task planted`" in text


def test_a_table_without_floors_is_a_table(evaluate):
    table = [line for line in report_markdown(evaluate(floors=[])).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}


def test_a_report_is_saved_as_json_table_and_chart(results, tmp_path):
    files = save_report(results, tmp_path / "new")
    assert sorted(file.name for file in files.values()) == [f"planted-test.{name}" for name in ("json", "md", "png")]
    assert json.loads(files["json"].read_text("utf-8")) == results
    assert files["md"].read_text("utf-8") == report_markdown(results)
    with Image.open(files["png"]) as chart:
        assert chart.width > 800
        assert len(chart.convert("RGB").getcolors(1 << 20)) > 50


def test_the_chart_has_a_bar_for_each_accuracy(results, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = calls(monkeypatch, Figure, "savefig")
    save_report(results, tmp_path)
    (axes,) = drawn[0][0][0].axes
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    heights = [[bar.get_height() for bar in container] for container in bars]
    kinds = ("colour", "other")
    expected = [
        [100 * measured["accuracy"], *(100 * measured["per_type"][kind]["accuracy"] for kind in kinds)]
        for measured in (results, *results["floors"].values())
    ]
    assert heights == [pytest.approx(row) for row in expected]


def test_types_of_few_images_are_in_the_table_only(evaluate, questions, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    examples = [
        {**question, "answer_type": "rare" if index < 3 else "often"} for index, question in enumerate(questions)
    ]
    drawn = calls(monkeypatch, Figure, "savefig")
    files = save_report(evaluate(examples, floors=[]), tmp_path)
    labels = [label.get_text().split("\n")[0] for label in drawn[0][0][0].axes[0].get_xticklabels()]
    assert labels == ["all questions", "often"]
    assert "| rare | 3 |" in files["md"].read_text("utf-8")


def test_the_number_of_a_bar_stands_at_its_height_where_its_interval_reaches_far(evaluate, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    results = evaluate(floors=["majority"])
    results |= {"accuracy": 0.0, "interval": [0.0, 0.5], "per_type": {}}
    results["floors"]["majority"] |= {"accuracy": 0.4, "interval": [0.38, 0.42]}
    drawn = calls(monkeypatch, Figure, "savefig")
    save_report(results, tmp_path)
    texts = {text.get_text(): text.xy[1] for text in drawn[0][0][0].axes[0].texts if hasattr(text, "xy")}
    assert texts == {"0.0": 0.0, "40": pytest.approx(42)}


def test_a_missing_interval_is_a_dash_and_a_huge_number_has_an_exponent(results):
    metrics = [{"name": "accuracy", "label": "right", "scale": 100.0}, {"name": "mae", "label": "MAE", "scale": 1}]
    entry = {"value": 2.5e149, "interval": None}
    floors = {"majority": {**results["floors"]["majority"], "metrics": {"mae": {"value": 1.0}}}}
    text = report_markdown({**results, "measured_by": metrics, "metrics": {"mae": entry}, "floors": floors})
    assert "| MAE | 2.5e+149 (–) | 1.000 |" in text


def test_a_name_that_is_no_file_name_stays_within_the_folder(results, tmp_path):
    files = save_report({**results, "task": "my/task: a"}, tmp_path)
    assert {file.parent for file in files.values()} == {tmp_path}


def test_without_matplotlib_the_figures_are_saved_all_the_same(results, tmp_path, monkeypatch):
    def missing(*arguments):
        raise ImportError('run pip install "vistok[draw]"')

    monkeypatch.setattr(report_table, "draw_report", missing)
    with pytest.raises(ImportError, match="vistok\\[draw\\]"):
        save_report(results, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["planted-test.json", "planted-test.md"]
