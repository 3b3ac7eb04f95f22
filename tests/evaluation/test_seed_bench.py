"""SEED-Bench: a planted file in the official format, choices by likelihood, and the mean over dimensions."""

import json

import numpy as np
import pytest

from vistok.evaluation.seed_bench import DIMENSIONS, load_seed_bench, most_likely, score_seed_bench


def record(number, dimension=5, answer="C", **changes):
    """A question in the format of SEED-Bench.json (AILab-CVC/SEED-Bench)."""
    return {
        "answer": answer,
        **{f"choice_{letter}": name for letter, name in zip("abcd", ["One", "Two", "Three", "Four"])},
        "data_id": f"image_{number}",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": str(101669 + number),
        "question_type_id": dimension,
    } | changes


@pytest.fixture
def load(tmp_path):
    def load_records(records, suffix="", images=4, **arguments):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in range(images):
            (folder / f"image_{number}{suffix}").touch()
        path = tmp_path / "SEED-Bench.json"
        document = records if isinstance(records, str) else json.dumps({"questions": records, "question_type": {}})
        path.write_text(document, encoding="utf-8")
        return load_seed_bench(path, folder, **arguments)

    return load_records


@pytest.mark.parametrize("suffix", ["", ".jpg", ".png"])
def test_questions_become_examples_with_choices(load, suffix):
    (example,) = load([record(1)], suffix)
    assert example["choices"] == ["One", "Two", "Three", "Four"]
    assert (example["answer"], example["dimension"], example["id"]) == (2, "Instances Counting", "101670")
    assert example["images"][0]["path"].endswith(f"image_1{suffix}")
    assert [message["role"] for message in example["messages"]] == ["user", "assistant"]
    assert example["messages"][-1]["content"] == [{"type": "text", "text": "Three"}]


def test_videos_and_text_are_left_out(load):
    records = [record(number, dimension) for number, dimension in enumerate([1, 9, 10, 8])]
    assert [example["dimension"] for example in load(records)] == ["Scene Understanding", "Visual Reasoning"]
    assert [example["row"] for example in load(records)] == [0, 3]
    assert [example["row"] for example in load(records, dimensions=[8])] == [3]


@pytest.mark.parametrize(
    ("records", "arguments", "error", "message"),
    [
        ("{", {}, ValueError, "is not JSON"),
        ("{}", {}, ValueError, "no list of 'questions'"),
        ([], {}, ValueError, "no question of the dimensions"),
        ([record(0), record(1, answer="E")], {}, ValueError, "row 1: 'answer' is 'E'"),
        ([record(0), record(1, choice_c=None)], {}, ValueError, "row 1: no 'choice_c'"),
        (["How many?"], {}, ValueError, "row 0: no 'question_type_id'"),
        ([record(7)], {}, FileNotFoundError, "row 0: .* holds no image 'image_7'"),
        ([record(0)], {"dimensions": [9]}, ValueError, "dimension 9 is none"),
    ],
)
def test_a_malformed_file_is_refused_by_row_and_field(load, records, arguments, error, message):
    with pytest.raises(error, match=message):
        load(records, **arguments)


def test_the_most_likely_text_is_chosen():
    generator = np.random.default_rng(0)
    for likelihoods in generator.normal(size=(50, 4)):
        assert most_likely(likelihoods) == int(np.argmax(likelihoods))
    assert most_likely([-1.0, -0.5, -0.5]) == 1
    for likelihoods in ([], [float("nan"), -1.0]):
        with pytest.raises(ValueError, match="likelihoods of the choices"):
            most_likely(likelihoods)


def test_the_accuracy_is_the_simple_mean_of_dimensions(load):
    examples = load([record(0, 1, "A"), record(1, 1, "B"), record(2, 1, "C"), record(3, 6, "D")])
    result = score_seed_bench([0, 0, 2, 0], examples, per_question=True)
    assert result["bins"]["Scene Understanding"] == {"accuracy": pytest.approx(200 / 3), "num_questions": 3}
    assert result["bins"]["Spatial Relation"] == {"accuracy": 0, "num_questions": 1}
    assert (result["accuracy"], result["pooled_accuracy"]) == (pytest.approx(100 / 3), 50)
    for metric, values in result["values"].items():
        assert np.mean(values) == pytest.approx(result[metric])


def test_bins_follow_the_order_of_the_table():
    questions = [{"answer": 0, "choices": "abcd", "dimension": name} for name in reversed(DIMENSIONS.values())]
    assert list(score_seed_bench([0] * 8, questions)["bins"]) == list(DIMENSIONS.values())


@pytest.mark.parametrize(
    ("chosen", "change", "message"),
    [
        ([0, 1], {}, "2 choices for 1 questions"),
        ([4], {}, "question 0: the choice made is 4, expected 0 to 3"),
        ([1.5], {}, "the choice made is 1.5"),
        ([0], {"answer": -1}, "'answer' is -1"),
        ([0], {"dimension": None}, "question 0 has no 'dimension'"),
    ],
)
def test_choices_out_of_range_are_named(chosen, change, message):
    question = {"answer": 0, "choices": ["a", "b", "c", "d"], "dimension": "Instance Identity"} | change
    question = {key: value for key, value in question.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        score_seed_bench(chosen, [question])
