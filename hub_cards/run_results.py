"""The `results.json` beside a model: what a run recorded, the evaluations since, and what the card is written from."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from ..modeling.atomic_folder import write_text_atomically
from .published_text import published_values

RESULTS_NAME = "results.json"

# The order in which they are written; further keys come behind `evaluation`, in the order of the alphabet.
_RUN_KEYS = ("command", "steps", "epochs", "train_loss", "train_seconds")
_FIRST_KEYS = (*_RUN_KEYS, "environment", "parameters", "skipped_samples", "metrics", "recipe", "card", "evaluation")
_LAST_KEYS = ("log_history",)


def read_results(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Reads the results beside a model.

    Args:
        folder (`str`): a folder that a training wrote.

    Returns:
        `dict`: empty where there is no `results.json`.

    Raises:
        ValueError: if the file is no JSON object.
    """
    path = Path(folder) / RESULTS_NAME
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): repair it, or delete it and train again.") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds a {type(results).__name__}, expected a JSON object of a run's results.")
    return results


def merge_results(folder: str | os.PathLike, values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Adds values to the results beside a model and writes them, whole or not at all, as valid JSON that names no folder
    of this machine and holds no credentials.

    Evaluations are added to the recorded ones; one of the same task, split and number of questions takes the place of
    the former. Results of another run (another command, loss, number of steps or duration) replace everything: what
    was measured of other weights does not stay.

    Args:
        folder (`str`): folder of a model.
        values (`Mapping`): what a training returned (`command`, `recipe`, `steps`, `train_loss` …), `evaluation` (a
            list of reports), or anything else to record.

    Returns:
        `dict`: all results, as they stand in the file.

    Raises:
        ValueError: if the present `results.json` is no JSON object.
    """
    recorded = published_values(read_results(folder))
    values = published_values(values)
    if any(values[key] != recorded[key] for key in _RUN_KEYS if key in values and key in recorded):
        recorded = {}
    merged = {**recorded, **values}
    if "evaluation" in merged:
        reports = [*recorded.get("evaluation", []), *values.get("evaluation", [])]
        merged["evaluation"] = list({_identity(report): report for report in reports}.values())
    first = [key for key in _FIRST_KEYS if key in merged]
    last = [key for key in _LAST_KEYS if key in merged]
    ordered = {key: merged[key] for key in [*first, *sorted(set(merged) - {*first, *last}), *last]}
    text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(Path(folder) / RESULTS_NAME, text + "\n")
    return ordered


def run_environment() -> dict[str, str]:
    """
    What a run runs on, for its results: hardware, memory used of it, and the versions that decide on numbers.

    Returns:
        `dict[str, str]`: `hardware`, `software` and, on GPUs, `peak memory`.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        count = processes if processes > 1 else 1
        hardware = f"{count} × {torch.cuda.get_device_name()}"
    else:
        hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
        hardware += f", {processes} processes" if processes > 1 else ""
    environment = {"hardware": hardware}
    if torch.cuda.is_available():
        environment["peak memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB per GPU"
    environment["software"] = (
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return environment


def _identity(report: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(report.get(key) for key in ("task", "split", "num_questions"))


__all__ = ["RESULTS_NAME", "merge_results", "read_results", "run_environment", "write_text_atomically"]
