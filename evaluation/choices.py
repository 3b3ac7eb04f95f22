"""Multiple choice by likelihood: the answer is the choice whose text the model finds most probable."""

from collections.abc import Mapping, Sequence
from typing import Any

from .answer_run import AnswerRun
from .image_controls import control_images
from .image_text_models import ImageTextModel
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
    run: AnswerRun | None = None,
) -> dict[int, str]:
    """
    Chooses the most probable of the choices of each example, by the sum of the log-likelihoods of its tokens.

    Args:
        answerer ([`ImageTextModel`]): the model.
        examples (`list[dict]`): with `choices`, texts.
        images, seed, image_size, own_prompt, run: see [`ImageTextModel.answer`].

    Returns:
        `dict[int, str]`: letters by position, of the examples in this process's blocks and of those known.
    """
    run, shown = AnswerRun() if run is None else run, control_images(examples, images, seed)
    if answerer.is_composed:
        answerer.encoder(image_size).know(shown)
    most = max((len(example["choices"]) for example in shown), default=1)
    size = max(1, answerer.batch_size // most)
    with run.progress(len(shown)) as progress:
        for start in range(0, len(shown), size):
            block = range(start, min(start + size, len(shown)))
            if run.takes(block):
                run.add(zip(block, _choose(answerer, [shown[index] for index in block], image_size, own_prompt)))
            progress.update(len(block))
    return run.answers


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
