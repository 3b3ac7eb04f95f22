"""Pictures of what was written: examples in rows, conditions in columns."""

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically
from ..processing.images import load_example_images, load_image
from .image_tasks import ImageTask
from .report_figure import FLOOR_NAMES
from .token_pictures import token_colour
from .written_images import Examples, WrittenImage

TITLES = {"given": "this model", "targets": "true"}
CELL, TEXT = 1.5, 2.4  # inches
MASK_COLOUR = (255, 60, 0)
TINT = 0.6  # of the colour of a token
FAINT = 0.35  # of what lies outside a mask


def draw_pictures(
    task: ImageTask,
    examples: Examples,
    written: Mapping[str, Sequence[WrittenImage]],
    path: str | os.PathLike,
    num_shown: int = 12,
    fewer: Sequence[int] | None = None,
) -> None:
    """
    Draws examples that are spread evenly over all: what is asked, what is right, the tokens of an image that is
    drawn again, what was written, and what was written for every floor and ceiling. Through masks the image is seen.

    Args:
        task ([`ImageTask`]): that was evaluated.
        examples (`list[dict]`): what was asked.
        written (`dict`): images of each condition.
        path (`str`): PNG file.
        num_shown (`int`, *optional*, defaults to 12): rows.
        fewer (`list[int]`, *optional*): the examples that floors and ceilings were written for; all by default.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    figure_module = require("matplotlib.figure", "draw")
    names = [name for name in ("targets", "given") if name in written]
    names += [name for name in written if name not in names]
    pool = list(range(len(examples))) if fewer is None else list(fewer)
    of_row = {
        name: {row: images[row] for row in pool} if len(images) == len(examples) else dict(zip(pool, images))
        for name, images in written.items()
    }
    places = np.linspace(0, len(pool) - 1, min(num_shown, len(pool))).round().astype(int)
    rows = [pool[place] for place in np.unique(places)]
    shows_tokens = all("assignment" in of_row["given"][row].facts for row in rows)
    text = TEXT if any(example.get("text") for example in examples) else TEXT / 3
    columns = [text / CELL, *[1] * (1 + shows_tokens + len(names))]
    size = CELL * sum(columns), 0.5 + CELL * len(rows)
    figure = figure_module.Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, width_ratios=columns)
    for cells, row in zip(grid, rows):
        shown = load_example_images(examples[row])[0]
        cells[0].text(0, 0.5, _text(examples[row], of_row, row), fontsize=7, va="center", transform=cells[0].transAxes)
        pictures: list[Any] = [None if task.name == "generation" else shown]
        if shows_tokens:
            pictures.append(_tokens(of_row["given"][row].facts, shown))
        for name in names:
            image = of_row[name][row]
            pictures.append(image.image() if task.has_pictures else _seen_through(image, shown))
        for cell, picture in zip(cells[1:], pictures):
            if picture is not None:
                cell.imshow(picture, interpolation="nearest")
    titles = ["", "" if task.name == "generation" else "shown", *(["tokens"] if shows_tokens else [])]
    titles += [TITLES.get(name, FLOOR_NAMES.get(name, name)) for name in names]
    for cell, title in zip(grid[0], titles):
        cell.set_title("\n".join(textwrap.wrap(title, 16)), fontsize=7)
    for cell in grid.flat:
        cell.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes_atomically(Path(path), drawn.getvalue())


def _text(example: Mapping[str, Any], written: Mapping[str, Mapping[int, WrittenImage]], row: int) -> str:
    lines = textwrap.wrap(str(example.get("text") or ""), 34)
    tokens = [
        f"{label} {written[name][row].facts['num_tokens']} tokens"
        for name, label in (("given", "wrote" if example.get("text") else "has"), ("true_tokens", "true image:"))
        if name in written and "num_tokens" in written[name][row].facts
    ]
    return "\n".join([*lines, *tokens])


def _tokens(facts: Mapping[str, Any], shown: Image.Image) -> Image.Image:
    """The image behind the colours of its tokens."""
    height, width = facts["grid_size"]
    colours = np.array([token_colour(number) for number in facts["assignment"]], dtype=np.uint8)
    map_of = Image.fromarray(colours.reshape(height, width, 3)).resize(shown.size, Image.Resampling.NEAREST)
    return Image.blend(shown.convert("RGB"), map_of, TINT)


def _seen_through(mask: WrittenImage, shown: Image.Image) -> np.ndarray:
    inside = (np.asarray(load_image(mask.file).convert("L")) >= 128)[..., None]
    pixels = np.asarray(shown.convert("RGB"), dtype=np.float64)
    tinted = 0.7 * pixels + 0.3 * np.array(MASK_COLOUR)
    return np.where(inside, tinted, FAINT * pixels + (1 - FAINT) * 255).astype(np.uint8)


__all__ = ["draw_pictures"]
