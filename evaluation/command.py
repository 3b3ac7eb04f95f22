"""What `vistok evaluate` does with a model and the tasks it is given."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..configuration.optional import require
from .image_text_models import ImageTextModel
from .prediction_checks import check_positive
from .processes import Share, join_processes, local_device, wait_for_all
from .report import FLOORS, check_floors, evaluate_task
from .report_table import file_stem, save_report, save_summary
from .task_questions import QuestionFiles, mark_distinct
from .tasks import Task, find_tasks
from .vqa import choose_questions

logger = logging.get_logger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")


def evaluate_command(
    model: str | os.PathLike | ImageTextModel,
    tasks: str | Sequence[str | Task],
    *,
    questions: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    prompt_style: str = "paper",
    mode: str = "reference",
    fix_typos: str = "both",
    missing_images: str = "error",
    max_questions: int | None = None,
    output: str | os.PathLike | None = None,
    floors: Sequence[str] = FLOORS,
    max_floor_questions: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
    command: str | None = None,
    load_source: Callable[[Mapping[str, Any]], Any] | None = None,
    vocabulary: str | os.PathLike | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Evaluates a model on tasks and writes the reports. Started by `accelerate launch`, several processes share the
    questions and get the same results; the first one writes them.

    Args:
        model (`str` or [`ImageTextModel`]): folder or Hub id of a trained model with its processor, of vistok or of
            any image-text-to-text architecture of transformers; or one that is loaded.
        tasks (`str` or `list[str | Task]`): names of `TASKS`, as a list or with commas between them; or [`Task`]s.
        questions (`str`, *optional*): question file, or folder that holds the files of all tasks.
        images (`str`, *optional*): folder of the images.
        prompt_style, mode: see [`Task.asked`].
        fix_typos, missing_images, load_source, vocabulary: see [`QuestionFiles`].
        max_questions (`int`, *optional*): ask only so many of each split, a choice by `seed`.
        output (`str`, *optional*): folder for `<task>-<split>.json`, `.md`, `.png` and `.predictions.jsonl`, and, of
            several reports, `summary.json`, `.md` and `.png`. A run that was killed continues from the predictions. By
            default nothing is written.
        floors (`list[str]`, *optional*): see [`evaluate_task`].
        max_floor_questions (`int`, *optional*): limit of the questions about blank and shuffled images.
        batch_size (`int`, *optional*, defaults to 64): questions per batch.
        max_new_tokens (`int`, *optional*): limit of an answer, in tokens; by default the task's: 16, or 32 for tasks
            that are read from files.
        dtype (`str`, *optional*, defaults to `"auto"`): `"bfloat16"`, `"float16"`, `"float32"`, or `"auto"`: as saved.
        device (`str`, *optional*): by default a GPU if there is one, and the CPU otherwise.
        attn_implementation (`str`, *optional*): by default `"eager"` on a CPU, where it is faster on short prompts.
        seed (`int`, *optional*, defaults to 0): of the choice of questions, of questions that are built, of the
            shuffled images and of the divisions of the prior.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict[str, dict]`: results by the name of the task, or `<task>-<split>` where the split is not called test; see
        [`evaluate_task`].

    Raises:
        ValueError: if an argument is out of range or unknown.
        BadSampleError: if an image is missing or a question malformed; names its row.
        FileNotFoundError: if a question file or folder is missing.
        ImportError: if `output` is given and matplotlib is not installed; at once, before anything is asked.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected {', '.join(DTYPES)}.")
    if output is not None:
        require("matplotlib.figure", "draw")  # the chart comes last, hours later
    check_floors(floors)
    check_positive(
        max_questions=max_questions,
        max_floor_questions=max_floor_questions,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    chosen = [(task, task.asked(prompt_style, mode)) for task in find_tasks(tasks)]
    share = join_processes(device)
    device = available_device(device or local_device(share))
    files = QuestionFiles(
        questions, images, prompt_style, fix_typos, missing_images, load_source, seed=seed, vocabulary=vocabulary
    )
    # All questions are read before any is asked: what is missing is told now, not hours later.
    splits = [(task, protocol, split) for task, protocol in chosen for split in _splits(task, files, share)]
    if not isinstance(model, ImageTextModel):
        attn_implementation = attn_implementation or ("eager" if device.startswith("cpu") else None)
        model = ImageTextModel.from_pretrained(model, dtype, device, attn_implementation, batch_size)
    results: dict[str, dict[str, Any]] = {}
    answered: dict[str, dict[Any, str]] = defaultdict(dict)
    for task, protocol, split in splits:
        found = evaluate_task(
            model,
            mark_distinct(choose_questions(split.test, max_questions, seed)),
            split.train if "question_only_prior" in floors else None,
            task=task.name,
            split=split.name,
            protocol=protocol if split.metrics is None else replace(protocol, metrics=split.metrics),
            floors=floors,
            max_floor_questions=max_floor_questions,
            max_new_tokens=max_new_tokens,
            seed=seed,
            predictions_file=None if output is None else predictions_path(output, task.name, split.name),
            progress_bar=progress_bar,
            command=command,
            share=share,
            answered=answered[task.name],
        )
        if split.num_missing:
            found["num_missing"] = split.num_missing
        results[task.name if split.name == "test" else file_stem(task.name, split.name)] = found
        if output is not None and share.is_first:
            save_report(found, output)
    if output is not None and share.is_first and len(results) > 1:
        save_summary(list(results.values()), output)
    return results


def predictions_path(folder: str | os.PathLike, task: str, split: str) -> Path:
    """Where the predictions of a split are kept in the folder of the report."""
    return Path(folder) / f"{file_stem(task, split)}.predictions.jsonl"


def _splits(task: Task, files: QuestionFiles, share: Share):
    """The first process reads first: what it builds and caches, the others find."""
    if not share.is_first:
        wait_for_all(share)
    splits = task.splits(files)
    if share.is_first:
        wait_for_all(share)
    return splits


def available_device(device: str) -> str:
    """
    A device that can be used here.

    Args:
        device (`str`): such as `"cpu"` or `"cuda"`.

    Raises:
        ValueError: if it cannot; says why.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        what = str(error).strip().splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {what} Expected cpu, or cuda with a GPU.") from error
    return device


__all__ = ["DTYPES", "available_device", "evaluate_command", "predictions_path"]
