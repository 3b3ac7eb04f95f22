"""Pictures of visual tokens: outlined and numbered over the image, their scores, how large they are (Figures 6, 7)."""

import colorsys
import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically
from .token_maps import TokenMap, score_spread

WANTED_SIDE = 960  # pixels
TINT = 0.34
GOLDEN = 0.61803398875
SCORE_COLOURS = "magma"
LARGEST_BARS = 40
PANEL = 3.6  # inches
GREY = "#606060"


def token_colour(number: int) -> tuple[int, int, int]:
    """
    A colour for a token; those of neighbouring numbers differ most.

    Args:
        number (`int`): from 0.

    Returns:
        `tuple[int, int, int]`: red, green and blue, from 0 to 255.
    """
    red, green, blue = colorsys.hsv_to_rgb((0.02 + number * GOLDEN) % 1.0, 0.85 - 0.3 * (number % 2), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def token_picture(token_map: TokenMap, side: int = WANTED_SIDE) -> Image.Image:
    """
    An image with its tokens tinted, outlined along the borders of patches, and numbered from 1. Of a soft assignment
    the tint of a patch mixes those of its tokens by their weights, and outlined is where a token has the largest.

    Args:
        token_map ([`TokenMap`]): of the image.
        side (`int`, *optional*, defaults to 960): pixels of the longer side, at least; patches are whole pixels wide.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    rows, columns = token_map.grid_size
    patch = _patch_pixels(token_map, side)
    picture = token_map.image.convert("RGB").resize((columns * patch[1], rows * patch[0]), Image.Resampling.LANCZOS)
    colours = np.array([token_colour(number) for number in range(token_map.num_tokens)], dtype=np.uint8)
    tint = colours[token_map.assignment]
    if token_map.weights is not None:
        tint = np.einsum("thw,tc->hwc", token_map.weights, colours).round().clip(0, 255).astype(np.uint8)
    tint = tint.repeat(patch[0], 0).repeat(patch[1], 1)
    picture = Image.blend(picture, Image.fromarray(tint), TINT)
    draw = ImageDraw.Draw(picture)
    width = max(2, min(patch) // 8)
    for line, colour in ((3 * width, "black"), (width, "white")):
        for ends in _outlines(token_map.assignment, patch):
            draw.line(ends, fill=colour, width=line)
    for number in np.unique(token_map.assignment).tolist():
        _write_number(draw, token_map.assignment == number, number + 1, patch)
    return picture


def _patch_pixels(token_map: TokenMap, side: int) -> tuple[int, int]:
    """Height and width of a patch in the picture: in the proportions of the image."""
    rows, columns = token_map.grid_size
    width, height = token_map.image.size
    scale = side / max(width, height)
    return max(8, round(height * scale / rows)), max(8, round(width * scale / columns))


def _outlines(assignment: np.ndarray, patch: tuple[int, int]):
    """Lines between patches of different tokens."""
    for row, column in np.argwhere(assignment[:, 1:] != assignment[:, :-1]).tolist():
        x = (column + 1) * patch[1]
        yield [(x, row * patch[0]), (x, (row + 1) * patch[0])]
    for row, column in np.argwhere(assignment[1:] != assignment[:-1]).tolist():
        y = (row + 1) * patch[0]
        yield [(column * patch[1], y), ((column + 1) * patch[1], y)]


def _write_number(draw: ImageDraw.ImageDraw, mask: np.ndarray, number: int, patch: tuple[int, int]) -> None:
    row, column, depth = inner_patch(mask)
    size = min(patch) * min(2.2, 0.75 + 0.35 * depth)
    font = ImageFont.load_default(max(9.0, size))
    place = ((column + 0.5) * patch[1], (row + 0.5) * patch[0])
    draw.text(
        place, str(number), font=font, fill="white", anchor="mm", stroke_width=max(1, round(size / 9)),
        stroke_fill="black",
    )  # fmt: skip


def inner_patch(mask: np.ndarray) -> tuple[int, int, int]:
    """
    The patch of a token that lies farthest from its border, and how far: where its number is written.

    Args:
        mask (`np.ndarray` of shape `(grid_height, grid_width)` and dtype bool): its patches.

    Returns:
        `tuple[int, int, int]`: row, column, and depth, 1 at the border.
    """
    inner, depth = mask, 0
    while inner.any():
        last, depth = inner, depth + 1
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    places = np.argwhere(last)
    middle = np.argwhere(mask).mean(0)
    row, column = places[((places - middle) ** 2).sum(1).argmin()]
    return int(row), int(column), depth


def draw_token_maps(maps: Sequence[TokenMap], path: str | os.PathLike, title: str | None = None) -> None:
    """
    Draws the tokens of one image into a PNG file: for each variant the image with its tokens, the map of scores, the
    spread of scores and the tokens by size; several variants stand side by side, on equal scales where the scores are
    of one kind.

    Args:
        maps (`list[TokenMap]`): of the variants, from [`read_token_maps`].
        path (`str`): PNG file. Its folder is made if need be.
        title (`str`, *optional*): by default the name of the image.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
        ValueError: if there are no maps.
    """
    if not maps:
        raise ValueError("There are no tokens to draw.")
    figure_module = require("matplotlib.figure", "draw")
    shown = title if title is not None else maps[0].name
    drawn = _draw_one(figure_module, maps[0], shown) if len(maps) == 1 else _draw_beside(figure_module, maps, shown)
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=150)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(Path(path), stream.getvalue())


def _draw_one(figure_module: Any, token_map: TokenMap, title: str) -> Any:
    ratio = token_map.image.height / token_map.image.width
    figure = figure_module.Figure(figsize=(3 * PANEL + 0.8, PANEL * ratio + PANEL * 0.62 + 0.9), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[ratio, 0.62])
    _draw_image(axes[0, 0], token_map)
    _draw_tokens(axes[0, 1], token_map)
    _draw_scores(figure, axes[0, 2], token_map)
    axes[1, 0].axis("off")
    _write_summary(axes[1, 0], token_map)
    _draw_sizes(axes[1, 1], token_map)
    _draw_spread(axes[1, 2], token_map)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _draw_beside(figure_module: Any, maps: Sequence[TokenMap], title: str) -> Any:
    ratio = maps[0].image.height / maps[0].image.width
    columns = len(maps) + 1
    size = (PANEL * columns, PANEL * (2 * ratio + 1.24) + 1.1)
    figure = figure_module.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(4, columns, height_ratios=[ratio, ratio, 0.62, 0.62], squeeze=False)
    _draw_image(axes[0, 0], maps[0])
    for row, text in ((1, "Scores: density times distance to\na denser patch"), (2, "Spread of the scores"),
                      (3, "Tokens by size")):  # fmt: skip
        axes[row, 0].axis("off")
        axes[row, 0].text(0.98, 0.5, text, ha="right", va="center", fontsize=10, color=GREY)
    for column, token_map in enumerate(maps, start=1):
        _draw_tokens(axes[0, column], token_map)
        _draw_scores(figure, axes[1, column], token_map)
        _draw_spread(axes[2, column], token_map)
        _draw_sizes(axes[3, column], token_map)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _draw_image(axes: Any, token_map: TokenMap) -> None:
    axes.imshow(np.asarray(token_map.image.convert("RGB")))
    axes.set_title("image", loc="left", fontsize=9)
    axes.set_axis_off()


def _draw_tokens(axes: Any, token_map: TokenMap) -> None:
    axes.imshow(np.asarray(token_picture(token_map)))
    number = f"{token_map.num_tokens} token" + "s" * (token_map.num_tokens != 1)
    label = token_map.label.replace(",", ", ")
    if token_map.weights is not None:
        number = f"{number}, soft: largest weight {token_map.mean_largest_weight:.2f} on average"
    label = "\n".join(textwrap.wrap(f"{label}: {number}" if label else number, 46))
    axes.set_title(label, loc="left", fontsize=9)
    axes.set_axis_off()


def _draw_scores(figure: Any, axes: Any, token_map: TokenMap) -> None:
    axes.set_axis_off()
    if token_map.scores is None:
        axes.text(0.5, 0.5, "no scores", ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    width, height = token_map.image.size
    extent = (0, width, height, 0)
    drawn = axes.imshow(token_map.scores, cmap=SCORE_COLOURS, extent=extent, interpolation="nearest", vmin=0)
    figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.02).ax.tick_params(labelsize=7)
    if token_map.centers is not None:
        rows, columns = np.divmod(token_map.centers, token_map.grid_size[1])
        x, y = (columns + 0.5) * width / token_map.grid_size[1], (rows + 0.5) * height / token_map.grid_size[0]
        axes.plot(x, y, "o", markersize=5, markerfacecolor="none", markeredgecolor="#40e0d0", markeredgewidth=1.2)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
    axes.set_title("scores and centres", loc="left", fontsize=9)


def _draw_spread(axes: Any, token_map: TokenMap) -> None:
    if token_map.scores is None:
        axes.axis("off")
        return
    spread = score_spread(token_map.scores)
    axes.hist(token_map.scores.ravel(), bins=40, color="#8d6bb1", log=True)
    if token_map.threshold is not None:
        axes.axvline(token_map.threshold, color="#d9772b", linewidth=1.4)
        axes.text(
            token_map.threshold, 1.0, f" threshold {token_map.threshold:g}", fontsize=7, color="#d9772b", va="top",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_title(
        f"mean {spread['mean']:.3g}, sd / mean {spread['coefficient_of_variation']:.2f}; "
        f"{spread['share_above_half_maximum']:.1%} above ½ maximum",
        loc="left", fontsize=8, color=GREY,
    )  # fmt: skip
    axes.set_xlabel("score", fontsize=8)
    axes.set_ylabel("patches", fontsize=8)
    _plain(axes)


def _draw_sizes(axes: Any, token_map: TokenMap) -> None:
    order = np.argsort(-token_map.sizes, kind="stable")[:LARGEST_BARS]
    shares = 100 * token_map.sizes[order] / token_map.assignment.size
    colours = [np.array(token_colour(number)) / 255 for number in order.tolist()]
    axes.bar(range(len(order)), shares, color=colours, edgecolor="#303030", linewidth=0.5)
    names = [str(number + 1) for number in order.tolist()]
    axes.set_xticks(range(len(order)), names, fontsize=7 if len(order) < 16 else 5)
    axes.set_xlabel("token" if len(order) == token_map.num_tokens else f"the {len(order)} largest tokens", fontsize=8)
    axes.set_ylabel("% of patches", fontsize=8)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write_summary(axes: Any, token_map: TokenMap) -> None:
    rows, columns = token_map.grid_size
    sizes = np.sort(token_map.sizes)[::-1]
    lines = [
        f"{token_map.num_tokens} tokens of {rows} × {columns} = {rows * columns} patches",
        f"largest {sizes[0]:.4g} patches, median {np.median(sizes):.4g}, smallest {sizes[-1]:.4g}",
        "circles: the patch that a token formed around" if token_map.centers is not None else "",
    ]
    if token_map.weights is not None:
        hidden = token_map.num_tokens - len(np.unique(token_map.assignment))
        lines += [
            "soft assignment: each patch is a part of all tokens,\nits colour mixes theirs by weight",
            "outlined: where a token has the largest weight" + (f";\n{hidden} nowhere have it" if hidden else ""),
            f"largest weight of a patch: {token_map.mean_largest_weight:.2f} on average (1 is hard)",
        ]
    axes.text(0.0, 0.95, "\n".join(line for line in lines if line), va="top", fontsize=9, color="#303030")


__all__ = ["draw_token_maps", "inner_patch", "token_colour", "token_picture"]
