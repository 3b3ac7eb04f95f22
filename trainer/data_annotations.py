"""Formats whose images lie in files: LLaVA-format conversations, COCO captions, image folders, JSON of messages."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..processing.images import BadSampleError
from .data_examples import (
    IMAGE_PLACEHOLDER,
    apply_prompt,
    content_parts,
    image_file,
    make_example,
    question_answer,
)
from .data_formats import DataSource, known, register_data_format
from .data_records import ID_NAMES, Span, existing_file, read_records, records_dataset

CAPTION_PROMPT = "what does the image describe?"
"""The question that captions answer in GVT's training (Section 4.1 of the paper)."""

LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# What a record may call its parts, in order of preference; `options: {columns: {question: my_name}}` renames one.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ID_NAMES,
    "images": ("images", "image", "file_name", "file_names"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "question": ("question",),
    "answer": ("answer",),
    "caption": ("caption", "text"),
}


def check_columns(columns: Mapping[str, str] | None, present: list[str], source: DataSource) -> dict[str, str]:
    """Checks the option `columns` of a source against its data.

    Args:
        columns (`Mapping`, *optional*): the data's name of each part of a record, e.g. `{"question": "query"}`.
        present (`list[str]`): columns of the data.
        source (`DataSource`): the source, for the message.

    Returns:
        `dict[str, str]`: the columns.

    Raises:
        ValueError: if a part or a column is unknown.
    """
    for part, name in (columns or {}).items():
        known("part of a record in `columns`", part, COLUMNS)
        known(f"column of data source {source.name!r}", name, present)
    return dict(columns or {})


def pick(record: Mapping[str, Any], part: str, columns: Mapping[str, str]) -> Any:
    """Reads a part of a record under the first of its possible names.

    Args:
        record: the record.
        part (`str`): a key of `COLUMNS`.
        columns: the user's names.

    Returns:
        the value, or `None` if the record has no such part.
    """
    names = (columns[part],) if part in columns else COLUMNS[part]
    return next((record[name] for name in names if record.get(name) is not None), None)


def record_images(record: Mapping[str, Any], folder: str | None, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Undecoded images of a record, whose paths are relative to a folder.

    Args:
        record: the record.
        folder (`str`, *optional*): folder of the images.
        columns: the user's names of parts.

    Returns:
        `list[dict]`: `{"path", "bytes"}` per image; empty if the record names none.

    Raises:
        BadSampleError: if an image is neither a path nor `{"path", "bytes"}`.
    """
    value = pick(record, "images", columns)
    values = value if isinstance(value, (list, tuple)) else [value] if value else []
    return [_undecoded(image, folder) for image in values]


def _undecoded(image: Any, folder: str | None) -> dict[str, Any]:
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            # The path is only a name then. It must not look like a file: `datasets` would drop the bytes for it.
            name = (image.get("path") or "").removeprefix("embedded:")
            return {"path": f"embedded:{name}", "bytes": image["bytes"]}
        image = image.get("path")
    if not isinstance(image, str) or not image:
        raise BadSampleError(f"an image must be a path or {{'path', 'bytes'}}, got {image!r}")
    return image_file(image if "://" in image else os.path.join(folder or "", image))


def record_messages(
    record: Mapping[str, Any], num_images: int, prompt: str | None, columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Chat messages of a record that holds messages, a LLaVA conversation, question and answer, or a caption.

    Args:
        record: the record.
        num_images (`int`): its images, shown before a question that holds no placeholders.
        prompt (`str`, *optional*): prompt template; for a caption, the question it answers.
        columns: the user's names of parts.

    Returns:
        `list[dict]`: messages whose contents are lists of parts.

    Raises:
        BadSampleError: if the record holds none of these.
    """
    messages, conversations = pick(record, "messages", columns), pick(record, "conversations", columns)
    if messages is not None:
        return chat_messages(messages, num_images, prompt)
    if conversations is not None:
        return llava_messages(conversations, prompt)
    question, answer, caption = (pick(record, part, columns) for part in ("question", "answer", "caption"))
    image_named = any(name in record for name in (*COLUMNS["images"], columns.get("images")))
    if num_images == 0 and (image_named or caption is not None):
        raise BadSampleError("the record names no image")
    if question is not None and answer is not None:
        return question_answer(apply_prompt(prompt, str(question)), str(answer), num_images)
    if caption is not None and question is None:
        return question_answer(apply_prompt(prompt or CAPTION_PROMPT, ""), str(caption), num_images)
    raise BadSampleError(
        "the record needs 'messages', 'conversations', 'question' and 'answer', or 'caption'; "
        f"it has {', '.join(map(repr, record)) or 'nothing'}"
    )


def llava_messages(conversations: Any, prompt: str | None) -> list[dict[str, Any]]:
    """Chat messages of a LLaVA conversation, images where their placeholders stand.

    Args:
        conversations: list of `{"from": "human" | "gpt" | "system", "value": text}`.
        prompt (`str`, *optional*): prompt template around each text of the user.

    Returns:
        `list[dict]`: messages whose contents are lists of parts.

    Raises:
        BadSampleError: if it is no such list.
    """
    if not isinstance(conversations, list):
        raise BadSampleError(f"'conversations' must be a list, got {conversations!r}")
    messages = []
    for turn in conversations:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise BadSampleError(f"a turn needs 'from' and the text 'value', got {turn!r}")
        role = LLAVA_ROLES.get(turn.get("from", ""))
        if role is None:
            raise BadSampleError(f"unknown speaker {turn.get('from')!r}; known: {', '.join(LLAVA_ROLES)}")
        text = apply_prompt(prompt, turn["value"]) if role == "user" else turn["value"]
        messages.append({"role": role, "content": content_parts(text)})
    return messages


def chat_messages(messages: Any, num_images: int, prompt: str | None) -> list[dict[str, Any]]:
    """Chat messages in TRL's and transformers' form, with contents that are texts or lists of parts.

    If all contents are plain texts without placeholders, the images are shown before the first text of the user, as
    TRL does.

    Args:
        messages: list of `{"role", "content"}`.
        num_images (`int`): images of the record.
        prompt (`str`, *optional*): prompt template around each text of the user.

    Returns:
        `list[dict]`: messages whose contents are lists of parts.

    Raises:
        BadSampleError: if it is no such list.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise BadSampleError(f"'messages' must be a list of {{'role', 'content'}}, got {messages!r}")
    contents = [message.get("content") for message in messages]
    plain = all(isinstance(content, str) and IMAGE_PLACEHOLDER not in content for content in contents)
    pending = num_images if plain else 0
    result = []
    for message, content in zip(messages, contents):
        if message["role"] == "user":
            content = _prompted(content, prompt)
            if pending:
                content, pending = IMAGE_PLACEHOLDER * pending + content, 0
        parts = content_parts(content) if isinstance(content, str) else _plain_parts(content)
        result.append({"role": message["role"], "content": parts})
    return result


def _prompted(content: Any, prompt: str | None) -> Any:
    if prompt is None:
        return content
    if not isinstance(content, str):
        parts = _plain_parts(content)
        content = "".join(IMAGE_PLACEHOLDER if part["type"] == "image" else part["text"] for part in parts)
    return apply_prompt(prompt, content)


def _plain_parts(content: Any) -> list[dict[str, Any]]:
    parts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append({"type": "image", "text": None})
        elif kind == "text" and isinstance(part.get("text"), str):
            text = part["text"]
            parts += content_parts(text) if IMAGE_PLACEHOLDER in text else [{"type": "text", "text": text}]
        else:
            raise BadSampleError(f"a content must be a text or a list of text and image parts, got {part!r}")
    return parts


def record_example(
    record: Any, row: int, source: str, folder: str | None, prompt: str | None, columns: Mapping[str, str]
) -> dict[str, Any]:
    """Converts a record with named columns; see `data_records.Convert`."""
    if not isinstance(record, Mapping):
        raise BadSampleError(f"a record must be a mapping, got {type(record).__name__}")
    images = record_images(record, folder, columns)
    messages = record_messages(record, len(images), prompt, columns)
    return make_example(source, row, images, messages, id=pick(record, "id", columns))


def _annotation_file(source: DataSource) -> Path:
    if not isinstance(source.path, (str, os.PathLike)):
        raise ValueError(f"data source {source.name!r} needs one annotation file as `path`, got {source.path!r}.")
    if source.split is not None:
        raise ValueError(
            f"data format {source.format!r} has no splits, got split={source.split!r}: name the file of the split."
        )
    return existing_file(source.path, str(source.name))


def _read_annotations(
    source: DataSource, path: Path, folder: str, columns: Mapping[str, str] | None
) -> Dataset | IterableDataset:
    if columns:
        columns = check_columns(columns, _columns_of(path, set(map(str, columns.values()))), source)
    return records_dataset(
        source, path, record_example, folder=folder, prompt=source.prompt, columns=dict(columns or {})
    )


def _columns_of(path: Path, wanted: set[str]) -> list[str]:
    """Columns of the first records of a file: as many as it takes to meet all that are wanted."""
    present: dict[str, None] = {}
    for _, record in read_records(Span(str(path))):
        present |= dict.fromkeys(record if isinstance(record, Mapping) else ())
        if wanted <= present.keys():
            break
    return list(present)


@register_data_format("llava")
def llava(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """Conversations in LLaVA's format: records of `id`, `image` (a path, a list, or none) and `conversations`.

    Args:
        source (`DataSource`): `path` is a `.json` or `.jsonl` file (the latter streams without conversion), `images`
            the folder of the images, by default the file's own.
        columns (`Mapping`, *optional*): other names of the parts of a record, as in `{"images": "picture"}`.

    Returns:
        one example per conversation.
    """
    path = _annotation_file(source)
    return _read_annotations(source, path, _image_folder(source, path.parent), columns)


@register_data_format("json")
def json_messages(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """A JSON or JSONL file of records with `messages` and `images` (TRL's names), or question and answer, or caption.

    Args:
        source (`DataSource`): `path` is the file, `images` the folder of the images, by default the file's own.
        columns (`Mapping`, *optional*): other names of the parts of a record.

    Returns:
        one example per record.
    """
    path = _annotation_file(source)
    return _read_annotations(source, path, _image_folder(source, path.parent), columns)


def _image_folder(source: DataSource, default: Path) -> str:
    folder = default if source.images is None else Path(source.images).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"data source {source.name!r}: there is no image folder {folder}; set `images`.")
    return str(folder)


@register_data_format("image-folder")
def image_folder(source: DataSource, columns: Mapping[str, str] | None = None) -> Dataset | IterableDataset:
    """A folder of images with `metadata.jsonl` or `metadata.csv`, after the convention of `datasets`.

    The metadata have the column `file_name`, and `question` and `answer`, or `caption` (or `text`).

    Args:
        source (`DataSource`): `path` is the folder; `split`, if set, the folder in it that holds the metadata.
        columns (`Mapping`, *optional*): other names of the columns, as in `{"caption": "title"}`.

    Returns:
        one example per line of the metadata.

    Raises:
        FileNotFoundError: if there is no folder or no metadata.
    """
    folder = Path(str(source.path)).expanduser().absolute()
    if source.path is None or not folder.is_dir():
        raise FileNotFoundError(
            f"data source {source.name!r} needs a folder of images as `path`, got {source.path!r}."
        )
    if source.split is not None:
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        folder = folder / known(f"split of data source {source.name!r}", source.split, splits)
    files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"data source {source.name!r}: {folder} holds no metadata.jsonl or metadata.csv.")
    return _read_annotations(source, files[0], _image_folder(source, folder), columns)


@register_data_format("coco-captions")
def coco_captions(source: DataSource) -> Dataset | IterableDataset:
    """Captions in COCO's format; one example per caption, as an answer to "what does the image describe?".

    Args:
        source (`DataSource`): `path` is a `captions_*.json`, or the folder that holds it (or `annotations/` with it)
            if `split` says which one, e.g. `"val2017"`. `images` is the image folder, by default the one called like
            the split, beside the file or its folder. `prompt` replaces the question.

    Returns:
        one example per caption.
    """
    path = _captions_file(source)
    name = path.stem.removeprefix("captions_")
    candidates = [path.parent / name, path.parent.parent / name, path.parent.parent / "images" / name]
    candidates.append(path.parent / "images")  # as `vistok scenes` writes
    default = next((folder for folder in candidates if folder.is_dir()), candidates[0])
    return records_dataset(
        source,
        path,
        coco_caption_example,
        records_of=coco_caption_records,
        folder=_image_folder(source, default),
        prompt=source.prompt,
    )


def _captions_file(source: DataSource) -> Path:
    folder = Path(str(source.path)).expanduser().absolute()
    if source.split is None or not folder.is_dir():
        return _annotation_file(source)
    files = {
        file.stem.removeprefix("captions_"): file
        for place in (folder / "annotations", folder)
        for file in sorted(place.glob("captions_*.json"))
    }
    return files[known(f"split of data source {source.name!r}", source.split, files)]


def coco_caption_records(document: Any) -> list[Any]:
    """Captions of a COCO document, each with the file name of its image.

    Args:
        document: the parsed `captions_*.json`.

    Returns:
        `list[dict]`: the annotations, with `file_name` (`None` if the image is not listed).

    Raises:
        ValueError: if it is not a COCO document.
    """
    if not isinstance(document, Mapping) or not {"images", "annotations"} <= document.keys():
        raise ValueError("COCO captions must be an object with 'images' and 'annotations'.")
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return [{**caption, "file_name": names.get(caption.get("image_id"))} for caption in document["annotations"]]


def coco_caption_example(
    record: Mapping[str, Any], row: int, source: str, folder: str, prompt: str | None
) -> dict[str, Any]:
    """Converts an annotation of COCO captions; see `data_records.Convert`."""
    if not record["file_name"]:
        raise BadSampleError(f"image_id {record.get('image_id')!r} is not among the images of the file")
    if not isinstance(record.get("caption"), str):
        raise BadSampleError("the annotation has no 'caption': is this an instances file?")
    return record_example({**record, "id": record.get("id", row)}, row, source, folder, prompt, {})
