"""What there is to know of questions while they are asked: who answers which, and what came out."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers.utils import logging

from .processes import Share


@dataclass
class AnswerRun:
    """
    One run over the questions of some examples, in one of several processes. An example is known by its position.

    Args:
        known (`dict[int, str]`, *optional*): answers found earlier. They are not found again.
        on_answers (`Callable`, *optional*): called with positions of examples and their answers, as soon as a batch is
            done.
        share ([`Share`], *optional*): of the batches, which are those of one process; by default all of them.
        progress_bar (`str` or `bool`, *optional*, defaults to `False`): its text, or `False`.

    Attributes:
        answers (`dict[int, str]`): those known, and those that came.
    """

    known: Mapping[int, str] | None = None
    on_answers: Callable[[list[int], list[str]], None] | None = None
    share: Share = Share()  # noqa: RUF009
    progress_bar: str | bool = False
    answers: dict[int, str] = field(init=False)

    def __post_init__(self):
        self.answers = dict(self.known or {})
        self._numbers = itertools.count()

    def takes(self, batch: Sequence[int]) -> bool:
        """Whether a batch is answered here: one of which any answer is missing is dealt to the next process. It is
        left out or answered as a whole, so that it is composed as it would be in another run."""
        return not all(index in self.answers for index in batch) and self.share.takes(next(self._numbers))

    def add(self, found: Iterable[tuple[int, str]]) -> None:
        """Adds the answers of a batch, each behind its position; those that were known stay as they were."""
        new = {index: answer for index, answer in found if index not in self.answers}
        self.answers.update(new)
        if self.on_answers is not None:
            self.on_answers(list(new), list(new.values()))

    def progress(self, num_questions: int):
        """A progress bar over so many questions, or none."""
        return logging.tqdm(
            total=num_questions, desc=self.progress_bar or None, unit=" questions", disable=not self.progress_bar
        )


__all__ = ["AnswerRun"]
