"""Cluster quality as a table, and as files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..modeling.atomic_folder import write_text_atomically

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
    "have most of no patch are left out) and in pixels. Rank correlation (Spearman): of the numbers of tokens and "
    "objects."
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
        results (`dict`): from [`measure_clusters`]; may have `model`, `annotations` and `command`.
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
        NOTES,
    ]
    if results.get("command"):
        parts.append(f"Written by `{results['command']}`.")
    return "\n\n".join(parts) + "\n"


def write_cluster_quality(results: Mapping[str, Any], folder: str | os.PathLike) -> list[Path]:
    """
    Writes cluster quality as `cluster_quality.json`, with every image, and `cluster_quality.md`.

    Args:
        results (`dict`): from [`measure_clusters`].
        folder (`str`): made if need be.

    Returns:
        `list[Path]`: the files.
    """
    files = [Path(folder) / f"{FILE_NAME}{ending}" for ending in (".json", ".md")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    write_text_atomically(files[1], cluster_markdown(results))
    return files


__all__ = ["cluster_markdown", "cluster_table", "write_cluster_quality"]
