"""What `vistok evaluate` does with a model and the examples it is given."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..configuration.optional import require
from ..modeling.base_weights import resolve_checkpoint
from .report import FLOORS, evaluate_questions, file_stem, save_report
from .vqa import choose_questions

DTYPES = ("auto", "bfloat16", "float16", "float32")


def evaluate_command(
    model: str | os.PathLike,
    test: Iterable[Mapping[str, Any]],
    train: Iterable[Mapping[str, Any]] | None = None,
    *,
    task: str,
    split: str = "test",
    max_questions: int | None = None,
    output: str | os.PathLike | None = None,
    floors: Sequence[str] = FLOORS,
    max_floor_questions: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 16,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Loads a model, evaluates it on questions, and writes the report.

    Args:
        model (`str`): folder or Hub id of a trained model with its processor.
        test (`list[dict]` or `Dataset`): examples that end with the right answer.
        train (`list[dict]` or `Dataset`, *optional*): training examples, for the question-only prior.
        task, split (`str`): what `test` is called, in the report and in the names of its files.
        max_questions (`int`, *optional*): ask only so many, a choice by `seed`.
        output (`str`, *optional*): folder for `<task>-<split>.json`, `.md`, `.png` and `.predictions.jsonl`. A run
            that was killed continues from the latter. By default nothing is written.
        floors (`list[str]`, *optional*): see [`evaluate_questions`].
        max_floor_questions (`int`, *optional*): limit of the questions about blank and shuffled images.
        batch_size (`int`, *optional*, defaults to 64): questions per batch.
        max_new_tokens (`int`, *optional*, defaults to 16): limit of an answer, in tokens.
        dtype (`str`, *optional*, defaults to `"auto"`): `"bfloat16"`, `"float16"`, `"float32"`, or `"auto"`: as saved.
        device (`str`, *optional*): by default the first GPU if there is one, and the CPU otherwise.
        attn_implementation (`str`, *optional*): by default `"eager"` on a CPU, where it is faster on short prompts.
        seed (`int`, *optional*, defaults to 0): of the choice of questions and of the shuffled images.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict`: the results, see [`evaluate_questions`].

    Raises:
        ValueError: if an argument is out of range or unknown.
        ImportError: if `output` is given and matplotlib is not installed; at once, before anything is asked.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected {', '.join(DTYPES)}.")
    if output is not None:
        require("matplotlib.figure", "draw")  # the chart comes last, hours later
    device = _available(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    questions = choose_questions(test, max_questions, seed)
    attn_implementation = attn_implementation or ("eager" if device == "cpu" else None)
    path = resolve_checkpoint(str(model))
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    loaded = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, **extra).to(device).eval()
    processor = AutoProcessor.from_pretrained(path)
    file = None if output is None else Path(output) / f"{file_stem(task, split)}.predictions.jsonl"
    # Of the training questions the texts are needed only: a data set decodes no other column then.
    if train is not None and hasattr(train, "select_columns"):
        train = train.select_columns(["messages"])
    results = evaluate_questions(
        loaded,
        processor,
        questions,
        train if "question_only_prior" in floors else None,
        task=task,
        split=split,
        floors=floors,
        max_floor_questions=max_floor_questions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        predictions_file=file,
        progress_bar=progress_bar,
        command=command,
    )
    if output is not None:
        save_report(results, output)
    return results


def _available(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        what = str(error).strip().splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {what} Expected cpu, or cuda with a GPU.") from error
    return device


__all__ = ["DTYPES", "evaluate_command"]
