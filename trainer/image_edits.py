"""The data format `instruct-pix2pix`: source image, instruction and edited image, in a folder or in Parquet files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, load_dataset

from ..processing.images import BadSampleError
from .data_annotations import record_images
from .data_examples import PROBLEM, RAW_FEATURES, bad_example, image_file
from .data_formats import DataSource, known, register_data_format
from .data_records import existing_file, file_digest, records_dataset
from .data_shards import data_files
from .image_answers import TASK_FEATURES, image_answer

SEEDS_FILE = "seeds.json"
PROMPT_FILE = "prompt.json"
# Parts of the released data set in the order of its list (timothybrooks/instruct-pix2pix, edit_dataset.py).
SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}
# What the columns of tables are called: in the data set by its authors, and in the samples of diffusers.
COLUMNS: dict[str, tuple[str, ...]] = {
    "original_image": ("original_image", "input_image", "source_img"),
    "edit_prompt": ("edit_prompt", "instruction"),
    "edited_image": ("edited_image", "target_img"),
}


@register_data_format("instruct-pix2pix")
def instruct_pix2pix(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """Edits as InstructPix2Pix has them: of a source image and an instruction the edited image is the answer.

    Args:
        source (`DataSource`): `path` is a folder in the layout of the released data set: `seeds.json`, a list of
            `[name, [seeds]]`, and for each name a folder with `prompt.json`, whose `edit` is the instruction, and
            `{seed}_0.jpg` and `{seed}_1.jpg`. `split` is then `"train"`, `"val"` or `"test"`: the first 90 % of the
            list, the next 5 % and the last; by default all of it. Or `path` is Parquet files (see `parquet`), with
            the columns `original_image`, `edit_prompt` and `edited_image`.
        columns (`Mapping`, *optional*): other names of these columns.

    Returns:
        one example per pair of images, with the column `task`.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if a column or the split is unknown, or `seeds.json` is no such list.
    """
    folder = None if isinstance(source.path, list) else Path(str(source.path)).expanduser().absolute()
    if source.path is not None and folder is not None and (folder / SEEDS_FILE).is_file():
        if columns:
            raise ValueError(f"data source {source.name!r} is a folder with {SEEDS_FILE}: it has no columns to name.")
        return _of_folder(source, folder)
    if folder is not None and folder.is_dir() and not list(folder.rglob("*.parquet")):
        raise FileNotFoundError(
            f"data source {source.name!r}: {folder} holds neither {SEEDS_FILE}, as InstructPix2Pix does, nor Parquet "
            "files."
        )
    return _of_tables(source, columns)


def _of_folder(source: DataSource, folder: Path) -> Dataset | IterableDataset:
    share = None if source.split is None else SPLITS[known(f"split of {source.name!r}", source.split, SPLITS)]
    file = existing_file(folder / SEEDS_FILE, str(source.name))
    return records_dataset(
        source,
        file,
        folder_example,
        extra_features=TASK_FEATURES,
        records_of=_Pairs(share),
        folder=str(folder),
        prompt=source.prompt,
        stamp=_stamp(folder, file, share),  # not used; part of the name of the cached result
    )


class _Pairs:
    """Makes the list of pairs of images of `seeds.json`; a class, because data loader workers pickle it."""

    def __init__(self, share: tuple[float, float] | None):
        self.share = share

    def __call__(self, document: Any) -> list[Any]:
        if not isinstance(document, list) or not all(map(_is_entry, document)):
            raise ValueError(f"{SEEDS_FILE} must be a list of [name, [seeds]], as InstructPix2Pix has it.")
        if self.share is not None:
            first, last = (int(part * len(document)) for part in self.share)
            document = document[first:last]
        return [[name, str(seed)] for name, seeds in document for seed in seeds]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], list)


def _stamp(folder: Path, file: Path, share: tuple[float, float] | None) -> str:
    """What tells that instructions changed, which `seeds.json` does not."""
    digest = hashlib.sha256(f"{share} {file_digest(__file__)}".encode())
    for name in sorted(os.listdir(folder)):
        try:
            stat = os.stat(folder / name / PROMPT_FILE)
        except OSError:
            continue
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def folder_example(
    record: Any, row: int, source: str, folder: str, prompt: str | None, stamp: str = ""
) -> dict[str, Any]:
    """Converts a pair of images `[name, seed]`; see `data_records.Convert`."""
    name, seed = record
    place = Path(folder) / name
    instruction = read_instruction(place / PROMPT_FILE)
    images = []
    for number in range(2):
        found = [file for suffix in (".jpg", ".png") if (file := place / f"{seed}_{number}{suffix}").is_file()]
        if not found:
            raise BadSampleError(f"there is no image {seed}_{number}.jpg in {place}", str(place))
        images.append(image_file(str(found[0])))
    return image_answer(source, row, "edit", instruction, images, prompt, id=f"{name}/{seed}")


def read_instruction(file: Path) -> Any:
    """Reads the instruction of a `prompt.json`.

    Args:
        file (`Path`): the file.

    Returns:
        `str`: its `edit`.

    Raises:
        BadSampleError: if it is missing, no JSON object, or has no `edit`.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSampleError(f"{PROMPT_FILE} cannot be read ({error})", str(file)) from error
    if not isinstance(document, dict) or "edit" not in document:
        raise BadSampleError(f"{PROMPT_FILE} must be an object with the instruction as 'edit'", str(file))
    return document["edit"]


def _of_tables(source: DataSource, columns: Mapping[str, str] | None) -> Dataset | IterableDataset:
    files = data_files(source, ".parquet")
    table = load_dataset("parquet", data_files={"train": files}, split="train", streaming=source.streaming)
    present = list(table.features or next(iter(table.take(1)), {}))
    names = _named_columns(present, columns or {}, str(source.name))
    for part in ("original_image", "edited_image"):
        if isinstance((table.features or {}).get(names[part]), datasets.Image):
            table = table.cast_column(names[part], datasets.Image(decode=False))
    arguments: dict[str, Any] = {"source": source.name, "prompt": source.prompt, "names": names}
    arguments["folder"] = None if source.images is None else str(Path(source.images).expanduser().absolute())
    cache = {}
    if isinstance(table, Dataset):
        cache = {"desc": f"Converting {source.name}"}
        arguments["code"] = file_digest(__file__)
    return table.map(
        table_example,
        with_indices=True,
        fn_kwargs=arguments,
        remove_columns=present,
        features=Features({**RAW_FEATURES, **TASK_FEATURES}),
        **cache,
    )


def _named_columns(present: list[str], columns: Mapping[str, str], name: str) -> dict[str, str]:
    for part, column in columns.items():
        known("part of an edit in `columns`", part, COLUMNS)
        known(f"column of data source {name!r}", column, present)
    names = {}
    for part, choices in COLUMNS.items():
        found = [choice for choice in (columns.get(part), *choices) if choice in present]
        if not found:
            raise ValueError(
                f"data source {name!r} has no column {part!r} (it has {', '.join(present) or 'none'}): name it in the "
                f"option `columns`, as in {{{part}: …}}."
            )
        names[part] = str(found[0])
    return names


def table_example(
    record: Mapping[str, Any],
    row: int,
    source: str,
    folder: str | None,
    prompt: str | None,
    names: Mapping[str, str],
    code: str = "",
) -> dict[str, Any]:
    """Converts a row of a table, or marks it as bad.

    Args:
        record: the row.
        row (`int`): its index.
        source (`str`): name of the data source.
        folder (`str`, *optional*): folder of images given by path.
        prompt (`str`, *optional*): template around the instruction.
        names: the column of each part.
        code (`str`): not used; part of the name of the cached result.

    Returns:
        `dict`: the example.
    """
    try:
        parts = ("original_image", "edited_image")
        images = [image for part in parts for image in record_images(record, folder, {"images": names[part]})]
        return {
            **image_answer(source, row, "edit", record[names["edit_prompt"]], images, prompt),
            PROBLEM: None,
        }
    except BadSampleError as error:
        return bad_example(source, row, error, TASK_FEATURES)


__all__ = ["instruct_pix2pix", "read_instruction"]
