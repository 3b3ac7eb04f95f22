"""Scenes composed of cut-outs: images of which the objects' names, boxes and masks are known exactly."""

import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .cutouts import Cutout, CutoutLibrary

COUNTS = (1, 2, 3, 4, 5)
# A single large object is asked about too, as one: together with these weights, every count is asked equally often.
_CROWD_WEIGHTS = (1, 2, 2, 2, 2)
_STORED_SIDE = 256  # cut-outs are scaled down to it once
_MAX_ENLARGEMENT = 2.5
_SHRINKINGS = 12  # to less than a tenth: what has no place then is too thin to have a mask
_BACKGROUNDS = ("white", "plain", "gradient", "noise")


@dataclass
class SceneObject:
    """An object in a scene.

    Args:
        name (`str`): its noun.
        box (`tuple[int, int, int, int]`): left, top, width and height of what is visible, in pixels.
        mask (`np.ndarray`): `(size, size)`, boolean: what is visible of it.
        cutout (`str`): key of its picture.
        photograph (`bool`): whether its picture is a photograph.
    """

    name: str
    box: tuple[int, int, int, int]
    mask: np.ndarray
    cutout: str
    photograph: bool = False


@dataclass
class Scene:
    """An image and what it shows.

    Args:
        image (`PIL.Image.Image`): RGB, square.
        objects (`list[SceneObject]`): from the back to the front.
        asked (`str`): the noun that a counting question is about; its number is balanced over scenes.
    """

    image: Image.Image
    objects: list[SceneObject]
    asked: str

    @property
    def counts(self) -> Counter[str]:
        """How many objects of each noun there are."""
        return Counter(item.name for item in self.objects)


def scene_rng(seed: int, split: str, index: int) -> random.Random:
    """The random numbers of one scene, the same on every machine.

    Args:
        seed (`int`): seed of the whole set.
        split (`str`): its split.
        index (`int`): the scene's index.

    Returns:
        `random.Random`: a generator of its own.
    """
    # A string is hashed whole by Python's documented seeding, which numbers of nearby scenes could not be.
    return random.Random(f"vistok scene/{seed}/{split}/{index}")


def make_scene(
    cutouts: CutoutLibrary,
    rng: random.Random,
    size: int = 224,
    single_fraction: float = 0.5,
    min_visible: float = 0.8,
) -> Scene:
    """Composes a scene: one large object, or 2 to 5 objects of 1 to 3 nouns, on a varied background.

    Args:
        cutouts (`CutoutLibrary`): pictures to choose from.
        rng (`random.Random`): where every choice comes from.
        size (`int`): side of the image, in pixels.
        single_fraction (`float`): probability of one large object.
        min_visible (`float`): the least visible part of an object that others cover, at most 1.

    Returns:
        `Scene`: image and objects.

    Raises:
        ValueError: if `size`, `single_fraction` or `min_visible` is out of range, or a picture too thin for `size`.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}.")
    if not 0 <= single_fraction <= 1:
        raise ValueError(f"single_fraction must lie between 0 and 1, got {single_fraction}.")
    if not 0 < min_visible <= 1:
        raise ValueError(f"min_visible must be greater than 0 and at most 1, got {min_visible}.")
    single = rng.random() < single_fraction
    asked = rng.choice(cutouts.names)
    counts = {asked: 1} if single else draw_counts(cutouts, asked, rng)
    chosen = [cutout for name, count in counts.items() for cutout in _draw_pictures(cutouts.of(name), count, rng)]
    rng.shuffle(chosen)
    scales = (0.5, 0.95) if single else (0.26, 0.52 - 0.03 * len(chosen))
    pictures = [_transform(cutout, rng.uniform(*scales) * size, rng) for cutout in chosen]
    placed = _place(pictures, size, min_visible, rng)
    canvas = _draw_background(pictures, size, rng)
    masks = []
    for picture, corner in placed:
        canvas.paste(picture, corner, picture)
        masks.append(_mask(picture, corner, size))
    objects = [
        SceneObject(cutout.name, _box(mask), mask, cutout.key, cutout.photograph)
        for cutout, mask in zip(chosen, _visible(masks))
    ]
    return Scene(canvas, objects, asked)


def draw_counts(cutouts: CutoutLibrary, asked: str, rng: random.Random) -> dict[str, int]:
    """Chooses how many objects of which nouns a scene with several objects holds.

    Args:
        cutouts (`CutoutLibrary`): pictures to choose from.
        asked (`str`): the noun whose number is balanced.
        rng (`random.Random`): random numbers.

    Returns:
        `dict[str, int]`: number by noun; `asked` is the first.
    """
    count = rng.choices(COUNTS, _CROWD_WEIGHTS)[0]
    counts = {asked: count}
    room = max(COUNTS) - count
    # One object of the asked noun is a crowd only among others.
    if room and (count == 1 or rng.random() < 0.6):
        for _ in range(rng.choice((1, 2))):
            other = draw_absent(cutouts, counts, rng)
            if other is None or not room:
                break
            counts[other] = rng.randint(1, min(room, 3))
            room -= counts[other]
    return counts


def draw_absent(cutouts: CutoutLibrary, present: dict[str, int], rng: random.Random) -> str | None:
    """Chooses a noun that cannot be said of any object present.

    Over many scenes each noun is chosen equally often: one with many related nouns, which is excluded more often, is
    preferred where it is not.

    Args:
        cutouts (`CutoutLibrary`): the vocabulary.
        present (`dict[str, int]`): the nouns present.
        rng (`random.Random`): random numbers.

    Returns:
        `str` or `None`: a noun; `None` if none is left.
    """
    excluded = frozenset[str]().union(*(cutouts.related(name) for name in present))
    names = [name for name in cutouts.names if name not in excluded]
    if not names:
        return None
    total = len(cutouts.names)
    weights = [(1 - min(len(cutouts.related(name)) / total, 0.9)) ** -len(present) for name in names]
    return rng.choices(names, weights)[0]


def _draw_pictures(cutouts: list[Cutout], count: int, rng: random.Random) -> list[Cutout]:
    """The same picture several times or several pictures; of photographs and drawings equally often."""
    kinds = [[cutout for cutout in cutouts if cutout.photograph is kind] for kind in (False, True)]
    pools = [rng.choice(kinds) if all(kinds) else cutouts for _ in range(count)]
    if rng.random() < 0.5:
        return [rng.choice(pools[0])] * count
    return [rng.choice(pool) for pool in pools]


@lru_cache(maxsize=4096)
def load_cutout(path: Path) -> Image.Image:
    """Reads a cut-out, cropped to its object and scaled down to at most 256 pixels.

    Args:
        path (`Path`): image file.

    Returns:
        `PIL.Image.Image`: RGBA.

    Raises:
        BadSampleError: if the file is missing, unreadable or fully transparent.
    """
    from ..processing.images import BadSampleError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except OSError as error:
        raise BadSampleError(f"the cut-out cannot be read ({error})", str(path)) from error
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()
    if box is None:
        raise BadSampleError("the cut-out is fully transparent", str(path))
    picture = picture.crop(box)
    picture.thumbnail((_STORED_SIDE, _STORED_SIDE), Image.Resampling.BICUBIC, reducing_gap=None)
    return picture


def _transform(cutout: Cutout, side: float, rng: random.Random) -> Image.Image:
    """A cut-out mirrored, lightened, turned and scaled, its longer side about `side` pixels."""
    picture = load_cutout(cutout.path)
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.15))
    angle = rng.uniform(-20, 20) if rng.random() < 0.5 else 0.0
    scale = min(side / max(picture.size), _MAX_ENLARGEMENT)
    picture = picture.resize(
        (max(4, round(picture.width * scale)), max(4, round(picture.height * scale))), Image.Resampling.BICUBIC
    )
    if angle:
        picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        picture.thumbnail((round(side), round(side)), Image.Resampling.BICUBIC, reducing_gap=None)
    return picture


def _place(
    pictures: list[Image.Image], size: int, min_visible: float, rng: random.Random
) -> list[tuple[Image.Image, tuple[int, int]]]:
    """Finds places at which enough of every picture stays visible; where there are none, pictures shrink."""
    for _ in range(_SHRINKINGS):
        placed: list[tuple[Image.Image, tuple[int, int]]] = []
        masks: list[np.ndarray] = []
        for picture in pictures:
            for _ in range(40):
                corner = (rng.randint(0, size - picture.width), rng.randint(0, size - picture.height))
                trial = [*masks, _mask(picture, corner, size)]
                if all(
                    visible.sum() >= min_visible * max(1, mask.sum()) for visible, mask in zip(_visible(trial), trial)
                ):
                    placed.append((picture, corner))
                    masks = trial
                    break
        if len(placed) == len(pictures):
            return placed
        pictures = [
            picture.resize((max(4, picture.width * 4 // 5), max(4, picture.height * 4 // 5)), Image.Resampling.BICUBIC)
            for picture in pictures
        ]
    raise ValueError(f"the objects of a scene do not fit into {size} pixels: choose a larger size.")


def _mask(picture: Image.Image, corner: tuple[int, int], size: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    left, top = corner
    mask[top : top + picture.height, left : left + picture.width] = np.asarray(picture.getchannel("A")) >= 128
    return mask


def _visible(masks: list[np.ndarray]) -> list[np.ndarray]:
    """What later masks leave of earlier ones."""
    visible = []
    covered = np.zeros_like(masks[0])
    for mask in reversed(masks):
        visible.append(mask & ~covered)
        covered = covered | mask
    return visible[::-1]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def _draw_background(pictures: list[Image.Image], size: int, rng: random.Random) -> Image.Image:
    """A background from whose mean colour every object differs, if a few tries find one."""
    colors = [_mean_color(picture) for picture in pictures]
    for _ in range(8):
        canvas = _random_background(size, rng)
        mean = _mean_color(canvas)
        if all(sum(abs(a - b) for a, b in zip(color, mean)) > 90 for color in colors):
            break
    return canvas


def _mean_color(picture: Image.Image) -> tuple[int, ...]:
    small = picture.resize((1, 1), Image.Resampling.BOX)  # transparent pixels do not count
    return tuple(small.tobytes()[:3])


def _random_background(size: int, rng: random.Random) -> Image.Image:
    kind = rng.choice(_BACKGROUNDS)
    if kind == "white":
        return Image.new("RGB", (size, size), "white")
    if kind == "plain":
        return Image.new("RGB", (size, size), _color(rng))
    if kind == "gradient":
        # Four colours, blown up: a gradient between the corners.
        corners = Image.new("RGB", (2, 2))
        corners.putdata([_color(rng) for _ in range(4)])
        return corners.resize((size, size), Image.Resampling.BICUBIC, box=(0.5, 0.5, 1.5, 1.5))
    cells = rng.choice((4, 8, 16, 56))
    noise = Image.frombytes("RGB", (cells, cells), rng.randbytes(3 * cells * cells))
    noise = noise.resize((size, size), Image.Resampling.BICUBIC)
    return Image.blend(Image.new("RGB", (size, size), _color(rng)), noise, rng.uniform(0.15, 0.5))


def _color(rng: random.Random) -> tuple[int, int, int]:
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))
