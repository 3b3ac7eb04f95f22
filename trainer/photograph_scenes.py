"""The data format `photograph-scenes`: scenes composed over photographs, as `vistok scenes` writes, in the cache."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..modeling.atomic_folder import build_folder_once, cache_dir
from . import scene_set
from .cutouts import SPLITS
from .data_annotations import coco_captions
from .data_formats import DataSource, known, register_data_format
from .image_answers import generation_pairs
from .image_edits import instruct_pix2pix
from .referring_expressions import refcoco
from .scene_tasks import DRAWING_CAPTIONS_FILE, EDITS_FOLDER
from .visual_questions import vqa

TOLD = ("captions", "questions", "drawing captions", "expressions", "edits")
# The last three are rendered together, once: so many of each scene. Captions and questions every set has.
_TASKS = {"expressions_per_scene": 3, "drawing_captions_per_scene": 1, "edits_per_scene": 2}
_SCENES = "scenes"  # in the folder of the cache, beside the record of what it was built from


def render_photograph_scenes(
    split: str,
    num_scenes: int,
    seed: int = 0,
    size: int = 112,
    num_classes: int = 24,
    tasks: Mapping[str, int] | None = None,
    plain_backgrounds: bool = False,
) -> Path:
    """Renders scenes over photographs into the cache, whole or not at all; a second call costs nothing.

    Args:
        split (`str`): `"train"` or `"test"`: the two share neither cut-outs nor photographs.
        num_scenes (`int`): scenes.
        seed (`int`): seed of the scenes.
        size (`int`): side of the images, in pixels.
        num_classes (`int`): classes of objects; those with most pictures.
        tasks (`Mapping[str, int]`, *optional*): further arguments of [`write_scenes`], such as `edits_per_scene`.
        plain_backgrounds (`bool`): objects stand on one colour in place of photographs.

    Returns:
        `Path`: folder as [`write_scenes`] fills it, with one caption and up to four questions for each scene.

    Raises:
        ValueError: if an argument is out of range.
        FetchError: if cut-outs or photographs are not in the cache of packages; names the command for them.
    """
    settings: dict[str, Any] = {
        "split": split,
        "num_scenes": num_scenes,
        "seed": seed,
        "size": size,
        "num_classes": num_classes,
        **(tasks or {}),
        **({"plain_backgrounds": True} if plain_backgrounds else {}),
    }
    stamp = json.dumps({**settings, "revision": scene_set.REVISION})
    digest = hashlib.sha256(stamp.encode()).hexdigest()

    def build(content: Path, scratch: Path) -> None:
        scene_set.write_scenes(content / _SCENES, captions_per_scene=1, questions_per_scene=4, **settings)

    kind = "plain" if plain_backgrounds else "photographs"
    folder = cache_dir() / "scenes" / f"{kind}-{split}-{num_scenes}-{digest[:16]}"
    return build_folder_once(folder, {"sha256": digest, "revision": 1, **settings}, build) / _SCENES


@register_data_format("photograph-scenes")
def photograph_scenes(
    source: DataSource,
    tell: str = "captions",
    num_scenes: int = 2000,
    scene_seed: int = 0,
    size: int = 112,
    num_classes: int = 24,
) -> Dataset | IterableDataset:
    """Scenes of cut-outs over photographs (the study's generator, `vistok scenes`), and what is known of them.

    The scenes are rendered once into the cache.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`, which share neither cut-outs nor
            photographs.
        tell (`str`): `"captions"`, one for each scene, or `"questions"`, up to four; or examples whose answer is an
            image (see `image_answers.py`): `"drawing captions"` (classes, numbers and colours), one for each scene,
            `"expressions"`, up to three with the masks of their objects, and `"edits"`, up to two. Rendered with
            the same seed, all are about the same scenes.
        num_scenes, size, num_classes: see [`render_photograph_scenes`].
        scene_seed (`int`): seed of the scenes.

    Returns:
        examples as those of the format `coco-captions`, `vqa`, `generation-pairs`, `refcoco` or `instruct-pix2pix`.
    """
    known("value of tell", tell, TOLD)
    split = known("split of photograph-scenes", source.split or "train", SPLITS)
    folder = render_photograph_scenes(
        split, num_scenes, scene_seed, size, num_classes, _TASKS if tell in TOLD[2:] else None
    )
    told = replace(source, images=str(folder / "images"), split=None, options={})
    if tell == "captions":
        return coco_captions(replace(told, path=str(folder / "captions.json")))
    if tell == "questions":
        return vqa(replace(told, path=str(folder / "vqa_questions.json")))
    if tell == "drawing captions":
        return generation_pairs(replace(told, path=str(folder / DRAWING_CAPTIONS_FILE)), of="coco-captions")
    if tell == "expressions":
        return refcoco(replace(told, path=str(folder)))
    return instruct_pix2pix(replace(told, path=str(folder / EDITS_FOLDER), images=None))


__all__ = ["photograph_scenes", "render_photograph_scenes"]
