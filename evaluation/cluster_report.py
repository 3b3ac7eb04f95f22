"""Cluster quality as a table, as a picture of tokens against objects, and as files."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically, write_text_atomically

FILE_NAME = "cluster_quality"
COLUMNS = {
    "ari": "ARI",
    "ari_objects": "ARI, objects alone",
    "iou": "IoU by patches",
    "pixel_iou": "IoU by pixels",
    "num_tokens": "tokens",
    "rank_correlation": "rank correlation",
}
NOTES = (
    "ARI: adjusted Rand index of clusters and objects, background being one, over all patches and over patches of "
    "objects alone. IoU: of each object the best with a cluster, over objects, on the grid of patches (objects that "
    "have most of no patch are left out) and in pixels, where the objects themselves have all that patches can reach. "
    "Rank correlation (Spearman): of the numbers of tokens and objects, where a method found the number itself."
)


def cluster_table(results: Mapping[str, Any]) -> str:
    """
    Cluster quality as a table of Markdown, with 95 % intervals.

    Args:
        results (`dict`): from [`measure_clusters`].
    """
    lines = ["| tokens by | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in results["rows"]:
        cells = " | ".join(_cell(row[name], 1 if name == "num_tokens" else 2) for name in COLUMNS)
        lines.append(f"| {row['label']} | {cells} |")
    return "\n".join(lines)


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return "–"
    shown = f"{estimate['value']:.{digits}f}"
    if not estimate["interval"]:
        return shown
    low, high = (f"{end:.{digits}f}" for end in estimate["interval"])
    return f"{shown} [{low}, {high}]"


def cluster_markdown(results: Mapping[str, Any]) -> str:
    """
    Cluster quality as a page.

    Args:
        results (`dict`): from [`measure_clusters`]; may have `model`, `annotations`, `picture` and `command`.
    """
    of_model = f" of `{results['model']}`" if results.get("model") else ""
    where = f" of `{results['annotations']}`" if results.get("annotations") else ""
    backgrounds = results.get("num_backgrounds")
    resampled = f"the {backgrounds} photographs behind them" if backgrounds else "whole images"
    cut = results["objects_out_of_sight"]
    out_of_sight = f" {cut} objects that the crop cuts away are left out." if cut else ""
    parts = [
        f"# Tokens and objects{of_model}",
        f"{results['num_images']:,} images{where}, {results['num_objects']:,} objects.{out_of_sight} In brackets: "
        f"95 % intervals, bootstrap of {results['num_resamples']} resamples of {resampled} (seed {results['seed']}).",
        cluster_table(results),
        *([f"![Tokens against objects]({results['picture']})"] if results.get("picture") else []),
        NOTES,
    ]
    if results.get("command"):
        parts.append(f"Written by `{results['command']}`.")
    return "\n\n".join(parts) + "\n"


def draw_token_counts(results: Mapping[str, Any], path: Path) -> None:
    """
    Draws tokens per image against the number of objects: of each number the mean, and from the tenth to the ninetieth
    percentile; a panel for each way to make tokens that finds their number itself, or else for the first. The dashed
    line is one token for each object and one for the background.

    Args:
        results (`dict`): from [`measure_clusters`].
        path (`Path`): PNG file.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    rows = [row for row in results["rows"] if row["rank_correlation"] is not None] or results["rows"][:1]
    figure = require("matplotlib.figure", "draw").Figure(figsize=(3.6 * len(rows) + 0.6, 3.8), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows):
        objects, tokens = (
            np.array([image[name] for image in results["images"][row["label"]]])
            for name in ("num_objects", "num_tokens")
        )
        numbers = np.unique(objects)
        of_number = [tokens[objects == number] for number in numbers]
        means = np.array([some.mean() for some in of_number])
        spread = np.abs(np.array([np.percentile(some, [10, 90]) for some in of_number]).T - means)
        axes.plot(numbers, numbers + 1, color="#8a8a8a", linestyle="--", linewidth=1)
        axes.errorbar(numbers, means, yerr=spread, fmt="o", capsize=3)
        axes.set_title(f"{row['label']}\nrank correlation {_cell(row['rank_correlation'], 2)}", fontsize=8)
        axes.set_xlabel("objects in the image")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("tokens: mean, 10 to 90 %")
    panels[0].set_ylim(bottom=0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    write_bytes_atomically(path, stream.getvalue())


def write_cluster_quality(results: Mapping[str, Any], folder: str | os.PathLike) -> list[Path]:
    """
    Writes cluster quality as `cluster_quality.json`, with every image, `cluster_quality.md`, and a picture of tokens
    against objects, `cluster_quality.png`.

    Args:
        results (`dict`): from [`measure_clusters`].
        folder (`str`): made if need be.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: if matplotlib is missing; names the extra.
    """
    files = [Path(folder) / f"{FILE_NAME}{ending}" for ending in (".json", ".md", ".png")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    write_text_atomically(files[1], cluster_markdown({**results, "picture": files[2].name}))
    draw_token_counts(results, files[2])
    return files


__all__ = ["cluster_markdown", "cluster_table", "draw_token_counts", "write_cluster_quality"]
