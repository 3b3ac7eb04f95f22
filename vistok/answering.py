"""A trained model that answers questions about images, one at a time: what `vistok ask` and `vistok demo` run."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from transformers import pipeline
from transformers.utils import logging

from .configuration.shipped import shipped_path
from .modeling.base_weights import resolve_checkpoint
from .processing.images import ImageSource, load_image

SHIPPED_MODEL = "checkpoints/gvt-demo"


def model_folder(model: str | os.PathLike | None = None) -> str:
    """
    The model to ask: the one that ships with vistok, unless another is named.

    Args:
        model (`str`, *optional*): folder or Hub id.

    Returns:
        `str`: what `from_pretrained` takes.

    Raises:
        FileNotFoundError: if none is named and none ships.
    """
    return str(shipped_path(SHIPPED_MODEL)) if model is None else resolve_checkpoint(model)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Loads without a progress bar for each part of a model."""
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def load_pipeline(model: str | os.PathLike | None = None) -> Any:
    """
    Loads a model and its processor as the `image-text-to-text` pipeline of transformers.

    Args:
        model (`str`, *optional*): folder or Hub id; by default the model that ships with vistok.

    Returns:
        `ImageTextToTextPipeline`, with `.model` and `.processor`.

    Raises:
        FileNotFoundError: if none is named and none ships.
        FetchError: if its base weights are not in the cache.
        CheckpointError: if its weights are damaged or do not fit.
    """
    folder = model_folder(model)
    with quiet_loading():
        return pipeline("image-text-to-text", model=folder)


def answer_question(answerer: Any, image: ImageSource, question: str, max_new_tokens: int = 32) -> str:
    """
    Asks one question about one image; the answer is decoded greedily.

    Args:
        answerer (`ImageTextToTextPipeline`): from [`load_pipeline`].
        image: path, bytes or PIL image, as in [`load_image`].
        question (`str`): the question.
        max_new_tokens (`int`, *optional*, defaults to 32): limit of the answer, in tokens.

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
    content = [{"type": "image", "image": load_image(image)}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    generated = answerer(
        text=messages, max_new_tokens=max_new_tokens, return_full_text=False, generate_kwargs={"do_sample": False}
    )
    return generated[0]["generated_text"].strip()


__all__ = ["SHIPPED_MODEL", "answer_question", "load_pipeline", "model_folder", "quiet_loading"]
