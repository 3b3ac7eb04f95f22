"""Loading data sources: bad samples, shuffling, and mixtures of several sources by weight."""

import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, interleave_datasets
from transformers.utils import logging

from ..processing.images import BadSampleError, load_example_images
from .data_examples import FEATURES, PROBLEM, pack_error, unpack_error
from .data_formats import DataSource, data_formats, known, read_format, register_data_format
from .data_records import STREAM_SHARDS
from .shuffled_windows import shuffle_stream

logger = logging.get_logger(__name__)

STOPPING_STRATEGIES = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


class SkippedSamples:
    """The bad samples that `on_error="skip"` left out, counted over all processes of this machine.

    Data loader workers are other processes, forked or spawned, and a stream passes a bad sample again in every epoch:
    so each skip is a line appended to a file, and a sample counts once however often it is met.

    Args:
        parts (iterable of `SkippedSamples`): reports to add up; a new, empty one when there are none.
        sources (iterable of `str`): names of the sources whose bad samples are left out.
    """

    def __init__(self, parts: Iterable["SkippedSamples"] = (), sources: Iterable[str] = ()):
        self._parts = tuple(parts)  # keeps their files alive
        self.sources: frozenset[str] = frozenset(sources).union(*(part.sources for part in self._parts))
        self.files: list[str] = [file for part in self._parts for file in part.files]
        if not self.files:
            handle, file = tempfile.mkstemp(prefix="vistok-skipped-", suffix=".jsonl")
            os.close(handle)
            self.files = [file]
            self._remove = weakref.finalize(self, _remove_file, file, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        # Only the process that made the file removes it.
        return {"files": self.files, "sources": self.sources, "_parts": ()}

    def __deepcopy__(self, memo: dict) -> "SkippedSamples":
        return self  # `datasets` copies the functions of a stream; a copy would count apart

    def add(self, error: BadSampleError) -> None:
        """Counts a bad sample.

        Args:
            error (`BadSampleError`): what is wrong with it, with its source and row.
        """
        line = pack_error(error) + "\n"
        # One write to a file opened for appending: lines of concurrent workers do not mix.
        handle = os.open(self.files[0], os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def errors(self) -> list[BadSampleError]:
        """The distinct bad samples, in the order in which they were met.

        Returns:
            `list[BadSampleError]`: one error per sample.
        """
        lines = dict.fromkeys(line for file in self.files for line in Path(file).read_text().splitlines())
        return [unpack_error(line) for line in lines]

    @property
    def count(self) -> int:
        """Number of distinct bad samples."""
        return len(self.errors())

    def summary(self, num_reasons: int = 5) -> str:
        """Says how many samples were skipped, from which sources, and why the first ones.

        Args:
            num_reasons (`int`): errors to spell out.

        Returns:
            `str`: text of a few lines.
        """
        errors = self.errors()
        if not errors:
            return "No samples were skipped."
        per_source = ", ".join(f"{count} of {source}" for source, count in Counter(e.source for e in errors).items())
        lines = [f"{len(errors)} bad samples were skipped ({per_source}):", *map(str, errors[:num_reasons])]
        return "\n  ".join(lines + (["…"] if len(errors) > num_reasons else []))

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"SkippedSamples(count={self.count})"


def _remove_file(file: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker inherits the finalizer, but not the file
        Path(file).unlink(missing_ok=True)


def load_data_source(source: DataSource | Mapping[str, Any]) -> Dataset | IterableDataset:
    """Loads one data source as canonical examples (see `data_examples.py`), images undecoded.

    Args:
        source: a [`DataSource`], or a mapping of its fields.

    Returns:
        `Dataset`, or `IterableDataset` if `source.streaming`. Its attribute `skipped_samples` is the report, a
        [`SkippedSamples`]; datasets derived from it (by `map`, `shuffle` …) do not carry it on, so keep the report.

    Raises:
        ValueError: if a field or option is unknown, or nothing is left of the source.
        BadSampleError: with `on_error="raise"`, for the first structurally bad sample. An unreadable image raises when
            it is read.
    """
    if not isinstance(source, DataSource):
        source = DataSource.from_dict(source)
    dataset = read_format(source)
    missing = [column for column in FEATURES if column not in (dataset.column_names or FEATURES)]
    if missing:
        raise ValueError(f"data format {source.format!r} lacks the columns {missing} of a training example.")
    report = SkippedSamples(sources=[str(source.name)] if source.on_error == "skip" else [])
    if isinstance(dataset, Dataset):
        dataset = _with_distinct_ids(dataset)
    dataset = _limit(_those_where(dataset, source), source)
    if isinstance(dataset, Dataset) and source.streaming:
        dataset = _as_stream(dataset)
    if isinstance(dataset, IterableDataset):
        dataset = _good_stream(dataset, source, report)
    else:
        dataset = _good_map_style(dataset, source, report)
    if source.seed is not None:
        dataset = _shuffled(dataset, source.seed, source.shuffle_buffer)
    dataset.skipped_samples = report
    return dataset


def _shuffled(dataset: Dataset | IterableDataset, seed: int, buffer_size: int) -> Dataset | IterableDataset:
    if isinstance(dataset, IterableDataset):
        return shuffle_stream(dataset, seed, buffer_size)
    return dataset.shuffle(seed=seed)


def _those_where(dataset: Dataset | IterableDataset, source: DataSource) -> Dataset | IterableDataset:
    if not source.where:
        return dataset
    for name in source.where:
        if dataset.column_names is not None:
            known(f"column in `where` of data source {source.name!r}", name, dataset.column_names)
    wanted = _Where({name: _one_or_several(values) for name, values in source.where.items()})
    if isinstance(dataset, IterableDataset):
        return dataset.filter(wanted)
    columns = {name: list(dataset[name]) for name in [*source.where, PROBLEM] if name in dataset.column_names}
    rows = [row for row in range(len(dataset)) if wanted({name: column[row] for name, column in columns.items()})]
    if not rows:
        raise ValueError(f"data source {source.name!r} has no example where {dict(source.where)}.")
    return dataset.select(rows)


class _Where:
    """Filter by the values of columns, which bad samples pass; a class, because data loader workers pickle it."""

    def __init__(self, wanted: Mapping[str, Sequence[Any]]):
        self.wanted = dict(wanted)

    def __call__(self, example: Mapping[str, Any]) -> bool:
        if example.get(PROBLEM) is not None:
            return True
        return all(example.get(name) in values for name, values in self.wanted.items())


def _one_or_several(values: Any) -> Sequence[Any]:
    return values if isinstance(values, list | tuple) else (values,)


def _limit(dataset: Dataset | IterableDataset, source: DataSource) -> Dataset | IterableDataset:
    if source.max_samples is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(source.max_samples)
    if source.seed is not None:
        dataset = dataset.shuffle(seed=source.seed)
    return dataset.select(range(min(source.max_samples, len(dataset))))


def _with_distinct_ids(dataset: Dataset) -> Dataset:
    """LLaVA's ids are those of images, which several conversations may be about: a repeated id gets its row added.

    (Streams of lines and of tables do it themselves; see `data_records.line_spans`.)
    """
    ids = list(dataset["id"])
    taken = set(ids)
    if len(taken) == len(ids):
        return dataset
    met: set[str] = set()
    for index, row in enumerate(dataset["row"]):
        if ids[index] in met:
            while ids[index] in taken:
                ids[index] = f"{ids[index]}-{row}"
            taken.add(ids[index])
        met.add(ids[index])
    renamed = dataset.remove_columns("id").add_column("id", ids, feature=FEATURES["id"])
    return renamed.select_columns(dataset.column_names)


def _as_stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(dataset))))


def _empty(source: DataSource, report: SkippedSamples) -> ValueError:
    return ValueError(f"data source {source.name!r} is empty: nothing is left to train on. {report.summary()}")


def _good_map_style(dataset: Dataset, source: DataSource, report: SkippedSamples) -> Dataset:
    if source.on_error == "skip":
        dataset = dataset.select(_good_rows(dataset, source, report))
    elif PROBLEM in dataset.column_names:
        for problem in filter(None, dataset[PROBLEM]):
            raise unpack_error(problem)
    if len(dataset) == 0:
        raise _empty(source, report)
    return dataset.remove_columns([PROBLEM] if PROBLEM in dataset.column_names else [])


def _good_rows(dataset: Dataset, source: DataSource, report: SkippedSamples) -> list[int]:
    """Reads every sample once, counts the bad ones, and returns the indices of the good ones."""
    checked = dataset.map(
        lambda example: {PROBLEM: _find_problem(example)},
        remove_columns=dataset.column_names,
        features=Features({PROBLEM: Value("string")}),
        num_proc=source.num_proc,
        # An image may have been repaired or broken since the last run: the outcome must not come from a cache.
        load_from_cache_file=False,
        desc=f"Checking the samples of {source.name}",
    )
    problems = list(checked[PROBLEM])
    for problem in filter(None, problems):
        report.add(unpack_error(problem))
    if any(problems):
        logger.warning(report.summary())
    return [index for index, problem in enumerate(problems) if problem is None]


def _find_problem(example: Mapping[str, Any]) -> str | None:
    if example.get(PROBLEM) is not None:
        return example[PROBLEM]
    try:
        load_example_images(example)
    except BadSampleError as error:
        return pack_error(error)
    return None


def _good_stream(dataset: IterableDataset, source: DataSource, report: SkippedSamples) -> IterableDataset:
    dataset = dataset.filter(_GoodSamples(report if source.on_error == "skip" else None))
    if PROBLEM in (dataset.column_names or ()):
        dataset = dataset.remove_columns([PROBLEM])
    if next(iter(dataset.take(1)), None) is None:
        raise _empty(source, report)
    return dataset


class _GoodSamples:
    """Filter of a stream: with a report, it counts and drops bad samples; without, structural ones raise."""

    def __init__(self, report: SkippedSamples | None):
        self.report = report

    def __call__(self, example: Mapping[str, Any]) -> bool:
        problem = example.get(PROBLEM) if self.report is None else _find_problem(example)
        if problem is None:
            return True
        if self.report is None:
            raise unpack_error(problem)
        self.report.add(unpack_error(problem))
        return False


def load_eval_datasets(sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Loads the data to evaluate on, by the names of its sources."""
    described = [DataSource.from_dict(source) for source in sources]
    return {str(source.name): load_data_source(source) for source in described}


def mix_data_sources(
    sources: Sequence[DataSource | Mapping[str, Any]],
    seed: int = 0,
    stopping_strategy: str = "all_exhausted",
    shuffle_buffer: int = 1000,
) -> Dataset | IterableDataset:
    """Loads several sources and mixes them; the result depends on the seed alone.

    With weights, each draw takes the next example of a source chosen with probability proportional to its weight.
    Without, the sources are concatenated and shuffled. If any source streams, the mixture is a stream, and shuffles
    within a buffer.

    Args:
        sources: descriptions of the sources, with weights for all of them or for none.
        seed (`int`): seed of the draws and of the shuffling (a source's own `seed` shuffles that source).
        stopping_strategy (`str`): end of an epoch of a weighted mixture: `"all_exhausted"` when every source was seen
            completely (small ones repeat), `"first_exhausted"` when the first one was,
            `"all_exhausted_without_replacement"` when every example was seen exactly once.
        shuffle_buffer (`int`): examples that a mixed stream holds to shuffle among (see [`shuffle_stream`]).

    Returns:
        `Dataset` or `IterableDataset`; its attribute `skipped_samples` adds up the reports of the sources.

    Raises:
        ValueError: if there are no sources, names repeat, only some have weights, or the strategy is unknown.
    """
    described = [source if isinstance(source, DataSource) else DataSource.from_dict(source) for source in sources]
    weights = _check_mixture(described)
    known("stopping_strategy", stopping_strategy, STOPPING_STRATEGIES)
    loaded = [load_data_source(source) for source in described]
    report = loaded[0].skipped_samples if len(loaded) == 1 else SkippedSamples([d.skipped_samples for d in loaded])
    if any(isinstance(dataset, IterableDataset) for dataset in loaded):
        loaded = [_as_stream(dataset) if isinstance(dataset, Dataset) else dataset for dataset in loaded]
    if weights is None:
        mixture = _shuffled(concatenate_datasets(loaded), seed, shuffle_buffer)
    else:
        unordered = [_shuffled(dataset, seed, shuffle_buffer) for dataset in loaded]
        total = sum(weights)
        mixture = interleave_datasets(
            unordered,
            probabilities=[weight / total for weight in weights],
            seed=seed,
            stopping_strategy=stopping_strategy,
        )
    mixture.skipped_samples = report
    return mixture


def _check_mixture(sources: Sequence[DataSource]) -> list[float] | None:
    if not sources:
        raise ValueError("there are no data sources to mix: name at least one.")
    names = [source.name for source in sources]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"several data sources are called {repeated[0]!r}: give each its own `name`.")
    weights = [source.weight for source in sources]
    if all(weight is None for weight in weights):
        return None
    unweighted = [source.name for source in sources if source.weight is None]
    if unweighted:
        raise ValueError(f"data source {unweighted[0]!r} has no weight while others do: give weights to all or none.")
    return [weight for weight in weights if weight is not None]


__all__ = [
    "DataSource",
    "SkippedSamples",
    "data_formats",
    "load_data_source",
    "mix_data_sources",
    "register_data_format",
]
