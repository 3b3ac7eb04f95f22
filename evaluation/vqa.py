"""Short answers: which are right by exact match, and what guessing would answer."""

import random
import string
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..processing.images import image_key
from .priors import most_frequent, two_fold_guesses

Examples = Sequence[Mapping[str, Any]]
Item = TypeVar("Item")

BREAKDOWNS: Mapping[str, Mapping[Any, str]] = {
    "photograph": {True: "photographs only", False: "not only photographs"},
    "distinct": {True: "without exact duplicates"},
}
"""Columns by which reports are broken down beside the type, and how they call the groups. Scenes of photographs and
drawings together are not only photographs."""


def normalize_answer(answer: str) -> str:
    """
    Lower case, without white space at the ends and without punctuation at the end.

    Args:
        answer (`str`): e.g. `" Yes."`.

    Returns:
        `str`: e.g. `"yes"`.
    """
    return answer.strip().lower().rstrip(string.punctuation + string.whitespace)


def answer_is_right(prediction: str, answer: str) -> bool:
    """
    Whether a prediction is the answer, up to [`normalize_answer`]. An empty prediction never is.

    Args:
        prediction (`str`): what the model said.
        answer (`str`): what is right.
    """
    predicted = normalize_answer(prediction)
    return bool(predicted) and predicted == normalize_answer(answer)


def is_unanswered(prediction: str) -> bool:
    """Whether a prediction says nothing, punctuation apart."""
    return not normalize_answer(prediction)


def question_of(example: Mapping[str, Any]) -> str:
    """Text of the last question of an example, without its images."""
    return _last_text(example, "user")


def answer_of(example: Mapping[str, Any]) -> str:
    """The right answer of an example: its last turn."""
    return _last_text(example, "assistant")


def _last_text(example, role: str) -> str:
    content = next(message["content"] for message in reversed(example["messages"]) if message["role"] == role)
    return _text(content)


def _text(content) -> str:
    return "".join(part["text"] for part in content if part["type"] == "text").strip()


def questions_and_answers(example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    Every question of an example with its answer: an assistant's turn, and the user's last one before it.

    Args:
        example (`dict`): training example, of one turn or several.

    Returns:
        `list[tuple[str, str]]`: in their order.
    """
    pairs, question = [], None
    for message in example["messages"]:
        if message["role"] == "user":
            question = _text(message["content"])
        elif message["role"] == "assistant" and question is not None:
            pairs.append((question, _text(message["content"])))
            question = None
    return pairs


def image_clusters(examples: Examples) -> list[Hashable]:
    """
    Which questions belong together because they are about the same image.

    Args:
        examples (`list[dict]`): training examples.

    Returns:
        `list`: equal for examples about the same images; an example without images is alone.
    """
    return [
        tuple(image_key(image) for image in example.get("images") or []) or ("no image", index)
        for index, example in enumerate(examples)
    ]


def choose_questions(test: Iterable[Item], max_questions: int | None = None, seed: int = 0) -> list[Item]:
    """
    A choice of examples in which each is equally likely, in their own order.

    Args:
        test (`list[dict]` or `Dataset`): examples, or their positions.
        max_questions (`int`, *optional*): how many; by default all.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Raises:
        ValueError: if `max_questions` is less than 1.
    """
    if max_questions is not None and max_questions < 1:
        raise ValueError(f"max_questions is {max_questions}, expected at least 1.")
    examples = list(test)
    if max_questions is None or max_questions >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), max_questions))]


def majority_answers(test: Examples) -> list[str]:
    """
    What the most frequent answer of the questions themselves would predict: the best constant guess of exact matches.

    Args:
        test (`list[dict]`): examples.

    Returns:
        `list[str]`: a prediction for each example.
    """
    return [most_frequent(Counter(answer_of(example) for example in test))] * len(test)


def question_only_prior(train: Examples, test: Examples) -> list[str]:
    """
    What someone would predict who read all training questions and never saw an image: the most frequent training
    answer of exactly this question, or, of a question that training does not hold, the most frequent one of all.

    Args:
        train (`list[dict]`): examples, of which every turn is read.
        test (`list[dict]`): examples, of which the last question is answered.

    Returns:
        `list[str]`: a prediction for each example of `test`.

    Raises:
        ValueError: if there are no training examples.
    """
    of_question: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for example in train:
        for question, answer in questions_and_answers(example):
            of_question[question][answer] += 1
            overall[answer] += 1
    if not overall:
        raise ValueError("The question-only prior learns from training examples, and none were given.")
    fallback = overall.most_common(1)[0][0]
    questions = [question_of(example) for example in test]
    return [of_question[text].most_common(1)[0][0] if text in of_question else fallback for text in questions]


def two_fold_priors(test: Examples, seed: int = 0) -> list[list[str]]:
    """
    What someone would predict who knew the questions and answers about other images, where there is no training data:
    see [`two_fold_guesses`].

    Args:
        test (`list[dict]`): examples about two images or more.
        seed (`int`, *optional*, defaults to 0): of the divisions.

    Returns:
        `list[list[str]]`: for each division a prediction for each example. The prior's score is the mean over them.

    Raises:
        ValueError: if the examples are about fewer than two images.
    """
    return two_fold_guesses(
        [question_of(example) for example in test],
        [answer_of(example) for example in test],
        image_clusters(test),
        seed=seed,
    )


__all__ = [
    "BREAKDOWNS",
    "answer_is_right",
    "answer_of",
    "choose_questions",
    "image_clusters",
    "is_unanswered",
    "majority_answers",
    "normalize_answer",
    "question_of",
    "question_only_prior",
    "questions_and_answers",
    "two_fold_priors",
]
