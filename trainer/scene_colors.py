"""Names of colours: which one an object has, if one name fits, and objects painted in another."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Hues in degrees from which on a name holds; red again from 332 on.
_HUES = ((0, "red"), (20, "orange"), (42, "yellow"), (70, "green"), (172, "blue"), (262, "purple"), (302, "pink"))
_RED_AGAIN = 332
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
_NO_NAME = len(COLORS)
_GRAY, _PALE = 0.15, 0.32  # saturation below which a colour is a gray, or too pale for a name
_BRIGHT = 185  # value below which orange is brown
# What an object can be painted in; each is told from the others at a glance.
PAINTS = {
    "red": (235, 25, 25),
    "yellow": (250, 220, 20),
    "green": (30, 190, 50),
    "blue": (30, 80, 245),
    "purple": (150, 40, 215),
}
_MOST = 0.6  # of its pixels have the colour of an object
_SECOND = 0.25  # at most, have another
_DARKEST = 0.4  # a black pixel is painted in so much of the paint


def color_name(pixels: np.ndarray) -> str | None:
    """Names the colour of an object, where one name fits most of it.

    Args:
        pixels (`np.ndarray` of shape `(num_pixels, 3)` and dtype uint8): its pixels, RGB.

    Returns:
        `str` or `None`: one of `COLORS`; `None` if the object has several colours, or no pixel.
    """
    if not len(pixels):
        return None
    shares = np.bincount(_names(pixels), minlength=len(COLORS) + 1) / len(pixels)
    second, first = np.sort(shares)[-2:]
    best = int(shares.argmax())
    return COLORS[best] if best != _NO_NAME and first >= _MOST and second <= _SECOND else None


def _names(pixels: np.ndarray) -> np.ndarray:
    """Index among `COLORS` for each pixel, by hue, saturation and value; `_NO_NAME` of skin, sand and cream."""
    red, green, blue = (pixels[:, channel].astype(np.float64) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = spread / np.maximum(value, 1)
    width = np.maximum(spread, 1)
    sixth = np.where(
        value == red,
        (green - blue) / width,
        np.where(value == green, (blue - red) / width + 2, (red - green) / width + 4),
    )
    hue = (60 * sixth) % 360
    starts = np.array([start for start, _ in _HUES])
    of_hue = np.array([COLORS.index(name) for _, name in _HUES])[np.searchsorted(starts, hue, "right") - 1]
    names = np.where(hue >= _RED_AGAIN, COLORS.index("red"), of_hue)
    is_red = (hue < _HUES[1][0]) | (hue >= _RED_AGAIN)
    is_orange = (hue >= _HUES[1][0]) & (hue < _HUES[2][0])
    is_yellow = (hue >= _HUES[2][0]) & (hue < _HUES[3][0])
    dark = value < _BRIGHT
    brown = dark & (is_orange | (is_red & ((saturation < 0.6) | ((hue >= 10) & (hue < 20)))))
    pale_warm = ~dark & ((is_orange & (saturation < 0.6)) | (is_yellow & (saturation < 0.45)))
    names = np.where(~dark & is_red & (saturation < 0.5), COLORS.index("pink"), names)
    names = np.where(brown, COLORS.index("brown"), np.where(pale_warm, _NO_NAME, names))
    is_pink = ~dark & (is_red | (names == COLORS.index("pink")))
    names = np.where((saturation < _PALE) & ~is_pink, _NO_NAME, names)
    grays = np.where(value > 205, COLORS.index("white"), np.where(value < 180, COLORS.index("gray"), _NO_NAME))
    names = np.where(saturation < _GRAY, grays, names)
    return np.where(value < 55, COLORS.index("black"), names)


def painted(picture: Image.Image, color: str) -> Image.Image:
    """Paints a cut-out in one colour; what is light and dark on it stays so.

    Args:
        picture (`PIL.Image.Image`): RGBA.
        color (`str`): a key of `PAINTS`.

    Returns:
        `PIL.Image.Image`: RGBA, with the same transparency.
    """
    gray = np.asarray(picture.convert("RGB").convert("L"), dtype=np.float64) / 255
    paint = np.array(PAINTS[color], dtype=np.float64)
    pixels = (_DARKEST + (1 - _DARKEST) * gray)[..., None] * paint
    pixels = np.floor(pixels + 0.5).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, np.asarray(picture.getchannel("A"))]), "RGBA")


def colors_apart(color: str | None, others: Sequence[str | None]) -> bool:
    """Whether a colour tells an object from others.

    Args:
        color (`str`, *optional*): the object's.
        others: those of the others.

    Returns:
        `bool`: true if all colours are known and none of the others' is the same, nor one that is easily taken for it.
    """
    if color is None:
        return False
    return all(other is not None and other != color and {other, color} not in _ALIKE for other in others)


_ALIKE = (
    {"red", "orange"}, {"red", "pink"}, {"red", "brown"}, {"orange", "yellow"}, {"orange", "brown"},
    {"purple", "pink"}, {"purple", "blue"}, {"white", "gray"}, {"black", "gray"}, {"black", "brown"},
    {"yellow", "brown"}, {"orange", "pink"},
)  # fmt: skip

__all__ = ["COLORS", "PAINTS", "color_name", "colors_apart", "painted"]
