"""From annotation files (JSON, JSONL, CSV) to datasets of canonical examples, cached by content or streamed."""

import csv
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, IterableDataset
from datasets.exceptions import DatasetGenerationError

from ..processing.images import BadSampleError
from . import data_examples
from .data_examples import RAW_FEATURES, bad_example

if TYPE_CHECKING:
    from .data_formats import DataSource

STREAM_SHARDS = 64
"""Parts a stream is cut into, so that as many data loader workers and nodes can share it."""

ID_NAMES = ("id", "question_id")
"""What a record may call its id."""

Convert = Callable[..., dict[str, Any]]
"""Makes an example of `(record, row, source_name, **context)`, or raises a `BadSampleError`."""


@dataclass(frozen=True)
class Span:
    """Consecutive records of an annotation file.

    Args:
        path (`str`): the file.
        start (`int`): byte at which the first record starts; 0 unless it is a JSONL file.
        first_row (`int`): row of the first record in the whole file.
        rows (`int`, *optional*): number of rows of a JSONL file; all that follow when missing.
        renamed (`tuple[int, ...]`): rows of a stream whose id an earlier row has: theirs gets the row added.
    """

    path: str
    start: int = 0
    first_row: int = 0
    rows: int | None = None
    renamed: tuple[int, ...] = ()


def records_dataset(
    source: "DataSource",
    path: Path,
    convert: Convert,
    *,
    extra_features: Features | None = None,
    records_of: Callable[[Any], list[Any]] | None = None,
    **context: Any,
) -> Dataset | IterableDataset:
    """Makes a dataset of the records of an annotation file.

    The records are converted once and cached by `datasets` under the content of the file. Only a JSONL file streams
    without any conversion; the other kinds cannot be read from the middle, so the loader streams their cache. (Its
    lines are read once all the same when it is opened, for their ids, and not kept.)

    Args:
        source (`DataSource`): the data source; its name, `streaming` and `max_samples` matter here.
        path (`Path`): a `.jsonl`, `.csv` or `.json` file (a list, or what `records_of` makes a list of).
        convert: makes an example of a record; a function of a module, since data loader workers pickle it.
        extra_features (`Features`, *optional*): columns beyond those of an example.
        records_of: makes the list of records of a parsed JSON document.
        **context: keyword arguments for `convert`; their `repr` must say all about them.

    Returns:
        the dataset, with bad samples marked in the column `problem`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its kind is unknown or it cannot be parsed.
    """
    source_name = str(source.name)
    path = existing_file(path, source_name)
    features = Features({**RAW_FEATURES, **(extra_features or {})})
    arguments: dict[str, Any] = {
        "convert": convert,
        "records_of": records_of,
        "source_name": source_name,
        "context": context,
    }
    arguments["columns"] = tuple(extra_features or ())
    # A stream that is cut off would be cut off in every data loader worker: what is used of it is cached instead.
    if source.streaming and path.suffix == ".jsonl" and source.max_samples is None:
        arguments["spans"] = line_spans(path, STREAM_SHARDS)
        if not arguments["spans"]:
            raise ValueError(f"data source {source_name!r} is empty: it holds no samples.")
        return IterableDataset.from_generator(generate_examples, features=features, gen_kwargs=arguments)
    arguments["spans"] = [Span(str(path), rows=source.max_samples if source.streaming else None)]
    code = [inspect.getsourcefile(part) for part in (convert, generate_examples, data_examples)]
    stamp = [repr(arguments["spans"]), source_name, convert.__qualname__, repr(sorted(context.items()))]
    stamp += map(file_digest, [path, *code])
    return cached_dataset(generate_examples, arguments, features, stamp, source_name)


def cached_dataset(
    generate: Callable[..., Iterator[dict[str, Any]]],
    arguments: dict[str, Any],
    features: Features,
    stamp: list[str],
    source_name: str,
) -> Dataset:
    """Runs a generator once and keeps what it yields in the cache of `datasets`.

    Args:
        generate: generator function.
        arguments (`dict`): its arguments.
        features (`Features`): features of what it yields.
        stamp (`list[str]`): everything that the result depends on; an equal stamp finds the cached result.
        source_name (`str`): name of the data source.

    Returns:
        `Dataset`: the examples.

    Raises:
        ValueError: if the generator yields nothing.
    """
    fingerprint = hashlib.sha256("\n".join(stamp).encode()).hexdigest()[:32]
    kwargs = {"generate": generate, "arguments": arguments, "source_name": source_name}
    try:
        return Dataset.from_generator(_at_least_one, features=features, gen_kwargs=kwargs, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        # What went wrong is the cause; that it happened while filling a cache is of no use to the reader.
        raise (error.__cause__ or error) from None


def _at_least_one(
    generate: Callable[..., Iterator[dict[str, Any]]], arguments: dict[str, Any], source_name: str
) -> Iterator[dict[str, Any]]:
    empty = True
    for example in generate(**arguments):
        empty = False
        yield example
    if empty:
        raise ValueError(f"data source {source_name!r} is empty: it holds no samples.")


def generate_examples(
    spans: list[Span],
    convert: Convert,
    records_of: Callable[[Any], list[Any]] | None,
    source_name: str,
    columns: tuple[str, ...],
    context: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The generator behind both kinds of dataset; see [`records_dataset`] for the arguments.

    Yields:
        `dict`: an example per record, bad ones marked.
    """
    for span in spans:
        for row, record in read_records(span, records_of):
            try:
                if isinstance(record, BadSampleError):
                    raise record
                example = convert(record, row, source_name, **context)
                yield {**example, "id": f"{example['id']}-{row}"} if row in span.renamed else example
            except BadSampleError as error:
                located = BadSampleError(error.reason, error.file or span.path)
                yield bad_example(source_name, row, located, columns)


def read_records(
    span: Span, records_of: Callable[[Any], list[Any]] | None = None
) -> Iterator[tuple[int, Any | BadSampleError]]:
    """Reads the records of a span with their rows, counted from 0.

    Args:
        span (`Span`): what to read.
        records_of: makes the list of records of a parsed JSON document.

    Yields:
        `tuple[int, Any]`: row and record; a line that cannot be parsed is a `BadSampleError` in the record's place.

    Raises:
        ValueError: if the kind of file is unknown, or a JSON document is broken or no list.
    """
    suffix = Path(span.path).suffix
    if suffix == ".jsonl":
        yield from _read_lines(span)
    elif suffix == ".csv":
        with open(span.path, encoding="utf-8-sig", newline="") as stream:
            for row, record in enumerate(csv.DictReader(stream)):
                ragged = None in record or None in record.values()
                yield row, BadSampleError("the line has not as many cells as the header") if ragged else record
    elif suffix == ".json":
        yield from enumerate(_read_document(span.path, records_of))
    else:
        raise ValueError(f"cannot read {span.path}: expected a .json, .jsonl or .csv file.")


def _read_lines(span: Span) -> Iterator[tuple[int, Any | BadSampleError]]:
    with open(span.path, "rb") as stream:
        stream.seek(span.start)
        for offset, line in enumerate(stream):
            if span.rows is not None and offset >= span.rows:
                return
            if not line.strip():
                continue
            try:
                yield span.first_row + offset, json.loads(line)
            except ValueError as error:
                yield span.first_row + offset, BadSampleError(f"the line is not valid JSON ({error})")


def _read_document(path: str, records_of: Callable[[Any], list[Any]] | None) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            document = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); JSON lines belong in a .jsonl file.") from error
    if records_of is not None:
        return records_of(document)
    if not isinstance(document, list):
        raise ValueError(f"{path} must hold a JSON list of records, got a {type(document).__name__}.")
    return document


def line_spans(path: Path, num_spans: int) -> list[Span]:
    """Cuts a JSONL file into spans of about equal size, at ends of lines.

    Args:
        path (`Path`): the file.
        num_spans (`int`): at most so many spans.

    Returns:
        `list[Span]`: spans that together hold every line once, in order; empty for an empty file.
    """
    target = max(1, -(-path.stat().st_size // num_spans))
    spans, start, first_row, end = [], 0, 0, 0
    ids = RepeatedIds()
    renamed: list[int] = []
    with open(path, "rb") as stream:
        row = -1
        for row, line in enumerate(stream):
            end += len(line)
            if ids.met(_id_of(line)):
                renamed.append(row)
            if end - start >= target:
                spans.append(Span(str(path), start, first_row, row + 1 - first_row, tuple(renamed)))
                start, first_row, renamed = end, row + 1, []
        if row + 1 > first_row:
            spans.append(Span(str(path), start, first_row, row + 1 - first_row, tuple(renamed)))
    return spans


class RepeatedIds:
    """Tells which ids were met before, and keeps no more of each than eight bytes say."""

    def __init__(self):
        self._met: set[int] = set()

    def met(self, identity: Any) -> bool:
        """
        Whether an id was met before; notes it.

        Args:
            identity: a text or number; `None` for none.
        """
        if identity is None:
            return False
        digest = int.from_bytes(hashlib.blake2b(str(identity).encode(), digest_size=8).digest(), "big")
        is_repeated = digest in self._met
        self._met.add(digest)
        return is_repeated


def _id_of(line: bytes) -> Any:
    try:
        record = json.loads(line)
    except ValueError:
        return None  # a bad sample
    named = record if isinstance(record, dict) else {}
    return next((named[name] for name in ID_NAMES if named.get(name) is not None), None)


def existing_file(path: Path | str, source_name: str) -> Path:
    """Checks that an annotation file exists.

    Args:
        path: the file.
        source_name (`str`): name of the data source, for the message.

    Returns:
        `Path`: its absolute path.

    Raises:
        FileNotFoundError: if it does not exist.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"data source {source_name!r}: there is no file {path}.")
    return path


def file_digest(path: Path | str | None) -> str:
    """SHA-256 of a file's content.

    Args:
        path: the file.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
