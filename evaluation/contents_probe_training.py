"""Training of the probe on scenes whose contents and masks are known, once for each tower and resolution."""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from ..modeling.atomic_folder import cache_dir
from ..processing.images import BadSampleError
from ..processing.mask_annotations import coco_instance_images
from ..processing.object_masks import MaskedImage, patch_coverage
from .contents_probe import NO_COLOR, ContentsProbe, ContentsReading, ProbeConfig, ProbeReader, probe_features
from .contents_scores import check_contents, contents_score
from .token_sources import TokenSource, load_token_source

logger = logging.get_logger(__name__)

CAPTIONS_FILE, INSTANCES_FILE = "drawing_captions.json", "instances.json"
VALIDATION_SHARE = 0.1
FEWEST_SCENES = 20
EPOCHS, TRAINING_BATCH, LEARNING_RATE, WEIGHT_DECAY = 40, 32, 4e-3, 0.05
_THRESHOLDS = [step / 20 for step in range(2, 19)]
_REVISION = 1  # of the recipe below: another one is another probe


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
    scenes = read_scenes(folder, num_scenes)
    if len(scenes) < FEWEST_SCENES:
        raise ValueError(
            f"{folder} holds {len(scenes)} scenes, expected at least {FEWEST_SCENES} to train a probe on."
        )
    source = load_token_source(tower, image_size=tower_size, device=device)
    known_by = [_REVISION, tower, source.feature_layer, tower_size, image_size, seed, _digest(scenes, folder)]
    name = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:24]
    place = Path(cache_folder) if cache_folder is not None else cache_dir() / "probes"
    if (place / name).is_dir():
        return ProbeReader.load(place / name, device)
    reader = train_probe(scenes, source, image_size, tower_size, seed)
    try:
        reader.save(place / name)
    except FileExistsError:
        logger.info(f"Another process has trained the same probe: {place / name}.")
    return reader


def _digest(scenes: Sequence[Scene], folder: str | os.PathLike) -> str:
    """Of what the files say: whatever writes them anew with other pixels says their hashes in `instances.json`."""
    content = b"".join((Path(folder) / file).read_bytes() for file in (CAPTIONS_FILE, INSTANCES_FILE))
    sizes = [scene.image.file.stat().st_size for scene in scenes]
    return hashlib.sha256(content + json.dumps([len(scenes), sizes]).encode()).hexdigest()


def train_probe(
    scenes: Sequence[Scene], source: TokenSource, image_size: int, tower_size: int, seed: int = 0, epochs: int = EPOCHS
) -> ProbeReader:
    """
    Trains a probe: densities of each class by patch and their sums to the numbers of objects (Poisson likelihoods),
    and colours of classes (cross-entropy). Of the scenes a tenth is held out: it decides on the epoch that is kept
    and from which count on a class is there.

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
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(scenes), generator=generator)
    num_held_out = max(1, round(VALIDATION_SHARE * len(scenes)))
    held_out, train = order[:num_held_out], order[num_held_out:]
    config = ProbeConfig(
        data.classes, data.colors, source.name, source.feature_layer, tower_size, image_size,
        data.features.shape[-1], source.grid_size,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = ContentsProbe(config)
        probe.mean.copy_(data.features[train].float().mean((0, 1)))
        probe.std.copy_(data.features[train].float().std((0, 1)).clamp_min(1e-3))
        best, best_loss = _fit(probe, data, train, held_out, epochs, generator)
    probe.load_state_dict(best)
    probe.eval()
    with torch.no_grad():
        densities, colors = probe(data.features[held_out])
    thresholds = _thresholds(densities.sum(1), data.counts[held_out])
    probe.config = replace(config, thresholds=thresholds)
    readings = [ContentsReading(*maps, probe.config) for maps in zip(densities, colors.softmax(-1))]
    records = [contents_score(reading, scenes[row].contents) for reading, row in zip(readings, held_out.tolist())]
    facts = {
        "num_scenes": len(train),
        "num_held_out": num_held_out,
        "epochs": epochs,
        "held_out_loss": best_loss,
        "held_out": _shares(records),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return ProbeReader(probe, source, facts)


def _shares(records: Sequence[dict[str, int]]) -> dict[str, float | None]:
    total = {name: sum(record[name] for record in records) for name in records[0]}

    def share(above: float, below: float) -> float | None:
        return round(above / below, 4) if below else None

    return {
        "class_f1": share(2 * total["found"], 2 * total["found"] + total["missing"] + total["extra"]),
        "count_accuracy": share(total["counts"], total["counted"]),
        "color_accuracy": share(total["colors"], total["colored"]),
        "exact": share(total["exact"], len(records)),
    }


class _TrainingData:
    """Features of all scenes, and what is to be read in them."""

    def __init__(self, scenes: Sequence[Scene], source: TokenSource, image_size: int):
        self.classes = tuple(sorted({entry["name"] for scene in scenes for entry in scene.contents}))
        if not self.classes:
            raise ValueError("The scenes show no objects, so there is nothing that a probe could learn to read.")
        colors = sorted({entry["color"] for scene in scenes for entry in scene.contents if entry["color"]})
        self.colors = (NO_COLOR, *colors)
        self.counts = torch.zeros(len(scenes), len(self.classes))
        self.painted = torch.zeros(len(scenes), len(self.classes), len(self.colors))
        shape = len(scenes), source.grid_size[0] * source.grid_size[1], len(self.classes)
        self.densities = torch.zeros(shape, dtype=torch.half)
        features = []
        for start in logging.tqdm(range(0, len(scenes), 32), desc="Reading scenes for the probe", unit=" batches"):
            some = scenes[start : start + 32]
            features.append(probe_features([scene.image.image() for scene in some], source, image_size))
            for row, scene in enumerate(some, start=start):
                self._fill(row, scene, source.grid_size)
        self.features = torch.cat(features)

    def _fill(self, row: int, scene: Scene, grid_size: tuple[int, int]) -> None:
        for entry in scene.contents:
            index = self.classes.index(entry["name"])
            self.counts[row, index] += entry["count"]
            self.painted[row, index, self.colors.index(entry["color"] or NO_COLOR)] += entry["count"]
        objects = scene.image.objects(skip_empty=True)
        if not len(objects):
            return
        coverage = patch_coverage(objects.masks, grid_size).reshape(len(objects), -1)
        shares = coverage / coverage.sum(1, keepdims=True)
        for name, share in zip(objects.names, shares):
            if name not in self.classes:
                raise BadSampleError(f"a mask is of {name!r}, which no contents name", str(scene.image.file))
            self.densities[row, :, self.classes.index(name)] += torch.from_numpy(share.astype(np.float16))


def _fit(probe: ContentsProbe, data: _TrainingData, train, held_out, epochs: int, generator):
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(train) / TRAINING_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    best: dict[str, torch.Tensor] = {}
    best_loss = math.inf
    for _ in logging.tqdm(range(epochs), desc="Training the probe", unit=" epochs"):
        probe.train()
        for rows in train[torch.randperm(len(train), generator=generator)].split(TRAINING_BATCH):
            optimizer.zero_grad()
            _loss(probe, data, rows).backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        probe.eval()
        with torch.no_grad():
            found = float(torch.stack([_loss(probe, data, rows) for rows in held_out.split(64)]).mean())
        if found < best_loss:
            best_loss, best = found, {name: value.clone() for name, value in probe.state_dict().items()}
    if not best:
        raise ValueError("The probe's loss is not finite: features of the tower may be damaged, or overflow.")
    return best, best_loss


def _loss(probe: ContentsProbe, data: _TrainingData, rows: torch.Tensor) -> torch.Tensor:
    densities, colors = probe(data.features[rows])
    in_patches = _poisson(densities, data.densities[rows].float()).sum((1, 2)).mean()
    in_image = _poisson(densities.sum(1), data.counts[rows]).sum(1).mean()
    painted = data.painted[rows]
    there = painted.sum(-1) > 0
    weights = densities.detach().transpose(1, 2)
    mixed = (weights @ colors.softmax(-1)) / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    wanted = painted[there] / painted[there].sum(-1, keepdim=True)
    in_color = -(wanted * mixed[there].clamp_min(1e-6).log()).sum(-1).sum() / max(1, len(rows))
    return in_patches + in_image + in_color


def _poisson(rates: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of numbers, which may be parts of whole ones, up to a constant."""
    return rates - numbers * (rates + 1e-6).log()


def _thresholds(counts: torch.Tensor, truth: torch.Tensor) -> tuple[float, ...]:
    """The count from which a class is taken to be there: one for all, as held-out scenes are few."""

    def best(some: torch.Tensor, there: torch.Tensor) -> float:
        scores = []
        for threshold in _THRESHOLDS:
            shown = some >= threshold
            right = float((shown & there).sum())
            scores.append(2 * right / max(1.0, float(shown.sum() + there.sum())))
        # The middle of the best ones: the highest is further from chance than either end of them.
        chosen = [t for t, score in zip(_THRESHOLDS, scores) if score >= max(scores) - 1e-9]
        return chosen[len(chosen) // 2]

    of_all = best(counts.flatten(), truth.flatten() > 0)
    return (of_all,) * counts.shape[1]


__all__ = ["CAPTIONS_FILE", "INSTANCES_FILE", "Scene", "probe_of_scenes", "read_scenes", "train_probe"]
