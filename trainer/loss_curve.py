"""The loss curve of a run: its mean, and as a picture."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration.optional import require

COLORS = ("tab:blue", "tab:gray", "tab:olive", "tab:cyan", "tab:pink", "tab:brown")
"""Of the parts of the training loss."""


@dataclass(frozen=True)
class CurveLabels:
    """
    What a loss curve shows, and in which words.

    Args:
        loss (`str`): label of the axis of losses, with their unit.
        score (`str`): last part of the names of the evaluation's scores, as in `eval_<name>_<score>`.
        score_name (`str`): what the score is called.
        score_axis (`str`): label of its axis, with its unit.
        score_factor (`float`): from the score to this unit. The axis ends at this number.
        parts (`dict[str, str]`, *optional*): parts that the training loss is the sum of: what they are logged as, and
            what they are called. Those that were logged are shown in place of their sum.
    """

    loss: str
    score: str
    score_name: str
    score_axis: str
    score_factor: float
    parts: Mapping[str, str] = field(default_factory=dict)


def mean_training_loss(log_history: list[dict[str, Any]], default: float) -> float:
    """
    The training loss, averaged over all steps up to the last that was logged: also those before a run was
    interrupted, which the `train_loss` of `Trainer` leaves out.

    Args:
        log_history (`list[dict]`): the trainer's `state.log_history`.
        default (`float`): where no loss was logged.
    """
    total, before = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else default


def draw_loss_curve(log_history: list[dict[str, Any]], path: str | os.PathLike, labels: CurveLabels) -> None:
    """
    Draws training and evaluation loss, and the scores measured on the way, over steps.

    Args:
        log_history (`list[dict]`): the trainer's `state.log_history`.
        path (`str`): PNG file.
        labels ([`CurveLabels`]): what is shown.

    Raises:
        ImportError: if matplotlib is missing.
    """
    figure_module, ticker = require("matplotlib.figure", "train"), require("matplotlib.ticker", "train")
    figure = figure_module.Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot()
    parts = {key: name for key, name in labels.parts.items() if series(log_history, key)[0]}
    for color, (key, name) in zip(COLORS, (parts or {"loss": "training loss"}).items()):
        losses.plot(*series(log_history, key), color=color, linewidth=0.8, alpha=0.8, label=name)
    losses.set_xlabel("step")
    losses.set_ylabel(labels.loss)
    losses.set_yscale("log", subs=[])
    losses.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.grid(alpha=0.3)
    measured = [key for key in dict.fromkeys(key for entry in log_history for key in entry) if key.startswith("eval_")]
    for index, key in enumerate(key for key in measured if key.endswith("_loss")):
        label = f"{_source_name(key, '_loss')}: loss"
        losses.plot(*series(log_history, key), ":", marker="x", markersize=4, color=f"C{index + 1}", label=label)
    score_keys = [key for key in measured if key.endswith(f"_{labels.score}")]
    if score_keys:
        scores = losses.twinx()
        scores.set_ylabel(labels.score_axis)
        scores.set_ylim(0, 1.01 * labels.score_factor)
    for index, key in enumerate(score_keys):
        label = f"{_source_name(key, f'_{labels.score}')}: {labels.score_name}"
        steps, values = series(log_history, key)
        scaled = [labels.score_factor * value for value in values]
        scores.plot(steps, scaled, marker="o", markersize=3, color=f"C{index + 1}", label=label)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    temporary = Path(path).with_suffix(".part")
    temporary.write_bytes(drawn.getvalue())
    os.replace(temporary, path)


def series(log_history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of what was logged under a name."""
    entries = [entry for entry in log_history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _source_name(key: str, suffix: str) -> str:
    return key.removeprefix("eval").removesuffix(suffix).strip("_") or "evaluation"


__all__ = ["CurveLabels", "draw_loss_curve", "mean_training_loss", "series"]
