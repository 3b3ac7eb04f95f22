"""Scenes over photographs: which classes, how many objects of each, and where they are put."""

import math
import random
from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .backgrounds import Background, draw_background, shown_in_backgrounds
from .cutouts import Cutout, CutoutLibrary
from .data_formats import known
from .scene_layers import PhotographScene, PlacedObject, layered_scene, opaque_pixels
from .scenes import load_cutout

MAX_OBJECTS = 9
# Of 100 questions how many there are of a class, how many have the answer 1, 2, …: small numbers are common.
COUNT_WEIGHTS = (30, 20, 14, 11, 8, 6, 5, 3, 3)
# Of 100 scenes, how many have objects of one, two and three classes.
CLASSES_WEIGHTS = (50, 32, 18)
# Nobody counts these before a photograph: half of their pictures are next to transparent.
HARD_TO_SEE = ("glass",)
# Longer sides of the smallest and the largest object, in sides of the image: 20 and 90 of 112 pixels.
OBJECT_SIZES = (0.18, 0.8)
_SIZES_RANGE = (0.1, 0.9)
_LEAST_AREA = 0.12  # root of its area
_FILLED = 0.82  # n objects are at most this / sqrt(n) of the image wide or high
_ENLARGEMENT = 2.5  # at most, of a cut-out
_TRIES = 60  # places tried for an object before all shrink
_SHRINKINGS = 12
_CONTRAST = 75  # how much an object's mean colour should differ from what is behind it, summed over RGB
_BACKGROUND_TRIES = 6


def choose_classes(train: CutoutLibrary, test: CutoutLibrary, num_classes: int) -> list[str]:
    """Chooses the nouns with most pictures on both sides of the split; none could be said of another's object.

    Nouns with photographs come before those that are only drawn; no category has more than a third of the classes
    while others are left; nouns that many of the backgrounds show, or that are hard to see, come last.

    Args:
        train (`CutoutLibrary`): pictures for training.
        test (`CutoutLibrary`): pictures for testing, of the same nouns.
        num_classes (`int`): how many.

    Returns:
        `list[str]`: nouns, in the order of the vocabulary.

    Raises:
        ValueError: if there are not so many.
    """
    shown = shown_in_backgrounds()

    def richness(name: str) -> tuple[bool, int]:
        sides = [library.of(name) for library in (train, test)]
        photographs = sum(any(cutout.photograph for cutout in side) for side in sides)
        numbers = [min(len(side), most) for side, most in zip(sides, (8, 4))]
        return shown.get(name, 0) < 3 and name not in HARD_TO_SEE, numbers[0] + 3 * numbers[1] + 3 * photographs

    ranked = sorted(train.names, key=richness, reverse=True)  # stable: equals stay in the vocabulary's order
    chosen: list[str] = []
    for most in (-(-num_classes // 3), num_classes):
        for name in ranked:
            category = train.nouns[name].category
            listed = sum(train.nouns[other].category == category for other in chosen)
            if len(chosen) < num_classes and listed < most and not train.related(name) & {*chosen}:
                chosen.append(name)
    if len(chosen) < num_classes:
        raise ValueError(
            f"num_classes must be at most {len(chosen)}, the nouns that have pictures, got {num_classes}."
        )
    return [name for name in train.names if name in chosen]


def check_classes(train: CutoutLibrary, classes: Sequence[str]) -> list[str]:
    """Checks classes that a user names.

    Args:
        train (`CutoutLibrary`): the vocabulary.
        classes (sequence of `str`): nouns.

    Returns:
        `list[str]`: the nouns, in the order of the vocabulary.

    Raises:
        ValueError: if one is unknown, repeats, or could be said of another one's object.
    """
    for name in classes:
        known("class of scenes", name, train.names)
        others = sorted((train.related(name) - {name}) & {*classes})
        if others:
            raise ValueError(f"the classes {name!r} and {others[0]!r} could be said of one object: leave one out.")
    if len({*classes}) < len(classes) or not classes:
        raise ValueError(f"the classes must differ and be at least one, got {list(classes)}.")
    return [name for name in train.names if name in classes]


def check_object_sizes(sizes: Sequence[float]) -> None:
    """Checks the smallest and the largest longer side of objects.

    Args:
        sizes (sequence of `float`): the two, in sides of the image.

    Raises:
        ValueError: if they are not two such numbers, in this order.
    """
    least, most = _SIZES_RANGE
    numbers = len(sizes) == 2 and all(isinstance(side, (int, float)) for side in sizes)
    if not numbers or not least <= sizes[0] <= sizes[1] <= most:
        raise ValueError(
            "object_sizes must be the smallest and the largest longer side of objects in sides of the image, between "
            f"{least} and {most}, got {list(sizes)}."
        )


class CountDistribution:
    """Numbers of objects, so that over many scenes the number of a class has a chosen distribution.

    Scenes of several classes have room for small numbers only; scenes of one class make up for what they lack, as far
    as there are enough of them.

    Args:
        max_objects (`int`): the most objects of a scene, 1 to 9.
        count_weights (sequence of `float`): of the numbers 1, 2, … of a class.
        classes_weights (sequence of `float`): of scenes of one, two, … classes.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(
        self,
        max_objects: int = MAX_OBJECTS,
        count_weights: Sequence[float] = COUNT_WEIGHTS,
        classes_weights: Sequence[float] = CLASSES_WEIGHTS,
    ):
        if not 1 <= max_objects <= MAX_OBJECTS:
            raise ValueError(f"max_objects must lie between 1 and {MAX_OBJECTS}, got {max_objects}.")
        for name, weights in (("count_weights", count_weights), ("classes_weights", classes_weights)):
            if not weights or min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{name} must be numbers of at least 0, one of them greater, got {list(weights)}.")
        target = np.array([*count_weights, *[0] * MAX_OBJECTS][:max_objects], dtype=float)
        if not target.sum():
            raise ValueError(
                f"count_weights gives no weight to 1 to max_objects={max_objects}: {list(count_weights)}."
            )
        self.target = target / target.sum()
        shares = np.array(classes_weights[:max_objects], dtype=float)
        self._of_classes = {
            number: self._tuples(number) for number, share in enumerate(shares, start=1) if share and number > 1
        }
        self._of_classes = {number: pairs for number, pairs in self._of_classes.items() if pairs[0]}
        self.shares = {1: float(shares[0]), **{number: float(shares[number - 1]) for number in self._of_classes}}
        if not sum(self.shares.values()):
            raise ValueError(f"classes_weights {list(classes_weights)} asks for more classes than objects have room.")
        self._single = self._make_up()

    def _tuples(self, number: int) -> tuple[list[tuple[int, ...]], list[float]]:
        """Numbers of objects of so many classes, with their weights."""
        numbers = range(1, len(self.target) + 1)
        fitting = [counts for counts in product(numbers, repeat=number) if sum(counts) <= len(self.target)]
        weights = [float(np.prod([self.target[count - 1] for count in counts])) for counts in fitting]
        return (fitting, weights) if sum(weights) else ([], [])

    def _make_up(self) -> list[float]:
        total = sum(self.shares.values())
        classes = sum(share * number for number, share in self.shares.items()) / total
        wanted = classes * self.target
        for number, (fitting, weights) in self._of_classes.items():
            for counts, weight in zip(fitting, weights):
                for count in counts:
                    wanted[count - 1] -= self.shares[number] / total * weight / sum(weights)
        wanted = np.clip(wanted, 0, None)
        return [float(weight) for weight in (wanted if wanted.sum() else self.target)]

    def draw(self, names: Sequence[str], rng: random.Random) -> dict[str, int]:
        """Chooses the classes of a scene, each equally often, and how many objects there are of each.

        Args:
            names (sequence of `str`): the classes to choose from.
            rng (`random.Random`): random numbers.

        Returns:
            `dict[str, int]`: number by class.
        """
        number = min(rng.choices(list(self.shares), list(self.shares.values()))[0], len(names))
        if number == 1:
            counts: tuple[int, ...] = tuple(rng.choices(range(1, len(self._single) + 1), self._single))
        else:
            fitting, weights = self._of_classes[number]
            counts = rng.choices(fitting, weights)[0]
        return dict(zip(rng.sample(list(names), number), counts))


def compose_scene(
    cutouts: CutoutLibrary,
    backgrounds: Sequence[Background],
    counts: dict[str, int],
    size: int,
    max_overlap: float,
    rng: random.Random,
    object_sizes: Sequence[float] = OBJECT_SIZES,
) -> PhotographScene:
    """Puts objects over a photograph.

    Args:
        cutouts (`CutoutLibrary`): pictures of the objects.
        backgrounds (sequence of `Background`): photographs to choose from.
        counts (`dict[str, int]`): number of objects by noun.
        size (`int`): side of the image, in pixels.
        max_overlap (`float`): the largest part of an object that others may hide, at least 0 and less than 1.
        rng (`random.Random`): where every choice comes from.
        object_sizes (sequence of `float`): the smallest and the largest longer side of an object, in sides of the
            image, as far as there is room; see [`write_scenes`].

    Returns:
        `PhotographScene`: the image and what it shows.

    Raises:
        ValueError: if the objects find no place.
        BadSampleError: if a picture cannot be read.
    """
    chosen = [cutout for name, count in counts.items() for cutout in _draw_pictures(cutouts.of(name), count, rng)]
    rng.shuffle(chosen)
    least, largest = object_sizes
    most = min(largest, max(least, _FILLED / math.sqrt(len(chosen))))
    # Small objects are commoner than large ones. (No powers but squares: others differ between machines.)
    draws = [rng.random() for _ in chosen]
    sides = [(least + (most - least) * draw * draw) * size for draw in draws]
    wanted = [transformed_picture(cutout, side, largest, size, rng) for cutout, side in zip(chosen, sides)]
    pictures, corners = _place(wanted, size, max_overlap, rng)
    background, canvas = _contrasting_background(pictures, corners, backgrounds, size, rng)
    shrunk = sum(picture.size != before.size for picture, before in zip(pictures, wanted))
    return layered_scene(background, canvas, list(zip(chosen, pictures, corners)), shrunk)


def _draw_pictures(cutouts: list[Cutout], count: int, rng: random.Random) -> list[Cutout]:
    """The same picture several times or several pictures; of photographs and drawings equally often."""
    kinds = [kind for kind in ([c for c in cutouts if c.photograph], [c for c in cutouts if not c.photograph]) if kind]
    if rng.random() < 0.4:
        return [rng.choice(rng.choice(kinds))] * count
    return [rng.choice(rng.choice(kinds)) for _ in range(count)]


def transformed_picture(cutout: Cutout, side: float, largest: float, size: int, rng: random.Random) -> Image.Image:
    """A cut-out mirrored, lightened, turned and scaled.

    Args:
        cutout (`Cutout`): the cut-out.
        side (`float`): its longer side, in pixels; more where it is thin.
        largest (`float`): the most of it, in sides of the image.
        size (`int`): side of the image, in pixels.
        rng (`random.Random`): where every choice comes from.

    Returns:
        `PIL.Image.Image`: RGBA.
    """
    picture = load_cutout(cutout.path)
    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.8, 1.2))
    if rng.random() < 0.5:
        # Before it is scaled down and with a margin, so that straight edges stay smooth.
        picture = ImageOps.expand(picture, 2, (0, 0, 0, 0))
        picture = picture.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
        picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha >= 16)).getbbox())
    scale = max(side / max(picture.size), _LEAST_AREA * size / math.sqrt(opaque_pixels(picture).sum()))
    return _scaled(picture, min(scale, largest * size / max(picture.size), _ENLARGEMENT))


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(4, round(picture.width * scale)), max(4, round(picture.height * scale)))
    # Pillow weights colours by opacity here, so that transparent pixels leave no halo.
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def _place(
    pictures: list[Image.Image], size: int, max_overlap: float, rng: random.Random
) -> tuple[list[Image.Image], list[tuple[int, int]]]:
    """Finds places at which enough of every picture stays visible; where there are none, pictures shrink."""
    for _ in range(_SHRINKINGS):
        owners = np.full((size, size), -1)
        corners: list[tuple[int, int]] = []
        whole: list[int] = []
        for number, picture in enumerate(pictures):
            opaque = opaque_pixels(picture)
            for _ in range(_TRIES):
                left, top = rng.randint(0, size - picture.width), rng.randint(0, size - picture.height)
                region = owners[top : top + picture.height, left : left + picture.width]
                trial = owners.copy()
                trial[top : top + picture.height, left : left + picture.width] = np.where(opaque, number, region)
                visible = np.bincount(trial[trial >= 0], minlength=number + 1)
                if all(seen >= (1 - max_overlap) * full for seen, full in zip(visible, [*whole, opaque.sum()])):
                    owners = trial
                    corners.append((left, top))
                    whole.append(int(opaque.sum()))
                    break
            else:
                break
        if len(corners) == len(pictures) and min(whole) > 0:
            return pictures, corners
        pictures = [_scaled(picture, 0.9) for picture in pictures]
    raise ValueError(f"{len(pictures)} objects do not fit into {size} pixels: choose a larger size or fewer objects.")


def _contrasting_background(
    pictures: list[Image.Image],
    corners: list[tuple[int, int]],
    backgrounds: Sequence[Background],
    size: int,
    rng: random.Random,
) -> tuple[Background, Image.Image]:
    """A background from which every object differs, or the one of a few from which the least visible differs most."""
    tried: list[tuple[float, Background, Image.Image]] = []
    while len(tried) < _BACKGROUND_TRIES and not (tried and tried[-1][0] >= _CONTRAST):
        background, canvas = draw_background(backgrounds, size, rng)
        behind = np.asarray(canvas, dtype=np.int64)
        least = float("inf")
        for picture, (left, top) in zip(pictures, corners):
            opaque = opaque_pixels(picture)
            region = behind[top : top + picture.height, left : left + picture.width][opaque].mean(axis=0)
            least = min(least, np.abs(np.asarray(picture)[opaque][:, :3].mean(axis=0) - region).sum())
        tried.append((float(least), background, canvas))
    return max(tried, key=lambda item: item[0])[1:]


__all__ = [
    "CountDistribution",
    "PhotographScene",
    "PlacedObject",
    "check_classes",
    "choose_classes",
    "compose_scene",
    "transformed_picture",
]
