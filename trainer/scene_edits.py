"""Edits of scenes: an instruction and the scene after it, with the same background and the same other objects."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .cutouts import CutoutLibrary
from .scene_colors import PAINTS, color_name, painted
from .scene_expressions import object_color, scene_expressions
from .scene_layers import Layer, PhotographScene, layered_scene, layers_of, opaque_pixels
from .scene_layout import OBJECT_SIZES, transformed_picture
from .scene_questions import with_article

# Ninths of the image by what they are called: column and row, from the left and from the top.
PLACES = {
    "in the upper left": (0, 0), "at the top": (1, 0), "in the upper right": (2, 0),
    "on the left": (0, 1), "in the center": (1, 1), "on the right": (2, 1),
    "in the lower left": (0, 2), "at the bottom": (1, 2), "in the lower right": (2, 2),
}  # fmt: skip
_PLACINGS = 24  # tried
_LEAST_MOVE = 0.3  # between middles, in sides of the image
_LARGEST_ADDED = 0.42  # longer side, in sides of the image
_CONTRAST = 60  # of an object to what is behind it, summed over RGB: less than that could be overlooked
_WORDINGS = {
    "move": ("Move {} {}.", "Shift {} {}."),
    "remove": ("Remove {}.", "Delete {}.", "Take away {}."),
    "recolor": ("Make {} {}.", "Paint {} {}.", "Color {} {}."),
    "add": ("Add {} {}.", "Put {} {}.", "Insert {} {}."),
}


@dataclass
class SceneEdit:
    """An instruction and the scene that it makes of another.

    Args:
        kind (`str`): a key of `EDIT_KINDS`.
        instruction (`str`): e.g. `"Move the dog to the upper left."`.
        target (`PhotographScene`): the scene after it.
        source_object (`int`, *optional*): index of the object in the scene before; `None` of one that is added.
        target_object (`int`, *optional*): index of the object in the scene after; `None` of one that is removed.
        place (`str`, *optional*): key of `PLACES`, of an object that is moved or added.
        color (`str`, *optional*): key of `PAINTS`, of an object that is painted.
    """

    kind: str
    instruction: str
    target: PhotographScene
    source_object: int | None = None
    target_object: int | None = None
    place: str | None = None
    color: str | None = None


def scene_edits(scene: PhotographScene, cutouts: CutoutLibrary, number: int, rng: random.Random) -> list[SceneEdit]:
    """Edits a scene in several ways, each of them starting from the scene as it is.

    Args:
        scene (`PhotographScene`): the scene, with its layers.
        cutouts (`CutoutLibrary`): pictures that may be added.
        number (`int`): at most so many edits; fewer where the scene has no room, or nothing that can be referred to.
        rng (`random.Random`): random numbers.

    Returns:
        `list[SceneEdit]`: of different instructions, and of different kinds as far as possible.

    Raises:
        ValueError: if the scene does not hold its layers.
        BadSampleError: if a picture cannot be read.
    """
    kinds = list(EDIT_KINDS)
    rng.shuffle(kinds)
    edits: dict[str, SceneEdit] = {}
    for turn in range(3 * max(number, len(kinds))):
        if len(edits) >= number:
            break
        kind = kinds[turn % len(kinds)]
        edit = EDIT_KINDS[kind](scene, cutouts, rng)
        if edit is not None:
            edits.setdefault(edit.instruction, edit)
    return list(edits.values())


def _move(scene: PhotographScene, cutouts: CutoutLibrary, rng: random.Random) -> SceneEdit | None:
    referred = _referred(scene, rng)
    if referred is None:
        return None
    index, expression = referred
    layers, item = layers_of(scene), scene.objects[index]
    cutout, picture, _ = layers[index]
    others = [layer for number, layer in enumerate(layers) if number != index]
    for _ in range(_PLACINGS):
        found = _placed(scene, picture, others, rng)
        if found is None:
            continue
        place, corner = found
        middle = corner[0] + picture.width / 2, corner[1] + picture.height / 2
        distance = math.hypot(middle[0] - item.center[0], middle[1] - item.center[1])
        if distance < _LEAST_MOVE * scene.image.width:
            continue
        layers[index] = (cutout, picture, corner)
        target = layered_scene(scene.background, _canvas(scene), layers)
        where = f"to {place.split(' ', 1)[1]}"
        instruction = rng.choice(_WORDINGS["move"]).format(expression, where)
        return SceneEdit("move", instruction, target, index, index, place)
    return None


def _remove(scene: PhotographScene, cutouts: CutoutLibrary, rng: random.Random) -> SceneEdit | None:
    referred = _referred(scene, rng) if len(scene.objects) > 1 else None
    if referred is None:
        return None
    index, expression = referred
    layers = [layer for number, layer in enumerate(layers_of(scene)) if number != index]
    target = layered_scene(scene.background, _canvas(scene), layers)
    return SceneEdit("remove", rng.choice(_WORDINGS["remove"]).format(expression), target, index)


def _recolor(scene: PhotographScene, cutouts: CutoutLibrary, rng: random.Random) -> SceneEdit | None:
    referred = _referred(scene, rng)
    if referred is None:
        return None
    index, expression = referred
    layers = layers_of(scene)
    cutout, picture, corner = layers[index]
    before = object_color(scene, scene.objects[index])
    for color in rng.sample(list(PAINTS), len(PAINTS)):
        picture_after = painted(picture, color)
        if color == before or not _is_seen(_canvas(scene), picture_after, corner):
            continue
        layers[index] = (cutout, picture_after, corner)
        target = layered_scene(scene.background, _canvas(scene), layers)
        if object_color(target, target.objects[index]) == color:
            instruction = rng.choice(_WORDINGS["recolor"]).format(expression, color)
            return SceneEdit("recolor", instruction, target, index, index, color=color)
    return None


def _add(scene: PhotographScene, cutouts: CutoutLibrary, rng: random.Random) -> SceneEdit | None:
    shown = {other for name in scene.counts for other in cutouts.related(name)}
    names = [name for name in cutouts.names if name not in shown]
    if not names:
        return None
    layers, size = layers_of(scene), scene.image.width
    for _ in range(_PLACINGS):
        cutout = rng.choice(cutouts.of(rng.choice(names)))
        side = rng.uniform(OBJECT_SIZES[0], _LARGEST_ADDED) * size
        picture = transformed_picture(cutout, side, _LARGEST_ADDED, size, rng)
        found = _placed(scene, picture, layers, rng)
        if found is None:
            continue
        place, corner = found
        color = color_name(np.asarray(picture)[opaque_pixels(picture)][:, :3])
        named = with_article(f"{color} {cutout.name}" if color not in (None, cutout.name) else cutout.name)
        target = layered_scene(scene.background, _canvas(scene), [*layers, (cutout, picture, corner)])
        instruction = rng.choice(_WORDINGS["add"]).format(named, place)
        return SceneEdit("add", instruction, target, None, len(layers), place)
    return None


EDIT_KINDS: dict[str, Callable[[PhotographScene, CutoutLibrary, random.Random], SceneEdit | None]] = {
    "move": _move,
    "remove": _remove,
    "recolor": _recolor,
    "add": _add,
}


def _canvas(scene: PhotographScene) -> Image.Image:
    if scene.canvas is None:
        raise ValueError("the scene does not hold its background: make it with compose_scene or layered_scene.")
    return scene.canvas


def _referred(scene: PhotographScene, rng: random.Random) -> tuple[int, str] | None:
    """An object and an expression that refers to it; every object that has one equally often."""
    of_object: dict[int, list[str]] = {}
    for expression in scene_expressions(scene, 100, rng):
        of_object.setdefault(expression.number, []).append(expression.text)
    if not of_object:
        return None
    index = rng.choice(sorted(of_object))
    return index, rng.choice(of_object[index])


def _placed(
    scene: PhotographScene, picture: Image.Image, others: list[Layer], rng: random.Random
) -> tuple[str, tuple[int, int]] | None:
    """A place, and the corner of a picture whose middle lies in it, that hides nothing and is seen there."""
    size = scene.image.width
    place = rng.choice(list(PLACES))
    corner = []
    for ninth, length in zip(PLACES[place], picture.size):
        middle = size * (ninth + rng.uniform(0.2, 0.8)) / 3
        least = min(max(round(middle - length / 2), 0), size - length)
        if not ninth <= 3 * (least + length / 2) / size <= ninth + 1:
            return None  # too large for this place
        corner.append(least)
    left, top = corner
    taken = np.zeros((size, size), dtype=bool)
    for _, other, (x, y) in others:
        taken[y : y + other.height, x : x + other.width] |= opaque_pixels(other)
    if (taken[top : top + picture.height, left : left + picture.width] & opaque_pixels(picture)).any():
        return None
    return (place, (left, top)) if _is_seen(_canvas(scene), picture, (left, top)) else None


def _is_seen(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> bool:
    """Whether a picture differs enough from what is behind it."""
    left, top = corner
    opaque = opaque_pixels(picture)
    behind = np.asarray(canvas, dtype=np.float64)[top : top + picture.height, left : left + picture.width][opaque]
    difference = np.asarray(picture)[opaque][:, :3].mean(axis=0) - behind.mean(axis=0)
    return float(np.abs(difference).sum()) >= _CONTRAST


__all__ = ["EDIT_KINDS", "PLACES", "SceneEdit", "scene_edits"]
