"""A sheet of images of a COCO-format set with their boxes and masks drawn, to look at."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..modeling.atomic_folder import write_bytes_atomically
from ..processing.coco_masks import decode_mask

_COLORS = (
    "#e6194b",
    "#3cb44b",
    "#ffe119",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#46f0f0",
    "#f032e6",
    "#bcf60c",
    "#008080",
)
_LINE = 12  # height of a line of text, in pixels
_MARGIN = 2


def scene_sheet(
    folder: str | os.PathLike, file: str | os.PathLike, num_images: int = 24, columns: int = 6, side: int = 224
) -> Path:
    """Draws the first images of a set that `vistok scenes` wrote: outlines of masks, boxes, a caption, all questions
    with their answers.

    Args:
        folder (`str`): the set.
        file (`str`): PNG file to write; its folder is made.
        num_images (`int`): at most so many images.
        columns (`int`): images in a row.
        side (`int`): side of an image on the sheet, in pixels.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if the folder is no such set.
        OSError: if the file cannot be written.
    """
    folder, file = Path(folder), Path(file)
    check_sheet_file(file)
    content = {}
    for name in ("instances", "captions", "vqa_questions", "vqa_annotations"):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no set of scenes: it holds no {path.name}.")
        content[name] = json.loads(path.read_text(encoding="utf-8"))
    images = content["instances"]["images"][:num_images]
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    lines = {record["id"]: _lines(_texts(record["id"], content), side - 2 * _MARGIN) for record in images}
    heights = [side + max(len(lines[record["id"]]) for record in row) * _LINE + 2 * _MARGIN for row in rows]
    sheet = Image.new("RGB", (columns * side, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = sum(heights[:number])
        for column, record in enumerate(row):
            sheet.paste(_drawn(folder, record, content["instances"], side), (column * side, top))
            for line, text in enumerate(lines[record["id"]]):
                draw.text((column * side + _MARGIN, top + side + line * _LINE), text, fill="black")
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(file, encoded.getvalue())
    return file


def check_sheet_file(file: str | os.PathLike) -> None:
    """Checks that a sheet can be written, before the scenes are rendered that it is to show.

    Args:
        file (`str`): PNG file; its folder need not exist.

    Raises:
        IsADirectoryError: if it is a folder.
        NotADirectoryError: if its folder is a file.
        PermissionError: if its folder cannot be written or made.
    """
    file = Path(file).absolute()
    if file.is_dir():
        raise IsADirectoryError(f"the preview {file} is a folder: give a PNG file in it.")
    place = next(parent for parent in file.parents if parent.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"the preview {file} cannot be written: {place} is no folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"the preview {file} cannot be written: {place} is not writable.")


def _lines(texts: Sequence[str], width: int) -> list[str]:
    """Texts broken between words into lines of at most `width` pixels."""
    font = ImageDraw.ImageDraw(Image.new("L", (1, 1))).getfont()
    lines = []
    for text in texts:
        line, *words = text.split()
        for word in words:
            if font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = f"   {word}"  # set in, so that texts are told apart
            else:
                line = f"{line} {word}"
        lines.append(line)
    return lines


def _texts(image_id: int, content: Mapping[str, Any]) -> list[str]:
    caption = next(item["caption"] for item in content["captions"]["annotations"] if item["image_id"] == image_id)
    answers = {
        item["question_id"]: item["multiple_choice_answer"] for item in content["vqa_annotations"]["annotations"]
    }
    asked = [item for item in content["vqa_questions"]["questions"] if item["image_id"] == image_id]
    return [caption, *(f"{item['question']} ({answers[item['question_id']]})" for item in asked)]


def _drawn(folder: Path, record: Mapping[str, Any], instances: Mapping[str, Any], side: int) -> Image.Image:
    with Image.open(folder / "images" / record["file_name"]) as opened:
        picture = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    scale = side / record["width"]
    names = {category["id"]: category["name"] for category in instances["categories"]}
    draw = ImageDraw.Draw(picture)
    objects = [item for item in instances["annotations"] if item["image_id"] == record["id"]]
    for number, item in enumerate(objects):
        color = _COLORS[number % len(_COLORS)]
        visible = decode_mask(item["segmentation"], (record["height"], record["width"]))
        mask = Image.fromarray(visible).resize((side, side), Image.Resampling.NEAREST)
        inside = np.asarray(mask)
        edge = inside & ~(
            np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        )
        picture.paste(color, (0, 0), Image.fromarray(edge))
        left, top, width, height = (value * scale for value in item["bbox"])
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=color)
        draw.text((left + 2, top), names[item["category_id"]], fill=color, stroke_width=1, stroke_fill="black")
    return picture


__all__ = ["check_sheet_file", "scene_sheet"]
