"""The charts of reports: scores as bars beside the floors, per type of question or per task."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically

FLOOR_NAMES = {
    "majority": "majority answer",
    "question_only_prior": "question-only prior",
    "blank_images": "blank images",
    "shuffled_images": "shuffled images",
    "grid": "plain grid",
    "shuffled_expressions": "shuffled expressions",
    "whole_image": "whole image",
    "largest_cluster": "largest cluster",
    "shuffled_captions": "shuffled captions",
    "copied_source": "source as it is",
    "autoencoder": "autoencoder alone",
    "best_cluster": "best cluster",
    "best_token_mask": "best token's mask",
    "true_tokens": "true tokens",
    "targets": "true images",
}
"""What a score is compared with: floors, and ceilings, the last five."""
MODEL_COLOUR = "#1f6fb4"
FLOOR_COLOURS = {
    "majority": "#d9d9d9",
    "question_only_prior": "#a6a6a6",
    "blank_images": "#f3c99b",
    "shuffled_images": "#e08e3c",
    "grid": "#b8a6d9",
    "shuffled_expressions": "#e08e3c",
    "whole_image": "#d9d9d9",
    "largest_cluster": "#a6a6a6",
    "shuffled_captions": "#e08e3c",
    "copied_source": "#d9d9d9",
    "autoencoder": "#bfe0c2",
    "best_cluster": "#8cc896",
    "best_token_mask": "#bfe0c2",
    "true_tokens": "#8cc896",
    "targets": "#bfe0c2",
}
BAR_WIDTH = 0.16
SMALL = 3.0  # the height of an axis that has no percentages
LONGEST_LINE = 90  # characters
FAR = 0.06  # of the height of the axis
SUBTITLE = "Beside this model: answers found without the image. 95 % intervals over images."
IMAGES_SUBTITLE = "Beside this model: what it has to be better than, and what it could reach. 95 % intervals."
FEWEST_IMAGES = 5
"""A type of questions about fewer images is in the table and not in the chart."""
ACCURACY = {"name": "accuracy", "label": "right", "scale": 100.0, "higher_is_better": True}

Bars = list[tuple[float, Sequence[float] | None] | None]
"""Height and interval of a series in each group, or `None` where it has no bar."""


def metric_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What there is to know of the primary metric of results: `name`, `label`, `scale`, `higher_is_better`."""
    return (results.get("measured_by") or [ACCURACY])[0]


def floor_label(name: str, floor: Mapping[str, Any]) -> str:
    """What a floor is called: by results themselves, as the best constant caption is, or as always."""
    return floor.get("label") or FLOOR_NAMES[name]


def compared_with(results: Mapping[str, Any]) -> dict[str, Any]:
    """Floors of results, and ceilings where there are."""
    return {**results["floors"], **results.get("ceilings", {})}


def title_of(results: Mapping[str, Any]) -> str:
    """The name of a task, and of its split unless that is simply its test split."""
    return results["task"] if results["split"] == "test" else f"{results['task']}, {results['split']}"


def draw_report(results: Mapping[str, Any], path: str | os.PathLike, gains: Sequence[str] = ()) -> None:
    """
    Draws scores as bars with their 95 % intervals: a group for all questions and one for each type.

    Args:
        results (`dict`): from [`evaluate_task`].
        path (`str`): PNG file.
        gains (`list[str]`, *optional*): what to say below the title of gains over floors.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    metric = metric_of(results)
    kinds = [kind for kind, of in results.get("per_type", {}).items() if of["num_images"] >= FEWEST_IMAGES]

    def series(measured: Mapping[str, Any]) -> Bars:
        per_type = measured.get("per_type", {})
        return [_bar(metric, entry) for entry in (measured, *(per_type.get(kind) for kind in kinds))]

    entries = [results, *(results["per_type"][kind] for kind in kinds)]
    asked = f"all {results.get('asked', 'questions')}"
    labels = [f"{name}\nn = {entry['num_questions']:,}" for name, entry in zip((asked, *kinds), entries)]
    drawn = {"this model": (series(results), MODEL_COLOUR)}
    for name, floor in compared_with(results).items():
        drawn[floor_label(name, floor)] = (series(floor), FLOOR_COLOURS[name])
    unit = " (%)" if metric["scale"] == 100 and metric["name"] != "cider" else ""
    subtitle = IMAGES_SUBTITLE if "ceilings" in results else SUBTITLE
    _draw(
        drawn, labels, path, f"{results['task']}, {results['split']} split", [subtitle, *_lines(gains)],
        "right answers (%)" if metric["label"] == "right" else metric["label"] + unit, separate_first=bool(kinds),
    )  # fmt: skip


def _lines(gains: Sequence[str]) -> list[str]:
    """Gains in lines that are no longer than the figure is wide."""
    lines: list[str] = []
    for gain in gains:
        if lines and len(lines[-1]) + len(gain) < LONGEST_LINE:
            lines[-1] += f";  {gain}"
        else:
            lines.append(gain)
    return lines


def draw_summary(results: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """
    Draws the scores of several tasks as bars with their 95 % intervals: a group for each task.

    Args:
        results (`list[dict]`): from [`evaluate_task`].
        path (`str`): PNG file.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    labels = [
        f"{title_of(result)}\n{metric_of(result)['label']}, n = {result['num_questions']:,}" for result in results
    ]
    drawn = {"this model": ([_bar(metric_of(result), result) for result in results], MODEL_COLOUR)}
    for name in dict.fromkeys(name for result in results for name in compared_with(result)):
        bars = [_bar(metric_of(result), compared_with(result).get(name)) for result in results]
        drawn[FLOOR_NAMES[name]] = (bars, FLOOR_COLOURS[name])
    model = Path(str(results[0]["model"])).name or "The model"
    has_cider = any(metric_of(result)["name"] == "cider" for result in results)
    unit = "score (% of right answers; CIDEr)" if has_cider else "score (% of right answers)"
    _draw(drawn, labels, path, f"{model}: {len(results)} evaluations", [SUBTITLE], unit)


def _bar(metric: Mapping[str, Any], measured: Mapping[str, Any] | None):
    if measured is None or measured.get(metric["name"]) is None:
        return None
    interval = measured["interval"]
    return metric["scale"] * measured[metric["name"]], interval and [metric["scale"] * end for end in interval]


def _draw(
    series: Mapping[str, tuple[Bars, str]],
    labels: Sequence[str],
    path: str | os.PathLike,
    title: str,
    subtitles: Sequence[str],
    unit: str,
    separate_first: bool = False,
) -> None:
    figure_module = require("matplotlib.figure", "draw")
    figure = figure_module.Figure(figsize=(max(7.0, 1.6 + 2.0 * len(labels)), 4.8), layout="constrained")
    axes = figure.add_subplot()
    highest = max((bar[1][1] if bar[1] else bar[0] for bars, _ in series.values() for bar in bars if bar), default=100)
    top = 108 if "%" in unit and highest <= 100 else max(1.15 * highest, 1)
    for place, (label, (bars, colour)) in enumerate(series.items()):
        offset = (place - (len(series) - 1) / 2) * BAR_WIDTH
        _draw_bars(axes, bars, offset, colour, label, bold=place == 0, top=top)
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(0, top)
    if highest <= 100 and "%" in unit:
        axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(unit)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if separate_first:
        axes.axvline(0.5, color="#bdbdbd", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_title(title, loc="left", fontweight="bold", pad=8 + 12 * len(subtitles))
    axes.text(0, 1.02, "\n".join(subtitles), transform=axes.transAxes, fontsize=8.5, color="#606060", va="bottom")
    figure.legend(
        loc="outside lower center",
        ncols=len(series) if len(series) <= 5 else 3,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    write_bytes_atomically(Path(path), drawn.getvalue())


def _height(height: float, bold: bool, top: float) -> str:
    if top < SMALL:  # no percentages
        return f"{height:.3f}" if bold else f"{height:.2f}"
    return f"{height:.1f}" if bold else f"{height:.0f}"


def _draw_bars(axes, bars: Bars, offset: float, colour: str, label: str, bold: bool, top: float) -> None:
    shown = [(place + offset, *bar) for place, bar in enumerate(bars) if bar is not None]
    places, heights = [place for place, _, _ in shown], [height for _, height, _ in shown]
    ends = [interval or [height, height] for _, height, interval in shown]
    errors = [
        [max(h - low, 0) for h, (low, _) in zip(heights, ends)],
        [max(high - h, 0) for h, (_, high) in zip(heights, ends)],
    ]
    axes.bar(
        places, heights, BAR_WIDTH * 0.92, yerr=errors if shown else None, color=colour, label=label,
        error_kw={"elinewidth": 1.0, "capsize": 2, "ecolor": "#404040"},
    )  # fmt: skip
    for place, height, (_, high) in zip(places, heights, ends):
        # Above the interval, unless that reaches far up: the number would seem to be the height up there.
        is_far = high - height > FAR * top
        axes.annotate(
            _height(height, bold, top), (place, height if is_far else max(high, height)), (0, 2.5),
            textcoords="offset points", ha="center", va="bottom", fontsize=8.5 if bold else 7, zorder=5,
            fontweight="bold" if bold else "normal", color="#202020" if bold else "#606060",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"} if is_far else None,
        )  # fmt: skip


__all__ = ["FLOOR_NAMES", "compared_with", "draw_report", "draw_summary", "floor_label", "metric_of", "title_of"]
