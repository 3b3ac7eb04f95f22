"""Rows of like length in a batch, so that little of it is padding."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from torch.utils.data import Sampler
from transformers import TrainingArguments

from ..processing.collator import VisualLanguageCollator

STRATEGIES = ("group_by_length", "batch_rebalance")
"""Values of `TrainingArguments.train_sampling_strategy` that need lengths."""

UNITS_PER_WINDOW = 50


def with_lengths(dataset: Dataset, collator: VisualLanguageCollator, args: TrainingArguments) -> Dataset:
    """
    Tells of each row how long it is in a batch: tokens of its text, and the placeholders of its images. All rows are
    tokenized for it once; the cache of `datasets` keeps what was found.

    Args:
        dataset (`Dataset`): training examples, or rows of several conversations.
        collator ([`VisualLanguageCollator`]): makes the batches.
        args (`TrainingArguments`): `length_column_name` is the name of the column.

    Returns:
        `Dataset`: with the column, in tokens; as it is, if it has it.

    Raises:
        ValueError: if the collator does not say how long a row is.
        BadSampleError: as the collator.
    """
    if args.length_column_name in dataset.column_names:
        return dataset
    if not hasattr(collator, "length"):
        raise ValueError(
            f"train_sampling_strategy is {args.train_sampling_strategy!r}, but {type(collator).__name__} has no "
            f"method `length` that says how long an example is in a batch: give it one, or the data a column "
            f"{args.length_column_name!r}."
        )
    needed = ("images", "messages", "conversations", "row", "rows", "source", "sources", "task")
    texts = dataset.select_columns([name for name in needed if name in dataset.column_names])
    with args.main_process_first(local=False, desc="lengths of rows"):
        found = texts.map(
            _Length(collator),
            remove_columns=texts.column_names,
            features=Features({"length": Value("int64")}),
            desc="Lengths of rows",
        )
    return dataset.add_column(args.length_column_name, list(found["length"]))


class _Length:
    """A class, because `datasets` names its cache after what the function is made of."""

    def __init__(self, collator: VisualLanguageCollator):
        self.collator = copy.copy(collator)
        for name in vars(collator).keys() & {"features", "image_transform"}:  # which change no length
            setattr(self.collator, name, None)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, int]:
        return {"length": self.collator.length(example)}


class LengthGroups(Sampler[int]):
    """
    An order of rows in which those of a step are of like length, and steps of all lengths are mixed.

    Rows are shuffled, sorted by length within windows of 50 steps, and cut into steps, which are shuffled again; the
    step with the longest row comes first, because it needs the most memory. (`LengthGroupedSampler` of transformers
    lets the steps of a window follow each other by length, and draws from the random numbers of training, which a run
    that resumes in a later epoch does not have any more.)

    Args:
        lengths (`list[int]`): of the rows, in tokens.
        step_size (`int`): rows of a step, over all of its batches and processes.
        seed (`int`): of the order, which also follows the epoch.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int):
        self.lengths, self.step_size, self.seed = list(lengths), step_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another order for each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        rows = random.permutation(len(self.lengths)).tolist()
        # Windows of whole steps, but for the last; at least four, or a small data set would be sorted through.
        window = self.step_size * max(1, min(UNITS_PER_WINDOW, len(rows) // (4 * self.step_size)))
        ordered: list[int] = []
        for start in range(0, len(rows), window):
            ordered += sorted(rows[start : start + window], key=lambda row: -self.lengths[row])
        steps = [ordered[start : start + self.step_size] for start in range(0, len(ordered), self.step_size)]
        rest = steps.pop() if steps and len(steps[-1]) < self.step_size else []
        mixed = [steps[number] for number in random.permutation(len(steps)).tolist()]
        if mixed:
            longest = max(range(len(mixed)), key=lambda number: self.lengths[mixed[number][0]])
            mixed.insert(0, mixed.pop(longest))
        return iter([row for step in [*mixed, rest] for row in step])


def padding_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """
    How much of all batches is padding.

    Args:
        lengths (`list[int]`): of the rows, in tokens.
        order (`list[int]`): rows in the order in which they come.
        batch_size (`int`): rows of a batch.

    Returns:
        `float`: tokens of padding by all tokens, from 0 to 1.
    """
    batches = [
        [lengths[row] for row in order[start : start + batch_size]] for start in range(0, len(order), batch_size)
    ]
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


__all__ = ["STRATEGIES", "LengthGroups", "padding_share", "with_lengths"]
