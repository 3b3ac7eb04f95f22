"""Training of the probe on scenes whose contents and masks are known, once for each tower and resolution."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..modeling.atomic_folder import cache_dir
from ..processing.images import BadSampleError
from ..processing.mask_annotations import coco_instance_images
from ..processing.object_masks import MaskedImage, patch_coverage
from .contents_probe import ContentsProbe, ProbeConfig, ProbeReader, probe_features
from .contents_probe_fitting import EPOCHS, ContentsTargets, cached_probe, fit_probe, poisson_loss
from .contents_scores import check_contents
from .token_sources import TokenSource, load_token_source

CAPTIONS_FILE, INSTANCES_FILE = "drawing_captions.json", "instances.json"
FEWEST_SCENES = 20
_REVISION = 1  # of the recipe: another one is another probe


@dataclass(frozen=True)
class Scene:
    """
    A scene whose contents are known.

    Args:
        image ([`MaskedImage`]): with the masks of its objects.
        contents (`tuple[dict, ...]`): `{"name", "color", "count"}`.
    """

    image: MaskedImage
    contents: tuple[dict[str, Any], ...]


def read_scenes(folder: str | os.PathLike, limit: int | None = None) -> list[Scene]:
    """
    Scenes of `vistok scenes --drawing-captions`: `drawing_captions.json`, `instances.json` and `images`.

    Args:
        folder (`str`): that holds them.
        limit (`int`, *optional*): the first so many alone.

    Returns:
        `list[Scene]`: each image once.

    Raises:
        FileNotFoundError: if a file or an image is missing.
        ValueError: if a file is damaged, or captions do not say what they are about.
    """
    folder = Path(folder)
    file = folder / CAPTIONS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {CAPTIONS_FILE} in {str(folder)!r}: expected a folder that vistok scenes "
            "--drawing-captions 1 wrote."
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        contents = {entry["image_id"]: entry["contents"] for entry in document["annotations"]}
        for found in contents.values():
            check_contents(found)
        names = {record["file_name"]: record["id"] for record in document["images"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no file of drawing captions with their contents, or a damaged one: {error!r}."
        ) from error
    images = coco_instance_images(folder / INSTANCES_FILE, folder / "images")
    known = [image for image in images if names.get(image.file.name) in contents]
    if not known:
        raise ValueError(f"No image of {folder / INSTANCES_FILE} is in {file.name}: give files of one set of scenes.")
    return [Scene(image, tuple(contents[names[image.file.name]])) for image in known[:limit]]


def training_scenes(folder: str | os.PathLike, limit: int | None = None) -> list[Scene]:
    """
    Scenes that are enough to train a probe on.

    Args:
        folder, limit: see [`read_scenes`].

    Raises:
        ValueError: if there are fewer than 20; and as [`read_scenes`].
        FileNotFoundError: see [`read_scenes`].
    """
    scenes = read_scenes(folder, limit)
    if len(scenes) < FEWEST_SCENES:
        raise ValueError(
            f"{folder} holds {len(scenes)} scenes, expected at least {FEWEST_SCENES} to train a probe on."
        )
    return scenes


def scenes_digest(scenes: Sequence[Scene], folder: str | os.PathLike) -> str:
    """Of what the files say: whatever writes them anew with other pixels says their hashes in `instances.json`."""
    content = b"".join((Path(folder) / file).read_bytes() for file in (CAPTIONS_FILE, INSTANCES_FILE))
    sizes = [scene.image.file.stat().st_size for scene in scenes]
    return hashlib.sha256(content + json.dumps([len(scenes), sizes]).encode()).hexdigest()


def probe_of_scenes(
    folder: str | os.PathLike,
    image_size: int,
    *,
    tower: str = "vistok:dinov2-small",
    tower_size: int = 168,
    num_scenes: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    cache_folder: str | os.PathLike | None = None,
) -> ProbeReader:
    """
    The probe of a set of scenes at some resolution, from the cache, or trained and put there.

    Args:
        folder (`str`): of training scenes, see [`read_scenes`].
        image_size (`int`): side in pixels to which images are reduced: that of the generator.
        tower (`str`, *optional*, defaults to `"vistok:dinov2-small"`): folder, Hub id or name of base weights.
        tower_size (`int`, *optional*, defaults to 168): side in pixels to which images are enlarged for the tower.
        num_scenes (`int`, *optional*): train on the first so many.
        seed (`int`, *optional*, defaults to 0): of the training.
        device (`str`, *optional*, defaults to `"cpu"`): where the tower runs.
        cache_folder (`str`, *optional*): where probes are kept; by default vistok's cache.

    Returns:
        [`ProbeReader`]

    Raises:
        ValueError: if there are fewer than 20 scenes, or a size is less than 1; and as [`read_scenes`].
        BadSampleError: if an image or a mask is missing or damaged.
    """
    for name, value in (("image_size", image_size), ("tower_size", tower_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected the side of images in pixels, at least 1.")
    scenes = training_scenes(folder, num_scenes)
    source = load_token_source(tower, image_size=tower_size, device=device)
    return cached_probe(
        Path(cache_folder) if cache_folder is not None else cache_dir() / "probes",
        [_REVISION, tower, source.feature_layer, tower_size, image_size, seed, scenes_digest(scenes, folder)],
        lambda place: ProbeReader.load(place, device),
        lambda: train_probe(scenes, source, image_size, tower_size, seed),
    )


def train_probe(
    scenes: Sequence[Scene], source: TokenSource, image_size: int, tower_size: int, seed: int = 0, epochs: int = EPOCHS
) -> ProbeReader:
    """
    Trains a probe as [`fit_probe`] does, and the densities of each class by patch beside (Poisson likelihood).

    Args:
        scenes (`list[Scene]`): to train on.
        source ([`TokenSource`]): the frozen tower.
        image_size, tower_size (`int`): sides in pixels, as in [`probe_of_scenes`].
        seed (`int`, *optional*, defaults to 0): of everything random.
        epochs (`int`, *optional*, defaults to 40): passes over the scenes.

    Returns:
        [`ProbeReader`], whose `facts` say how the held-out tenth is read.

    Raises:
        BadSampleError: if an image or a mask is missing or damaged.
    """
    started = time.perf_counter()
    data = _TrainingData(scenes, source, image_size)
    targets = data.targets

    def make(train: torch.Tensor) -> ContentsProbe:
        config = ProbeConfig(
            targets.classes, targets.colors, source.name, source.feature_layer, tower_size, image_size,
            data.features.shape[-1], source.grid_size,
        )  # fmt: skip
        probe = ContentsProbe(config)
        probe.standardize(data.features[train].flatten(0, 1))
        return probe

    probe, facts = fit_probe(make, data, seed, epochs)
    return ProbeReader(probe, source, {**facts, "seconds": round(time.perf_counter() - started, 1)})


class _TrainingData:
    """Features of all scenes, and what is to be read in them."""

    def __init__(self, scenes: Sequence[Scene], source: TokenSource, image_size: int):
        self.targets = ContentsTargets([scene.contents for scene in scenes])
        shape = len(scenes), source.grid_size[0] * source.grid_size[1], len(self.targets.classes)
        self.densities = torch.zeros(shape, dtype=torch.half)
        features = []
        for start in logging.tqdm(range(0, len(scenes), 32), desc="Reading scenes for the probe", unit=" batches"):
            some = scenes[start : start + 32]
            features.append(probe_features([scene.image.image() for scene in some], source, image_size))
            for row, scene in enumerate(some, start=start):
                self._fill(row, scene, source.grid_size)
        self.features = torch.cat(features)

    def _fill(self, row: int, scene: Scene, grid_size: tuple[int, int]) -> None:
        objects = scene.image.objects(skip_empty=True)
        if not len(objects):
            return
        coverage = patch_coverage(objects.masks, grid_size).reshape(len(objects), -1)
        shares = coverage / coverage.sum(1, keepdims=True)
        for name, share in zip(objects.names, shares):
            if name not in self.targets.classes:
                raise BadSampleError(f"a mask is of {name!r}, which no contents name", str(scene.image.file))
            self.densities[row, :, self.targets.classes.index(name)] += torch.from_numpy(share.astype(np.float16))

    def inputs(self, rows: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.features[rows],)

    def local_loss(self, densities: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return poisson_loss(densities, self.densities[rows].float()).sum((1, 2)).mean()


__all__ = [
    "CAPTIONS_FILE",
    "INSTANCES_FILE",
    "Scene",
    "probe_of_scenes",
    "read_scenes",
    "scenes_digest",
    "train_probe",
    "training_scenes",
]
