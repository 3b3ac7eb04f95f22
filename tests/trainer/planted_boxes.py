"""Images of one to three boxes with their masks, as COCO writes them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def save_boxes(folder: Path, count: int = 8) -> None:
    """Writes so many images and their `instances.json` into a new folder."""
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        picture = pixels.integers(0, 255, (32, 32, 3)).astype(np.uint8)
        for box in range(number % 3 + 1):
            left = 10 * box
            picture[4:20, left : left + 9] = 40 * box + 60
            corners = [left, 4, left + 9, 4, left + 9, 20, left, 20]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "segmentation": [corners]}
            )
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 32})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "instances.json").write_text(json.dumps(document))
