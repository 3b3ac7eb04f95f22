"""The canonical training example: what every data source yields, whatever format it came from.

An example is the dictionary

```python
{
    "id": "…",          # unique within its source, unless that is streamed from the Hub
    "source": "…",      # name of the data source
    "row": 0,           # row of the source, counted from 0, for error messages
    "images": [{"path": "…", "bytes": None}],       # undecoded: `datasets.Image(decode=False)`
    "messages": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
    ],
}
```

with one image part per image, in order, no placeholder in a text, and text only in the assistant's turns, unless the
format says that images are to be written (see `image_answers.py`). Columns that a format adds (easy-VQA's
`answer_type`) are kept beside these.
"""

import json
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Features, Image, List, Value

from ..processing.images import BadSampleError

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")

FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "row": Value("int64"),
        "images": List(Image(decode=False)),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
    }
)
PROBLEM = "problem"
"""Column in which a format hands over a bad sample, so that the loader can raise or skip it; never seen by users."""

RAW_FEATURES = Features({**FEATURES, PROBLEM: Value("string")})


def image_file(path: str) -> dict[str, Any]:
    """An undecoded image that lies in a file.

    Args:
        path (`str`): path or URL of the file.

    Returns:
        `dict`: `{"path": path, "bytes": None}`.
    """
    return {"path": path, "bytes": None}


def content_parts(text: str) -> list[dict[str, Any]]:
    """Splits a text at its `<image>` placeholders into chat content, in order.

    White space at both ends of the turn and line breaks beside a placeholder only laid out the placeholder and are
    dropped: how images and text are joined is the chat template's business.

    Args:
        text (`str`): e.g. `"<image>\\nWhat is this?"`.

    Returns:
        `list[dict]`: `{"type": "image", "text": None}` and `{"type": "text", "text": ...}` parts.
    """
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(text.strip().split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append({"type": "image", "text": None})
        piece = piece.strip("\r\n")
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts


def question_answer(question: str, answer: str, num_images: int = 1) -> list[dict[str, Any]]:
    """The messages of one question about `num_images` images, shown before the question.

    Args:
        question (`str`): text of the user's turn; may hold its own placeholders instead.
        answer (`str`): text of the assistant's turn.
        num_images (`int`): images to show before a question without placeholders.

    Returns:
        `list[dict]`: a user and an assistant message.
    """
    if IMAGE_PLACEHOLDER not in question:
        question = IMAGE_PLACEHOLDER * num_images + question
    return [
        {"role": "user", "content": content_parts(question)},
        {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]},
    ]


def apply_prompt(prompt: str | None, question: str) -> str:
    """Puts a question into a prompt template, leaving placeholders before and after it where they are.

    Args:
        prompt (`str`, *optional*): e.g. `"Question: {question} Answer:"`; `None` keeps the bare question.
        question (`str`): e.g. `"<image>\\nHow many dogs?"`.

    Returns:
        `str`: e.g. `"<image>\\nQuestion: How many dogs? Answer:"`.
    """
    if prompt is None:
        return question
    edge = rf"(?:\s*{re.escape(IMAGE_PLACEHOLDER)}\s*)*"
    match = re.fullmatch(rf"({edge})(.*?)({edge})", question, flags=re.DOTALL)
    before, bare, after = match.groups() if match else ("", question, "")
    return before + prompt.format(question=bare.strip()) + after


def check_prompt(prompt: str) -> None:
    """Checks a prompt template once, before it meets the data.

    Args:
        prompt (`str`): template; `{question}` is its only field.

    Raises:
        ValueError: if it holds another field or an unbalanced brace.
    """
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None}
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} is not a template ({error}): write {{{{ and }}}} for braces.") from error
    if fields - {"question"}:
        raise ValueError(
            f"prompt {prompt!r} holds the unknown field {sorted(fields - {'question'})}; the only one is {{question}}."
        )


def make_example(
    source: str,
    row: int,
    images: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    id: Any = None,
    images_in_answers: bool = False,
    **columns: Any,
) -> dict[str, Any]:
    """Builds a canonical example and checks it.

    Args:
        source (`str`): name of the data source.
        row (`int`): row of the source, counted from 0.
        images: undecoded images, `{"path", "bytes"}`.
        messages: chat messages whose contents are lists of parts.
        id: identity within the source, made a string; the row when missing.
        images_in_answers (`bool`): whether the assistant may show images.
        **columns: further columns of the format.

    Returns:
        `dict`: the example.

    Raises:
        BadSampleError: if images and placeholders differ in number, a role is unknown, a turn is empty, the user does
            not speak first, the assistant says nothing or shows an image that it may not, or a text holds a
            placeholder.
    """
    check_messages(messages, len(images), images_in_answers)
    return {
        "id": str(row if id is None else id),
        "source": source,
        "row": row,
        "images": images,
        "messages": messages,
        **columns,
    }


def check_messages(messages: Iterable[Mapping[str, Any]], num_images: int, images_in_answers: bool = False) -> None:
    """Checks that messages form a conversation one can train on, about `num_images` images.

    Args:
        messages: chat messages whose contents are lists of parts.
        num_images (`int`): images of the example.
        images_in_answers (`bool`): whether the assistant may show images.

    Raises:
        BadSampleError: as in [`make_example`].
    """
    messages = list(messages)
    unknown = [message["role"] for message in messages if message["role"] not in ROLES]
    if unknown:
        raise BadSampleError(f"unknown role {unknown[0]!r}; the roles are {', '.join(ROLES)}")
    spoken = [message for message in messages if message["role"] != "system"]
    if not spoken or spoken[0]["role"] != "user":
        raise BadSampleError("the conversation must start with the user")
    answers = [message["content"] for message in spoken if message["role"] == "assistant"]
    if not images_in_answers and any(part["type"] != "text" for answer in answers for part in answer):
        raise BadSampleError("an answer of the assistant holds an image placeholder; answers hold text only")
    if not answers or not all(any(map(_says_something, answer)) for answer in answers):
        raise BadSampleError("an answer of the assistant is missing or empty")
    if any(not message["content"] for message in messages):
        raise BadSampleError("a turn of the conversation is empty")
    parts = [part for message in messages for part in message["content"]]
    if any(part["type"] == "text" and IMAGE_PLACEHOLDER in (part["text"] or "") for part in parts):
        raise BadSampleError(f"a text holds {IMAGE_PLACEHOLDER}, which stands for an image: make it an image part")
    placeholders = sum(part["type"] == "image" for part in parts)
    if placeholders != num_images:
        raise BadSampleError(f"{placeholders} image placeholders for {num_images} images")


def _says_something(part: Mapping[str, Any]) -> bool:
    return part["type"] == "image" or bool((part["text"] or "").strip())


def bad_example(source: str, row: int, error: BadSampleError, columns: Iterable[str] = ()) -> dict[str, Any]:
    """Stands for a sample that could not be converted, until the loader raises or skips it.

    Args:
        source (`str`): name of the data source.
        row (`int`): row of the source, counted from 0.
        error (`BadSampleError`): what is wrong with it.
        columns: further columns of the format, to be left empty.

    Returns:
        `dict`: an empty example whose column `problem` holds the error (see [`pack_error`]).
    """
    located = BadSampleError(error.reason, error.file, row, source)
    empty = {"id": str(row), "source": source, "row": row, "images": [], "messages": [], PROBLEM: pack_error(located)}
    return {**empty, **dict.fromkeys(columns)}


def pack_error(error: BadSampleError) -> str:
    """Writes an error as text, to travel in a column or a file.

    Args:
        error (`BadSampleError`): the error.

    Returns:
        `str`: one line of JSON.
    """
    return json.dumps([error.reason, error.file, error.row, error.source])


def unpack_error(text: str) -> BadSampleError:
    """Reads what [`pack_error`] wrote.

    Args:
        text (`str`): one line of JSON.

    Returns:
        `BadSampleError`: an equal error.
    """
    return BadSampleError(*json.loads(text))
