"""The figures of a study: the scores of all models beside their floors, and attention maps with and without FD."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..configuration.optional import require
from ..evaluation.attention_maps import COLOR_MAP, overlay
from ..evaluation.seed_replicates import AVERAGE
from ..evaluation.study_tasks import TASK_NAMES
from ..modeling.atomic_folder import write_bytes_atomically
from .study_plan import ATTENTION, cell_job
from .study_tables import labels_of, teachers_and_students, tunings_of

COLOURS = {"frozen": "#1f6fb4", "tuned": "#d8741c"}
FLOOR_STYLES = {"majority": ("#8a8a8a", "-"), "question_only_prior": ("#4a4a4a", "--")}
FLOOR_LABELS = {"majority": "majority answer", "question_only_prior": "question-only prior"}
TITLES = {**TASK_NAMES, AVERAGE: "average"}
UNITS = {"caption": "CIDEr"}
ATTENTION_FILE = "attention.npz"
_FAR = 0.6  # a floor further from the scores than this share of their range is not drawn to scale


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
    figure = figure_module.Figure(figsize=(2.4 + 2.1 * len(measures), 1.9 + 0.5 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, measure in zip(panels, measures):
        handles |= _draw_panel(axes, found, measure, names)
    labels = labels_of(found)
    panels[0].set_yticks(range(len(names)), [labels[name] for name in names], fontsize=12)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(found["title"], fontweight="bold", fontsize=15)
    order = sorted(handles, key=lambda label: ("shuffled" in label) + 2 * (label in FLOOR_LABELS.values()))
    figure.legend(
        [handles[label] for label in order], order, loc="outside lower center", ncols=3, frameon=False, fontsize=12
    )
    save_figure(figure, path)


def _draw_panel(axes, found, measure: str, names: list[str]) -> dict[str, Any]:
    """Draws a task; returns what the legend explains, by its label."""
    handles, reached = {}, []
    tunings = tunings_of(found)
    for place, tuning in enumerate(tunings):
        rows = [row for row in found["rows"] if row["tuning"] == tuning]
        heights = [names.index(row["encoder"]) + 0.3 * (place - (len(tunings) - 1) / 2) for row in rows]
        estimates = [row["scores"][measure] for row in rows]
        values = [estimate["value"] for estimate in estimates]
        ends = [(e["value"], e["value"]) if e["low"] is None else (e["low"], e["high"]) for e in estimates]
        errors = [
            [max(value - low, 0) for value, (low, _) in zip(values, ends)],
            [max(high - value, 0) for value, (_, high) in zip(values, ends)],
        ]
        colour = COLOURS.get(tuning, "black")
        handles[f"tower {tuning}"] = axes.errorbar(
            values, heights, xerr=errors, fmt="o", color=colour, markersize=6, elinewidth=1.6, capsize=3
        )
        shuffled = [row["shuffled"][measure] for row in rows]
        (crosses,) = axes.plot(shuffled, heights, "x", color=colour, alpha=0.7, markersize=6)
        handles[f"{tuning}, shuffled images"] = crosses
        reached += [*shuffled, *(end for both in ends for end in both)]
    _draw_floors(axes, found, measure, (min(reached), max(reached)), handles)
    axes.set_title(TITLES[measure], fontsize=14)
    axes.set_xlabel(UNITS.get(measure, "%") if measure != AVERAGE else "mean of the tasks", fontsize=12)
    axes.tick_params(axis="x", labelsize=11)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _draw_floors(axes, found, measure: str, reached: tuple[float, float], handles: dict[str, Any]) -> None:
    """Lines at the floors; one far outside the scores is named at the edge, with an arrow."""
    lowest, highest = reached
    span, far = max(highest - lowest, 5.0), 0
    inside = [lowest, highest]
    for floor, (colour, style) in FLOOR_STYLES.items():
        if not found["floors"]:
            continue
        of_tasks = {task: found["floors"][task][floor] for task in found["tasks"]}
        at = sum(of_tasks.values()) / len(of_tasks) if measure == AVERAGE else of_tasks[measure]
        if lowest - _FAR * span <= at <= highest + _FAR * span:
            inside.append(at)
        else:
            right = at > highest
            axes.annotate(
                f"{at:.0f} →" if right else f"← {at:.0f}", (0.99 if right else 0.01, 0.03 + 0.09 * far),
                xycoords="axes fraction", ha="right" if right else "left", color=colour, fontsize=11,
                fontweight="bold" if style == "--" else "normal",
            )  # fmt: skip
            far += 1
            at = np.nan  # for the legend alone
        handles[FLOOR_LABELS[floor]] = axes.axvline(at, color=colour, linestyle=style, linewidth=1.6, zorder=1.5)
    axes.set_xlim(min(inside) - 0.06 * span, max(inside) + 0.06 * span)


def attention_files(found: Mapping[str, Any], output: Path) -> dict[str, Path]:
    """
    The maps that can be drawn: of each teacher and its students, or of all encoders where nothing was distilled, those
    of the frozen tower and the first seed.

    Args:
        found (`dict`): from [`collect_study`].
        output (`Path`): folder of the study.
    """
    files = {}
    measured = {row["encoder"] for row in found["attention"] if row["tuning"] == "frozen"}
    for encoder in teachers_and_students(found) or list(labels_of(found)):
        seeds = [c["seed"] for c in found["cells"] if (c["encoder"], c["tuning"]) == (encoder, "frozen")]
        places = [output / cell_job(encoder, "frozen", seed, ATTENTION) / ATTENTION_FILE for seed in sorted(seeds)]
        if encoder in measured and (there := [place for place in places if place.exists()]):
            files[encoder] = there[0]
    return files


def draw_attention_figure(found: Mapping[str, Any], output: Path, path: Path) -> None:
    """
    Draws the attention of one query in some heads over test scenes, with and without feature distillation (GVT, Figure
    3): a row for each teacher and each of its students, and outlines around the objects. Colours mean the same in all
    maps of a scene.

    Args:
        found (`dict`): from [`collect_study`].
        output (`Path`): folder of the study, whose cells keep the maps (see [`attention_files`]).
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
        ValueError: if there are no maps, or not those of the query or a head that the recipe names.
    """
    options, labels = found["recipe"]["attention"], labels_of(found)
    query, heads = options.get("query", 0), list(options.get("heads", (0, 1)))
    rows = {encoder: np.load(file) for encoder, file in attention_files(found, output).items()}
    if not rows:
        raise ValueError(f"No attention maps of frozen towers lie in {output}: there is nothing to draw.")
    figure_module = require("matplotlib.figure", "draw")
    _check_choice(next(iter(rows.values()))["maps"], query, heads)
    num_scenes = min(options.get("shown", 3), *(len(row["maps"]) for row in rows.values()))
    width = num_scenes * (1 + len(heads))
    figure = figure_module.Figure(figsize=(2.6 + 1.6 * width, 1.7 + 1.75 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), width, squeeze=False)
    numbers = {row["encoder"]: row for row in found["attention"] if row["tuning"] == "frozen"}
    highest = [
        max(float(row["maps"][scene, heads, query].max()) for row in rows.values()) for scene in range(num_scenes)
    ]
    for of_row, (encoder, kept) in zip(panels, rows.items()):
        _draw_row(of_row, kept, query, heads, highest, first=encoder == next(iter(rows)))
        told = numbers[encoder]
        of_row[0].text(
            -0.1, 0.5,
            f"{labels[encoder]}\n{told['head_divergence']['value']:.3f} bits\n"
            f"{100 * told['share_in_masks']['value']:.0f} % on objects",
            transform=of_row[0].transAxes, ha="right", va="center", fontsize=12,
        )  # fmt: skip
    area = numbers[next(iter(rows))]["mask_area"]
    figure.suptitle(
        f"Query {query} in heads {' and '.join(str(head) for head in heads)}. Beside: mean divergence between heads, "
        f"attention on objects (evenly spread: {100 * area:.0f} %),\nover all scenes, queries, heads and seeds. "
        "White: outlines of the objects",
        fontsize=13,
    )
    _draw_colour_bar(figure, panels)
    save_figure(figure, path)


def _draw_row(of_row, kept, query: int, heads: list[int], highest: list[float], first: bool) -> None:
    for axes in of_row:
        axes.set_axis_off()
    for scene, most in enumerate(highest):
        image, objects = Image.fromarray(kept["pixels"][scene]), kept["objects"][scene]
        start = scene * (1 + len(heads))
        of_row[start].imshow(image)
        if first:
            of_row[start].set_title(f"scene {scene + 1}", fontsize=12)
        for place, head in enumerate(heads, start=1):
            attention = kept["maps"][scene, head, query].astype(np.float32)
            of_row[start + place].imshow(overlay(image, attention, most))
            for number in range(1, int(objects.max()) + 1):
                of_row[start + place].contour(objects == number, levels=[0.5], colors="white", linewidths=0.9)
            if first:
                of_row[start + place].set_title(f"head {head}", fontsize=12)


def _draw_colour_bar(figure, panels) -> None:
    """The colour of a map goes with the square root of the attention, from none to the most in any map of a scene."""
    mappable = require("matplotlib.cm", "draw").ScalarMappable(cmap=COLOR_MAP)
    bar = figure.colorbar(mappable, ax=panels, orientation="horizontal", shrink=0.5, aspect=50, pad=0.02)
    shares = (0, 0.1, 0.25, 0.5, 1)
    bar.set_ticks([share**0.5 for share in shares], labels=[f"{100 * share:g} %" for share in shares])
    bar.set_label("attention, of the most that any map of the same scene has (square-root scale)", fontsize=12)
    bar.ax.tick_params(labelsize=11)


def _check_choice(maps: np.ndarray, query: int, heads: list[int]) -> None:
    _, num_heads, num_queries = maps.shape[:3]
    for what, value, limit in [("query", query, num_queries), *(("heads", head, num_heads) for head in heads)]:
        if not 0 <= value < limit:
            raise ValueError(f"attention.{what} of the study has {value}, but the resampler has {limit}, from 0.")


def save_figure(figure: Any, path: Path) -> None:
    """
    Writes a figure of matplotlib whole or not at all.

    Args:
        figure (`matplotlib.figure.Figure`): what was drawn.
        path (`Path`): PNG file.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    write_bytes_atomically(path, drawn.getvalue())


__all__ = ["FLOOR_LABELS", "FLOOR_STYLES", "attention_files", "draw_attention_figure", "draw_study", "save_figure"]
