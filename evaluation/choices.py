"""Multiple choice by likelihood: the answer is the choice whose text the model finds most probable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from .image_controls import control_images
from .image_text_models import ImageTextModel
from .processes import Share
from .seed_bench import LETTERS, most_likely

Examples = Sequence[Mapping[str, Any]]


def choose_answers(
    answerer: ImageTextModel,
    examples: Examples,
    *,
    images: str = "given",
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    own_prompt: bool = False,
    known: Mapping[int, str] | None = None,
    on_answers: Callable[[list[int], list[str]], None] | None = None,
    share: Share = Share(),  # noqa: B008
    progress_bar: str | bool = False,
) -> dict[int, str]:
    """
    Chooses the most probable of the choices of each example, by the sum of the log-likelihoods of its tokens.

    Args:
        answerer ([`ImageTextModel`]): the model.
        examples (`list[dict]`): with `choices`, texts.
        images, seed, image_size, own_prompt, known, on_answers, share, progress_bar: see [`ImageTextModel.answer`].

    Returns:
        `dict[int, str]`: letters by position, of the examples in this process's blocks and of those known.
    """
    shown = control_images(examples, images, seed)
    if answerer.is_composed:
        answerer.encoder(image_size).know(shown)
    answers, number = dict(known or {}), 0
    most = max((len(example["choices"]) for example in shown), default=1)
    size = max(1, answerer.batch_size // most)
    with logging.tqdm(
        total=len(shown), desc=progress_bar or None, unit=" questions", disable=not progress_bar
    ) as progress:
        for start in range(0, len(shown), size):
            block = list(range(start, min(start + size, len(shown))))
            if any(index not in answers for index in block):
                if share.takes(number):
                    new = _choose(answerer, [shown[index] for index in block], image_size, own_prompt)
                    found = {index: letter for index, letter in zip(block, new) if index not in answers}
                    answers.update(found)
                    if on_answers is not None:
                        on_answers(list(found), list(found.values()))
                number += 1
            progress.update(len(block))
    return answers


def _choose(answerer, examples, image_size, own_prompt) -> list[str]:
    asked = [(example, choice) for example in examples for choice in example["choices"]]
    likelihoods = iter(
        answerer.score(
            [example for example, _ in asked],
            [choice for _, choice in asked],
            image_size=image_size,
            own_prompt=own_prompt,
        )
    )
    return [LETTERS[most_likely([next(likelihoods).total for _ in example["choices"]])] for example in examples]


__all__ = ["choose_answers"]
