"""Images at the size at which a detokenizer draws them, and what it drew as pictures."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn


def drawing_targets(image_processor: Any, images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """
    Images as a vision tower sees them, but for their colours, at another size: what a detokenizer is to draw.

    Args:
        image_processor: of the tower, from transformers: it resizes, crops or pads.
        images (`list[PIL.Image.Image]`): RGB.
        side (`int`): of the result, in pixels.

    Returns:
        `torch.FloatTensor` of shape `(batch, 3, side, side)`, 0 to 1.
    """
    seen = image_processor(images=list(images), return_tensors="pt", do_normalize=False)["pixel_values"]
    resized = nn.functional.interpolate(seen.float(), size=(side, side), mode="bilinear", antialias=True)
    return resized.clamp(0, 1)


def picture_of(image: torch.Tensor) -> Image.Image:
    """
    What was drawn as a picture.

    Args:
        image (`torch.FloatTensor` of shape `(3, height, width)`): 0 to 1.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    return Image.fromarray((image.permute(1, 2, 0).float().cpu().numpy() * 255).round().astype(np.uint8))


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """
    The inverse of [`picture_of`], up to rounding.

    Args:
        picture (`PIL.Image.Image`): of any mode.

    Returns:
        `torch.FloatTensor` of shape `(3, height, width)`: 0 to 1.
    """
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def png_bytes(picture: Image.Image) -> bytes:
    """
    A picture as the bytes of a PNG file.

    Args:
        picture (`PIL.Image.Image`): of any mode that PNG has.
    """
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


__all__ = ["drawing_targets", "picture_of", "pixels_of", "png_bytes"]
