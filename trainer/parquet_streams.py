"""Rows of Parquet files as a stream: of row groups, which processes and data loader workers share, with true rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
from datasets import IterableDataset

from ..processing.images import BadSampleError
from .data_annotations import check_columns, record_example
from .data_examples import PROBLEM, RAW_FEATURES, bad_example
from .data_formats import DataSource
from .data_records import ID_NAMES, RepeatedIds

READ_AT_ONCE = 16
"""Rows that are in memory at a time; each may hold images."""


@dataclass(frozen=True)
class RowGroup:
    """
    Consecutive rows of a Parquet file.

    Args:
        path (`str`): file or URL.
        group (`int`): number of the row group.
        first_row (`int`): its first row, counted over all files.
        renamed (`frozenset[int]`): rows whose id an earlier row has: theirs gets the row added.
    """

    path: str
    group: int
    first_row: int
    renamed: frozenset[int] = frozenset()


def parquet_stream(source: DataSource, files: Sequence[str], columns: Mapping[str, str] | None) -> IterableDataset:
    """
    Streams examples of Parquet files. (That of `datasets` counts rows anew in each data loader worker.)

    Args:
        source (`DataSource`): the data source.
        files (`list[str]`): paths or URLs.
        columns (`Mapping`, *optional*): the user's names of parts.

    Returns:
        `IterableDataset`: an example per row, bad ones marked; its shards are row groups.

    Raises:
        ValueError: if the files hold no rows, or a column is unknown.
    """
    arguments = {
        "groups": _row_groups(files, source, columns),
        "source": str(source.name),
        "folder": None if source.images is None else str(Path(source.images).expanduser().absolute()),
        "prompt": source.prompt,
        "columns": dict(columns or {}),
    }
    return IterableDataset.from_generator(parquet_examples, features=RAW_FEATURES, gen_kwargs=arguments)


def _row_groups(files: Sequence[str], source: DataSource, columns: Mapping[str, str] | None) -> list[RowGroup]:
    groups: list[RowGroup] = []
    rows, ids = 0, RepeatedIds()
    for path in files:
        with fsspec.open(path, "rb") as stream:
            table = pq.ParquetFile(stream)
            names = table.schema_arrow.names
            named = check_columns(columns, names, source).get("id")
            id_column = [name for name in ([named] if named else ID_NAMES) if name in names][:1]
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                found = table.read_row_group(group, columns=id_column)[0].to_pylist() if id_column else []
                renamed = frozenset(row for row, identity in enumerate(found, rows) if ids.met(identity))
                if count:
                    groups.append(RowGroup(path, group, rows, renamed))
                rows += count
    if not groups:
        raise ValueError(f"data source {source.name!r} is empty: it holds no samples.")
    return groups


def parquet_examples(
    groups: Sequence[RowGroup], source: str, folder: str | None, prompt: str | None, columns: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """
    The generator behind [`parquet_stream`]; see there.

    Yields:
        `dict`: an example per row, bad ones marked.
    """
    for part in groups:
        with fsspec.open(part.path, "rb") as stream:
            batches = pq.ParquetFile(stream).iter_batches(batch_size=READ_AT_ONCE, row_groups=[part.group])
            records = (record for batch in batches for record in batch.to_pylist())
            for row, record in enumerate(records, part.first_row):
                try:
                    example = record_example(record, row, source, folder, prompt, columns)
                    if row in part.renamed:
                        example["id"] = f"{example['id']}-{row}"
                    yield {**example, PROBLEM: None}
                except BadSampleError as error:
                    yield bad_example(source, row, error)


__all__ = ["parquet_stream"]
