"""A sheet of images of a COCO-format set with their boxes and masks drawn, to look at."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..modeling.atomic_folder import write_bytes_atomically
from .scene_annotations import mask_of_run_lengths

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
_TEXT_LINES = 4
_LINE = 12


def scene_sheet(
    folder: str | os.PathLike, file: str | os.PathLike, num_images: int = 24, columns: int = 6, side: int = 224
) -> Path:
    """Draws the first images of a set that `vistok scenes` wrote: outlines of masks, boxes, a caption, questions.

    Args:
        folder (`str`): the set.
        file (`str`): PNG file to write.
        num_images (`int`): at most so many images.
        columns (`int`): images in a row.
        side (`int`): side of an image on the sheet, in pixels.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: if the folder is no such set.
    """
    folder, file = Path(folder), Path(file)
    content = {}
    for name in ("instances", "captions", "vqa_questions", "vqa_annotations"):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no set of scenes: it holds no {path.name}.")
        content[name] = json.loads(path.read_text(encoding="utf-8"))
    images = content["instances"]["images"][:num_images]
    rows = -(-len(images) // columns)
    height = side + _TEXT_LINES * _LINE + 4
    sheet = Image.new("RGB", (columns * side, rows * height), "white")
    for number, record in enumerate(images):
        left, top = number % columns * side, number // columns * height
        sheet.paste(_drawn(folder, record, content["instances"], side), (left, top))
        for line, text in enumerate(_texts(record["id"], content)[:_TEXT_LINES]):
            ImageDraw.Draw(sheet).text((left + 2, top + side + line * _LINE), text[: side // 6], fill="black")
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    write_bytes_atomically(file, encoded.getvalue())
    return file


def _texts(image_id: int, content: Mapping[str, Any]) -> list[str]:
    caption = next(item["caption"] for item in content["captions"]["annotations"] if item["image_id"] == image_id)
    answers = {
        item["question_id"]: item["multiple_choice_answer"] for item in content["vqa_annotations"]["annotations"]
    }
    asked = [item for item in content["vqa_questions"]["questions"] if item["image_id"] == image_id]
    return [caption, *(f"{item['question']} {answers[item['question_id']]}" for item in asked)]


def _drawn(folder: Path, record: Mapping[str, Any], instances: Mapping[str, Any], side: int) -> Image.Image:
    with Image.open(folder / "images" / record["file_name"]) as opened:
        picture = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    scale = side / record["width"]
    names = {category["id"]: category["name"] for category in instances["categories"]}
    draw = ImageDraw.Draw(picture)
    objects = [item for item in instances["annotations"] if item["image_id"] == record["id"]]
    for number, item in enumerate(objects):
        color = _COLORS[number % len(_COLORS)]
        mask = Image.fromarray(mask_of_run_lengths(item["segmentation"])).resize(
            (side, side), Image.Resampling.NEAREST
        )
        inside = np.asarray(mask)
        edge = inside & ~(
            np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
        )
        picture.paste(color, (0, 0), Image.fromarray(edge))
        left, top, width, height = (value * scale for value in item["bbox"])
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=color)
        draw.text((left + 2, top), names[item["category_id"]], fill=color, stroke_width=1, stroke_fill="black")
    return picture


__all__ = ["scene_sheet"]
