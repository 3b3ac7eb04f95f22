"""Planted pictures for scenes over photographs: squares of one colour over grey noise."""

import hashlib
import random

from PIL import Image

from tests.trainer.planted_cutouts import planted_cutouts
from vistok.trainer.backgrounds import Background
from vistok.trainer.scene_set import SceneSettings

CLASSES = ("apple", "bird", "cow")


def planted_backgrounds(folder, count=3):
    """Small grey pictures, no two alike, all on the side of training."""
    backgrounds = []
    for number in range(count):
        noise = random.Random(number).randbytes(48 * 40)
        path = folder / f"background-{number}.png"
        Image.frombytes("L", (48, 40), noise).point(lambda value: 90 + value // 8).convert("RGB").save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        backgrounds.append(Background(f"planted/{number}", path, sha256, "train"))
    return backgrounds


def planted_pictures(folder):
    """Cut-outs and backgrounds in a folder of their own."""
    pictures = folder / "pictures"
    pictures.mkdir()
    return planted_cutouts(pictures), planted_backgrounds(pictures)


def settings(**changed):
    """Settings of a tiny set."""
    values = {
        "split": "train",
        "num_scenes": 12,
        "classes": CLASSES,
        "size": 64,
        "seed": 0,
        "max_objects": 9,
        "max_overlap": 0.2,
        "count_weights": (30, 20, 14, 11, 8, 6, 5, 3, 3),
        "classes_weights": (50, 32, 18),
        "questions_per_scene": 4,
        "captions_per_scene": 5,
    }
    return SceneSettings(**{**values, **changed})
