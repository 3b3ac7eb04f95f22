"""Exact match, floors and intervals, on planted answers and on easy-VQA, whose floors are known."""

import numpy as np
import pytest

from tests.tiny import assistant, user
from vistok.evaluation.bootstrap import bootstrap_interval
from vistok.evaluation.measures import measure
from vistok.evaluation.vqa import (
    answer_is_right,
    choose_questions,
    is_unanswered,
    majority_answers,
    question_of,
    question_only_prior,
    questions_and_answers,
)


@pytest.mark.parametrize("prediction", ["yes", " Yes.", "YES!\n", "yes ."])
def test_capitals_spaces_and_final_punctuation_do_not_count(prediction):
    assert answer_is_right(prediction, "yes")
    assert answer_is_right("yes", prediction)


@pytest.mark.parametrize("prediction", ["no", "yes, it is", "ye s", "yesyes", ".yes", ""])
def test_anything_else_is_wrong(prediction):
    assert not answer_is_right(prediction, "yes")


def test_saying_nothing_is_never_right():
    assert not answer_is_right("", "")
    assert not answer_is_right(".", ".")
    assert is_unanswered(" .\n")
    assert not is_unanswered("no")


def texts(make_question, *pairs):
    return [make_question(index, text, answer) for index, (text, answer) in enumerate(pairs)]


def test_the_prior_gives_each_question_its_most_frequent_answer_and_others_the_most_frequent_of_all(make_question):
    train = texts(make_question, ("a?", "x"), ("a?", "x"), ("a?", "y"), ("b?", "z"), ("c?", "z"), ("d?", "z"))
    test = texts(make_question, ("a?", "y"), ("b?", "z"), ("never asked?", "z"))
    assert question_only_prior(train, test) == ["x", "z", "z"]


def test_the_prior_learns_from_every_turn(make_question):
    (example,) = texts(make_question, ("a?", "x"))
    example["messages"] += [user("b?"), assistant("y"), user("not answered?"), user("c?"), assistant("y")]
    assert questions_and_answers(example) == [("a?", "x"), ("b?", "y"), ("c?", "y")]
    test = texts(make_question, ("a?", "x"), ("b?", "y"), ("c?", "y"), ("not answered?", "y"))
    assert question_only_prior([example], test) == ["x", "y", "y", "y"]


def test_the_prior_needs_training_questions(make_question):
    with pytest.raises(ValueError, match="none were given"):
        question_only_prior([], texts(make_question, ("a?", "x")))


def test_the_majority_is_the_most_frequent_answer(make_question):
    test = [make_question(index, "a?", answer) for index, answer in enumerate("xxxyyz")]
    assert majority_answers(test) == ["x"] * 6
    assert majority_answers(test[::-1][:5]) == ["x"] * 5


def test_measures_count_right_empty_and_distinct(questions):
    predictions = [example["messages"][-1]["content"][0]["text"].upper() + "." for example in questions]
    predictions[0], predictions[13], predictions[14] = "", " ", "black"
    measured = measure(predictions, questions)
    assert (measured["num_questions"], measured["num_images"], measured["unanswered"]) == (18, 6, 2)
    assert measured["accuracy"] == pytest.approx(15 / 18)
    assert measured["per_type"]["colour"]["accuracy"] == pytest.approx(11 / 12)
    assert measured["per_type"]["other"]["accuracy"] == pytest.approx(4 / 6)
    assert measured["per_type"]["other"]["unanswered"] == 1
    assert "per_type" not in measure(predictions, questions, type_column="no such column")


def test_a_breakdown_has_a_group_for_each_value_with_a_name(make_question):
    photograph = [True, True, False, None]
    test = [make_question(index, "a?", "x", photograph=value) for index, value in enumerate(photograph)]
    groups = measure(["x", "y", "x", "x"], test)["breakdowns"]["photograph"]
    found = {name: (group["num_questions"], group["accuracy"]) for name, group in groups.items()}
    assert found == {"photographs only": (2, 0.5), "not only photographs": (1, 1.0)}
    assert "breakdowns" not in measure(["x"], texts(make_question, ("a?", "x")))


def test_each_example_needs_a_prediction(questions):
    with pytest.raises(ValueError, match="2 predictions for 18 examples"):
        measure(["red", "blue"], questions)
    with pytest.raises(ValueError, match="0 predictions for 0 examples"):
        measure([], [])


# Intervals


def test_an_interval_of_independent_values_is_that_of_the_binomial_distribution():
    values = [1] * 300 + [0] * 100
    low, high = bootstrap_interval(values, range(400))
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - error, abs=0.006)
    assert high == pytest.approx(0.75 + error, abs=0.006)


def test_questions_that_are_right_or_wrong_together_count_once():
    generator = np.random.default_rng(0)
    of_image = generator.integers(0, 2, 100)
    values, images = np.repeat(of_image, 9), np.repeat(np.arange(100), 9)
    low, high = bootstrap_interval(values, images.tolist())
    alone = bootstrap_interval(of_image, range(100))
    assert [low, high] == pytest.approx(alone, abs=0.01)
    too_narrow = bootstrap_interval(values, range(900))
    assert high - low > 2.5 * (too_narrow[1] - too_narrow[0])


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        chances = generator.beta(4, 2, 60)  # of each image: 2/3 on average
        values = generator.random((60, 5)) < chances[:, None]
        low, high = bootstrap_interval(values.flatten(), np.repeat(np.arange(60), 5).tolist(), num_resamples=200)
        covered += low <= 2 / 3 <= high
    assert 0.89 < covered / 200 < 0.99


@pytest.mark.parametrize("num_clusters", [2, 10, 77])
def test_where_all_are_right_or_all_wrong_the_ends_are_those_of_the_binomial_distribution(num_clusters):
    """The end of Clopper and Pearson is the share of which so many in a row have a chance of 2.5 %."""
    clusters = [index % num_clusters for index in range(3 * num_clusters)]
    low, high = bootstrap_interval([1] * len(clusters), clusters)
    assert (low**num_clusters, high) == (pytest.approx(0.025), 1.0)
    low, high = bootstrap_interval([0] * len(clusters), clusters)
    assert (low, (1 - high) ** num_clusters) == (0.0, pytest.approx(0.025))


def test_clusters_that_are_alike_without_being_all_right_have_an_interval_too():
    low, high = bootstrap_interval([1, 0] * 10, [index // 2 for index in range(20)])
    assert low < 0.4 < 0.5 < 0.6 < high
    low, high = bootstrap_interval([0] * 20, range(20), bounds=(-1.0, 1.0))
    assert -low == high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_ratio_of_which_all_resamples_are_alike_has_no_interval():
    """As the recall of a model that finds whatever is there, however often it says yes beside that."""
    generator = np.random.default_rng(0)
    found = generator.random(40) < 0.3
    columns = np.stack([found, found, generator.random(40) < 0.5], axis=1)

    def recall(means):
        return means[..., 0] / np.maximum(means[..., 1], 1e-9)

    assert bootstrap_interval(columns, range(40), statistic=recall) is None
    columns[np.flatnonzero(found)[0], 0] = 0
    low, high = bootstrap_interval(columns, range(40), statistic=recall)
    assert low < high


def test_an_interval_is_reproducible_and_needs_two_clusters():
    values, clusters = [1, 0, 1, 1], [0, 0, 1, 2]
    assert bootstrap_interval(values, clusters) == bootstrap_interval(values, clusters)
    assert bootstrap_interval(values, ["same"] * 4) is None
    with pytest.raises(ValueError, match="4 values and 3 clusters"):
        bootstrap_interval(values, [0, 1, 2])


# A choice of questions


def test_a_choice_is_seeded_and_keeps_the_order(questions):
    chosen = choose_questions(questions, 7, seed=1)
    assert len(chosen) == 7
    rows = [example["row"] for example in chosen]
    assert rows == sorted(rows)
    assert chosen == choose_questions(questions, 7, seed=1) != choose_questions(questions, 7, seed=2)
    assert choose_questions(questions, 100) == choose_questions(questions) == questions
    with pytest.raises(ValueError, match="max_questions is 0"):
        choose_questions(questions, 0)


@pytest.mark.real_data("easy-vqa")
def test_the_floors_of_easy_vqa_are_the_known_ones():
    from vistok import load_data_source

    # Under the name that the demo gives it, the training split is converted once for the tests of both.
    train = load_data_source({"format": "easy-vqa", "name": "easy-VQA train", "split": "train"})
    train = train.select_columns(["messages"])
    test = list(load_data_source({"format": "easy-vqa", "split": "test"}))
    assert question_of(test[0]) == "what is the red shape?"
    prior = measure(question_only_prior(train, test), test)
    majority = measure(majority_answers(test), test)
    assert (prior["num_questions"], prior["num_images"]) == (9673, 1000)
    assert round(100 * prior["accuracy"], 1) == 67.0
    assert round(100 * majority["accuracy"], 1) == 37.3
    assert sorted(prior["per_type"]) == ["color", "shape", "yes/no"]
