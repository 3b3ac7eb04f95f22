"""The chart of a report: accuracy per type of question, beside the floors."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically

FLOOR_NAMES = {
    "majority": "majority answer",
    "question_only_prior": "question-only prior",
    "blank_images": "blank images",
    "shuffled_images": "shuffled images",
}
MODEL_COLOUR = "#1f6fb4"
FLOOR_COLOURS = {
    "majority": "#d9d9d9",
    "question_only_prior": "#a6a6a6",
    "blank_images": "#f3c99b",
    "shuffled_images": "#e08e3c",
}
BAR_WIDTH = 0.16
SUBTITLE = "Beside this model: answers found without the image. 95 % intervals over images."


def draw_report(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """
    Draws accuracies as bars with their 95 % intervals: a group for all questions and one for each type.

    Args:
        results (`dict`): from [`evaluate_questions`].
        path (`str`): PNG file.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    figure_module = require("matplotlib.figure", "draw")
    kinds = list(results.get("per_type", {}))
    groups = ["all questions", *kinds]
    series = {"this model": _series(results, kinds)}
    series |= {FLOOR_NAMES[name]: _series(floor, kinds) for name, floor in results["floors"].items()}
    colours = [MODEL_COLOUR, *(FLOOR_COLOURS[name] for name in results["floors"])]
    figure = figure_module.Figure(figsize=(max(7.0, 1.6 + 2.0 * len(groups)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (label, measured) in enumerate(series.items()):
        offset = (place - (len(series) - 1) / 2) * BAR_WIDTH
        _draw_bars(axes, measured, offset, colours[place], label, bold=place == 0)
    axes.set_xticks(range(len(groups)), [_label(name, m) for name, m in zip(groups, series["this model"])])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("right answers (%)")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if kinds:
        axes.axvline(0.5, color="#bdbdbd", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_title(f"{results['task']}, {results['split']} split", loc="left", fontweight="bold", pad=20)
    axes.text(0, 1.02, SUBTITLE, transform=axes.transAxes, fontsize=8.5, color="#606060")
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False, fontsize=9, handlelength=1.2)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    write_bytes_atomically(Path(path), drawn.getvalue())


def _series(measured: Mapping[str, Any], kinds: list[str]) -> list[Mapping[str, Any] | None]:
    per_type = measured.get("per_type", {})
    return [measured, *(per_type.get(kind) for kind in kinds)]


def _label(name: str, measured: Mapping[str, Any] | None) -> str:
    return name if measured is None else f"{name}\nn = {measured['num_questions']:,}"


def _draw_bars(axes, measured, offset: float, colour: str, label: str, bold: bool) -> None:
    shown = [(place + offset, m) for place, m in enumerate(measured) if m is not None]
    places = [place for place, _ in shown]
    heights = [100 * m["accuracy"] for _, m in shown]
    ends = [[100 * end for end in m["interval"]] if m["interval"] else [h, h] for h, (_, m) in zip(heights, shown)]
    errors = [
        [max(h - low, 0) for h, (low, _) in zip(heights, ends)],
        [max(high - h, 0) for h, (_, high) in zip(heights, ends)],
    ]
    axes.bar(
        places, heights, BAR_WIDTH * 0.92, yerr=errors, color=colour, label=label,
        error_kw={"elinewidth": 1.0, "capsize": 2, "ecolor": "#404040"},
    )  # fmt: skip
    for place, height, (_, high) in zip(places, heights, ends):
        axes.annotate(
            f"{height:.1f}" if bold else f"{height:.0f}", (place, max(high, height)), (0, 2.5),
            textcoords="offset points", ha="center", va="bottom", fontsize=8.5 if bold else 7,
            fontweight="bold" if bold else "normal", color="#202020" if bold else "#606060",
        )  # fmt: skip


__all__ = ["FLOOR_NAMES", "draw_report"]
