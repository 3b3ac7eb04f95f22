"""What can be answered from the questions about other images alone, as a mean over many divisions of the images."""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

NUM_DIVISIONS = 16
"""One random division of few images is a matter of luck; the mean over so many hardly is."""


def two_fold_guesses(
    questions: Sequence[str],
    answers: Sequence[str],
    images: Sequence[Hashable],
    num_divisions: int = NUM_DIVISIONS,
    seed: int = 0,
) -> list[list[str]]:
    """
    Guesses for each question from the questions about other images.

    The images are divided into two halves at random. A question is answered with the most frequent answer of exactly
    this text in the other half; one that the other half does not hold, with the most frequent answer there. Of equally
    frequent answers, the first in the alphabet. This is done several times: the score of the prior is the mean over
    the divisions, of every question and in total.

    Args:
        questions (`list[str]`): texts.
        answers (`list[str]`): the right answer to each.
        images (`list`): the image of each, or what stands for it.
        num_divisions (`int`, *optional*, defaults to 16): how many divisions.
        seed (`int`, *optional*, defaults to 0): of the divisions.

    Returns:
        `list[list[str]]`: for each division a guess for each question.

    Raises:
        ValueError: if there are fewer than two images, or `num_divisions` is less than 1.
    """
    asked: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for image, question, answer in zip(images, questions, answers):
        asked[image].append((question, answer))
    # By what is asked about them: the order of the questions and the names of the images do not matter.
    places = {image: place for place, image in enumerate(sorted(asked, key=lambda image: sorted(asked[image])))}
    if len(places) < 2:
        raise ValueError(f"The question-only prior needs questions about two images, these are about {len(places)}.")
    if num_divisions < 1:
        raise ValueError(f"num_divisions is {num_divisions}, expected at least 1.")
    generator = random.Random(seed)
    divisions = []
    for _ in range(num_divisions):
        order = list(range(len(places)))
        generator.shuffle(order)
        half_of = [0] * len(order)
        for rank, place in enumerate(order):
            half_of[place] = rank % 2
        divisions.append(_guesses(questions, answers, [half_of[places[image]] for image in images]))
    return divisions


def _guesses(questions: Sequence[str], answers: Sequence[str], halves: Sequence[int]) -> list[str]:
    of_text: list[dict[str, Counter[str]]] = [defaultdict(Counter), defaultdict(Counter)]
    for text, answer, half in zip(questions, answers, halves):
        of_text[half][text][answer] += 1
    guess_of = [{text: most_frequent(counts) for text, counts in of_half.items()} for of_half in of_text]
    overall = [most_frequent(Counter(answer for answer, of in zip(answers, halves) if of == half)) for half in (0, 1)]
    return [guess_of[1 - half].get(text, overall[1 - half]) for text, half in zip(questions, halves)]


def most_frequent(counts: Mapping[str, int]) -> str:
    """The most frequent answer, the first in the alphabet among equally frequent ones."""
    return min(counts, key=lambda answer: (-counts[answer], answer))


__all__ = ["NUM_DIVISIONS", "most_frequent", "two_fold_guesses"]
