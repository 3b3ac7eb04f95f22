"""POPE: its parse against the rule transcribed anew, its figures against a table of counts, and its files."""

import json
import random
import re

import pytest

from vistok.evaluation.pope import SPLITS, load_pope, read_pope_answer, score_pope

PIECES = ["Yes", "No", "no", "NO", "not", "Not", "nothing", "there", ".", ". ", ",", "\n", " ", "  ", "n", "o"]


def says_no(text):
    """The official rule, transcribed with a pattern: up to the first full stop, commas gone, words between spaces."""
    sentence = re.match(r"[^.]*", text).group().translate({ord(","): None})
    return re.search(r"(?:^| )(?:No|no|not)(?:$| )", f" {sentence} ") is not None


@pytest.mark.parametrize("seed", range(3))
def test_fuzzed_texts_are_read_as_the_rule_says(seed):
    generator = random.Random(seed)
    for index in range(5000):
        text = (" " if index % 2 else "").join(generator.choices(PIECES, k=generator.randint(0, 7)))
        assert read_pope_answer(text) == ("no" if says_no(text) else "yes"), repr(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *[("No, there is none.", "no"), ("There is not.", "no"), ("Yes. There is no dog", "yes"), ("NO", "yes")],
        *[("", "yes"), ("nothing", "yes"), ("no\n", "yes"), ("no\nyes", "yes"), ("I see no, dog", "no")],
    ],
)
def test_the_official_rule_reads_every_text(text, answer):
    assert read_pope_answer(text) == answer


def question(label, split=None):
    return {"image": "x.jpg", "text": "Is there a dog?", "label": label} | ({"split": split} if split else {})


def test_figures_are_those_of_the_table_of_counts():
    cases = [("Yes", "yes")] * 3 + [("Yes", "no")] * 2 + [("No", "yes")] + [("No", "no")] * 4
    result = score_pope([text for text, _ in cases], [question(label) for _, label in cases], per_question=True)
    assert result["accuracy"] == pytest.approx(70)
    assert result["precision"] == pytest.approx(60)
    assert result["recall"] == pytest.approx(75)
    assert result["f1"] == pytest.approx(2 * 60 * 75 / 135)
    assert result["yes_ratio"] == pytest.approx(50)
    for metric, values in result["values"].items():
        assert sum(values) / len(values) == pytest.approx(result[metric])
    assert "bins" not in result


def test_nothing_divides_by_zero_and_empty_answers_are_counted():
    result = score_pope(["No", "no"], [question("yes"), question("yes")])
    assert (result["precision"], result["recall"], result["f1"], result["yes_ratio"]) == (0, 0, 0, 0)
    result = score_pope(["", " .", "yes", "It is not there."], [question("yes")] * 4)
    assert (result["num_unanswered"], result["num_empty"]) == (3, 2)


@pytest.fixture
def folder(tmp_path):
    for split in SPLITS:
        lines = [json.dumps({"question_id": index, **question(label)}) for index, label in enumerate(["yes", "no"])]
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_files_are_read_with_their_splits_and_scored_apart(folder):
    questions = load_pope(folder)
    assert [question["split"] for question in questions] == [split for split in SPLITS for _ in range(2)]
    assert load_pope(folder / "coco_pope_popular.json") == questions[2:4]
    result = score_pope(["Yes", "No", "Yes", "Yes", "No", "Yes"], questions)
    assert {split: metrics["accuracy"] for split, metrics in result["bins"].items()} == {
        "random": 100,
        "popular": 50,
        "adversarial": 0,
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: 'image' is missing"),
        (json.dumps({"image": "x.jpg", "label": "yes"}), "line 2: 'text' is missing"),
        (json.dumps(question("maybe")), "line 2: 'label' is 'maybe'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "pope.json"
    path.write_text(f"{json.dumps(question('yes'))}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_pope(path)


def test_what_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no questions of POPE"):
        load_pope(tmp_path)
    (tmp_path / "coco_pope_random.json").touch()
    with pytest.raises(ValueError, match="holds no questions"):
        load_pope(tmp_path)
    with pytest.raises(ValueError, match="2 predictions for 1 questions"):
        score_pope(["Yes", "No"], [question("yes")])
    with pytest.raises(ValueError, match="question 0: 'label' is 'Yes'"):
        score_pope(["Yes"], [question("Yes")])


def test_the_official_files_hold_3000_questions_each_half_of_them_yes(outside_data):
    questions = load_pope(outside_data("pope"))
    for split in SPLITS:
        labels = [question["label"] for question in questions if question["split"] == split]
        assert (len(labels), labels.count("yes")) == (3000, 1500)
    always = score_pope(["Yes"] * len(questions), questions)
    assert (always["accuracy"], always["recall"], always["yes_ratio"]) == (50, 100, 100)
    assert always["f1"] == pytest.approx(200 / 3)
