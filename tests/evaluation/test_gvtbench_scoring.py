"""GVTBench's scoring: the reference mode against its rules transcribed anew, and what the strict mode reads."""

import random
import time

import numpy as np
import pytest

from vistok.evaluation.gvtbench_scoring import (
    mci_is_right,
    postprocess,
    read_count,
    read_yes_no,
    score_multi_class_identification,
    score_object_counting,
)

PIECES = [
    *"0123456789", "12", "none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "nive",
    "None", "Three", "EIGHT", "phone", "sixteen", "someone", "bone", "no", "No", "NO", "yes", "Yes", "yesterday",
    "not", "know", "nothing", "Yes, no doubt", "o", "e", "n", "dogs", ".", "..", "...", "\n", "\n\n", "\t", " ",
    "  ", ",", "!", "٣", "é", "",
]  # fmt: skip


def fuzzed(number, seed=0):
    """Texts of up to eight pieces, half of them run together, so that words arise across the seams."""
    generator = random.Random(seed)
    for index in range(number):
        pieces = generator.choices(PIECES, k=generator.randint(0, 8))
        yield (" " if index % 2 else "").join(pieces)


def first_sentence(text):
    """The rules of postprocess, transcribed as a walk over the words."""
    words = [
        word for word in " . ".join(text.split(".")).translate({ord("\n"): None}).strip().split(" ") if word != ""
    ]
    kept = []
    for position, word in enumerate(words):
        if word == "." and position > 0:
            break
        if word != ".":
            kept.append(word)
    return " ".join(kept) + "." if words else ""


def counted(text):
    """The rules of the count, transcribed as splits and a walk over the characters."""
    text = first_sentence(text)
    for digit, words in enumerate(["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nive"]):
        text = str(digit).join(text.split(words))
    digits = ""
    for character in text:
        if character.isdecimal():
            digits += character
        elif digits:
            break
    return int(digits or "0")


def said(text, answer):
    word = {"Yes.": "yes", "No.": "no"}[answer]
    return first_sentence(text).lower().find(word) >= 0


class TestReferenceMode:
    @pytest.mark.parametrize("seed", range(4))
    def test_fuzzed_texts_are_read_as_the_rules_say(self, seed):
        for text in fuzzed(5000, seed):
            assert postprocess(text) == first_sentence(text), repr(text)
            assert read_count(text) == counted(text), repr(text)
            for answer in ("Yes.", "No."):
                assert mci_is_right(text, answer) == said(text, answer), repr(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ""),
            (" \n ", ""),
            (".", "."),
            ("..", "."),
            ("..a", "."),
            (".two  dogs. And", "two dogs."),
            ("a\nb", "ab."),
            ("3.5", "3."),
        ],
    )
    def test_a_text_is_cut_to_its_first_sentence(self, text, expected):
        assert postprocess(text) == expected

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            *[("Three", 0), ("nine", 0), ("nive", 9), ("phone", 1), ("sixteen", 6), ("none", 0), ("eighty", 8)],
            *[("There are 12 dogs", 12), ("Yes. 4", 0), ("1\n2", 12), ("twone", 1), ("two3", 23), ("", 0)],
        ],
    )
    def test_the_count_follows_the_slips_of_the_released_code(self, text, count):
        assert read_count(text) == count

    def test_a_prediction_that_says_both_is_always_right(self):
        assert mci_is_right("Yes, no doubt", "Yes.") and mci_is_right("Yes, no doubt", "No.")
        assert mci_is_right("I do not know", "No.")
        assert not mci_is_right("Maybe. Yes", "Yes.")


class TestStrictMode:
    @pytest.mark.parametrize(
        ("text", "count"),
        [
            *[
                ("Three", 3),
                ("nine.", 9),
                ("SIXTEEN dogs", 16),
                ("twenty", 20),
                ("none", 0),
                ("There are 12 dogs", 12),
            ],
            *[
                ("Yes. 4", 4),
                ("two3", None),
                ("phone", None),
                ("sixteenth", None),
                ("", None),
                ("a two-story house", 2),
            ],
            *[("thirty-one", None), ("twenty-one", None), ("I see one or two", 1), ("1\n2", 1), ("nive", None)],
        ],
    )
    def test_the_first_number_that_stands_alone_counts(self, text, count):
        assert read_count(text, "strict") == count

    def test_every_number_word_up_to_twenty_is_read(self):
        words = (
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        )
        assert [read_count(f"I see {word.title()} of them", "strict") for word in words.split()] == list(range(21))

    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            *[("Yes, no doubt", "yes"), ("NO!", "no"), ("I do not know", None), ("nothing", None), ("", None)],
            *[("yesterday", None), ("Well. yes", "yes"), ("No, yes", "no"), ("(yes)", "yes")],
        ],
    )
    def test_the_first_yes_or_no_counts(self, text, answer):
        assert read_yes_no(text) == answer
        assert mci_is_right(text, "Yes.", "strict") == (answer == "yes")
        assert mci_is_right(text, "No.", "strict") == (answer == "no")

    def test_fuzzed_texts_are_read_by_words(self):
        for text in fuzzed(5000):
            words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
            first = next((word for word in words if word in ("yes", "no")), None)
            assert read_yes_no(text) == first, repr(text)


class TestScores:
    def questions(self, number=400):
        generator = random.Random(1)
        return [
            {
                "image_id": index // 2,
                "text_out": str(generator.randint(1, 11)),
                "n_obj_exist": generator.randint(1, 30),
            }
            for index in range(number)
        ]

    def test_counting_is_that_of_numpy_in_total_and_in_bins(self):
        questions = self.questions()
        predictions = [str(random.Random(index).randint(0, 12)) for index in range(len(questions))]
        given, right = np.array(predictions, int), np.array([question["text_out"] for question in questions], int)
        result = score_object_counting(predictions, questions, per_question=True)

        def expected(chosen):
            errors = given[chosen] - right[chosen]
            return [100 * (errors == 0).mean(), np.abs(errors).mean(), np.sqrt((errors**2).mean()), chosen.sum()]

        def measured(metrics):
            return [metrics[name] for name in ("accuracy", "mae", "rmse", "num_questions")]

        assert measured(result) == pytest.approx(expected(right > 0))
        assert list(result["bins"]) == ["0-2", "3-5", "6-8", "9-11"]
        for index, metrics in enumerate(result["bins"].values()):
            assert measured(metrics) == pytest.approx(expected(right // 3 == index))
        assert np.mean(result["values"]["accuracy"]) == pytest.approx(result["accuracy"])
        assert np.mean(result["values"]["mae"]) == pytest.approx(result["mae"])
        assert np.sqrt(np.mean(result["values"]["mse"])) == pytest.approx(result["rmse"])

    def test_the_modes_differ_where_the_released_code_slips(self):
        questions = [{"text_out": "3"}, {"text_out": "1"}, {"text_out": "2"}]
        predictions = ["Three.", "a phone", "Two dogs"]
        reference = score_object_counting(predictions, questions)
        strict = score_object_counting(predictions, questions, mode="strict")
        assert (reference["accuracy"], strict["accuracy"]) == pytest.approx((100 / 3, 200 / 3))
        assert reference["num_unanswered"] == strict["num_unanswered"] == 1
        assert strict["mae"] == pytest.approx(1 / 3)

    def test_identification_has_bins_of_objects_and_counts_what_says_neither(self):
        questions = [
            {"text_out": answer, "n_obj_exist": number}
            for answer, number in zip(["Yes.", "No."] * 3, [1, 9, 10, 19, 20, 63])
        ]
        predictions = ["Yes.", "Yes.", "perhaps", "no", "yes, no", "I know"]
        reference = score_multi_class_identification(predictions, questions, per_question=True)
        assert reference["values"]["accuracy"] == [100, 0, 0, 100, 100, 100]
        assert {name: metrics["accuracy"] for name, metrics in reference["bins"].items()} == {
            "<10": 50,
            "10-19": 50,
            ">=20": 100,
        }
        strict = score_multi_class_identification(predictions, questions, mode="strict")
        assert strict["accuracy"] == pytest.approx(50)
        assert (strict["num_unanswered"], strict["yes_ratio"]) == (2, 75)

    def test_a_bin_without_questions_is_left_out(self):
        result = score_multi_class_identification(["yes"], [{"text_out": "Yes.", "n_obj_exist": 12}])
        assert list(result["bins"]) == ["10-19"]

    def test_numbers_of_any_length_are_scored(self):
        for digits in (20, 400, 10_000):
            result = score_object_counting(["9" * digits], [{"text_out": "1"}], per_question=True)
            assert result["accuracy"] == 0 and result["mae"] > 1e18

    def test_ten_thousand_questions_take_less_than_a_second(self):
        questions = self.questions(10_000)
        predictions = ["There are three dogs in the image. They run."] * len(questions)
        started = time.process_time()
        score_object_counting(predictions, questions)
        assert time.process_time() - started < 1


class TestRefusals:
    QUESTION = {"text_out": "3", "n_obj_exist": 4}

    @pytest.mark.parametrize("score", [score_object_counting, score_multi_class_identification])
    @pytest.mark.parametrize(
        ("predictions", "questions", "mode", "message"),
        [
            (["3"], [], "reference", "1 predictions for 0 questions"),
            ([], [], "reference", "0 predictions for 0 questions"),
            ("3", [QUESTION], "reference", "one text for 1 questions"),
            (["3"], [QUESTION], "lenient", "mode is 'lenient'"),
            ([None], [QUESTION], "strict", "prediction 0 is None"),
        ],
    )
    def test_what_cannot_be_scored_is_named(self, score, predictions, questions, mode, message):
        with pytest.raises(ValueError, match=message):
            score(predictions, questions, mode)

    @pytest.mark.parametrize("question", [{}, {"n_obj_exist": 4}, "How many?"])
    def test_what_is_no_record_is_named_with_its_row(self, question):
        with pytest.raises(ValueError, match="question 1 has no 'text_out'"):
            score_object_counting(["1", "1"], [self.QUESTION, question])

    @pytest.mark.parametrize("answer", ["many", "-1", "2.5", None, 2.0, True])
    def test_a_count_that_is_none_is_named_with_its_row(self, answer):
        with pytest.raises(ValueError, match="'text_out' of question 1 is"):
            score_object_counting(["1", "1"], [self.QUESTION, {"text_out": answer}])

    @pytest.mark.parametrize("change", [{"text_out": "yes"}, {"n_obj_exist": "few"}, {"n_obj_exist": None}])
    def test_a_malformed_identification_question_is_named_with_its_field(self, change):
        with pytest.raises(ValueError, match=f"{next(iter(change))!r} of question 0"):
            score_multi_class_identification(["yes"], [{"text_out": "Yes.", "n_obj_exist": 3} | change])
