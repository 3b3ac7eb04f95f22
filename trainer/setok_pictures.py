"""Pictures of what SeTok has learned so far: input, tokens, reconstruction and masks, side by side."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..evaluation.token_maps import TokenMap
from ..evaluation.token_pictures import token_colour, token_picture
from ..modeling.atomic_folder import write_bytes_atomically

SIDE = 256
"""Of each panel, in pixels."""
HEADER = 20
GAP = 4
MASK_TINT = 0.6


def tokens_panel(image: Image.Image, assignment: np.ndarray) -> Image.Image:
    """
    An image with its tokens tinted, outlined and numbered.

    Args:
        image (`PIL.Image.Image`): RGB.
        assignment (`np.ndarray` of shape `(grid_height, grid_width)`): token of each patch.

    Returns:
        `PIL.Image.Image`: square.
    """
    numbers = np.unique(assignment, return_inverse=True)[1].reshape(assignment.shape)
    return _square(token_picture(TokenMap(image=image, assignment=numbers), side=2 * SIDE))


def masks_panel(image: Image.Image, mask_logits: torch.Tensor) -> Image.Image:
    """
    An image with the predicted masks of its tokens; where several claim a pixel, the surest has it.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask_logits (`torch.FloatTensor` of shape `(num_tokens, height, width)`): of real tokens, before the sigmoid.

    Returns:
        `PIL.Image.Image`: square.
    """
    resized = torch.nn.functional.interpolate(mask_logits[None].float(), size=(SIDE, SIDE), mode="bilinear")[0]
    surest, token = resized.max(0)
    colours = np.array([token_colour(number) for number in range(len(mask_logits))], dtype=np.float64)
    pixels = np.asarray(_square(image), dtype=np.float64)
    tinted = (1 - MASK_TINT) * pixels + MASK_TINT * colours[token.cpu().numpy()]
    claimed = (surest > 0).cpu().numpy()[..., None]
    return Image.fromarray(np.where(claimed, tinted, pixels * (1 - MASK_TINT)).round().astype(np.uint8))


def image_panel(pixels: torch.Tensor) -> Image.Image:
    """
    An image that was drawn.

    Args:
        pixels (`torch.FloatTensor` of shape `(3, height, width)`): 0 to 1.
    """
    values = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return _square(Image.fromarray(values))


def write_grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], path: Path) -> None:
    """
    Writes panels as a PNG file, a row for each image.

    Args:
        rows (`list[list[PIL.Image.Image]]`): panels.
        titles (`list[str]`): of the columns.
        path (`Path`): file; its folder is made if need be.
    """
    step = SIDE + GAP
    picture = Image.new("RGB", (len(titles) * step - GAP, HEADER + len(rows) * step - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        draw.text((column * step + 2, 3), title, fill="black")
        for row, panels in enumerate(rows):
            picture.paste(_square(panels[column]), (column * step, HEADER + row * step))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, stream.getvalue())


def _square(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


__all__ = ["image_panel", "masks_panel", "tokens_panel", "write_grid"]
