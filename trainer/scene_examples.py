"""The data format `cutout-scenes`: scenes rendered once into the cache, and a training example for each question."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value
from transformers.utils import logging

from ..modeling.base_weights import cache_dir
from . import cutout_vocabulary, cutouts, scene_questions, scenes
from .cutouts import COLLECTIONS, load_cutouts
from .data_examples import FEATURES, apply_prompt, image_file, make_example, question_answer
from .data_records import cached_dataset, file_digest

if TYPE_CHECKING:
    from .data_formats import DataSource

logger = logging.get_logger(__name__)

EXTRA_FEATURES = Features(
    {"kind": Value("string"), "answer": Value("string"), "scene": Value("int64"), "photograph": Value("bool")}
)
_CODE = (cutout_vocabulary, cutouts, scenes, scene_questions)


def render_scenes(
    split: str,
    num_scenes: int,
    seed: int = 0,
    collections: Sequence[str] = tuple(COLLECTIONS),
    size: int = 224,
    single_fraction: float = 0.5,
) -> Path:
    """Renders scenes into the cache, whole or not at all; a second call costs nothing.

    Args:
        split (`str`): `"train"` or `"test"`: which pictures of objects to use.
        num_scenes (`int`): scenes.
        seed (`int`): seed; the scenes of a smaller number are the first ones of a larger number.
        collections (sequence of `str`): keys of `COLLECTIONS`.
        size (`int`): side of the images, in pixels.
        single_fraction (`float`): share of scenes with one large object.

    Returns:
        `Path`: folder with `images/*.jpg` and `scenes.jsonl`, a line per scene: its image, its objects (name, box,
        cut-out, photograph) and its questions (kind, question, answer).

    Raises:
        ValueError: if an argument is out of range.
        FetchError: if a collection is not in the cache.
    """
    from ..modeling.atomic_folder import build_folder_once

    if num_scenes < 1:
        raise ValueError(f"num_scenes must be at least 1, got {num_scenes}.")
    library = load_cutouts(collections, split)
    parameters = {
        "split": split,
        "num_scenes": num_scenes,
        "seed": seed,
        "collections": list(collections),
        "size": size,
        "single_fraction": single_fraction,
    }
    # Scenes made by other code are other scenes.
    stamp = json.dumps(parameters) + "".join(file_digest(module.__file__) for module in _CODE)
    digest = hashlib.sha256(stamp.encode()).hexdigest()

    def build(content: Path, scratch: Path) -> None:
        (content / "images").mkdir()
        with open(content / "scenes.jsonl", "w", encoding="utf-8") as lines:
            for index in logging.tqdm(range(num_scenes), desc=f"Rendering scenes ({split})"):
                rng = scenes.scene_rng(seed, split, index)
                scene = scenes.make_scene(library, rng, size, single_fraction)
                asked = scene_questions.scene_questions(scene, rng, library, single_fraction)
                image = f"images/{index:06d}.jpg"
                scene.image.save(content / image, quality=95, subsampling=0)
                objects = [
                    {"name": item.name, "box": item.box, "cutout": item.cutout, "photograph": item.photograph}
                    for item in scene.objects
                ]
                record = {"image": image, "objects": objects, "questions": [entry._asdict() for entry in asked]}
                lines.write(json.dumps(record) + "\n")

    folder = cache_dir() / "scenes" / f"{split}-{num_scenes}-{digest[:16]}"
    return build_folder_once(folder, {"sha256": digest, "revision": 1, **parameters}, build)


def cutout_scene_examples(
    split: str,
    num_scenes: int,
    seed: int = 0,
    collections: Sequence[str] = tuple(COLLECTIONS),
    size: int = 224,
    single_fraction: float = 0.5,
    source: str = "cutout-scenes",
    prompt: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields a canonical training example for each question about each scene.

    Args:
        split, num_scenes, seed, collections, size, single_fraction: see [`render_scenes`].
        source (`str`): name of the data source.
        prompt (`str`, *optional*): template with `{question}`.

    Yields:
        `dict`: an example (see `data_examples.py`) with `kind`, `answer`, `scene` (its index) and `photograph`
            (whether all objects of the scene are photographs).
    """
    folder = render_scenes(split, num_scenes, seed, collections, size, single_fraction)
    yield from _examples(str(folder), split, source, prompt)


def _examples(folder: str, split: str, source: str, prompt: str | None) -> Iterator[dict[str, Any]]:
    row = 0
    with open(Path(folder) / "scenes.jsonl", encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            record = json.loads(line)
            image = image_file(str(Path(folder) / record["image"]))
            for number, asked in enumerate(record["questions"]):
                yield make_example(
                    source,
                    row,
                    [image],
                    question_answer(apply_prompt(prompt, asked["question"]), asked["answer"]),
                    id=f"{split}-{index}-{number}",
                    kind=asked["kind"],
                    answer=asked["answer"],
                    scene=index,
                    photograph=all(item["photograph"] for item in record["objects"]),
                )
                row += 1


def cutout_scenes_dataset(
    source: "DataSource",
    split: str,
    num_scenes: int,
    seed: int,
    collections: Sequence[str],
    size: int,
    single_fraction: float,
) -> Dataset:
    """The dataset of the format `cutout-scenes`; see [`cutouts.cutout_scenes`] for the arguments."""
    folder = str(render_scenes(split, num_scenes, seed, collections, size, single_fraction))
    arguments = {"folder": folder, "split": split, "source": str(source.name), "prompt": source.prompt}
    stamp = [repr(sorted(arguments.items())), file_digest(__file__), file_digest(Path(folder) / "SOURCE.json")]
    return cached_dataset(_examples, arguments, Features({**FEATURES, **EXTRA_FEATURES}), stamp, str(source.name))
