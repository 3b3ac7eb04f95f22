"""Examples whose answer is an image: one to generate, an edited one, or the mask of an expression.

They are canonical examples (see `data_examples.py`) with one turn of each side. The answer is one image part, so the
last of `images` is what is to be written, and those before it are what is shown. The column `task` says what it is:
`"generate"`, `"edit"`, or `"segment"`, where the last image is a mask: white where the object is, black elsewhere (see
[`read_mask`]).
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value
from PIL import Image

from ..processing.images import BadSampleError, ImageSource, load_image
from .data_examples import PROBLEM, apply_prompt, bad_example, make_example
from .data_formats import DataSource, known, read_format, register_data_format
from .data_records import file_digest

# How each task is asked for, as `SetokimProcessor` asks by default; `prompt` of a source replaces it.
TASK_PROMPTS = {
    "generate": "Generate an image: {question}",
    "edit": "Edit the image: {question}",
    "segment": "Segment: {question}",
}
TASK_FEATURES = Features({"task": Value("string")})
_SHOWN_IMAGES = {"generate": 0, "edit": 1, "segment": 1}


def image_answer(
    source: str,
    row: int,
    task: str,
    text: Any,
    images: list[dict[str, Any]],
    prompt: str | None = None,
    id: Any = None,
    **columns: Any,
) -> dict[str, Any]:
    """Builds an example whose answer is an image, and checks it.

    Args:
        source (`str`): name of the data source.
        row (`int`): row of the source, counted from 0.
        task (`str`): a key of `TASK_PROMPTS`.
        text (`str`): prompt, instruction or expression.
        images: undecoded images, `{"path", "bytes"}`: what is shown, then what is to be written.
        prompt (`str`, *optional*): template around the text, instead of that of the task.
        id: identity within the source; the row when missing.
        **columns: further columns of the format.

    Returns:
        `dict`: the example, with the column `task`.

    Raises:
        BadSampleError: if the text is empty or none, holds a placeholder, or there are more or fewer images.
    """
    known("task", task, TASK_PROMPTS)
    if not isinstance(text, str) or not text.strip():
        raise BadSampleError(f"the text to {task} is {text!r}: expected a prompt, an instruction or an expression")
    expected = _SHOWN_IMAGES[task] + 1
    if len(images) != expected:
        raise BadSampleError(f"to {task} takes {expected} images with the one that is written, got {len(images)}")
    asked = {"type": "text", "text": apply_prompt(prompt or TASK_PROMPTS[task], text.strip())}
    shown = [{"type": "image", "text": None}] * _SHOWN_IMAGES[task]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*shown, asked]},
        {"role": "assistant", "content": [{"type": "image", "text": None}]},
    ]
    return make_example(source, row, images, messages, id=id, images_in_answers=True, task=task, **columns)


def mask_image(mask: np.ndarray, name: str) -> dict[str, Any]:
    """A mask as an undecoded image.

    Args:
        mask (`np.ndarray` of shape `(height, width)` and dtype bool): the mask.
        name (`str`): what it is a mask of, for error messages.

    Returns:
        `dict`: `{"path", "bytes"}`, a PNG of one bit.
    """
    content = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(content, "PNG")
    return {"path": f"embedded:{name}", "bytes": content.getvalue()}


def read_mask(image: ImageSource) -> np.ndarray:
    """Reads the mask that an example of the task `"segment"` has as its last image.

    Args:
        image: undecoded, or as a PIL image.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool.

    Raises:
        BadSampleError: if it cannot be read.
    """
    return np.asarray(load_image(image).convert("L")) >= 128


@register_data_format("generation-pairs")
def generation_pairs(
    source: DataSource, of: str = "json", of_options: Mapping[str, Any] | None = None
) -> Dataset | IterableDataset:
    """Captions turned round: a caption asks for its image.

    Args:
        source (`DataSource`): as the format `of` reads it; `prompt` is the template around the caption, by default
            that of `TASK_PROMPTS`.
        of (`str`): the format of the captions: `"json"`, `"coco-captions"`, `"image-folder"`, `"parquet"`,
            `"webdataset"`, `"hub"`, `"llava"` (as the pairs of LLaVA's pre-training), or any other whose examples are
            an image and one answer.
        of_options (`Mapping`, *optional*): options of that format.

    Returns:
        one example per caption, with the columns of the other format and `task`. A conversation of several turns or
        images is a bad sample.

    Raises:
        ValueError: if the format is unknown, or is this one.
    """
    if of == source.format:
        raise ValueError(f"of={of!r} of data source {source.name!r} is the format itself: name that of the captions.")
    captions = read_format(replace(source, format=of, prompt=None, options=dict(of_options or {})))
    if captions.features is None:
        raise ValueError(f"data format {of!r} does not say which columns it has: generation-pairs cannot turn it.")
    features = Features({**captions.features, PROBLEM: Value("string"), **TASK_FEATURES})
    arguments: dict[str, Any] = {"prompt": source.prompt, "columns": tuple(features)}
    cache = {}
    if isinstance(captions, Dataset):
        cache = {"desc": f"Turning the captions of {source.name}"}
        arguments["code"] = file_digest(__file__)
    return captions.map(turned_round, fn_kwargs=arguments, features=features, **cache)


def turned_round(
    example: Mapping[str, Any], prompt: str | None, columns: Iterable[str], code: str = ""
) -> dict[str, Any]:
    """Makes an example that asks for an image of one that asks for its caption, or marks it as bad.

    Args:
        example: canonical, as its format yields it.
        prompt (`str`, *optional*): template around the caption.
        columns: the columns of the result.
        code (`str`): not used; part of the name of the cached result.

    Returns:
        `dict`: the example.
    """
    if example.get(PROBLEM) is not None:
        return {**dict.fromkeys(columns), **example, "task": None}
    source, row = example["source"], example["row"]
    try:
        turns = [message for message in example["messages"] if message["role"] != "system"]
        if len(turns) != 2 or len(example["images"]) != 1:
            raise BadSampleError(
                f"a generation pair is an image and its caption, got {len(example['images'])} images and "
                f"{len(turns)} turns"
            )
        caption = "".join(part["text"] or "" for part in turns[1]["content"])
        turned = image_answer(source, row, "generate", caption, list(example["images"]), prompt, id=example["id"])
    except BadSampleError as error:
        file = (example["images"] or [{}])[0].get("path")
        return {**dict.fromkeys(columns), **bad_example(source, row, BadSampleError(error.reason, file))}
    return {**example, PROBLEM: None, **turned}


__all__ = ["TASK_PROMPTS", "generation_pairs", "image_answer", "mask_image", "read_mask"]
