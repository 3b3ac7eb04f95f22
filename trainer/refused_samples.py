"""Samples that the collator would refuse, left out beforehand where their source says so."""

from collections.abc import Callable, Mapping
from typing import Any

from datasets import IterableDataset

from ..processing.collator import VisualLanguageCollator
from ..processing.images import BadSampleError
from .data_sources import SkippedSamples


def leave_out_refused(dataset: Any, collator: Callable) -> Any:
    """
    Leaves out and counts what the collator refuses, such as a question that is too long for an answer to be left, of
    sources with `on_error="skip"`. What it refuses of other sources raises when it is its turn.

    Args:
        dataset (`Dataset` or `IterableDataset`, or a `dict` of them, *optional*):
            training examples; its report says which sources skip bad samples.
        collator (`Callable`): a [`VisualLanguageCollator`]; what others refuse is not known beforehand.

    Returns:
        The same without them. (It may carry no report: keep that of the original.)

    Raises:
        ValueError: if nothing is left of a `Dataset`.
    """
    if isinstance(dataset, dict):
        return {name: leave_out_refused(part, collator) for name, part in dataset.items()}
    report = getattr(dataset, "skipped_samples", None)
    if report is None or not report.sources or not isinstance(collator, VisualLanguageCollator):
        return dataset
    accepted = _Accepted(collator, report)
    if isinstance(dataset, IterableDataset):
        return dataset.filter(accepted)
    columns = ("images", "messages", "row", "source", "task")
    texts = dataset.select_columns([name for name in columns if name in dataset.column_names])
    kept = [index for index, example in enumerate(texts) if accepted(example)]
    if not kept:
        raise ValueError(f"nothing is left to train on. {report.summary()}")
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


class _Accepted:
    """Filter that counts what it leaves out; a class, because data loader workers pickle it."""

    def __init__(self, collator: VisualLanguageCollator, report: SkippedSamples):
        self.collator, self.report = collator, report

    def __call__(self, example: Mapping[str, Any]) -> bool:
        if example["source"] not in self.report.sources:
            return True
        try:
            self.collator.check(example)
        except BadSampleError as error:
            self.report.add(error)
            return False
        return True


__all__ = ["leave_out_refused"]
