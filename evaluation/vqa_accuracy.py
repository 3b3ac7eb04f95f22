"""Accuracy on VQAv2: official, and as the GVT paper measures it. The two are different numbers."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from .gvtbench_scoring import postprocess
from .prediction_checks import check_predictions, check_text_lists

MATCHES = ("exact", "contains")

AGREEING_ANSWERS = 3
"""A prediction is fully right if so many of the other annotators gave it."""
MIN_ANSWER_COUNT = 9
"""How often an answer must occur to be in the vocabulary of GVT's VQA questions (*released code*)."""

# The official table of contractions, written as what each word becomes. Words that differ from it by apostrophes only
# are grouped; entries of the official table with capitals never apply, as words are put in lower case first.
_CONTRACTIONS_OF = """
ain't:aint aren't:arent can't:cant could've:couldve couldn't:couldnt couldn't've:couldn'tve,couldnt've didn't:didnt
doesn't:doesnt don't:dont hadn't:hadnt hadn't've:hadnt've,hadn'tve hasn't:hasnt haven't:havent he'd:hed
he'd've:hed've,he'dve he's:hes how'd:howd how'll:howll how's:hows isn't:isnt it'd:itd it'd've:itd've,it'dve it'll:itll
ma'am:maam mightn't:mightnt mightn't've:mightnt've,mightn'tve might've:mightve mustn't:mustnt must've:mustve
needn't:neednt not've:notve o'clock:oclock oughtn't:oughtnt 'ow's'at:ow's'at,'ows'at,'ow'sat shan't:shant
she'd've:shed've,she'dve should've:shouldve shouldn't:shouldnt shouldn't've:shouldnt've,shouldn'tve
somebodyd:somebody'd somebody'd've:somebodyd've,somebody'dve somebody'll:somebodyll somebody's:somebodys
someone'd:someoned someone'd've:someoned've,someone'dve someone'll:someonell someone's:someones something'd:somethingd
something'd've:somethingd've,something'dve something'll:somethingll that's:thats there'd:thered
there'd've:thered've,there'dve there're:therere there's:theres they'd:theyd they'd've:theyd've,they'dve they'll:theyll
they're:theyre they've:theyve 'twas:twas wasn't:wasnt we'd've:wed've,we'dve we've:weve weren't:werent what'll:whatll
what're:whatre what's:whats what've:whatve when's:whens where'd:whered where's:wheres where've:whereve who'd:whod
who'd've:whod've,who'dve who'll:wholl who's:whos who've:whove why'll:whyll why're:whyre why's:whys won't:wont
would've:wouldve wouldn't:wouldnt wouldn't've:wouldnt've,wouldn'tve y'all:yall y'all'll:yall'll,y'allll
y'all'd've:yall'd've,y'alld've,y'all'dve you'd:youd you'd've:youd've,you'dve you'll:youll you're:youre you've:youve
"""
CONTRACTIONS = {
    word: contraction
    for entry in _CONTRACTIONS_OF.split()
    for contraction, _, words in [entry.partition(":")]
    for word in words.split(",")
}
"""Word → the contraction that the official normalisation makes of it."""

_NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written "(?!<=" where "(?<=" was meant, so that every full stop goes that no digit follows.
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_MOST_FULL_STOPS = int(re.UNICODE)  # the official code passes this flag where the number of replacements belongs


def normalize_vqa_answer(answer: str) -> str:
    """
    The official normalisation of VQAv2 answers: punctuation, articles, number words, contractions.

    Args:
        answer (`str`): e.g. `"The dog, I think."`.

    Returns:
        `str`: e.g. `"dog i think"`.
    """
    return _words_normalized(_without_punctuation(_on_one_line(answer)))


def postprocess_vqa(prediction: str) -> str:
    """
    What the released code of GVT makes of a generated answer: its first line, without punctuation at both ends, and of
    this the first sentence (see [`postprocess`]).

    Args:
        prediction (`str`): what the model said.

    Returns:
        `str`: e.g. `"a dog."` of `" A dog!\\nQuestion: …"`, in its own case.
    """
    return postprocess(prediction.strip().split("\n")[0].strip(string.punctuation))


def vqa_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]], match: str = "exact") -> list[float]:
    """
    How far each prediction agrees with the annotators: the mean, over all choices of all annotators but one, of
    `min(1, agreeing annotators / 3)`.

    With fewer than four answers, no three others can agree: all others have to. A single answer decides alone.

    Args:
        predictions (`list[str]`): what the model said to each question.
        answers (`list[list[str]]`): the answers to each question, ten in VQAv2, one or more.
        match (`str`, *optional*, defaults to `"exact"`): `"exact"` is the official rule: prediction and answers are
            normalised if the answers differ, and compared. `"contains"` is that of GVT's released code: an annotator
            agrees whose answer occurs within the prediction, which goes through [`postprocess_vqa`] first.

    Returns:
        `list[float]`: for each question between 0 and 1.

    Raises:
        ValueError: if there are no questions, not as many predictions as questions, a question without answers, or an
            unknown `match`.
    """
    _check(predictions, answers, match)
    score = _exact_score if match == "exact" else _contains_score
    return [score(prediction, of_question) for prediction, of_question in zip(predictions, answers)]


def best_constant_answer(answers: Sequence[Sequence[str]]) -> str:
    """
    The answer that has the highest official accuracy if it is given to every question: not always the one that most
    questions have as their most frequent answer, as agreement counts by degrees.

    Args:
        answers (`list[list[str]]`): the answers to each question.

    Returns:
        `str`: the first in the alphabet among equally good ones.

    Raises:
        ValueError: if there are no questions, or one without answers.
    """
    if not len(answers):
        raise ValueError("The best constant answer was asked of no questions.")
    check_text_lists(answers, "answers to question")
    # Answers are compared as they are where all of a question agree, and normalised otherwise.
    totals: tuple[dict[str, float], dict[str, float]] = (defaultdict(float), defaultdict(float))
    normalized: dict[str, str] = {}
    for of_question in answers:
        given = [_on_one_line(answer) for answer in of_question]
        if differ := len(set(given)) > 1:
            given = [normalized.setdefault(text, normalize_vqa_answer(text)) for text in given]
        for answer in set(given):
            totals[differ][answer] += _leave_one_out([text == answer for text in given])
    scores = {
        text: totals[0].get(text, 0.0) + totals[1].get(normalize_vqa_answer(text), 0.0)
        for text in {*totals[0], *totals[1]}
    }
    return min(scores, key=lambda text: (-round(scores[text], 9), text))


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    match: str = "exact",
    vocabulary: Collection[str] | None = None,
) -> float:
    """
    The accuracy of VQAv2 in percent: the mean of [`vqa_scores`].

    Args:
        predictions, answers, match: see [`vqa_scores`]. The two ways of matching give different numbers: never compare
            one with the other.
        vocabulary (`set[str]`, *optional*): leave out questions none of whose answers is in it, as GVT's released code
            does (see [`answer_vocabulary`]). The official accuracy leaves out none.

    Returns:
        `float`: between 0 and 100.

    Raises:
        ValueError: see [`vqa_scores`]; or if no question is left.
    """
    return score_vqa(predictions, answers, match, vocabulary)["accuracy"]


def score_vqa(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    match: str = "exact",
    vocabulary: Collection[str] | None = None,
    types: Sequence[str] | None = None,
    per_question: bool = False,
) -> dict[str, Any]:
    """
    Accuracy on VQAv2, in total and per type of answer.

    Args:
        predictions, answers, match, vocabulary: see [`vqa_accuracy`].
        types (`list[str]`, *optional*): the type of each question, such as VQAv2's `answer_type`.
        per_question (`bool`, *optional*, defaults to `False`): whether to return the values of each question.

    Returns:
        `dict`: `accuracy` (percent), `num_questions`, `num_unanswered` (predictions without a letter or digit),
        `num_dropped` (questions outside of the vocabulary, which count nowhere else), `match`; with `types`, `bins`:
        `accuracy`, `num_questions` and `num_unanswered` of each type. With `per_question` also `values`: `accuracy` in
        percent for each question, `None` for those that were dropped.

    Raises:
        ValueError: see [`vqa_accuracy`]; or if there are not as many types as questions.
    """
    scores = vqa_scores(predictions, answers, match)
    if types is not None and len(types) != len(scores):
        raise ValueError(f"{len(types)} types were given for {len(scores)} questions, expected one for each.")
    kept = [index for index, known in enumerate(in_vocabulary(answers, vocabulary)) if known]
    if not kept:
        raise ValueError(f"None of the {len(scores)} questions has an answer in the vocabulary.")
    unanswered = [re.search(r"\w", prediction) is None for prediction in predictions]

    def summary(chosen: Sequence[int]) -> dict[str, Any]:
        return {
            "accuracy": 100 * sum(scores[index] for index in chosen) / len(chosen),
            "num_questions": len(chosen),
            "num_unanswered": sum(unanswered[index] for index in chosen),
        }

    result = {**summary(kept), "num_dropped": len(scores) - len(kept), "match": match}
    if types is not None:
        names = sorted({types[index] for index in kept})
        result["bins"] = {name: summary([index for index in kept if types[index] == name]) for name in names}
    if per_question:
        of_kept = {index: 100 * scores[index] for index in kept}
        result["values"] = {"accuracy": [of_kept.get(index) for index in range(len(scores))]}
    return result


def answer_vocabulary(answers: Iterable[str], min_count: int = MIN_ANSWER_COUNT) -> set[str]:
    """
    The frequent answers of a data set, to which the released code of GVT restricts its VQA questions.

    Args:
        answers (`list[str]`): the most frequent answer of each question (`multiple_choice_answer` in VQAv2).
        min_count (`int`, *optional*, defaults to 9): how often an answer must occur.

    Returns:
        `set[str]`: normalised answers.
    """
    counts = Counter(normalize_vqa_answer(answer).replace(",", "") for answer in answers)
    return {answer for answer, count in counts.items() if count >= min_count}


def in_vocabulary(answers: Sequence[Sequence[str]], vocabulary: Collection[str] | None) -> list[bool]:
    """
    Whether each question has an answer, as the annotator wrote it, that is in a vocabulary.

    Args:
        answers (`list[list[str]]`): the answers to each question.
        vocabulary (`set[str]` or `None`): see [`answer_vocabulary`]; without one, every question has.

    Returns:
        `list[bool]`: for each question.
    """
    return [vocabulary is None or any(answer in vocabulary for answer in of_question) for of_question in answers]


def _exact_score(prediction: str, answers: Sequence[str]) -> float:
    prediction, answers = _on_one_line(prediction), [_on_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        answers = [normalize_vqa_answer(answer) for answer in answers]
        prediction = normalize_vqa_answer(prediction)
    return _leave_one_out([answer == prediction for answer in answers])


def _contains_score(prediction: str, answers: Sequence[str]) -> float:
    prediction = normalize_vqa_answer(postprocess_vqa(prediction).lower())
    if len(set(answers)) > 1:
        answers = [_without_punctuation(answer) for answer in answers]
    return _leave_one_out([answer.lower() in prediction.lower() for answer in answers])


def _leave_one_out(agrees: Sequence[bool]) -> float:
    """Mean over the annotators of `min(1, others that agree / 3)`."""
    if len(agrees) == 1:
        return float(agrees[0])
    needed = min(AGREEING_ANSWERS, len(agrees) - 1)
    total = sum(agrees)
    return sum(min(1.0, (total - agree) / needed) for agree in agrees) / len(agrees)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """A mark goes if a space is beside one like it, or if a number has a comma; else it becomes a space."""
    number_has_comma = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or number_has_comma else " ")
    return _FULL_STOP.sub("", cleaned, count=_MOST_FULL_STOPS)


def _words_normalized(text: str) -> str:
    words = [_NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _check(predictions: Sequence[str], answers: Sequence[Sequence[str]], match: str) -> None:
    if match not in MATCHES:
        raise ValueError(f"match is {match!r}, expected {' or '.join(map(repr, MATCHES))}.")
    check_predictions(predictions, answers)
    check_text_lists(answers, "answers to question")


__all__ = [
    "CONTRACTIONS",
    "MATCHES",
    "answer_vocabulary",
    "best_constant_answer",
    "in_vocabulary",
    "normalize_vqa_answer",
    "postprocess_vqa",
    "score_vqa",
    "vqa_accuracy",
    "vqa_scores",
]
