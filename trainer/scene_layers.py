"""Scenes as layers: cut-outs over a photograph, and what is visible of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backgrounds import Background
from .cutouts import Cutout

Layer = tuple[Cutout, Image.Image, tuple[int, int]]
"""A cut-out, its picture as it is put (RGBA), and the picture's left and top, in pixels."""


@dataclass
class PlacedObject:
    """An object in a scene.

    Args:
        name (`str`): its noun.
        cutout (`Cutout`): its picture.
        mask (`np.ndarray`): `(size, size)`, boolean: what is visible of it.
        box (`tuple[int, int, int, int]`): left, top, width and height of what is visible, in pixels.
        hidden (`float`): the part of it that others hide, 0 to 1.
        picture (`PIL.Image.Image`, *optional*): RGBA: the cut-out as it is put there.
        corner (`tuple[int, int]`): left and top of the picture, in pixels.
    """

    name: str
    cutout: Cutout
    mask: np.ndarray
    box: tuple[int, int, int, int]
    hidden: float
    picture: Image.Image | None = None
    corner: tuple[int, int] = (0, 0)

    @property
    def area(self) -> int:
        """Visible pixels."""
        return int(self.mask.sum())

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box, from the left and from the top, in pixels."""
        left, top, width, height = self.box
        return left + width / 2, top + height / 2


@dataclass
class PhotographScene:
    """An image and what it shows.

    Args:
        image (`PIL.Image.Image`): RGB, square.
        objects (`list[PlacedObject]`): from the back to the front.
        background (`Background`): the photograph behind them.
        shrunk_objects (`int`): how many are smaller than they were to be, because they found no place otherwise.
        canvas (`PIL.Image.Image`, *optional*): the image without objects.
    """

    image: Image.Image
    objects: list[PlacedObject]
    background: Background
    shrunk_objects: int = 0
    canvas: Image.Image | None = None

    @property
    def counts(self) -> Counter[str]:
        """How many objects of each noun there are."""
        return Counter(item.name for item in self.objects)


def layered_scene(
    background: Background, canvas: Image.Image, layers: Sequence[Layer], shrunk_objects: int = 0
) -> PhotographScene:
    """Puts pictures over a photograph, exactly where they are to be.

    Args:
        background (`Background`): the photograph.
        canvas (`PIL.Image.Image`): the part of it that is shown, RGB and square; stays as it is.
        layers (sequence of `Layer`): from the back to the front; they lie within the canvas.
        shrunk_objects (`int`): see [`PhotographScene`].

    Returns:
        `PhotographScene`: the image and what it shows.

    Raises:
        ValueError: if nothing is visible of an object.
    """
    image = canvas.copy()
    owners = np.full((canvas.height, canvas.width), -1)
    for number, (_, picture, (left, top)) in enumerate(layers):
        image.paste(picture, (left, top), picture)
        region = owners[top : top + picture.height, left : left + picture.width]
        region[opaque_pixels(picture)] = number
    objects = []
    for number, (cutout, picture, corner) in enumerate(layers):
        mask = owners == number
        if not mask.any():
            raise ValueError(f"nothing is visible of the {cutout.name} at {corner}: the others hide it.")
        hidden = 1 - mask.sum() / opaque_pixels(picture).sum()
        objects.append(PlacedObject(cutout.name, cutout, mask, _box(mask), float(hidden), picture, corner))
    return PhotographScene(image, objects, background, shrunk_objects, canvas)


def layers_of(scene: PhotographScene) -> list[Layer]:
    """The layers that a scene is made of.

    Args:
        scene (`PhotographScene`): of [`layered_scene`].

    Returns:
        `list[Layer]`: from the back to the front.

    Raises:
        ValueError: if the scene does not know them.
    """
    layers: list[Layer] = []
    for item in scene.objects:
        if item.picture is None or scene.canvas is None:
            raise ValueError("the scene does not hold its pictures: make it with compose_scene or layered_scene.")
        layers.append((item.cutout, item.picture, item.corner))
    return layers


def opaque_pixels(picture: Image.Image) -> np.ndarray:
    """The pixels of a cut-out that belong to its object.

    Args:
        picture (`PIL.Image.Image`): RGBA.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool.
    """
    return np.asarray(picture.getchannel("A")) >= 128


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


__all__ = ["Layer", "PhotographScene", "PlacedObject", "layered_scene", "layers_of", "opaque_pixels"]
