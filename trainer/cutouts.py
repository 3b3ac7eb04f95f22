"""Cut-outs: pictures of everyday objects with transparency and a name, with a fixed split by picture."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, IterableDataset

from .cutout_vocabulary import NOUNS, Noun
from .data_formats import known, register_data_format

if TYPE_CHECKING:
    from .data_formats import DataSource

# Where each data package keeps its pictures.
COLLECTIONS = {
    "fluent-emoji": ("package/assets", ".webp"),
    "noto-emoji": ("package/img/google/64", ".png"),
    "tuxpaint-stamps": ("usr/share/tuxpaint/stamps", ".png"),
}
SPLITS = ("train", "test")
_TEST_SHARE = 4  # one picture in so many is held out
_SPLIT_SEED = "vistok cut-outs 1"


@dataclass(frozen=True)
class Cutout:
    """A picture of one object with transparency.

    Args:
        name (`str`): what it shows, singular, e.g. `"dog"`.
        category (`str`): e.g. `"animal"`.
        path (`Path`): image file with an alpha channel.
        collection (`str`): where it comes from, e.g. `"fluent-emoji"`.
        split (`str`): `"train"` or `"test"`.
        key (`str`): the picture's identity, e.g. `"noto-emoji/1f415"`.
        photograph (`bool`): whether it is a photograph.
    """

    name: str
    category: str
    path: Path
    collection: str
    split: str
    key: str
    photograph: bool = False


class CutoutLibrary(Sequence[Cutout]):
    """A list of cut-outs with the nouns that name them.

    Args:
        cutouts (iterable of `Cutout`): the pictures.
        nouns (iterable of `Noun`): nouns of the vocabulary; those without a picture are left out.

    Raises:
        ValueError: if there is no picture, a picture's name is not among the nouns, or a noun repeats.
    """

    def __init__(self, cutouts: Iterable[Cutout], nouns: Iterable[Noun] = NOUNS):
        self._by_name: dict[str, list[Cutout]] = {}
        for cutout in cutouts:
            self._by_name.setdefault(cutout.name, []).append(cutout)
        if not self._by_name:
            raise ValueError("a CutoutLibrary needs at least one cut-out.")
        table = list(nouns)
        listed = {noun.name: noun for noun in table}
        if len(listed) < len(table):
            raise ValueError(f"the nouns of a CutoutLibrary must differ, got {[noun.name for noun in table]}.")
        for name in self._by_name:
            known("noun of a cut-out", name, listed)
        self.nouns: dict[str, Noun] = {name: noun for name, noun in listed.items() if name in self._by_name}
        self._cutouts = [cutout for name in self.nouns for cutout in self._by_name[name]]
        self._related = {
            name: frozenset(
                {name} | {other for other, that in self.nouns.items() if other in noun.related or name in that.related}
            )
            for name, noun in self.nouns.items()
        }

    def __len__(self) -> int:
        return len(self._cutouts)

    def __getitem__(self, index):
        return self._cutouts[index]

    def __iter__(self) -> Iterator[Cutout]:
        return iter(self._cutouts)

    @property
    def names(self) -> list[str]:
        """The nouns that have a picture, in the order of the table."""
        return list(self.nouns)

    def of(self, name: str) -> list[Cutout]:
        """The pictures of one noun.

        Args:
            name (`str`): e.g. `"dog"`.

        Returns:
            `list[Cutout]`: at least one.

        Raises:
            ValueError: if no picture has this name.
        """
        return self._by_name[known("noun", name, self.nouns)]

    def related(self, name: str) -> frozenset[str]:
        """Nouns that could be said of an object called `name`, with `name` itself.

        Args:
            name (`str`): a noun of this library.

        Returns:
            `frozenset[str]`: nouns of this library.
        """
        return self._related[name]


def load_cutouts(
    collections: Iterable[str] = tuple(COLLECTIONS), split: str = "train", nouns: Iterable[Noun] = NOUNS
) -> CutoutLibrary:
    """Loads one side of the fixed split from data packages that `vistok fetch` has put into the cache.

    A picture's side depends on the table of nouns alone, not on the collections in use. Nouns that have no picture on
    one of the sides are left out, so that both sides have the same vocabulary.

    Args:
        collections (iterable of `str`): keys of `COLLECTIONS`.
        split (`str`): `"train"` or `"test"`.
        nouns (iterable of `Noun`): the vocabulary.

    Returns:
        `CutoutLibrary`: the pictures of that side.

    Raises:
        ValueError: if a collection or the split is unknown, or no noun has pictures on both sides.
        FetchError: if a collection is not in the cache; names the command that puts it there.
    """
    known("split of the cut-outs", split, SPLITS)
    chosen = list(dict.fromkeys(collections))
    folders = collection_folders(chosen)
    table = list(nouns)
    found = [cutout for noun in table for cutout in cutouts_of(noun, folders)]
    sides = {side: {cutout.name for cutout in found if cutout.split == side} for side in SPLITS}
    names = sides["train"] & sides["test"]
    if not names:
        raise ValueError(
            f"the collections {chosen} have no noun with pictures for training and for testing: add more."
        )
    return CutoutLibrary((cutout for cutout in found if cutout.split == split and cutout.name in names), table)


def collection_folders(collections: Iterable[str]) -> dict[str, Path]:
    """Finds the folders with the pictures of collections in the cache.

    Args:
        collections (iterable of `str`): keys of `COLLECTIONS`.

    Returns:
        `dict[str, Path]`: folder by collection.

    Raises:
        ValueError: if a collection is unknown.
        FetchError: if one is not in the cache.
    """
    from ..modeling.atomic_folder import FetchError, cache_dir, is_complete
    from ..modeling.registry_packages import DATA_PACKAGES, package_folder

    names = [known("collection of cut-outs", name, COLLECTIONS) for name in collections]
    packages = {name: DATA_PACKAGES[name] for name in names}
    missing = [name for name, package in packages.items() if not is_complete(package_folder(package), package.source)]
    if missing:
        others = [name for name in COLLECTIONS if name not in missing]
        raise FetchError(
            f"the cut-outs {', '.join(missing)} are not in the cache {cache_dir()}: run "
            f"`vistok fetch {' '.join(missing)}`, or use other collections ({', '.join(others) or 'none'})."
        )
    return {name: package_folder(package) / COLLECTIONS[name][0] for name, package in packages.items()}


def cutouts_of(noun: Noun, folders: dict[str, Path]) -> list[Cutout]:
    """The pictures of one noun in some collections.

    Args:
        noun (`Noun`): a row of the table.
        folders (`dict[str, Path]`): folder of each collection to use.

    Returns:
        `list[Cutout]`: its pictures, in the order of the table.
    """
    held_out = held_out_pictures(noun)
    cutouts = []
    for photograph, variants in _pictures(noun):
        for key in variants:
            collection, file = key.split("/", 1)
            if collection not in folders:
                continue
            path = folders[collection] / f"{file}{COLLECTIONS[collection][1]}"
            split = "test" if variants[0] in held_out else "train"
            cutouts.append(Cutout(noun.name, noun.category, path, collection, split, key, photograph))
    return cutouts


def _pictures(noun: Noun) -> list[tuple[bool, list[str]]]:
    """Whether it is a photograph, and the keys of its variants, for each picture of a noun."""
    emoji = [
        (False, [f"{collection}/{code}" for code in picture.split("=")])
        for collection in ("fluent-emoji", "noto-emoji")
        for picture in noun.emoji.split()
    ]
    stamps = [
        (photograph, [f"tuxpaint-stamps/{file}" for file in picture.split("=")])
        for photograph, pictures in ((True, noun.photographs), (False, noun.drawings))
        for picture in pictures.split()
    ]
    return emoji + stamps


def held_out_pictures(noun: Noun) -> set[str]:
    """Chooses the pictures of a noun that are for testing: about one in four, photographs and drawings alike.

    The choice is a hash of each picture's name. Variants of one picture go together. Of two photographs or more, at
    least one is held out; a single photograph is held out for about every third noun.

    Args:
        noun (`Noun`): a row of the table.

    Returns:
        `set[str]`: keys of the first variants of those pictures.
    """

    def rank(key: str) -> str:
        return hashlib.sha256(f"{_SPLIT_SEED}/{noun.name}/{key}".encode()).hexdigest()

    pictures = _pictures(noun)
    photographs = sorted((variants[0] for photograph, variants in pictures if photograph), key=rank)
    drawings = sorted((variants[0] for photograph, variants in pictures if not photograph), key=rank)
    total = max(1, round(len(pictures) / _TEST_SHARE))
    if len(photographs) == 1:
        from_photographs = int(int(rank(photographs[0]), 16) % 3 == 0)
    else:
        from_photographs = min(total, max(1, round(len(photographs) / _TEST_SHARE))) if photographs else 0
    return {*photographs[:from_photographs], *drawings[: total - from_photographs]}


@register_data_format("cutout-scenes")
def cutout_scenes(
    source: "DataSource",
    num_scenes: int = 4000,
    scene_seed: int = 0,
    collections: Sequence[str] = tuple(COLLECTIONS),
    size: int = 224,
    single_fraction: float = 0.5,
) -> Dataset | IterableDataset:
    """Scenes composed of cut-outs, with questions about naming, existence, counting, captions and categories.

    The scenes are rendered once into the cache.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`: scenes of objects' pictures that the
            other split never shows.
        num_scenes (`int`): scenes; there are about five questions to each.
        scene_seed (`int`): seed of the scenes.
        collections (sequence of `str`): keys of `COLLECTIONS`.
        size (`int`): side of the square images, in pixels.
        single_fraction (`float`): share of scenes with one large object.

    Returns:
        examples with the further columns `kind`, `answer`, `scene` and `photograph` (see `scene_examples.py`).
    """
    from .scene_examples import cutout_scenes_dataset

    split = known("split of cutout-scenes", source.split or "train", SPLITS)
    return cutout_scenes_dataset(source, split, num_scenes, scene_seed, collections, size, single_fraction)
