"""The figures of a study: the scores of all models beside their floors, and attention maps with and without FD."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..configuration.optional import require
from ..evaluation.attention_maps import overlay
from ..evaluation.seed_replicates import AVERAGE
from ..evaluation.study_tasks import TASK_NAMES
from ..modeling.atomic_folder import write_bytes_atomically
from .study_plan import cell_job

COLOURS = {"frozen": "#1f6fb4", "tuned": "#d8741c"}
FLOOR_STYLES = {"majority": ("#9a9a9a", "-"), "question_only_prior": ("#5a5a5a", "--")}
FLOOR_LABELS = {"majority": "majority answer", "question_only_prior": "question-only prior"}
TITLES = {**TASK_NAMES, AVERAGE: "average"}
UNITS = {"caption": "CIDEr"}
ATTENTION_FILE = "attention.npz"


def draw_study(found: Mapping[str, Any], path: Path) -> None:
    """
    Draws the scores of all kinds of models, a panel for each task: dots with 95 % intervals, crosses where the same
    model is shown other scenes, and lines at the floors.

    Args:
        found (`dict`): from [`collect_study`].
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    figure_module = require("matplotlib.figure", "draw")
    measures = list(found["rows"][0]["scores"])
    names = [e["name"] for e in found["encoders"] if any(row["encoder"] == e["name"] for row in found["rows"])]
    labels = {encoder["name"]: encoder["label"] for encoder in found["encoders"]}
    figure = figure_module.Figure(figsize=(2.6 + 2.5 * len(measures), 1.9 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures):
        _draw_panel(axes, found, measure, names)
    panels[0].set_yticks(range(len(names)), [labels[name] for name in names])
    panels[0].invert_yaxis()
    figure.suptitle(found["title"], fontweight="bold", fontsize=11)
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )
    _save(figure, path)


def _draw_panel(axes, found, measure: str, names: list[str]) -> None:
    tunings = list(dict.fromkeys(row["tuning"] for row in found["rows"]))
    for place, tuning in enumerate(tunings):
        rows = [row for row in found["rows"] if row["tuning"] == tuning]
        heights = [names.index(row["encoder"]) + 0.22 * (place - (len(tunings) - 1) / 2) for row in rows]
        estimates = [row["scores"][measure] for row in rows]
        values = [estimate["value"] for estimate in estimates]
        errors = [
            [max(value - estimate["low"], 0) for value, estimate in zip(values, estimates)],
            [max(estimate["high"] - value, 0) for value, estimate in zip(values, estimates)],
        ]
        colour = COLOURS.get(tuning, "black")
        axes.errorbar(
            values, heights, xerr=errors, fmt="o", color=colour, markersize=4.5, elinewidth=1.2, capsize=2,
            label=f"tower {tuning}",
        )  # fmt: skip
        shuffled = [row["shuffled"][measure] for row in rows]
        axes.plot(shuffled, heights, "x", color=colour, alpha=0.6, markersize=4, label=f"{tuning}, shuffled images")
    for floor, (colour, style) in FLOOR_STYLES.items():
        if found["floors"]:
            of_tasks = {task: found["floors"][task][floor] for task in found["tasks"]}
            at = sum(of_tasks.values()) / len(of_tasks) if measure == AVERAGE else of_tasks[measure]
            axes.axvline(at, color=colour, linestyle=style, linewidth=1, label=FLOOR_LABELS[floor], zorder=1.5)
    axes.set_title(TITLES[measure], fontsize=10)
    axes.set_xlabel(UNITS.get(measure, "%") if measure != AVERAGE else "mean of the tasks", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_attention_figure(found: Mapping[str, Any], output: Path, path: Path) -> bool:
    """
    Draws the attention of one query in two heads over test scenes, with and without feature distillation (GVT, Figure
    3): a row for each teacher and each of its students, all frozen and of the first seed.

    Args:
        found (`dict`): from [`collect_study`].
        output (`Path`): folder of the study, whose cells keep the maps.
        path (`Path`): PNG file.

    Returns:
        `bool`: whether there was something to draw.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
        ValueError: if the recipe names a query or a head that there is not.
    """
    options, labels = found["recipe"]["attention"], {e["name"]: e["label"] for e in found["encoders"]}
    query, heads = options.get("query", 0), list(options.get("heads", (0, 1)))
    rows = {}
    for encoder in _teachers_and_students(found):
        seeds = [c["seed"] for c in found["cells"] if (c["encoder"], c["tuning"]) == (encoder, "frozen")]
        file = output / cell_job(encoder, "frozen", min(seeds)) / ATTENTION_FILE if seeds else None
        if file is not None and file.exists():
            rows[encoder] = np.load(file)
    if not rows:
        return False
    figure_module = require("matplotlib.figure", "draw")
    _check_choice(next(iter(rows.values()))["maps"], query, heads)
    num_scenes = min(len(row["maps"]) for row in rows.values())
    figure = figure_module.Figure(
        figsize=(1.9 + 1.25 * num_scenes * (1 + len(heads)), 0.9 + 1.32 * len(rows)), layout="constrained"
    )
    panels = figure.subplots(len(rows), num_scenes * (1 + len(heads)), squeeze=False)
    numbers = {row["encoder"]: row for row in found["attention"] if row["tuning"] == "frozen"}
    for of_row, (encoder, kept) in zip(panels, rows.items()):
        _draw_row(of_row, kept, query, heads, num_scenes, first=encoder == next(iter(rows)))
        told = numbers[encoder]
        of_row[0].text(
            -0.12, 0.5,
            f"{labels[encoder]}\n{told['head_divergence']['value']:.3f} bits\n"
            f"{100 * told['share_in_masks']['value']:.0f} % on objects",
            transform=of_row[0].transAxes, ha="right", va="center", fontsize=8,
        )  # fmt: skip
    area = numbers[next(iter(rows))]["mask_area"]
    figure.suptitle(
        f"Query {query + 1} in heads {' and '.join(str(head + 1) for head in heads)}. Beside: mean divergence between "
        f"heads, attention on objects (evenly spread: {100 * area:.0f} %), over all queries, heads and seeds",
        fontsize=8,
    )
    _save(figure, path)
    return True


def _draw_row(of_row, kept, query: int, heads: list[int], num_scenes: int, first: bool) -> None:
    for axes in of_row:
        axes.set_axis_off()
    for scene in range(num_scenes):
        image = Image.fromarray(kept["pixels"][scene])
        start = scene * (1 + len(heads))
        of_row[start].imshow(image)
        if first:
            of_row[start].set_title(f"scene {scene + 1}", fontsize=8)
        for place, head in enumerate(heads, start=1):
            attention = kept["maps"][scene, head, query]
            of_row[start + place].imshow(overlay(image, attention, float(attention.max())))
            if first:
                of_row[start + place].set_title(f"head {head + 1}", fontsize=8)


def _check_choice(maps: np.ndarray, query: int, heads: list[int]) -> None:
    _, num_heads, num_queries = maps.shape[:3]
    for what, value, limit in [("query", query, num_queries), *(("heads", head, num_heads) for head in heads)]:
        if not 0 <= value < limit:
            raise ValueError(f"attention.{what} of the study has {value}, but the resampler has {limit}, from 0.")


def _teachers_and_students(found: Mapping[str, Any]) -> list[str]:
    """Encoders that are drawn: each teacher, followed by its students; all of them where nothing was distilled."""
    students = [encoder for encoder in found["encoders"] if encoder["how"] == "distilled"]
    names = [encoder["name"] for encoder in found["encoders"]]
    if not students:
        return names
    teachers = list(dict.fromkeys(student["teacher"] for student in students))
    return list(
        dict.fromkeys(
            name
            for teacher in teachers
            for name in [teacher, *(student["name"] for student in students if student["teacher"] == teacher)]
        )
    )


def _save(figure, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    write_bytes_atomically(path, drawn.getvalue())


__all__ = ["draw_attention_figure", "draw_study"]
