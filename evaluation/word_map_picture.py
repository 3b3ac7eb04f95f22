"""A map of words as a picture: the image with the first word of each patch (VT-LMM, Figure 4)."""

import io
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically
from .word_map import WordMap

SMALLEST_PATCH = 56  # pixels
WANTED_SIDE = 1600
LARGEST_TEXT, SMALLEST_TEXT = 0.27, 0.14  # of a patch
WHOLE = 0.55  # of the largest text: a word that would be smaller is written on two lines,
LARGEST_BROKEN = 0.75  # which are no larger than this share of it
READABLE = 11.0  # pixels
ROOM = 0.88  # of a patch, that a word may fill
SHADE, DEEPEST = (255, 140, 0), 0.7  # the colour of the highest score, and how much of it lies over a grey image
ELLIPSIS = "…"
SMALL_MARKS = frozenset(".,:;'`\"-_~^*·•‘’“”–…")
"""Signs that alone on an image cannot be told from a speck."""
# Characters, and what a label has in place of one: <0x9F>, [U+200B], [BEL], [#49152].
_SIGNS = re.compile(r"<0x[0-9A-Fa-f]{2}>|\[(?:U\+[0-9A-F]+|#\d+|[A-Z0-9]{2,3})\]|.", re.DOTALL)


def draw_word_map(
    word_map: WordMap,
    path: str | os.PathLike,
    *,
    shading: bool = False,
    patch_size: int | None = None,
    font: str | os.PathLike | None = None,
    dpi: int = 300,
) -> None:
    """
    Draws an image with the first word of each patch into a PNG file: the most probable one, or the most distinctive
    one of a map that has such words, with a line below that says relative to what.

    Args:
        word_map ([`WordMap`]): from [`read_word_map`].
        path (`str`): PNG file. Its folder is made if need be.
        shading (`bool`, *optional*, defaults to `False`): lay a colour over each patch, by the score of its word, with
            a colour bar below the image.
        patch_size (`int`, *optional*): width of a patch in pixels, at least 56; by default so that the picture's
            longer side has 1600 pixels or more.
        font (`str`, *optional*): TrueType or OpenType file, for scripts that DejaVu Sans lacks, such as Chinese. What
            neither has is written as its code point, `U+4E2D`.
        dpi (`int`, *optional*, defaults to 300): resolution that the file names.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
        FileNotFoundError, ValueError: if there is no such font, it is none, or `patch_size` is less than 56.
    """
    picture = word_picture(word_map, shading=shading, patch_size=patch_size, font=font)
    stream = io.BytesIO()
    picture.save(stream, "PNG", dpi=(dpi, dpi))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(Path(path), stream.getvalue())


def word_picture(
    word_map: WordMap, *, shading: bool = False, patch_size: int | None = None, font: str | os.PathLike | None = None
) -> Image.Image:
    """
    An image with the first word of each patch: see [`draw_word_map`].

    Returns:
        `PIL.Image.Image`: RGB; `patch_size` times the grid, and what is below the image.
    """
    rows, columns = word_map.grid_size
    side = _patch_side(word_map.grid_size, patch_size)
    size = (columns * side, rows * side)
    picture = word_map.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if shading:
        picture = _shaded(picture, word_map)
    _draw_grid(picture, side)
    draw, fonts = ImageDraw.Draw(picture), Fonts(font)
    for row in range(rows):
        for column in range(columns):
            centre = ((column + 0.5) * side, (row + 0.5) * side)
            _write(draw, fonts, quoted_mark(str(word_map.shown.words[row, column, 0])), centre, side)
    height = max(24, picture.width // 40)
    below = (picture.width - height, height)  # half a line is left free on either side
    lines = [_color_bar(below, word_map, fonts)] if shading else []
    lines += [] if word_map.distinctive is None else [_caption(below, word_map.distinctive.reference, fonts)]
    return _with_lines_below(picture, lines)


def check_patch_size(patch_size: int | None) -> None:
    """
    Raises:
        ValueError: if patches of this width, in pixels, are too small for words.
    """
    if patch_size is not None and patch_size < SMALLEST_PATCH:
        raise ValueError(
            f"patch_size is {patch_size} pixels, expected at least {SMALLEST_PATCH}, in which words can be read."
        )


def _patch_side(grid_size: tuple[int, int], asked: int | None) -> int:
    check_patch_size(asked)
    return asked or max(SMALLEST_PATCH, -(-WANTED_SIDE // max(grid_size)))


def _write(draw: ImageDraw.ImageDraw, fonts: "Fonts", word: str, centre: tuple[float, float], side: int) -> None:
    text, font = fonts.fitted(word, ROOM * side, LARGEST_TEXT * side, SMALLEST_TEXT * side, can_break=True)
    draw.text(
        centre, text, font=font, fill="white", anchor="mm", align="center", spacing=0.1 * font.size,
        stroke_width=max(1, round(font.size / 9)), stroke_fill="black",
    )  # fmt: skip


def _draw_grid(picture: Image.Image, side: int) -> None:
    lines = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(lines)
    for x in range(side, picture.width, side):
        draw.line([(x, 0), (x, picture.height)], fill=(255, 255, 255, 70), width=1)
    for y in range(side, picture.height, side):
        draw.line([(0, y), (picture.width, y)], fill=(255, 255, 255, 70), width=1)
    picture.paste(lines, mask=lines)


def _bounds(word_map: WordMap) -> tuple[float, float]:
    """Scores at the ends of the colours: from 0, but where they are similarities."""
    scores = word_map.shown.scores[..., 0]
    low = float(scores.min()) if word_map.shown.measure == "cosine similarity" else 0.0
    return low, max(float(scores.max()), low + 1e-12)


def _shaded(picture: Image.Image, word_map: WordMap) -> Image.Image:
    """A grey image, whose own colours would be taken for scores, with more colour where these are higher."""
    low, high = _bounds(word_map)
    shares = (word_map.shown.scores[..., 0] - low) / (high - low)
    veil = Image.fromarray(np.rint(255 * DEEPEST * shares).astype(np.uint8))
    shaded = picture.convert("L").convert("RGB")
    shaded.paste(SHADE, mask=veil.resize(picture.size, Image.Resampling.NEAREST))
    return shaded


def _color_bar(size: tuple[int, int], word_map: WordMap, fonts: "Fonts") -> Image.Image:
    """The colours of the shading with the scores at their ends, in a line."""
    width, height = size
    gap, bar_width = height // 2, width // 4
    low, high = _bounds(word_map)
    bar = Image.new("RGB", (bar_width, height), "#808080")
    bar.paste(SHADE, mask=Image.linear_gradient("L").rotate(90).point(lambda share: share * DEEPEST).resize(bar.size))
    line = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(line)
    unit = " (nats)" if word_map.distinctive is not None else ""
    x = 0
    for text in (f"{low:.3g}", None, f"{high:.3g}   {word_map.shown.measure} of the word{unit}"):
        if text is None:
            line.paste(bar, (x, 0))
            x += bar_width + gap
            continue
        shown, font = fonts.fitted(text, width - x, largest=0.8 * height, smallest=0.4 * height)
        draw.text((x, height / 2), shown, font=font, fill="black", anchor="lm")
        x += round(font.getlength(shown)) + gap
    return line


def _caption(size: tuple[int, int], reference: str, fonts: "Fonts") -> Image.Image:
    """What makes a word distinctive, in a line."""
    width, height = size
    line = Image.new("RGB", size, "white")
    text = f"word of the largest P' log(P' / P̄); P̄: {reference}"
    shown, font = fonts.fitted(text, width, largest=0.7 * height, smallest=0.4 * height)
    ImageDraw.Draw(line).text((0, height / 2), shown, font=font, fill="#404040", anchor="lm")
    return line


def _with_lines_below(picture: Image.Image, lines: list[Image.Image]) -> Image.Image:
    if not lines:
        return picture
    margin = lines[0].height // 2
    step = lines[0].height + margin
    framed = Image.new("RGB", (picture.width, picture.height + margin + step * len(lines)), "white")
    framed.paste(picture, (0, 0))
    for number, line in enumerate(lines):
        framed.paste(line, (margin, picture.height + margin + step * number))
    return framed


@dataclass
class Fonts:
    """
    The fonts of labels: one that was given, and DejaVu Sans, which matplotlib brings along.

    Args:
        given (`str`, *optional*): a font file, which is tried first.
    """

    given: str | os.PathLike | None = None
    _sized: dict[tuple[str, float], ImageFont.FreeTypeFont] = field(default_factory=dict, init=False)

    @cached_property
    def files(self) -> list[tuple[str, frozenset[int]]]:
        """Font files with the code points that they have pictures for."""
        data_path = Path(require("matplotlib", "draw").get_data_path())
        files = [str(data_path / "fonts" / "ttf" / "DejaVuSans.ttf")]
        if self.given is not None:
            if not Path(self.given).is_file():
                raise FileNotFoundError(f"There is no font {os.fspath(self.given)!r}: give a .ttf or .otf file.")
            files.insert(0, os.fspath(self.given))
        return [(file, self._code_points(file)) for file in files]

    def _code_points(self, file: str) -> frozenset[int]:
        try:
            return frozenset(require("matplotlib.ft2font", "draw").FT2Font(file).get_charmap())
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{file} is no font that FreeType can read ({error}): give a .ttf or .otf file."
            ) from error

    def fitted(
        self, text: str, width: float, largest: float, smallest: float, can_break: bool = False
    ) -> tuple[str, ImageFont.FreeTypeFont]:
        """
        A text that fits: as large as may be, on two lines if it is long, and at the smallest size shortened.

        Args:
            text (`str`): of one line.
            width (`float`): room, in pixels.
            largest, smallest (`float`): sizes of the font in pixels; none is less than 11.
            can_break (`bool`, *optional*, defaults to `False`): whether there is room for two lines.

        Returns:
            `tuple`: the text, whose end "…" may stand for, and which holds `U+…` in place of what no font has; and the
            font.
        """
        file, pieces = self._printable(text)
        text = "".join(pieces)
        smallest = max(smallest, READABLE)
        size = self._fitting_size(file, [text], width, max(largest, smallest))
        if can_break and size < max(WHOLE * largest, smallest) and len(text) > 1:
            lines = two_lines(text if len(pieces) == len(text) else pieces)
            size = min(self._fitting_size(file, lines, width, largest), LARGEST_BROKEN * largest)
            text = "\n".join(lines)
        font = self._font(file, max(size, smallest))
        return "\n".join(self._shortened(text.split("\n"), font, width)), font

    def _fitting_size(self, file: str, lines: list[str], width: float, largest: float) -> float:
        def length(size: float) -> float:
            return max(self._font(file, size).getlength(line) for line in lines)

        if length(largest) <= width:
            return largest
        # In half pixels: few sizes, and so few fonts that are kept. Widths are in proportion to them but for rounding.
        size = math.floor(2 * largest * width / length(largest)) / 2
        while size > 1 and length(size) > width:
            size -= 0.5
        return max(size, 1.0)

    def _shortened(self, lines: list[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
        """What comes behind the first line that is too long is left out with its end."""
        for place, line in enumerate(lines):
            if font.getlength(line) > width:
                while len(line) > 1 and font.getlength(line + ELLIPSIS) > width:
                    line = line[:-1]
                return [*lines[:place], line + ELLIPSIS]
        return lines

    def printable(self, text: str) -> tuple[str, str]:
        """
        How a text can be printed.

        Args:
            text (`str`): a label.

        Returns:
            `tuple[str, str]`: file of a font that has the whole text, and the text; if there is none, DejaVu Sans and
            the text with `U+…` in place of what it lacks.
        """
        file, pieces = self._printable(text)
        return file, "".join(pieces)

    def _printable(self, text: str) -> tuple[str, list[str]]:
        if _can_be_laid_out(text):
            for file, code_points in self.files:
                if all(ord(letter) in code_points for letter in text):
                    return file, list(text)
        file, code_points = self.files[-1]
        return file, escaped(text, code_points)

    def _font(self, file: str, size: float) -> ImageFont.FreeTypeFont:
        key = (file, size)
        if key not in self._sized:
            self._sized[key] = ImageFont.truetype(file, size)
        return self._sized[key]


def quoted_mark(word: str) -> str:
    """
    A label as it is written on an image: one or two small punctuation marks stand between quotation marks.

    Args:
        word (`str`): a label.
    """
    return f"“\u2009{word}\u2009”" if len(word) < 3 and SMALL_MARKS.issuperset(word) else word


def two_lines(text: str | Sequence[str]) -> list[str]:
    """
    A text in two halves, with a hyphen where a word is broken: between two letters of a script with capitals, such as
    Latin. Other scripts break without one. Names of characters, such as `[U+200B]`, and bytes, `<0x9F>`, stay whole
    where they are not alone.

    Args:
        text (`str` or `list[str]`): of two characters, at least; or what is written for each character, `U+4E2D`
            among it.
    """
    pieces = _SIGNS.findall(text) if isinstance(text, str) else list(text)
    if len(pieces) == 1:
        return [pieces[0][: (len(pieces[0]) + 1) // 2], pieces[0][(len(pieces[0]) + 1) // 2 :]]
    lengths = list(itertools.accumulate(map(len, pieces)))
    places = [place for place in range(1, len(pieces)) if not unicodedata.combining(pieces[place][0])]
    middle = min(places or [1], key=lambda place: (abs(2 * lengths[place - 1] - lengths[-1]), -place))
    is_within_word = all(map(_is_cased, pieces[middle - 1 : middle + 1]))
    return ["".join(pieces[:middle]) + ("-" if is_within_word else ""), "".join(pieces[middle:])]


def _is_cased(piece: str) -> bool:
    return len(piece) == 1 and piece.lower() != piece.upper()


def _can_be_laid_out(text: str) -> bool:
    """Scripts from right to left need a library that Pillow may have been built without."""
    return features.check("raqm") or not any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def escaped(text: str, code_points: Any) -> list[str]:
    """
    The characters of a text, with the code point in place of each that a font lacks, or that cannot be laid out.

    Args:
        text (`str`): a label.
        code_points (`frozenset[int]`): what the font has.
    """
    return [
        letter if ord(letter) in code_points and _can_be_laid_out(letter) else f"U+{ord(letter):04X}"
        for letter in text
    ]


__all__ = ["Fonts", "check_patch_size", "draw_word_map", "escaped", "quoted_mark", "two_lines", "word_picture"]
