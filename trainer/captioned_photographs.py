"""The data format `captioned-photographs`: photographs of single objects and what their makers wrote about them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ..modeling.atomic_folder import build_folder_once, cache_dir
from ..processing.images import BadSampleError
from . import scenes
from .cutout_vocabulary import NOUNS, Noun
from .cutouts import SPLITS, Cutout, CutoutLibrary, collection_folders, cutouts_of
from .data_annotations import CAPTION_PROMPT
from .data_examples import RAW_FEATURES, apply_prompt, image_file, make_example, question_answer
from .data_formats import DataSource, known, register_data_format
from .data_records import cached_dataset, file_digest

COLLECTION = "tuxpaint-stamps"
# Where its photographs lie, and what is drawn there all the same; chosen by eye.
FOLDERS = ("animals", "food", "hobbies", "household", "plants", "space", "sports", "vehicles")
DRAWINGS = (
    "animals/insects/bee", "animals/insects/fly", "animals/mammals/hedgehog", "food/nuts/walnut_shell", "food/pizza",
    "plants/trees/holly_leaves", "space/planets/0_sun", "sports/rugby_goal_posts",
)  # fmt: skip
EXTRA_FEATURES = Features({"kind": Value("string"), "answer": Value("string"), "picture": Value("string")})
_TEST_SHARE = 4  # one photograph in so many is held out, of those that the table of nouns does not name
_SPLIT_SEED = "vistok captioned photographs 1"


def captioned_photographs_of(split: str) -> list[tuple[Cutout, str]]:
    """Lists the photographs of one side of the split with their captions.

    What the table of nouns holds out from scenes of cut-outs is held out here, too.

    Args:
        split (`str`): `"train"` or `"test"`.

    Returns:
        `list[tuple[Cutout, str]]`: in the order of their paths; each has its own path for a name.

    Raises:
        ValueError: if the split is unknown.
        FetchError: if the collection is not in the cache; names the command that puts it there.
        BadSampleError: if there are no photographs, or one has a caption that cannot be read.
    """
    known("split of captioned-photographs", split, SPLITS)
    folders = collection_folders([COLLECTION])
    root = folders[COLLECTION]
    sides = {cutout.path: cutout.split for noun in NOUNS for cutout in cutouts_of(noun, folders)}
    found = []
    for path in sorted(path for name in FOLDERS for path in (root / name).rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if "cartoon" in path.parts or name in DRAWINGS or not path.with_suffix(".txt").is_file():
            continue
        if sides.get(path, _side(name)) == split:
            cutout = Cutout(name, "thing", path, COLLECTION, split, f"{COLLECTION}/{name}", photograph=True)
            found.append((cutout, _caption(path.with_suffix(".txt"))))
    if not found:
        raise BadSampleError(f"there are no captioned photographs in {', '.join(FOLDERS)}", str(root))
    return found


def _side(name: str) -> str:
    number = int(hashlib.sha256(f"{_SPLIT_SEED}/{name}".encode()).hexdigest(), 16)
    return "test" if number % _TEST_SHARE == 0 else "train"


def _caption(file: Path) -> str:
    """The first line; those behind it are translations."""
    try:
        caption = file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except ValueError as error:
        raise BadSampleError(f"the caption is no UTF-8 ({error})", str(file)) from error
    if not caption:
        raise BadSampleError("the caption is empty", str(file))
    return caption


def render_captioned_photographs(split: str, per_photograph: int = 4, seed: int = 0, size: int = 224) -> Path:
    """Puts each photograph on plain and patterned backgrounds, into the cache, whole or not at all.

    Args:
        split (`str`): `"train"` or `"test"`.
        per_photograph (`int`): images of each, which differ in background, size, place, side and brightness.
        seed (`int`): seed of the images.
        size (`int`): side of the images, in pixels.

    Returns:
        `Path`: folder with `images/*.jpg` and `photographs.jsonl`, a line for each image: `image`, `caption`,
        `picture` (key of the photograph).

    Raises:
        ValueError: if an argument is out of range.
        FetchError, BadSampleError: as in [`captioned_photographs_of`].
    """
    if not isinstance(per_photograph, int) or per_photograph < 1:
        raise ValueError(f"per_photograph must be a whole number of at least 1, got {per_photograph!r}.")
    photographs = captioned_photographs_of(split)
    settings = {"split": split, "per_photograph": per_photograph, "seed": seed, "size": size}
    stamp = json.dumps([settings, [(cutout.key, caption) for cutout, caption in photographs]])
    digest = hashlib.sha256((stamp + file_digest(str(scenes.__file__))).encode()).hexdigest()

    def build(content: Path, scratch: Path) -> None:
        (content / "images").mkdir()
        with open(content / "photographs.jsonl", "w", encoding="utf-8") as lines:
            for number in range(len(photographs) * per_photograph):
                cutout, caption = photographs[number // per_photograph]
                library = CutoutLibrary([cutout], [Noun(cutout.name, cutout.name, cutout.category)])
                rng = scenes.scene_rng(seed, f"captioned photographs/{split}", number)
                image = f"images/{number:06d}.jpg"
                scene = scenes.make_scene(library, rng, size, single_fraction=1.0)
                scene.image.save(content / image, quality=95, subsampling=0)
                lines.write(json.dumps({"image": image, "caption": caption, "picture": cutout.key}) + "\n")

    folder = cache_dir() / "scenes" / f"captioned-{split}-{len(photographs) * per_photograph}-{digest[:16]}"
    return build_folder_once(folder, {"sha256": digest, "revision": 1, **settings}, build)


@register_data_format("captioned-photographs")
def captioned_photographs(
    source: DataSource, per_photograph: int = 4, photograph_seed: int = 0, size: int = 224
) -> Dataset:
    """Photographs of single objects, each on several backgrounds, with the captions of the collection.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`, which share no photograph; those that
            the test split of `cutout-scenes` shows are in the test split here.
        per_photograph, size: see [`render_captioned_photographs`].
        photograph_seed (`int`): seed of the images.

    Returns:
        examples with the further columns `kind` (`"caption"`), `answer` and `picture` (key of the photograph).
    """
    split = source.split or "train"
    folder = render_captioned_photographs(split, per_photograph, photograph_seed, size)
    arguments = {"folder": str(folder), "split": split, "source_name": str(source.name), "prompt": source.prompt}
    stamp = [repr(sorted(arguments.items())), file_digest(str(folder / "photographs.jsonl")), file_digest(__file__)]
    features = Features({**RAW_FEATURES, **EXTRA_FEATURES})
    return cached_dataset(_examples, arguments, features, stamp, str(source.name))


def _examples(folder: str, split: str, source_name: str, prompt: str | None) -> Iterator[dict[str, Any]]:
    with open(Path(folder) / "photographs.jsonl", encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            record = json.loads(line)
            question = apply_prompt(prompt, CAPTION_PROMPT)
            yield make_example(
                source_name,
                row,
                [image_file(str(Path(folder) / record["image"]))],
                question_answer(question, record["caption"]),
                id=f"{split}-{row}",
                kind="caption",
                answer=record["caption"],
                picture=record["picture"],
            )


__all__ = ["captioned_photographs", "captioned_photographs_of", "render_captioned_photographs"]
