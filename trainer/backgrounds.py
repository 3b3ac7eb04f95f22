"""Photographs that scenes are composed over, with a split by photograph."""

import hashlib
import os
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from .cutout_vocabulary import CATEGORIES, NOUNS
from .cutouts import SPLITS
from .data_formats import known

# Where each data package keeps its photographs.
BACKGROUND_COLLECTIONS = {
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature", ".jpg"),
    "lomiri-wallpapers": ("usr/share/backgrounds", ".jpg"),
    "plasma-wallpapers": ("usr/share/wallpapers", "/contents/images/2560x1600.jpg"),
    "material-kit": ("package/assets/img", ".jpg"),
}
# Chosen by eye: drawings and patterns are left out. Beside each photograph, the nouns of the vocabulary that it shows.
PHOTOGRAPHS: dict[str, dict[str, tuple[str, ...]]] = {
    "mate-backgrounds": {
        "Aqua": (),
        "Blinds": (),
        "Dune": (),
        "FreshFlower": ("flower",),
        "Garden": ("flower",),
        "GreenMeadow": (),
        "LadyBird": ("flower", "bee"),
        "RainDrops": (),
        "Storm": (),
        "TwoWings": ("flower",),
        "Wood": (),
        "YellowFlower": ("flower",),
    },
    "lomiri-wallpapers": {
        "Bridge_by_Sander_Klootwijk": (),
        "Dragonfly_by_Bolly": ("tree",),
        "Picture_0B_by_freespace": ("pear",),  # a fig: what matters is that it is food
        "Picture_1A_by_freespace": (),
        "Wine_by_Jakkub_Mede": ("drum", "chair", "glass", "bottle"),
        "aitzgorri_by_Aitzol_Berasategi": ("tree",),
        "free_by_Peter_Nerlich": ("bird",),
        "friends_by_Aitzol_Berasategi": ("dog",),
        "greentock_by_Peter_Nerlich": ("clock",),
        "life_by_Aitzol_Berasategi": ("tree",),
        "picosdeeuropa_by_Aitzol_Berasategi": (),
        "seeding_by_Clements_Engelhardt": ("flower",),
        "sunset_by_Aitzol_Berasategi": (),
    },
    "plasma-wallpapers": {
        "BytheWater": (),
        "ColdRipple": (),
        "ColorfulCups": ("cup",),
        "DarkestHour": (),
        "EveningGlow": ("boat",),
        "FallenLeaf": (),
        "Grey": (),
        "Kite": (),
        "OneStandsOut": (),
        "Path": ("tree",),
        "summer_1am": (),
    },
    "material-kit": {
        "bg": ("tree",),
        "bg2": (),
        "bg3": (),
        "bg7": (),
        "city": ("house",),
        "city-profile": ("house", "car"),
        "profile_city": ("house",),
    },
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_TEST_SHARE = 4  # about one photograph in so many is held out
_SPLIT_SEED = "vistok backgrounds 1"
_STORED_SIDE = 640  # photographs are scaled down once, so that their shorter side is this
_CROPS = (0.4, 1.0)  # side of a crop, in shorter sides of the photograph


@dataclass(frozen=True)
class Background:
    """A photograph to compose over.

    Args:
        key (`str`): what it is called in what is written, e.g. `"mate-backgrounds/Dune"`.
        path (`Path`): the image file.
        sha256 (`str`): of the file's content; `""` of a plain background, which has no file.
        split (`str`): `"train"` or `"test"`.
        shows (`tuple[str, ...]`): nouns of the vocabulary that are to be seen in it, as far as known.
    """

    key: str
    path: Path
    sha256: str
    split: str
    shows: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is one colour, drawn anew for each image, and no photograph."""
        return not self.sha256


def plain_background(split: str) -> Background:
    """
    A background of one colour, which [`draw_background`] chooses.

    Args:
        split (`str`): `"train"` or `"test"`, which colours do not tell apart.
    """
    return Background("plain", Path(), "", known("split of the backgrounds", split, SPLITS))


def background_split(sha256: str) -> str:
    """The side of the split that a photograph is on: the same under any name and in any folder.

    Args:
        sha256 (`str`): of the file's content.

    Returns:
        `str`: `"train"` or `"test"`.
    """
    number = int(hashlib.sha256(f"{_SPLIT_SEED}/{sha256}".encode()).hexdigest(), 16)
    return "test" if number % _TEST_SHARE == 0 else "train"


def shown_in_backgrounds() -> dict[str, int]:
    """How many of the photographs that vistok knows show each noun.

    Returns:
        `dict[str, int]`: number by noun; nouns that none shows are missing.
    """
    shown: dict[str, int] = {}
    for photographs in PHOTOGRAPHS.values():
        for nouns in photographs.values():
            for noun in nouns:
                shown[noun] = shown.get(noun, 0) + 1
    return shown


def load_backgrounds(
    split: str, folders: Iterable[str | os.PathLike] = (), without: Collection[str] = ()
) -> list[Background]:
    """Lists the photographs of one side of the split: of the data packages in the cache, or of the user's folders.

    Args:
        split (`str`): `"train"` or `"test"`.
        folders (iterable of `str`): folders with photographs, which are taken instead of the packages'.
        without (collection of `str`): nouns; photographs known to show one of them, or anything of the same category,
            are left out: they would make the ground truth wrong.

    Returns:
        `list[Background]`: in a fixed order, each content once.

    Raises:
        ValueError: if the split is unknown or no photograph is left.
        FileNotFoundError: if a folder is missing or holds no image.
        FetchError: if a package is not in the cache; names the command that puts it there.
    """
    known("split of the backgrounds", split, SPLITS)
    places = [Path(folder).expanduser().absolute() for folder in folders]
    found = [item for place in places for item in _of_folder(place)] if places else _of_packages()
    distinct = {item.sha256: item for item in reversed(found)}.values()
    hidden = _with_categories(without)
    chosen = [item for item in reversed(distinct) if item.split == split and not hidden & {*item.shows}]
    if not chosen:
        where = ", ".join(map(str, places)) or f"the packages {', '.join(BACKGROUND_COLLECTIONS)}"
        raise ValueError(
            f"none of the {len(distinct)} photographs of {where} is on the {split} side of the split and shows none "
            f"of the classes: about one in {_TEST_SHARE} is for testing. Add photographs."
        )
    return chosen


def _with_categories(nouns: Collection[str]) -> set[str]:
    """The nouns, what could be said of them too, and all nouns of their categories."""
    table = {noun.name: noun for noun in NOUNS}
    categories = {table[name].category for name in nouns if name in table} & CATEGORIES.keys()
    related = {name for noun in NOUNS for name in (noun.name, *noun.related) if {noun.name, *noun.related} & {*nouns}}
    return {*nouns} | related | {noun.name for noun in NOUNS if noun.category in categories}


def _of_packages() -> list[Background]:
    from ..modeling.atomic_folder import FetchError, cache_dir, is_complete
    from ..modeling.registry_packages import DATA_PACKAGES, package_folder

    packages = {name: DATA_PACKAGES[name] for name in BACKGROUND_COLLECTIONS}
    missing = [name for name, package in packages.items() if not is_complete(package_folder(package), package.source)]
    if missing:
        raise FetchError(
            f"the photographs {', '.join(missing)} are not in the cache {cache_dir()}: run "
            f"`vistok fetch {' '.join(missing)}`, or give folders with photographs of your own as backgrounds."
        )
    backgrounds = []
    for collection, photographs in PHOTOGRAPHS.items():
        place, suffix = BACKGROUND_COLLECTIONS[collection]
        folder = package_folder(packages[collection]) / place
        for name, shows in photographs.items():
            backgrounds.append(_background(f"{collection}/{name}", folder / f"{name}{suffix}", shows))
    return backgrounds


def _of_folder(folder: Path) -> list[Background]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of backgrounds {folder}.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}) to use as a background.")
    return [_background(f"{folder.name}/{path.relative_to(folder).as_posix()}", path, ()) for path in files]


def _background(key: str, path: Path, shows: tuple[str, ...]) -> Background:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Background(key, path, sha256, background_split(sha256), shows)


@lru_cache(maxsize=128)
def _load_photograph(path: Path) -> Image.Image:
    from ..processing.images import load_image

    photograph = load_image(path)
    scale = _STORED_SIDE / min(photograph.size)
    if scale < 1:
        size = (round(photograph.width * scale), round(photograph.height * scale))
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
    return photograph


def draw_background(
    backgrounds: Sequence[Background], size: int, rng: random.Random
) -> tuple[Background, Image.Image]:
    """Chooses a photograph and a part of it at random, mirrored or not, a little lighter or darker; of a plain
    background its colour, which then is its key.

    Args:
        backgrounds (sequence of `Background`): photographs to choose from.
        size (`int`): side of the square image, in pixels.
        rng (`random.Random`): where every choice comes from.

    Returns:
        `tuple[Background, PIL.Image.Image]`: the photograph and an RGB image of `size` x `size` pixels.

    Raises:
        BadSampleError: if the photograph cannot be read.
    """
    background = rng.choice(backgrounds)
    if background.is_plain:
        color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        return replace(background, key=f"plain/{bytes(color).hex()}"), Image.new("RGB", (size, size), color)
    photograph = _load_photograph(background.path)
    side = max(1, round(rng.uniform(*_CROPS) * min(photograph.size)))
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    image = photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return background, ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))


__all__ = [
    "Background",
    "background_split",
    "draw_background",
    "load_backgrounds",
    "plain_background",
    "shown_in_backgrounds",
]
