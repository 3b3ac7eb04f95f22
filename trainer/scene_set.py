"""Sets of scenes with ground truth in COCO's formats: cut-outs composed over photographs."""

import os
from collections.abc import Sequence
from pathlib import Path


def write_scenes(
    folder: str | os.PathLike,
    *,
    split: str = "train",
    num_scenes: int = 1000,
    num_classes: int = 24,
    classes: Sequence[str] | None = None,
    size: int = 112,
    seed: int = 0,
    backgrounds: Sequence[str | os.PathLike] = (),
    max_objects: int = 9,
    max_overlap: float = 0.2,
    questions_per_scene: int = 4,
    captions_per_scene: int = 5,
    num_proc: int = 1,
    apart_from: Sequence[str | os.PathLike] = (),
) -> Path:
    """Renders a set of scenes and writes it with its ground truth, whole or not at all.

    The folder then holds `images/{image_id:012d}.jpg`, `instances.json` (COCO instances, with masks of what is visible
    as RLE), `captions.json` (COCO captions), `vqa_questions.json` and `vqa_annotations.json` (VQAv2), and `SOURCE.json`
    (settings, classes, hashes). The same arguments make the same scenes on every machine. Train and test share neither
    cut-outs nor background photographs.

    Args:
        folder (`str`): must not exist.
        split (`str`): `"train"` or `"test"`.
        num_scenes (`int`): number of images.
        num_classes (`int`): classes; those with most pictures on both sides of the split.
        classes (sequence of `str`, *optional*): the classes by name, instead of `num_classes`.
        size (`int`): side of the square images, in pixels.
        seed (`int`): seed of everything.
        backgrounds (sequence of `str`): folders of photographs to use instead of the fetched ones; the hash of a file's
            content says on which side of the split it is.
        max_objects (`int`): the most objects of an image, 1 to 9.
        max_overlap (`float`): the largest part of an object that others may hide.
        questions_per_scene (`int`): VQA questions of an image, where so many can be asked.
        captions_per_scene (`int`): captions of an image.
        num_proc (`int`): processes that render.
        apart_from (sequence of `str`): folders of other sets, with which this one must share no picture, background or
            image.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if an argument is out of its range, there are too few pictures or backgrounds, or `apart_from` is
            violated.
        FileExistsError: if `folder` exists.
        FetchError: if the cut-outs or backgrounds are not in the cache; names the command that puts them there.
    """
    raise NotImplementedError


__all__ = ["write_scenes"]
