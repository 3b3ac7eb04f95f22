"""A trained model that answers questions about images, one at a time: what `vistok ask` and `vistok demo` run."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging

from .configuration.shipped import shipped_path
from .modeling.base_weights import resolve_checkpoint
from .modeling.trained_setok import without_detokenizer
from .processing.images import ImageSource, load_image

SHIPPED_MODEL = "checkpoints/gvt-demo"
_EXPECTED = "Give the folder that `vistok train` ended with, or a Hub id such as owner/name."


def model_folder(model: str | os.PathLike | None = None, shipped: str = SHIPPED_MODEL) -> str:
    """
    The model to run: one that ships with vistok, unless another is named. Of one on the Hub the config is fetched, so
    that a wrong name is told before anything else is loaded.

    Args:
        model (`str`, *optional*): folder or Hub id.
        shipped (`str`, *optional*): which one that ships, as [`shipped_path`] takes it; by default the one to ask.

    Returns:
        `str`: what `from_pretrained` takes.

    Raises:
        FileNotFoundError: if none is named and none ships, or there is no such folder, or no model in it.
        OSError: if it is no folder and cannot be had from the Hub.
    """
    if model is None:
        return str(shipped_path(shipped))
    folder = resolve_checkpoint(model)
    path = Path(folder).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"The folder {folder!r} holds no model: it has no config.json. {_EXPECTED}")
        return str(path)
    # A Hub id is `name` or `owner/name`.
    if path.exists() or path.is_absolute() or folder.startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(f"There is no folder {folder!r}. {_EXPECTED}")
    with explained_hub_errors(folder):
        AutoConfig.from_pretrained(folder)
    return folder


@contextlib.contextmanager
def explained_hub_errors(model: str) -> Iterator[None]:
    """
    What goes wrong on the way from the Hub names the model, and says that it might have been meant as a folder.

    Args:
        model (`str`): folder, whose errors stay as they are, or Hub id.

    Raises:
        OSError: in place of one that may name neither.
    """
    try:
        yield
    except OSError as error:
        if Path(model).is_dir():
            raise
        raise OSError(f"There is no folder {model!r}, and it cannot be had from the Hub: {error}") from error


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Loads without a progress bar for each part of a model."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_pipeline(model: str | os.PathLike | None = None) -> Any:
    """
    Loads a model and its processor as the `image-text-to-text` pipeline of transformers. It answers in text: a
    detokenizer, which draws images, is left out.

    Args:
        model (`str`, *optional*): folder or Hub id; by default the model that ships with vistok.

    Returns:
        `ImageTextToTextPipeline`, with `.model` and `.processor`.

    Raises:
        FileNotFoundError: see [`model_folder`].
        FetchError: if its base weights are not in the cache.
        CheckpointError: if its weights are damaged or do not fit.
    """
    folder = model_folder(model)
    # Given a name, pipeline would try again what failed and hide why behind an error of its own.
    with quiet_loading(), explained_hub_errors(folder):
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **without_detokenizer(folder))
        processor = AutoProcessor.from_pretrained(folder)
        return pipeline("image-text-to-text", model=loaded, processor=processor)


def answer_question(
    answerer: Any,
    image: ImageSource,
    question: str,
    max_new_tokens: int = 32,
    earlier: Sequence[tuple[str, str]] = (),
) -> str:
    """
    Asks a question about an image; the answer is decoded greedily.

    Args:
        answerer (`ImageTextToTextPipeline`): from [`load_pipeline`].
        image: path, bytes or PIL image, as in [`load_image`].
        question (`str`): the question.
        max_new_tokens (`int`, *optional*, defaults to 32): limit of the answer, in tokens.
        earlier (`list[tuple[str, str]]`, *optional*): questions about the same image that were asked before, with
            their answers.

    Returns:
        `str`: the answer, without white space at its ends.

    Raises:
        BadSampleError: if the image is missing or unreadable.
        ValueError: if the question is empty or `max_new_tokens` is less than 1.
    """
    if not question.strip():
        raise ValueError("The question is empty: ask something, such as 'What object is in the image?'.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1.")
    messages = []
    for asked, answered in earlier:
        messages += [_message("user", asked), _message("assistant", answered)]
    messages.append(_message("user", question))
    messages[0]["content"].insert(0, {"type": "image", "image": load_image(image)})
    generated = answerer(
        text=messages, max_new_tokens=max_new_tokens, return_full_text=False, generate_kwargs={"do_sample": False}
    )
    return generated[0]["generated_text"].strip()


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


__all__ = [
    "SHIPPED_MODEL",
    "answer_question",
    "explained_hub_errors",
    "load_pipeline",
    "model_folder",
    "quiet_loading",
]
