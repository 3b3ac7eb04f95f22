"""Where visual tokens look: attention of a tokenizer's queries over the image, drawn as in Figure 3 of GVT."""

import itertools
import math
import os
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from ..configuration.optional import require
from ..processing.images import ImageSource, load_image

COLOR_MAP = "inferno"


def query_attention(model: PreTrainedModel, processor: Any, image: ImageSource, layer: int = -1) -> np.ndarray:
    """
    Attention of a model's queries over the patches of an image.

    Args:
        model (`PreTrainedModel`): a composed model, such as [`GVTForConditionalGeneration`].
        processor (`ProcessorMixin`): the processor that belongs to it.
        image: path, bytes or PIL image, as in [`load_image`].
        layer (`int`, *optional*, defaults to -1): layer of the visual tokenizer.

    Returns:
        `np.ndarray` of shape `(num_heads, num_queries, grid_height, grid_width)` and dtype float32: the share of its
        attention that a query gives to each patch in each head. What it gives to [CLS], to registers and to the other
        queries is left out, so that a map sums to at most 1.

    Raises:
        ValueError: if the visual tokenizer has no attention maps, or not this layer.
    """
    pixel_values = pixel_values_of(processor.image_processor, image).to(model.device)
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixel_values, output_attentions=True)
    if not features.attentions:
        raise ValueError(f"{type(model).__name__} returned no attention maps: its visual tokenizer has no queries.")
    num_layers = len(features.attentions)
    if not -num_layers <= layer < num_layers:
        raise ValueError(f"layer is {layer}, but the visual tokenizer has {num_layers} layers, 0 to {num_layers - 1}.")
    attention = features.attentions[layer][0]
    return patch_attention(attention, features.grid_size, features.num_prefix_tokens).float().cpu().numpy()


def patch_attention(attention: torch.Tensor, grid_size: tuple[int, int], num_prefix_tokens: int) -> torch.Tensor:
    """
    The part of attention maps that lies on patches, laid out like the image.

    Args:
        attention (`torch.FloatTensor` of shape `(..., num_keys)`):
            The keys are prefix tokens ([CLS], registers), patches in row-major order, and the queries themselves.
        grid_size (`tuple[int, int]`): height and width of the image in patches.
        num_prefix_tokens (`int`): how many keys precede the first patch.

    Returns:
        `torch.FloatTensor` of shape `(..., grid_height, grid_width)`.

    Raises:
        ValueError: if there are fewer keys than prefix tokens and patches.
    """
    num_patches = grid_size[0] * grid_size[1]
    if attention.shape[-1] < num_prefix_tokens + num_patches:
        raise ValueError(
            f"The attention maps have {attention.shape[-1]} keys, fewer than {num_prefix_tokens} prefix tokens and "
            f"{grid_size[0]} × {grid_size[1]} patches."
        )
    return attention[..., num_prefix_tokens : num_prefix_tokens + num_patches].unflatten(-1, tuple(grid_size))


def seen_image(model: PreTrainedModel, processor: Any, image: ImageSource, scale: int = 1) -> Image.Image:
    """
    An image as the model sees it: resized and cropped by the processor, and cut to whole patches.

    Args:
        model (`PreTrainedModel`): a composed model; its tower says how large a patch is.
        processor (`ProcessorMixin`): the processor that belongs to it.
        image: path, bytes or PIL image, as in [`load_image`].
        scale (`int`, *optional*, defaults to 1):
            The same part of the image in a resolution so many times finer, for the eye. An image processor whose size
            cannot be told leaves it at the model's.

    Returns:
        `PIL.Image.Image`: RGB, with sides of `grid_size` times the patch size times `scale`, in pixels.
    """
    seen = prepared_image(processor.image_processor, image)
    finer = prepared_image(processor.image_processor, image, scale) if scale > 1 else seen
    scale, seen = finer.width // seen.width, finer
    patch_size = model.config.vision_config.patch_size
    patch_height, patch_width = patch_size if isinstance(patch_size, (list, tuple)) else (patch_size, patch_size)
    patch_height, patch_width = scale * patch_height, scale * patch_width
    return seen.crop((0, 0, seen.width // patch_width * patch_width, seen.height // patch_height * patch_height))


def finely_seen_image(model: PreTrainedModel, processor: Any, image: ImageSource, longer_side: int) -> Image.Image:
    """
    An image framed as the model sees it, at the resolution of its file rather than of the model.

    Args:
        model, processor, image: as in [`seen_image`].
        longer_side (`int`): in pixels, at least, where the file has that many.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    opened = load_image(image)
    seen = seen_image(model, processor, opened)
    wanted = min(longer_side, max(opened.size)) / max(seen.size)
    return seen_image(model, processor, opened, scale=math.ceil(wanted)) if wanted > 1 else seen


def prepared_image(image_processor: Any, image: ImageSource, scale: int = 1) -> Image.Image:
    """
    An image as an image processor prepares it, with the colours it had.

    Args:
        image_processor: of transformers.
        image: path, bytes or PIL image, as in [`load_image`].
        scale (`int`, *optional*, defaults to 1):
            The same part of the image in a resolution so many times finer, for the eye. An image processor whose size
            cannot be told leaves it at the model's.

    Returns:
        `PIL.Image.Image`: RGB, with the sides of the pixel values times `scale`, in pixels.
    """
    values = pixel_values_of(image_processor, image)
    if scale > 1:
        finer = _finer_pixel_values(image_processor, image, scale)
        values = finer if finer.shape[2:] == tuple(scale * side for side in values.shape[2:]) else values
    pixels = values[0].double().numpy().transpose(1, 2, 0)
    if getattr(image_processor, "do_normalize", True):
        pixels = pixels * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    if getattr(image_processor, "do_rescale", True):
        pixels = pixels / image_processor.rescale_factor
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def pixel_values_of(image_processor: Any, image: ImageSource, **sizes: Any) -> torch.Tensor:
    """One image as an image processor prepares it for a model, `(1, num_channels, height, width)`."""
    return image_processor(images=[load_image(image)], return_tensors="pt", **sizes)["pixel_values"]


def _finer_pixel_values(image_processor: Any, image: ImageSource, scale: int) -> torch.Tensor:
    sizes = {
        name: {side: scale * pixels for side, pixels in dict(size).items() if pixels is not None}
        for name in ("size", "crop_size")
        if (size := getattr(image_processor, name, None)) is not None
    }
    return pixel_values_of(image_processor, image, **sizes)


def upsample_attention(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Brings a map from patches to pixels, smoothly; the centre of a patch keeps its place.

    Args:
        attention (`np.ndarray` of shape `(grid_height, grid_width)`): one map.
        size (`tuple[int, int]`): width and height of the image in pixels, as in `PIL.Image.size`.

    Returns:
        `np.ndarray` of shape `(height, width)`, not negative.
    """
    smooth = Image.fromarray(attention.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth).clip(min=0)


def overlay(image: Image.Image, attention: np.ndarray, highest: float) -> np.ndarray:
    """
    Lays a map over an image: where there is no attention the image is dark and pale, where there is much it glows. The
    colour goes with the square root of the attention.

    Args:
        image (`PIL.Image.Image`): as the model sees it.
        attention (`np.ndarray` of shape `(grid_height, grid_width)`): one map.
        highest (`float`): the attention that gets the brightest colour.

    Returns:
        `np.ndarray` of shape `(height, width, 3)` and dtype float64, between 0 and 1.
    """
    color_map = require("matplotlib", "draw").colormaps[COLOR_MAP]
    # A trained query looks hard at few places: with the square root the others are seen too.
    strength = (upsample_attention(attention, image.size) / max(highest, 1e-12)).clip(0, 1) ** 0.5
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    pale = 0.6 * grey + 0.4 * np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    weight = (0.35 + 0.45 * strength)[..., None]
    return (1 - weight) * pale * 0.9 + weight * color_map(strength)[..., :3]


def draw_query_attention(
    image: Image.Image,
    attention: np.ndarray,
    path: str | os.PathLike,
    *,
    query: int | None = None,
    heads: tuple[int, int] | None = None,
    scale: Literal["shared", "per map"] = "shared",
    title: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    dpi: int = 120,
) -> None:
    """
    Draws attention maps over an image: the image, all queries averaged over heads, and one query in two heads (GVT,
    Figure 3).

    Args:
        image (`PIL.Image.Image`): as the model sees it, from [`seen_image`].
        attention (`np.ndarray` of shape `(num_heads, num_queries, grid_height, grid_width)`):
            From [`query_attention`].
        path (`str`): PNG file to write. Its folder is made if need be.
        query (`int`, *optional*): the query shown in two heads; by default the one whose heads look at the most
            distant places.
        heads (`tuple[int, int]`, *optional*): its two heads; by default those two.
        scale (`str`, *optional*, defaults to `"shared"`):
            `"shared"`: a colour means the same attention in all maps of a panel; `"per map"`: each map's own highest
            attention is brightest.
        title (`str`, *optional*): heading; by default it counts the queries.
        question, answer (`str`, *optional*): written under the heading.
        dpi (`int`, *optional*, defaults to 120): pixels per inch; the figure is about 13 inches wide.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if `attention` has not four dimensions, or `scale`, `query` or `heads` is unknown.
    """
    if attention.ndim != 4 or min(attention.shape) < 1:
        raise ValueError(f"attention has shape {attention.shape}, expected (heads, queries, grid height, grid width).")
    if scale not in ("shared", "per map"):
        raise ValueError(f"scale is {scale!r}: choose 'shared' or 'per map'.")
    query, heads = _choose(attention, query, heads)
    num_heads, num_queries = attention.shape[:2]
    columns = math.ceil(math.sqrt(num_queries))
    page = _Page(image, columns, math.ceil(num_queries / columns), bool(question or answer))
    page.write_heading(title or f"What the {num_queries} queries look at", question, answer)
    page.draw_image(f"The image as the model sees it: {image.width} × {image.height} pixels")
    page.draw_maps(
        {f"head {head + 1}": attention[head, query] for head in heads},
        f"Query {query + 1} in two of its {num_heads} heads",
        scale,
        left=True,
    )
    page.draw_maps(
        {f"{number + 1}": attention[:, number].mean(0) for number in range(num_queries)},
        f"All {num_queries} queries, mean over the {num_heads} heads",
        scale,
        left=False,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    page.figure.savefig(path, dpi=dpi)


def _choose(attention: np.ndarray, query: int | None, heads: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """The query and the two heads to show: by default those that look at the most distant places."""
    num_heads, num_queries = attention.shape[:2]
    pairs = [heads] if heads is not None else list(itertools.combinations(range(num_heads), 2)) or [(0, 0)]
    queries = [query] if query is not None else range(num_queries)
    if not all(0 <= head < num_heads for pair in pairs for head in pair):
        raise ValueError(f"heads is {heads}, but there are {num_heads} heads, 0 to {num_heads - 1}.")
    if not all(0 <= number < num_queries for number in queries):
        raise ValueError(f"query is {query}, but there are {num_queries} queries, 0 to {num_queries - 1}.")
    # Blurred, so that maps differ less that look at neighbouring patches.
    height, width = attention.shape[2:]
    padded = np.pad(attention, [(0, 0), (0, 0), (1, 1), (1, 1)])
    blurred: Any = sum(
        padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)
    )
    return max(
        itertools.product(queries, pairs),
        key=lambda choice: np.abs(blurred[choice[1][0], choice[0]] - blurred[choice[1][1], choice[0]]).sum(),
    )


class _Page:
    """
    A figure laid out in inches: heading, on the left the image above two heads, on the right the grid of all queries.

    Args:
        image (`PIL.Image.Image`): as the model sees it.
        columns, rows (`int`): of the grid of queries.
        has_caption (`bool`): whether there is a line under the heading.
    """

    margin, gap, left_width, right_width, line = 0.3, 0.05, 4.7, 7.6, 0.36  # inches

    def __init__(self, image: Image.Image, columns: int, rows: int, has_caption: bool):
        self.image, self.columns, self.rows = image, columns, rows
        self.aspect = image.height / image.width
        self.top = self.margin + (2.1 if has_caption else 1.1) * self.line
        left_height = self.aspect * self.left_width * 1.5 + 2.5 * self.line
        right_height = self.aspect * self.right_width * rows / columns + self.line
        self.width = 3 * self.margin + self.left_width + self.right_width
        self.height = self.top + max(left_height, right_height) + 2 * self.line
        self.figure = require("matplotlib.figure", "draw").Figure(figsize=(self.width, self.height), facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without frame; the place is given in inches from the upper left corner."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        return axes

    def write(self, left: float, baseline: float, text: str, **style) -> None:
        # A dollar sign is a dollar sign, and no formula.
        self.figure.text(left / self.width, 1 - baseline / self.height, text, parse_math=False, **style)

    def write_heading(self, title: str, question: str | None, answer: str | None) -> None:
        self.write(self.margin, self.margin + 0.6 * self.line, title, fontsize=19, fontweight="bold")
        caption = textwrap.shorten("  →  ".join(filter(None, [question, answer])), 120, placeholder=" …")
        # Fonts have no pictures for control characters.
        caption = "".join(character for character in caption if character.isprintable())
        self.write(self.margin, self.margin + 1.6 * self.line, caption, fontsize=15, color="0.25")

    def draw_image(self, label: str) -> None:
        self.write(self.margin, self.top + 0.7 * self.line, label, fontsize=11)
        axes = self.axes(self.margin, self.top + self.line, self.left_width, self.aspect * self.left_width)
        axes.imshow(self.image, interpolation="bicubic", aspect="auto")

    def draw_maps(self, maps: dict[str, np.ndarray], label: str, scale: str, left: bool) -> None:
        """A labelled grid of maps over the image, with its colour bar; in the left column under the image."""
        start = self.margin if left else 2 * self.margin + self.left_width
        top = self.top + (self.aspect * self.left_width + 1.4 * self.line if left else 0)
        columns, width = (2, self.left_width) if left else (self.columns, self.right_width)
        self.write(start, top + 0.7 * self.line, label, fontsize=11)
        tile = (width - (columns - 1) * self.gap) / columns
        highest = max(float(one.max()) for one in maps.values())
        for number, (name, one) in enumerate(maps.items()):
            row, column = divmod(number, columns)
            axes = self.axes(
                start + column * (tile + self.gap),
                top + self.line + row * self.aspect * (tile + self.gap),
                tile,
                self.aspect * tile,
            )
            brightest = highest if scale == "shared" else float(one.max())
            axes.imshow(overlay(self.image, one, brightest), interpolation="bicubic", aspect="auto")
            axes.text(
                0.05,
                0.95,
                name,
                transform=axes.transAxes,
                va="top",
                fontsize=9,
                color="white",
                path_effects=self._outline(),
            )
        bottom = top + self.line + math.ceil(len(maps) / columns) * self.aspect * (tile + self.gap)
        self._draw_color_bar(start, bottom, highest if scale == "shared" else None)

    def _outline(self) -> list:
        return [require("matplotlib.patheffects", "draw").withStroke(linewidth=2, foreground="black")]

    def _draw_color_bar(self, left: float, top: float, highest: float | None) -> None:
        axes = self.axes(left, top + 0.06, 1.3, 0.13)
        axes.imshow(np.linspace(0, 1, 256)[None], cmap=COLOR_MAP, aspect="auto")
        note = "0 to the highest attention of each map"
        if highest is not None:
            note = f"0 to {highest:.1%} of a query's attention"
        self.write(left + 1.4, top + 0.18, f"{note}, square-root scale", fontsize=9, color="0.35")


__all__ = [
    "draw_query_attention",
    "finely_seen_image",
    "overlay",
    "patch_attention",
    "pixel_values_of",
    "prepared_image",
    "query_attention",
    "seen_image",
    "upsample_attention",
]
