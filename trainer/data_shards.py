"""Formats that bring their images along: webdataset shards, Parquet files, and data sets of the Hub."""

import glob
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ..processing.images import BadSampleError
from .data_annotations import check_columns, pick, record_example, record_messages
from .data_examples import PROBLEM, RAW_FEATURES, bad_example, make_example
from .data_formats import DataSource, register_data_format
from .data_records import cached_dataset, file_digest
from .parquet_streams import parquet_stream

SHARD_FEATURES = Features(
    {
        "__key__": Value("string"),
        "__url__": Value("string"),
        "row": Value("int64"),
        "members": List(Value("string")),
        "contents": List(Value("binary")),
        PROBLEM: Value("string"),
    }
)


def data_files(source: DataSource, suffix: str) -> list[str]:
    """Files of a source whose path is a file, a folder, a glob pattern, a URL, or a list of these.

    Args:
        source (`DataSource`): the source; `split` names a folder in the folder, or the beginning of the file names.
        suffix (`str`): e.g. `".tar"`.

    Returns:
        `list[str]`: paths in a fixed order.

    Raises:
        FileNotFoundError: if a path leads to no file.
        ValueError: if the source has no path.
    """
    if not source.path:
        raise ValueError(f"data source {source.name!r} needs a `path`: {suffix} files, a folder or a glob pattern.")
    files = []
    for path in [source.path] if isinstance(source.path, (str, os.PathLike)) else source.path:
        path = os.path.expanduser(os.fspath(path))
        if "://" in path:
            files.append(path)
            continue
        patterns = [path]
        if os.path.isdir(path):
            inside = (
                [f"*{suffix}"] if source.split is None else [f"{source.split}/*{suffix}", f"{source.split}*{suffix}"]
            )
            patterns = [os.path.join(glob.escape(path), pattern) for pattern in inside]
        elif source.split is not None:
            raise ValueError(f"data source {source.name!r}: split={source.split!r} needs a folder as `path`: {path}.")
        found = next((found for pattern in patterns if (found := sorted(glob.glob(pattern)))), [])
        if not found and os.path.isfile(path):
            found = [path]  # a name with characters that a pattern would interpret
        if not found:
            raise FileNotFoundError(f"data source {source.name!r}: no file matches {' or '.join(patterns)}.")
        files += [os.path.abspath(file) for file in found]
    return files


class _RawShards(WebDataset):
    """The webdataset reader of `datasets`, which splits shards among nodes and workers, with undecoded members.

    Its own decoding stops at the first sample that lacks a member or whose JSON is damaged, and does not say where.
    """

    DECODERS: dict = {}

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path, tar_iterator):
        row = -1
        try:
            for row, sample in enumerate(super()._get_pipeline_from_tar(tar_path, tar_iterator)):
                members = [name for name in sample if not name.startswith("__")]
                contents = [sample[name] for name in members]
                yield {**_shard_row(sample["__key__"], tar_path, row), "members": members, "contents": contents}
        except (ValueError, OSError, EOFError, tarfile.TarError) as error:
            problem = f"the shard cannot be read after sample {row + 1} ({error})"
            yield {**_shard_row("", tar_path, row + 1), "members": [], "contents": [], PROBLEM: problem}


def _shard_row(key: str, url: str, row: int) -> dict[str, Any]:
    return {"__key__": key, "__url__": url, "row": row, PROBLEM: None}


@register_data_format("webdataset")
def webdataset(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """Webdataset shards: tar files whose members of one key are a sample: images, and a `.json` or `.txt`.

    The JSON holds `conversations`, `messages`, `question` and `answer`, or `caption`; the text is a caption for where
    no JSON holds any of these. Several images of a sample (`7.0.jpg`, `7.1.jpg`) are taken in the order of their
    names.

    Args:
        source (`DataSource`): `path` is a `.tar` file, a folder of them, a glob pattern, a URL, or a list.
        columns (`Mapping`, *optional*): other names of the parts of the JSON.

    Returns:
        one example per sample; streamed, a shard is read by one data loader worker.
    """
    files = data_files(source, ".tar")
    builder = _RawShards(data_files={"train": files}, features=SHARD_FEATURES)
    arguments = {"source": source.name, "prompt": source.prompt, "columns": dict(columns or {})}
    stream = builder.as_streaming_dataset(split="train").map(
        shard_example, fn_kwargs=arguments, remove_columns=list(SHARD_FEATURES), features=RAW_FEATURES
    )
    if source.streaming:
        return stream
    stamp = [repr(sorted(arguments.items())), _code_digest(), *(f"{file} {_stamp(file)}" for file in files)]
    return cached_dataset(_iterate, {"stream": stream}, RAW_FEATURES, stamp, str(source.name))


def _iterate(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def _stamp(file: str) -> tuple[int, ...]:
    """What tells that a shard changed; its content may be gigabytes."""
    if "://" in file:
        return ()
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns


def _code_digest() -> str:
    """Digest of the code that converts records: an update of it must not meet what the old code cached."""
    return "".join(file_digest(file) for file in sorted(Path(__file__).parent.glob("data_*.py")))


def shard_example(
    sample: Mapping[str, Any], source: str, prompt: str | None, columns: Mapping[str, str]
) -> dict[str, Any]:
    """Converts a sample of a shard, or marks it as bad.

    Args:
        sample: a row of `SHARD_FEATURES`.
        source (`str`): name of the data source.
        prompt (`str`, *optional*): prompt template.
        columns: the user's names of parts.

    Returns:
        `dict`: the example.
    """
    try:
        if sample[PROBLEM] is not None:
            raise BadSampleError(sample[PROBLEM])
        try:
            example = _convert_sample(sample, source, prompt, columns)
        except BadSampleError as error:
            raise BadSampleError(f"sample {sample['__key__']!r}: {error.reason}") from error
        return {**example, PROBLEM: None}
    except BadSampleError as error:
        return bad_example(source, sample["row"], BadSampleError(error.reason, sample["__url__"]))


def _convert_sample(
    sample: Mapping[str, Any], source: str, prompt: str | None, columns: Mapping[str, str]
) -> dict[str, Any]:
    members = dict(zip(sample["members"], sample["contents"]))
    kinds = {name: name.rsplit(".", 1)[-1].lower() for name in members}
    place = f"{sample['__url__']}/{sample['__key__']}"  # not a file's path: `datasets` would drop the bytes for it
    images = [
        {"path": f"{place}.{name}", "bytes": members[name]}
        for name in sorted(members)
        if kinds[name] in WebDataset.IMAGE_EXTENSIONS
    ]
    texts = {kinds[name]: members[name] for name in members if kinds[name] in ("json", "txt")}
    if not texts:
        raise BadSampleError(f"it needs a .json or .txt member; it has {', '.join(sorted(members)) or 'none'}")
    record = _parse(texts, columns)
    if not images and not {"messages", "conversations"} & record.keys():
        raise BadSampleError(f"it needs an image member; it has {', '.join(sorted(members))}")
    messages = record_messages(record, len(images), prompt, columns)
    identity = f"{Path(sample['__url__']).stem}/{sample['__key__']}"
    return make_example(source, sample["row"], images, messages, id=identity)


def _parse(texts: Mapping[str, bytes], columns: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        record = json.loads(texts["json"]) if "json" in texts else {}
        if not isinstance(record, Mapping):
            raise BadSampleError(f"its .json must hold an object, got {type(record).__name__}")
        if "txt" in texts and not _holds_text(record, columns):
            return {columns.get("caption", "caption"): texts["txt"].decode()}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadSampleError(f"its text cannot be read ({error})") from error
    return record


def _holds_text(record: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    messages, conversations, question, answer, caption = (
        pick(record, part, columns) is not None
        for part in ("messages", "conversations", "question", "answer", "caption")
    )
    return messages or conversations or caption or (question and answer)


@register_data_format("parquet")
def parquet(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """Parquet files with `messages` and `images` (TRL's names), or question and answer, or caption.

    Args:
        source (`DataSource`): `path` is a `.parquet` file, a folder of them, a glob pattern, a URL, or a list;
            `images` is the folder of images given by path.
        columns (`Mapping`, *optional*): other names of the parts of a row, as in `{"question": "query"}`.

    Returns:
        one example per row; streamed, a row group is read by one data loader worker.
    """
    files = data_files(source, ".parquet")
    if source.streaming:
        return parquet_stream(source, files, columns)
    return _convert_table(load_dataset("parquet", data_files={"train": files}, split="train"), source, columns)


@register_data_format("hub")
def hub(
    source: DataSource,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """A data set of the Hub, or any folder that `datasets.load_dataset` reads.

    Args:
        source (`DataSource`): `path` is the id, `split` the split (`"train"` by default).
        columns (`Mapping`, *optional*): other names of the parts of a row, as in `{"question": "query"}`.
        config (`str`, *optional*): configuration of the data set.
        revision (`str`, *optional*): branch, tag or commit.

    Returns:
        one example per row. The rows of a stream are counted anew by every data loader worker.
    """
    if not isinstance(source.path, (str, os.PathLike)):
        raise ValueError(f"data source {source.name!r} needs the id of a data set as `path`, got {source.path!r}.")
    table = load_dataset(
        os.fspath(source.path),
        config,
        split=source.split or "train",
        revision=revision,
        streaming=source.streaming,
    )
    return _convert_table(table, source, columns)


def _convert_table(
    table: Dataset | IterableDataset, source: DataSource, columns: Mapping[str, str] | None
) -> Dataset | IterableDataset:
    present: list[str] = list(table.features or next(iter(table.take(1)), {}))
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(name, List(datasets.Image(decode=False)))
    arguments = {
        "source": source.name,
        "folder": None if source.images is None else str(Path(source.images).expanduser().absolute()),
        "prompt": source.prompt,
        "columns": check_columns(columns, present, source),
    }
    if isinstance(table, IterableDataset):
        cache = {}
    else:
        # `datasets` names the result after the function's arguments, but knows the function by its name only.
        cache = {"desc": f"Converting {source.name}"}
        arguments["code"] = _code_digest()
    return table.map(
        table_example,
        with_indices=True,
        fn_kwargs=arguments,
        remove_columns=present,
        features=RAW_FEATURES,
        **cache,
    )


def table_example(
    record: Mapping[str, Any],
    row: int,
    source: str,
    folder: str | None,
    prompt: str | None,
    columns: Mapping[str, str],
    code: str = "",
) -> dict[str, Any]:
    """Converts a row of a table, or marks it as bad.

    Args:
        record: the row.
        row (`int`): its index.
        source (`str`): name of the data source.
        folder (`str`, *optional*): folder of images given by path.
        prompt (`str`, *optional*): prompt template.
        columns: the user's names of parts.
        code (`str`): not used; part of the name of the cached result.

    Returns:
        `dict`: the example.
    """
    try:
        return {**record_example(record, row, source, folder, prompt, columns), PROBLEM: None}
    except BadSampleError as error:
        return bad_example(source, row, error)
