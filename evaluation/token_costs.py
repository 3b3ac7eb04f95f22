"""What visual tokens cost and what they are worth: FLOPs, prefill, a step of training and accuracy, side by side."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging

from ..modeling.atomic_folder import write_text_atomically
from .compute_costs import measure_costs
from .image_text_models import ImageTextModel

logger = logging.get_logger(__name__)

FILE_NAME = "token_costs"
COLUMNS = {
    "tokens": "visual tokens",
    "prefill_gflop": "prefill, GFLOP",
    "prefill_ms": "prefill, ms",
    "step_ms": "step of training, ms",
    "tokenizer_gflop": "tokenizer, GFLOP",
    "tokenizer_ms": "tokenizer, ms",
    "tower_gflop": "vision tower, GFLOP",
    "kv_kib": "key-value cache, KiB",
}
NOTES = (
    "FLOPs are counted by torch's FlopCounterMode (two for each multiplication with addition). Tokenizer: from patch "
    "features to what the language model reads. Prefill: the language model reads prompt and visual tokens that are "
    "there already. Step of training: its forward and backward, with everything trained but vision tower and visual "
    "tokenizer. Times are medians over rounds in which all take turns."
)


@dataclass(frozen=True)
class CostedModel:
    """
    A trained model whose visual tokens are to be costed.

    Args:
        label (`str`): what tables call it, such as `"resampler"`.
        path (`str`): folder or Hub id.
    """

    label: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "CostedModel":
        """
        One as it is written on a command line: `FOLDER`, or `LABEL=FOLDER`.

        Raises:
            ValueError: if label or folder is empty.
        """
        label, separator, path = text.rpartition("=")
        label = label if separator else Path(path).name
        if not label.strip() or not path.strip():
            raise ValueError(f"{text!r} names no model: write FOLDER, or LABEL=FOLDER.")
        return cls(label.strip(), path.strip())


def compare_costs(
    models: Sequence[CostedModel],
    images: Sequence[Image.Image],
    *,
    num_text_tokens: int = 32,
    rounds: int = 5,
    dtype: str = "auto",
    device: str = "cpu",
    reports: Sequence[str | os.PathLike] = (),
) -> dict[str, Any]:
    """
    Compares what the visual tokens of several trained models cost (SeTok, Table 5): all patches, a fixed number, soft
    or hard clusters, a resampler. All are in memory at once, and take turns: see [`measure_costs`].

    Args:
        models (`list[CostedModel]`): composed models of vistok, the first of them the one that ratios refer to.
        images (`list[PIL.Image.Image]`): RGB; costs are means over these.
        num_text_tokens (`int`, *optional*, defaults to 32): words of the prompt behind each image.
        rounds (`int`, *optional*, defaults to 5): how often each is timed, after a round that is not.
        dtype (`str`, *optional*, defaults to `"auto"`): of the models, by default as saved.
        device (`str`, *optional*, defaults to `"cpu"`): where they run.
        reports (`list[str]`, *optional*): folders with reports of `vistok evaluate`, or such files, whose scores are
            put beside the model that they name.

    Returns:
        `dict`: `rows`, for each model `label`, `model`, what [`measure_costs`] found, and `scores` (of each task
        `label`, `value` in its scale and `interval`); and `num_images`, `num_text_tokens`, `rounds`, `device`,
        `dtype`, `threads`.

    Raises:
        ValueError: if there are no models or images, labels repeat, or a model is none of vistok's composed ones.
        FileNotFoundError: if a report is missing.
    """
    labels = [model.label for model in models]
    if not models or len(set(labels)) < len(labels):
        raise ValueError(f"The models are called {', '.join(labels) or 'nothing'}: give some, with different labels.")
    if not images:
        raise ValueError("There are no images to measure costs on.")
    scores = _scores(models, reports)
    attention = "eager" if device.startswith("cpu") else None  # whose FLOPs are counted on every device
    loaded: dict[str, Any] = {}
    for model in models:
        one = ImageTextModel.from_pretrained(model.path, dtype, device, attention)
        if not one.is_composed:
            raise ValueError(
                f"{model.path} is no composed model of vistok, so its visual tokens cannot be told apart."
            )
        loaded[model.label] = (one.model, one.processor)
    costs = measure_costs(loaded, images, num_text_tokens, rounds, progress_bar=True, with_step=True)
    rows = [
        {"label": model.label, "model": model.path, **costs[model.label], "scores": scores[model.label]}
        for model in models
    ]
    return {
        "rows": rows,
        "num_images": len(images),
        "num_text_tokens": num_text_tokens,
        "rounds": rounds,
        "device": device,
        "dtype": str(loaded[labels[0]][0].dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _scores(models: Sequence[CostedModel], reports: Sequence[str | os.PathLike]) -> dict[str, dict[str, Any]]:
    """By label, the scores of reports that name the model's path."""
    found: dict[str, dict[str, Any]] = {model.label: {} for model in models}
    for file in _report_files(reports):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            metric = (report.get("measured_by") or [{"name": "accuracy", "label": "right", "scale": 100}])[0]
            score = {
                "label": f"{report['task']}, {metric['label']}",
                "value": metric["scale"] * report[metric["name"]],
                "interval": [metric["scale"] * end for end in report["interval"] or []] or None,
            }
            name = str(report["model"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no report of vistok evaluate, or a damaged one: {error!r}.") from error
        owners = [model for model in models if _same(model.path, name)]
        if not owners:
            logger.warning(f"{file} is of {name}, which is none of the models: it is left out.")
        for owner in owners:
            found[owner.label][score["label"]] = score
    return found


def _same(path: str, name: str) -> bool:
    return path == name or (
        Path(path).exists() and Path(name).exists() and Path(path).resolve() == Path(name).resolve()
    )


def _report_files(reports: Sequence[str | os.PathLike]) -> list[Path]:
    files: list[Path] = []
    for report in map(Path, reports):
        if report.is_dir():
            of_folder = [file for file in sorted(report.glob("*.json")) if file.stem != "summary"]
            if not of_folder:
                raise FileNotFoundError(f"{report} holds no report: expected JSON files that vistok evaluate wrote.")
            files += of_folder
        elif report.is_file():
            files.append(report)
        else:
            raise FileNotFoundError(f"There is no report {report}: name a folder or file that vistok evaluate wrote.")
    return files


def costs_markdown(results: Mapping[str, Any]) -> str:
    """
    Costs as a page: a row for each model, with ratios to the first.

    Args:
        results (`dict`): from [`compare_costs`]; may have `command`.
    """
    rows = results["rows"]
    tasks = list(dict.fromkeys(label for row in rows for label in row["scores"]))
    header = ["model", *COLUMNS.values(), *tasks]
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        cells = [row["label"], *(_cell(row, rows[0], name) for name in COLUMNS)]
        for task in tasks:
            score = row["scores"].get(task)
            ends = "–".join(f"{end:.1f}" for end in (score or {}).get("interval") or [])
            cells.append("–" if score is None else f"{score['value']:.1f}{f' ({ends})' if ends else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    timed = "CPU time" if results["device"].startswith("cpu") else "time"
    parts = [
        "# What visual tokens cost",
        f"{results['num_images']:,} images, each alone behind {results['num_text_tokens']} words, "
        f"{results['rounds']} rounds, {results['dtype']} on {results['device']} ({timed}, {results['threads']} "
        f"threads); ratios to {rows[0]['label']} in brackets.",
        "\n".join(lines),
        NOTES,
    ]
    if results.get("command"):
        parts.append(f"Written by `{results['command']}`.")
    return "\n\n".join(parts) + "\n"


def _cell(row: Mapping[str, Any], first: Mapping[str, Any], name: str) -> str:
    value = row[name]
    shown = f"{value:.1f}" if value >= 10 or name == "tokens" else f"{value:.2f}"
    return shown if row is first or not first[name] else f"{shown} ({value / first[name]:.2f})"


def write_costs(results: Mapping[str, Any], folder: str | os.PathLike) -> list[Path]:
    """
    Writes costs as `token_costs.json` and `.md`.

    Args:
        results (`dict`): from [`compare_costs`].
        folder (`str`): made if need be.

    Returns:
        `list[Path]`: the files.
    """
    files = [Path(folder) / f"{FILE_NAME}{ending}" for ending in (".json", ".md")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    write_text_atomically(files[1], costs_markdown(results))
    return files


__all__ = ["CostedModel", "compare_costs", "costs_markdown", "write_costs"]
