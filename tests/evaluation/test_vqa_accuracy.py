"""VQA accuracy: against the official rules transcribed anew, and the slips of theirs that are kept."""

import itertools
import random
import re

import pytest

from vistok.evaluation.vqa_accuracy import (
    CONTRACTIONS,
    answer_vocabulary,
    in_vocabulary,
    normalize_vqa_answer,
    postprocess_vqa,
    score_vqa,
    vqa_accuracy,
    vqa_scores,
)

PIECES = [
    "a", "an", "the", "The", "one", "ten", "none", "dog", "Dog", "dont", "don't", "youre", "somebody'd", "red", "yes",
    "no", "A", "3", "3.5", "10", "1,000", ".", ". ", ", ", ",", "-", "two-story", "/", "?", "! ", '"', "\n", "\t", " ",
    "  ", "a.b", ". . .", "&", "'", ":",
]  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def fuzzed_questions(number, num_answers=10):
    """Predictions with ten answers each, from a few texts, so that many agree and many nearly do."""
    generator = random.Random(0)
    for _ in range(number):
        texts = ["".join(generator.choices(PIECES, k=generator.randint(0, 5))) for _ in range(generator.randint(1, 3))]
        prediction = generator.choice([*texts, "".join(generator.choices(PIECES, k=3))])
        prediction = generator.choice([prediction, prediction.upper(), f"{prediction}.", f"the {prediction} "])
        yield prediction, [generator.choice(texts) for _ in range(num_answers)]


def without_marks(text):
    """The rule of punctuation, transcribed character by character."""
    comma = any(
        before.isdecimal() and mark == "," and after.isdecimal()
        for before, mark, after in zip(text, text[1:], text[2:])
    )
    marks = {}
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        marks[mark] = "" if comma or mark + " " in text or " " + mark in text else " "
    text = "".join(marks.get(character, character) for character in text)
    kept, dropped = [], 0
    for character, after in itertools.zip_longest(text, text[1:], fillvalue=""):
        if character == "." and not after.isdecimal() and dropped < 32:
            dropped += 1
        else:
            kept.append(character)
    return "".join(kept)


def words_of(text):
    words = [
        "0" if word == "none" else str(NUMBERS.index(word)) if word in NUMBERS else word
        for word in text.lower().split()
    ]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in {"a", "an", "the"})


def one_line(text):
    return re.sub(r"[\n\t]", " ", text).strip()


def official_score(prediction, answers):
    """The mean over the ten choices of nine answers, transcribed with the choices written out."""
    prediction, answers = one_line(prediction), [one_line(answer) for answer in answers]
    if any(answer != answers[0] for answer in answers):
        prediction = words_of(without_marks(prediction))
        answers = [words_of(without_marks(answer)) for answer in answers]
    choices = list(itertools.combinations(answers, len(answers) - 1))
    return sum(min(1, choice.count(prediction) / 3) for choice in choices) / len(choices)


class TestExact:
    def test_fuzzed_questions_are_scored_by_the_official_rules(self):
        questions = list(fuzzed_questions(3000))
        predictions, answers = zip(*questions)
        scores = vqa_scores(predictions, answers)
        assert 0.2 < sum(scores) / len(scores) < 0.8
        for (prediction, of_question), score in zip(questions, scores):
            assert score == pytest.approx(official_score(prediction, of_question), abs=1e-12), (
                prediction,
                of_question,
            )

    @pytest.mark.parametrize(("agreeing", "score"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
    def test_three_other_annotators_make_an_answer_right(self, agreeing, score):
        answers = ["dog"] * agreeing + ["cat"] * (10 - agreeing)
        assert vqa_accuracy(["dog"], [answers]) == pytest.approx(score)

    @pytest.mark.parametrize("number", range(1, 13))
    def test_any_number_of_answers_will_do(self, number):
        assert vqa_accuracy(["dog"], [["dog"] * number]) == pytest.approx(100)
        assert vqa_accuracy(["cat"], [["dog"] * number]) == 0

    @pytest.mark.parametrize("answers", [["dog", "dog", "dog", "cat"], ["dog", "cat", "cat", "cat", "a dog"]])
    def test_four_answers_and_more_follow_the_official_formula(self, answers):
        assert vqa_scores(["dog"], [answers]) == pytest.approx([official_score("dog", answers)])

    def test_nothing_is_normalised_where_all_answers_agree(self):
        assert vqa_accuracy(["Dog", "the dog", "dog."], [["dog"] * 10] * 3) == 0
        assert vqa_accuracy(["Dog", "the dog", "dog."], [["dog"] * 9 + ["cat"]] * 3) == 100

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            *[
                ("The dogs!", "dogs"),
                ("Two dogs", "2 dogs"),
                ("none", "0"),
                ("dont know", "don't know"),
                ("3.5", "3.5"),
            ],
            *[("two-story", "2 story"), ("red - white", "red white"), ("1,000", "1000"), ("3. 5", "3 5")],
            *[
                ("3.", "3"),
                ("somebody'd", "somebodyd"),
                ("U.S.", "us"),
                ("3.a", "3a"),
                ("an apple a day", "apple day"),
            ],
        ],
    )
    def test_answers_are_normalised_with_the_slips_of_the_official_code(self, text, expected):
        assert normalize_vqa_answer(text) == expected

    def test_only_the_first_32_full_stops_go(self):
        assert normalize_vqa_answer("." * 40 + "a") == "." * 8 + "a"

    def test_contractions_differ_from_their_words_by_apostrophes(self):
        assert {key.replace("'", "") for key in CONTRACTIONS} == {
            value.replace("'", "") for value in CONTRACTIONS.values()
        }
        assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
        assert len(CONTRACTIONS) == 114


class TestContains:
    def test_an_answer_within_the_prediction_is_right(self):
        predictions = ["A brown dog on a sofa.", "dog", "It is a DOG!\nQuestion: which cat?", "a cat. Or a dog"]
        answers = [["dog"] * 10] * 4
        assert vqa_scores(predictions, answers, match="contains") == [1, 1, 1, 0]
        assert vqa_scores(predictions, answers, match="exact") == [0, 1, 0, 0]

    def test_fuzzed_questions_are_scored_by_the_rules_of_the_released_code(self):
        for prediction, answers in fuzzed_questions(1500):
            said = words_of(without_marks(one_line(postprocess_vqa(prediction).lower())))
            given = answers if len(set(answers)) == 1 else [without_marks(answer) for answer in answers]
            agrees = [said.find(answer.lower()) >= 0 for answer in given]
            expected = sum(min(1, (sum(agrees) - agree) / 3) for agree in agrees) / 10
            assert vqa_scores([prediction], [answers], "contains") == pytest.approx([expected], abs=1e-12)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (" A dog!\nQuestion: …", "A dog."),
            ("", ""),
            ("?!", ""),
            ("\n\n", ""),
            ("red. And blue", "red."),
            ('"3.5"', "3."),
        ],
    )
    def test_a_prediction_is_its_first_line_without_punctuation_at_the_ends(self, text, expected):
        assert postprocess_vqa(text) == expected

    def test_questions_outside_of_the_vocabulary_are_left_out(self):
        vocabulary = answer_vocabulary(["dog"] * 9 + ["The cat!"] * 9 + ["emu"] * 8)
        assert vocabulary == {"dog", "cat"}
        answers = [["dog"] * 3, ["emu"] * 3, ["emu", "cat", "emu"]]
        assert in_vocabulary(answers, vocabulary) == [True, False, True]
        result = score_vqa(["dog", "emu", "hen"], answers, "contains", vocabulary, per_question=True)
        assert (result["accuracy"], result["num_questions"], result["num_dropped"]) == (50, 2, 1)
        assert result["values"]["accuracy"] == [100, None, 0]
        with pytest.raises(ValueError, match="None of the 1 questions"):
            score_vqa(["emu"], [["emu"]], vocabulary=vocabulary)


class TestReport:
    def test_types_are_scored_apart_and_empty_answers_counted(self):
        answers = [["yes"], ["2"], ["no"], ["dog"]]
        result = score_vqa(["yes", "3", " . ", "dog"], answers, types=["yes/no", "number", "yes/no", "other"])
        assert (result["accuracy"], result["num_unanswered"], result["match"]) == (50, 1, "exact")
        assert {name: metrics["accuracy"] for name, metrics in result["bins"].items()} == {
            "number": 0,
            "other": 100,
            "yes/no": 50,
        }
        assert result["bins"]["yes/no"]["num_unanswered"] == 1

    @pytest.mark.parametrize(
        ("predictions", "answers", "arguments", "message"),
        [
            (["a"], [["a"], ["b"]], {}, "1 predictions for 2 questions"),
            ([], [], {}, "0 predictions for 0 questions"),
            (["a"], [["a"]], {"match": "fuzzy"}, "match is 'fuzzy'"),
            (["a", "b"], [["a"], []], {}, r"answers to question 1 are \[\]"),
            (["a"], ["a"], {}, "answers to question 0 are 'a'"),
            (["a"], [["a", None]], {}, "answers to question 0 hold None"),
            ([3], [["3"]], {}, "prediction 0 is 3"),
            (["a"], [["a"]], {"types": []}, "0 types were given for 1 questions"),
        ],
    )
    def test_what_cannot_be_scored_is_named(self, predictions, answers, arguments, message):
        with pytest.raises(ValueError, match=message):
            score_vqa(predictions, answers, **arguments)
