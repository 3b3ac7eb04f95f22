"""Planted scenes of coloured squares with COCO's files, and writers that know what is right."""

import json

import numpy as np
import torch
from PIL import Image

from vistok.evaluation.contents_probe import ContentsReading, ProbeConfig
from vistok.evaluation.image_evaluation import ImageRun
from vistok.processing.images import load_example_images

SIDE = 32
COLORS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (20, 40, 230)}
NAMES = ("apple", "bird", "cow")
GRID = (4, 4)
CELL = SIDE // GRID[0]


def planted_scenes(folder, number=12, seed=0):
    """Pictures of one to three squares, each in a cell of its own; a class is a place in its cell, a colour its paint.
    Returns the records of `drawing_captions.json`."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images, annotations, captions = [], [], []
    for index in range(number):
        pixels = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
        contents: dict = {}
        for cell in rng.permutation(16)[: 1 + index % 3]:
            name, color = NAMES[rng.integers(3)], list(COLORS)[rng.integers(3)]
            top, left = CELL * (int(cell) // 4), CELL * (int(cell) % 4)
            pixels[top : top + CELL, left : left + CELL] = COLORS[color]
            stripe = NAMES.index(name)
            pixels[top + 2 * stripe : top + 2 * stripe + 2, left : left + CELL] = 0
            contents[name, color] = contents.get((name, color), 0) + 1
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[top : top + CELL, left : left + CELL] = True
            annotations.append(annotation(len(annotations) + 1, index, NAMES.index(name) + 1, mask))
        record = {"id": index, "file_name": f"{index:03d}.png", "width": SIDE, "height": SIDE}
        images.append({**record, "background": f"photograph {index % 4}"})
        Image.fromarray(pixels).save(folder / "images" / record["file_name"])
        listed = [{"name": name, "color": color, "count": count} for (name, color), count in contents.items()]
        text = " and ".join(f"{one['count']} {one['color']} {one['name']}" for one in listed)
        captions.append({"id": index, "image_id": index, "caption": text, "contents": listed})
    categories = [{"id": place, "name": name} for place, name in enumerate(NAMES, start=1)]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "drawing_captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return captions


def annotation(number, image_id, category_id, mask):
    """A COCO annotation with its mask as uncompressed run lengths."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), len(columns), len(rows)]
    flat = mask.T.reshape(-1)
    starts = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *starts, flat.size]).tolist()
    counts = [0, *runs] if flat[0] else runs
    rle = {"size": list(mask.shape), "counts": counts}
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box, "area": int(mask.sum()),
            "iscrowd": 0, "segmentation": rle}  # fmt: skip


class PixelProbe:
    """Reads planted squares exactly, from their pixels: what a perfect probe would say."""

    def __init__(self):
        colors = ("", *COLORS)
        self.config = ProbeConfig(NAMES, colors, "pixels", 0, SIDE, SIDE, 3, GRID, thresholds=(0.5,) * 3)
        self.facts = {"num_scenes": 0, "held_out": {}}

    def read(self, images, batch_size=32):
        found = []
        for image in images:
            densities, colors = torch.zeros(16, 3), torch.zeros(16, 4)
            pixels = np.asarray(image.convert("RGB")).astype(int)
            for cell in range(16):
                top, left = CELL * (cell // 4), CELL * (cell % 4)
                part = pixels[top : top + CELL, left : left + CELL]
                stripes = [k for k in range(3) if (part[2 * k : 2 * k + 2] < 30).all()]
                if stripes and not (part == 128).all():
                    densities[cell, stripes[0]] = 1
                    paint = part[(2 * stripes[0] + 3) % CELL, 0]
                    nearest = min(COLORS, key=lambda color, paint=paint: np.abs(paint - COLORS[color]).sum())
                    colors[cell, 1 + list(COLORS).index(nearest)] = 1
            found.append(ContentsReading(densities, colors, self.config))
        return found


def image_run(folder, **options):
    """An evaluation in a folder of its own."""
    values = {"batch_size": 5, "progress_bar": False, "known_by": {"model": "planted"}, **options}
    return ImageRun(folder / "images", folder / "predictions.jsonl", **values)


def true_pictures(examples):
    """What is right, as a writer returns it."""
    return [(load_example_images(example)[-1].convert("RGB"), {"num_tokens": 3}) for example in examples]
