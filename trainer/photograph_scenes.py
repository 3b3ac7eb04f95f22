"""The data format `photograph-scenes`: scenes composed over photographs, as `vistok scenes` writes, in the cache."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..modeling.atomic_folder import build_folder_once, cache_dir
from . import scene_set
from .cutouts import SPLITS
from .data_annotations import coco_captions
from .data_formats import DataSource, known, register_data_format
from .visual_questions import vqa

TOLD = ("captions", "questions")
_SCENES = "scenes"  # in the folder of the cache, beside the record of what it was built from


def render_photograph_scenes(
    split: str, num_scenes: int, seed: int = 0, size: int = 112, num_classes: int = 24
) -> Path:
    """Renders scenes over photographs into the cache, whole or not at all; a second call costs nothing.

    Args:
        split (`str`): `"train"` or `"test"`: the two share neither cut-outs nor photographs.
        num_scenes (`int`): scenes.
        seed (`int`): seed of the scenes.
        size (`int`): side of the images, in pixels.
        num_classes (`int`): classes of objects; those with most pictures.

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
    }
    stamp = json.dumps({**settings, "revision": scene_set.REVISION})
    digest = hashlib.sha256(stamp.encode()).hexdigest()

    def build(content: Path, scratch: Path) -> None:
        scene_set.write_scenes(content / _SCENES, captions_per_scene=1, questions_per_scene=4, **settings)

    folder = cache_dir() / "scenes" / f"photographs-{split}-{num_scenes}-{digest[:16]}"
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
    """Scenes of cut-outs over photographs (the study's generator, `vistok scenes`), with captions or questions.

    The scenes are rendered once into the cache.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`, which share neither cut-outs nor
            photographs.
        tell (`str`): `"captions"`, one for each scene, or `"questions"`, up to four.
        num_scenes, size, num_classes: see [`render_photograph_scenes`].
        scene_seed (`int`): seed of the scenes.

    Returns:
        examples as those of the format `coco-captions` or `vqa`.
    """
    known("value of tell", tell, TOLD)
    split = known("split of photograph-scenes", source.split or "train", SPLITS)
    folder = render_photograph_scenes(split, num_scenes, scene_seed, size, num_classes)
    read, file = (coco_captions, "captions.json") if tell == "captions" else (vqa, "vqa_questions.json")
    return read(replace(source, path=str(folder / file), images=str(folder / "images"), split=None, options={}))


__all__ = ["photograph_scenes", "render_photograph_scenes"]
