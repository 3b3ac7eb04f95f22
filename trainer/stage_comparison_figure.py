"""The figures of a comparison of arms: their scores and differences beside the floors, and how they were trained."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration.optional import require
from ..evaluation.seed_replicates import AVERAGE
from .stage_comparison_jobs import arm_job, stage_job
from .study_figure import FLOOR_LABELS, FLOOR_STYLES, save_figure

LOGGED = {
    "loss": "training loss",
    "loss_lm": "loss of text (nats per token)",
    "loss_vm": "loss of images (nats per visual token)",
    "visual_perplexity": "perplexity of visual tokens",
    "visual_entropy": "entropy of visual tokens (nats)",
    "punctuation_share": "most probable word\na punctuation mark (%)",
}
"""What curves are drawn of, as it is logged, and what it is called."""

_LOGARITHMIC = ("loss", "loss_lm", "loss_vm", "visual_perplexity")
_LOGARITHMIC_FROM = 4.0  # times the least value; with less, a scale of that kind has hardly a number
_MARKS = {"o": "score, 95 % interval", ".": "its seeds", "x": "other images", "+": "blank images"}
_SHARED, _UNCLEAR, _GRID = "#303030", "#909090", "#ececec"
_LETTERS_PER_INCH = 8  # of a title


def draw_comparison(found: Mapping[str, Any], path: Path) -> None:
    """
    Draws the scores of all arms, a panel for each task: dots with 95 % intervals and the score of each seed, crosses
    where the same models are shown other images, plus signs where they are shown blank ones, lines at the floors.
    Below are the paired differences between arms, grey where the interval holds zero.

    Args:
        found (`dict`): from [`collect_comparison`].
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    arms, differences = found["arms"], found["differences"]
    measures = [*found["tasks"], *([AVERAGE] if len(found["tasks"]) > 1 else [])]
    heights = [len(arms), *([len(differences)] if differences else [])]
    figure = require("matplotlib.figure", "draw").Figure(
        figsize=(3.2 + 3.1 * len(measures), 1.9 + 0.9 * (len(heights) - 1) + 0.55 * sum(heights)), layout="constrained"
    )
    panels = figure.subplots(len(heights), len(measures), squeeze=False, sharey="row", height_ratios=heights)
    handles: dict[str, Any] = {}
    for axes, measure in zip(panels[0], measures):
        handles |= _draw_scores(axes, found, measure)
        axes.set_title(_title(found, measure), fontsize=13)
        axes.set_xlabel("right answers (%)", fontsize=12)
    _name_rows(panels[0, 0], [arm["label"] for arm in arms.values()])
    if differences:
        for axes, measure in zip(panels[1], measures):
            if axes is not panels[1, 0]:
                axes.sharex(panels[1, 0])  # so that intervals of all tasks have the same scale
            handles |= _draw_differences(axes, [one[measure] for one in differences])
        pairs = [[arms[arm]["label"] for arm in one["arms"]] for one in differences]
        _name_rows(panels[1, 0], [f"{first}\n− {second}" for first, second in pairs])
    figure.get_layout_engine().set(w_pad=0.1)
    _finish(figure, found["title"], handles, 3 if len(measures) > 1 else 2, path)


def _title(found: Mapping[str, Any], measure: str) -> str:
    return measure if measure == AVERAGE else f"{measure} ({found['tasks'][measure]:,} questions)"


def _draw_scores(axes: Any, found: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Draws a task; returns what the legend explains, by its label."""
    marks: set[str] = set()
    tasks = list(found["tasks"]) if measure == AVERAGE else [measure]
    for height, arm in enumerate(found["arms"].values()):
        colour, estimate = f"C{height}", arm["scores"][measure]
        _draw_estimate(axes, estimate, height, colour)
        if len(estimate["seeds"]) > 1:
            places = [height + 0.22] * len(estimate["seeds"])
            axes.plot(estimate["seeds"], places, ".", color=colour, alpha=0.6, markersize=6)
            marks.add(".")
        blank = [arm["floors"][task].get("blank_images") for task in tasks]
        for mark, values in (("x", [arm["shuffled"][task] for task in tasks]), ("+", blank)):
            if None not in values:
                axes.plot(_mean(values), height, mark, color=colour, markersize=8, alpha=0.8)
                marks.add(mark)
    # No arm's colour in the legend: marks mean the same of all.
    handles: dict[str, Any] = {
        label: axes.plot([], [], mark, color="black")[0] for mark, label in _MARKS.items() if mark in {"o", *marks}
    }
    first = next(iter(found["arms"].values()))
    for floor, (colour, style) in FLOOR_STYLES.items():
        values = [first["floors"][task].get(floor) for task in tasks]
        if None not in values:
            line = axes.axvline(_mean(values), color=colour, linestyle=style, linewidth=1.6, zorder=1.5)
            handles[FLOOR_LABELS[floor]] = line
    _tidy(axes, len(found["arms"]))
    return handles


def _draw_differences(axes: Any, estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Draws a task; returns what the legend explains, by its label."""
    handles: dict[str, Any] = {}
    axes.axvline(0, color="#8a8a8a", linewidth=1.2, zorder=1.5)
    for height, estimate in enumerate(estimates):
        is_clear = estimate["low"] is not None and (estimate["low"] > 0 or estimate["high"] < 0)
        _draw_estimate(axes, estimate, height, "black" if is_clear else _UNCLEAR)
        if not is_clear:
            (handles["difference that may be none"],) = axes.plot([], [], "o", color=_UNCLEAR)
        told = f"{round(estimate['value'], 1) + 0.0:+.1f}".replace("-", "−")
        above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 11}
        axes.annotate(told, (estimate["value"], height), **above)
    axes.set_xlabel("difference (points)", fontsize=12)
    axes.margins(x=0.12)
    _tidy(axes, len(estimates))
    return handles


def _draw_estimate(axes: Any, estimate: Mapping[str, Any], height: float, colour: str) -> Any:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    errors = None if low is None else [[max(value - low, 0)], [max(high - value, 0)]]
    return axes.errorbar(
        [value], [height], xerr=errors, fmt="o", color=colour, markersize=6, elinewidth=1.6, capsize=3
    )


def _tidy(axes: Any, num_rows: int) -> None:
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=11)


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=12)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finish(figure: Any, title: str, handles: Mapping[str, Any], num_columns: int, path: Path) -> None:
    wrapped = textwrap.fill(title, int(_LETTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle(wrapped, fontweight="bold", fontsize=14)
    figure.legend(
        handles.values(), handles.keys(), ncols=num_columns, loc="outside lower center", frameon=False, fontsize=12
    )
    save_figure(figure, path)


def has_curves(found: Mapping[str, Any]) -> bool:
    """Whether [`draw_trainings`] has anything to draw."""
    return any(found["logs"].values())


def draw_trainings(found: Mapping[str, Any], path: Path) -> None:
    """
    Draws what the trainings logged, a panel for each measure: the stages that the arms share one after the other, each
    as wide as the next whatever it took, and then the arms beside one another, thin lines for their seeds and a thick
    one for the mean.

    Args:
        found (`dict`): from [`collect_comparison`], with logs.
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    logged = {name for log in found["logs"].values() for name in log}
    measures = [name for name in LOGGED if name in logged and (name != "loss" or "loss_lm" not in logged)]
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = require("matplotlib.figure", "draw").Figure(
        figsize=(1 + 4.6 * columns, 1.3 + 3.3 * rows), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, measure in zip(panels, measures):
        handles |= _draw_measure(axes, found, measure)
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    _finish(figure, found["title"], handles, 1 + columns, path)


def _draw_measure(axes: Any, found: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """Draws a measure; returns what the legend explains, by its label."""
    handles: dict[str, Any] = {}
    parts: list[str] = []
    for stage in found["recipe"]["stages"]:
        if curve := _curve(found, stage_job(stage), measure):
            (handles["stage that the arms share"],) = axes.plot(len(parts) + curve.shares, curve.values, color=_SHARED)
            parts.append(f"{stage}\n{curve.num_steps:,} steps")
    num_steps = 0
    for number, (arm, entry) in enumerate(found["arms"].items()):
        jobs = [arm_job(arm, seed) for seed in entry["seeds"] if seed is not None]
        curves = [curve for curve in (_curve(found, job, measure) for job in jobs) if curve]
        for curve in curves:
            faint = {"alpha": 0.35, "linewidth": 0.8} if len(curves) > 1 else {}
            (line,) = axes.plot(len(parts) + curve.shares, curve.values, color=f"C{number}", **faint)
            num_steps = max(num_steps, curve.num_steps)
        if len(curves) > 1 and len({tuple(curve.shares) for curve in curves}) == 1:
            mean = np.mean([curve.values for curve in curves], axis=0)
            (line,) = axes.plot(len(parts) + curves[0].shares, mean, color=f"C{number}", linewidth=2)
        if curves:
            handles[entry["label"]] = line
    parts += [f"arms\n{num_steps:,} steps"] if num_steps else []
    _label_parts(axes, parts)
    axes.set_title(LOGGED[measure], fontsize=12)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if measure in _LOGARITHMIC and 0 < _LOGARITHMIC_FROM * axes.dataLim.y0 < axes.dataLim.y1:
        ticker = require("matplotlib.ticker", "draw")
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
    return handles


def _label_parts(axes: Any, parts: Sequence[str]) -> None:
    for border in range(1, len(parts)):
        axes.axvline(border, color="#b0b0b0", linewidth=0.8)
    axes.set_xticks([place + 0.5 for place in range(len(parts))], parts, fontsize=10)
    axes.set_xlim(0, len(parts))
    axes.tick_params(axis="x", length=0)


@dataclass(frozen=True)
class _Curve:
    """What a training logged of a measure, after which shares of its steps."""

    shares: np.ndarray
    values: np.ndarray
    num_steps: int


def _curve(found: Mapping[str, Any], job: str, measure: str) -> _Curve | None:
    logged = found["logs"].get(job, {}).get(measure)
    if logged is None:
        return None
    steps, values = map(np.asarray, logged)
    num_steps = max(found["trainings"][job]["steps"] or 0, int(steps[-1]))
    return _Curve(steps / num_steps, values * (100 if measure == "punctuation_share" else 1), num_steps)


__all__ = ["LOGGED", "draw_comparison", "draw_trainings", "has_curves"]
