"""Reports on questions about images: accuracy beside what the same questions yield without their images."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..modeling.atomic_folder import write_text_atomically
from .generation import generate_answers
from .image_encoder import ImageEncoder
from .predictions import PredictionsFile, check_distinct, fingerprint
from .report_figure import FLOOR_NAMES, draw_report
from .vqa import (
    BREAKDOWNS,
    answer_is_right,
    answer_of,
    bootstrap_interval,
    choose_questions,
    image_clusters,
    majority_answers,
    measure,
    question_only_prior,
)

logger = logging.get_logger(__name__)

Examples = Sequence[Mapping[str, Any]]

FLOORS = ("majority", "question_only_prior", "blank_images", "shuffled_images")


def evaluate_questions(
    model,
    processor,
    test: Iterable[Mapping[str, Any]],
    train: Iterable[Mapping[str, Any]] | None = None,
    *,
    task: str = "questions",
    split: str = "test",
    floors: Sequence[str] = FLOORS,
    max_floor_questions: int | None = None,
    type_column: str = "answer_type",
    batch_size: int = 32,
    max_new_tokens: int = 16,
    seed: int = 0,
    features: Mapping[str, torch.Tensor] | None = None,
    predictions_file: str | os.PathLike | None = None,
    progress_bar: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Lets a model answer questions, and measures what of its accuracy needs the images.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): answers, see [`generate_answers`].
        processor ([`GVTProcessor`] or alike): writes the prompts.
        test (`list[dict]`): examples that end with the right answer.
        train (`list[dict]`, *optional*): training examples, for the question-only prior. Their images are not read.
        task, split (`str`): what the report calls them.
        floors (`list[str]`, *optional*): which to measure: `"majority"` (one constant answer),
            `"question_only_prior"` (see there; left out without `train`), `"blank_images"` and `"shuffled_images"`
            (this model, see [`control_images`]).
        max_floor_questions (`int`, *optional*): ask only so many, a choice by `seed`, about blank and shuffled images.
        type_column (`str`, *optional*, defaults to `"answer_type"`): column with the type of a question.
        batch_size, max_new_tokens, seed, features, progress_bar: see [`generate_answers`].
        predictions_file (`str`, *optional*): JSONL that predictions are added to as they come. An evaluation that was
            killed continues from it with the same result.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict`: `task`, `split`, `model`; what [`measure`] returns of the answers; `floors`, the same for each floor
        (of the majority, `per_type` and `breakdowns` are the majority of each type and group); `gain` over the
        question-only prior, or the majority without training examples, with its interval; `settings`, `command`;
        `seconds` of the answers about the given images and of all; `num_generated`, how many of these answers were
        generated in this time and not read from `predictions_file`.

    Raises:
        ValueError: if a floor is unknown, there are no questions, or `predictions_file` is of another evaluation.
    """
    if unknown := [floor for floor in floors if floor not in FLOORS]:
        raise ValueError(f"{unknown[0]!r} is no floor: choose {', '.join(FLOORS)}.")
    test = list(test)
    if not test:
        raise ValueError(f"The {split} split of {task} has no questions to ask.")
    started = time.perf_counter()
    settings = {
        "max_new_tokens": max_new_tokens,
        "max_floor_questions": max_floor_questions,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    file = None
    if predictions_file is not None:
        check_distinct(test)
        file = PredictionsFile(predictions_file, settings | fingerprint(model, processor, test))
    encoder = ImageEncoder(model, processor, features, batch_size)
    generated: Counter[str] = Counter()

    def ask(images: str, examples: list) -> list[str]:
        known = file.known(images, examples) if file is not None else {}

        def write(indices: list[int], answers: list[str]) -> None:
            generated[images] += len(indices)
            if file is not None:
                file.append(images, [examples[index] for index in indices], answers)

        return generate_answers(
            model, processor, examples, batch_size, max_new_tokens, images, seed,
            progress_bar=progress_bar, encoder=encoder, known=known, on_answers=write,
        )  # fmt: skip

    predictions = ask("given", test)
    answering = time.perf_counter() - started
    guesses = _guess(floors, test, train)
    fewer = choose_questions(test, max_floor_questions, seed)
    results = {
        "task": task,
        "split": split,
        "model": str(model.name_or_path),
        **measure(predictions, test, type_column),
        "floors": {floor: measure(texts, test, type_column) for floor, texts in guesses.items()},
        "gain": _gain(predictions, guesses, test),
        "settings": {**settings, "device": str(model.device), "threads": torch.get_num_threads()},
        "command": command,
    }
    if "majority" in guesses:
        results["floors"]["majority"] = _majority(test, guesses["majority"], type_column)
    for floor, images in (("blank_images", "blank"), ("shuffled_images", "shuffled")):
        if floor in floors:
            results["floors"][floor] = measure(ask(images, fewer), fewer, type_column)
    results["num_generated"] = generated["given"]
    results["seconds"] = {"answers": round(answering, 1), "all": round(time.perf_counter() - started, 1)}
    return results


def _guess(floors, test, train) -> dict[str, list[str]]:
    """Predictions of the floors that need no model."""
    guesses = {}
    if "majority" in floors:
        guesses["majority"] = majority_answers(test)
    if "question_only_prior" in floors:
        if train is None:
            logger.warning("The question-only prior is left out of the report: it needs the training examples.")
        else:
            guesses["question_only_prior"] = question_only_prior(list(train), test)
    return guesses


def _majority(test, guesses, type_column) -> dict[str, Any]:
    """Accuracy of one constant guess; per type or group, of the best constant guess of it, which scores higher."""
    measured = {**measure(guesses, test, type_column), "answer": guesses[0]}
    if "per_type" in measured:
        measured["per_type"] = measure(majority_answers(test, type_column), test, type_column)["per_type"]
    for column in measured.get("breakdowns", {}):
        groups = measure(majority_answers(test, column), test, breakdowns={column: BREAKDOWNS[column]})
        measured["breakdowns"][column] = groups["breakdowns"][column]
    return measured


def _gain(predictions, guesses, test) -> dict[str, Any] | None:
    over = next((floor for floor in ("question_only_prior", "majority") if floor in guesses), None)
    if over is None:
        return None
    gains = [
        answer_is_right(prediction, answer_of(example)) - answer_is_right(guess, answer_of(example))
        for prediction, guess, example in zip(predictions, guesses[over], test)
    ]
    return {
        "over": over,
        "accuracy": sum(gains) / len(gains),
        "interval": bootstrap_interval(gains, image_clusters(test), bounds=(-1.0, 1.0)),
    }


def report_markdown(results: Mapping[str, Any]) -> str:
    """
    Writes results as a table: a row for all questions, and one for each type and each group of a breakdown.

    Args:
        results (`dict`): from [`evaluate_questions`].

    Returns:
        `str`: Markdown, accuracies in percent.
    """
    floors = results["floors"]
    lines = [
        "| questions | number | right, % (95 % interval) | " + " | ".join(FLOOR_NAMES[name] for name in floors) + " |",
        "| --- | ---: | ---: | " + " | ".join("---:" for _ in floors) + " |",
    ]
    of_floors = [_rows(floor) for floor in floors.values()]
    for name, measured in _rows(results).items():
        cells = [name, f"{measured['num_questions']:,}", _percent(measured["accuracy"], measured["interval"])]
        beside = [rows.get(name) for rows in of_floors]
        cells += ["–" if floor is None else _percent(floor["accuracy"]) for floor in beside]
        lines.append("| " + " | ".join(cells) + " |")
    if not floors:
        lines = [line.replace(" |  |", " |") for line in lines]
    return "\n".join(lines) + "\n\n" + _remarks(results) + "\n"


def _rows(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All questions, each type, and each group of a breakdown, by the names of their rows."""
    rows = {"all": measured, **measured.get("per_type", {})}
    for groups in measured.get("breakdowns", {}).values():
        rows |= groups
    return rows


def _remarks(results) -> str:
    sentences = [
        f"{results['model'] or 'The model'}, {results['task']}, {results['split']} split: "
        f"{results['num_questions']:,} questions about {results['num_images']:,} images, "
        f"{results['unanswered']:,} of them left without an answer."
    ]
    if gain := results["gain"]:
        ends = [f"{100 * end:+.1f}" for end in gain["interval"] or []]
        interval = f" ({' to '.join(ends)})" if ends else ""
        sentences.append(f"{100 * gain['accuracy']:+.1f} points{interval} over the {FLOOR_NAMES[gain['over']]}.")
    for name, floor in results["floors"].items():
        if floor["num_questions"] != results["num_questions"]:
            sentences.append(f"{FLOOR_NAMES[name].capitalize()}: on {floor['num_questions']:,} questions.")
    sentences.append("Intervals are bootstrapped over images, or exact where all of them are alike.")
    if results["command"]:
        sentences.append(f"\n\n`{results['command']}`")
    return " ".join(sentences).replace(" \n\n", "\n\n")


def _percent(share: float, interval: Sequence[float] | None = None) -> str:
    text = f"{100 * share:.1f}"
    return f"{text} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else text


def file_stem(task: str, split: str) -> str:
    """What the files of a report are called, whatever characters the names of task and split have."""
    return re.sub(r"[^\w.-]+", "-", f"{task}-{split}")


def save_report(results: Mapping[str, Any], folder: str | os.PathLike) -> dict[str, Path]:
    """
    Writes results as `<task>-<split>.json`, `.md` (the table) and `.png` (the chart), each whole or not at all.

    Args:
        results (`dict`): from [`evaluate_questions`].
        folder (`str`): made if it does not exist.

    Returns:
        `dict[str, Path]`: the files, by `"json"`, `"md"` and `"png"`.

    Raises:
        ImportError: if matplotlib is not installed; the JSON and the table are written all the same.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(results["task"], results["split"])
    files = {suffix: folder / f"{name}.{suffix}" for suffix in ("json", "md", "png")}
    write_text_atomically(files["json"], json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text_atomically(files["md"], report_markdown(results))
    draw_report(results, files["png"])
    return files


__all__ = ["FLOORS", "evaluate_questions", "file_stem", "report_markdown", "save_report"]
