"""How probes of contents are trained: targets, loss, epochs and thresholds by a held-out tenth, and their cache."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from transformers.utils import logging

from .contents_probe import NO_COLOR, ContentsReading, DensityProbe
from .contents_scores import Contents, contents_score

logger = logging.get_logger(__name__)

VALIDATION_SHARE = 0.1
EPOCHS, TRAINING_BATCH, LEARNING_RATE, WEIGHT_DECAY = 40, 32, 4e-3, 0.05
_THRESHOLDS = [step / 20 for step in range(2, 19)]


class ContentsTargets:
    """
    What there is to be read in images.

    Args:
        contents (`list[list[dict]]`): of each image, `{"name", "color", "count"}`.

    Attributes:
        classes, colors (`tuple[str, ...]`): their names; the first colour is that of objects without one.
        counts (`torch.FloatTensor` of shape `(num_images, num_classes)`): objects of each class.
        painted (`torch.FloatTensor` of shape `(num_images, num_classes, num_colors)`): those of each colour.

    Raises:
        ValueError: if no image shows anything.
    """

    def __init__(self, contents: Sequence[Contents]):
        self.contents = list(contents)
        entries = [entry for of_image in self.contents for entry in of_image]
        self.classes = tuple(sorted({entry["name"] for entry in entries}))
        if not self.classes:
            raise ValueError("The scenes show no objects, so there is nothing that a probe could learn to read.")
        self.colors = (NO_COLOR, *sorted({entry["color"] for entry in entries if entry["color"]}))
        self.counts = torch.zeros(len(self.contents), len(self.classes))
        self.painted = torch.zeros(len(self.contents), len(self.classes), len(self.colors))
        for row, of_image in enumerate(self.contents):
            for entry in of_image:
                index = self.classes.index(entry["name"])
                self.counts[row, index] += entry["count"]
                self.painted[row, index, self.colors.index(entry["color"] or NO_COLOR)] += entry["count"]


class ProbeData(Protocol):
    """What a probe is trained on."""

    targets: ContentsTargets

    def inputs(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Arguments of the probe for some images."""
        ...

    def local_loss(self, densities: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What is known of single places, beside their sums; 0 if nothing is."""
        ...


AnyProbe = TypeVar("AnyProbe", bound=DensityProbe)


def fit_probe(
    make: Callable[[torch.Tensor], AnyProbe], data: ProbeData, seed: int = 0, epochs: int = EPOCHS
) -> tuple[AnyProbe, dict[str, Any]]:
    """
    Trains a probe: the sums of its densities to the numbers of objects (Poisson likelihood), and colours of classes
    (cross-entropy), beside `local_loss` of the data. A tenth is held out: it decides on the epoch that is kept and
    from which count on a class is there.

    Args:
        make (`Callable`): takes the rows that are trained on, returns the probe with random weights.
        data ([`ProbeData`]): to train on.
        seed (`int`, *optional*, defaults to 0): of everything random.
        epochs (`int`, *optional*, defaults to 40): passes over the data.

    Returns:
        `tuple` of the probe in evaluation mode and `dict`: `num_scenes`, `num_held_out`, `epochs`, `held_out_loss` and
        `held_out`, how the held-out tenth is read.

    Raises:
        ValueError: if the loss is not finite.
    """
    targets = data.targets
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets.contents), generator=generator)
    num_held_out = max(1, round(VALIDATION_SHARE * len(order)))
    held_out, train = order[:num_held_out], order[num_held_out:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = make(train)
        best, best_loss = _fit(probe, data, train, held_out, epochs, generator)
    probe.load_state_dict(best)
    probe.eval()
    with torch.no_grad():
        densities, colors = probe(*data.inputs(held_out))
    probe.config = replace(probe.config, thresholds=_thresholds(densities.sum(1), targets.counts[held_out]))
    readings = [ContentsReading(*maps, probe.config) for maps in zip(densities, colors.softmax(-1))]
    records = [contents_score(reading, targets.contents[row]) for reading, row in zip(readings, held_out.tolist())]
    return probe, {
        "num_scenes": len(train),
        "num_held_out": num_held_out,
        "epochs": epochs,
        "held_out_loss": best_loss,
        "held_out": _shares(records),
    }


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


def _fit(probe: DensityProbe, data: ProbeData, train, held_out, epochs: int, generator):
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
        raise ValueError("The probe's loss is not finite: what it reads may be damaged, or overflow.")
    return best, best_loss


def _loss(probe: DensityProbe, data: ProbeData, rows: torch.Tensor) -> torch.Tensor:
    densities, colors = probe(*data.inputs(rows))
    in_places = data.local_loss(densities, rows)
    in_image = poisson_loss(densities.sum(1), data.targets.counts[rows]).sum(1).mean()
    painted = data.targets.painted[rows]
    there = painted.sum(-1) > 0
    weights = densities.detach().transpose(1, 2)
    mixed = (weights @ colors.softmax(-1)) / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    wanted = painted[there] / painted[there].sum(-1, keepdim=True)
    in_color = -(wanted * mixed[there].clamp_min(1e-6).log()).sum(-1).sum() / max(1, len(rows))
    return in_places + in_image + in_color


def poisson_loss(rates: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of numbers, which may be parts of whole ones, up to a constant; in nats."""
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


class _Reader(Protocol):
    def save(self, folder: Path) -> None: ...


AnyReader = TypeVar("AnyReader", bound=_Reader)


def cached_probe(
    place: Path, known_by: Sequence[Any], load: Callable[[Path], AnyReader], train: Callable[[], AnyReader]
) -> AnyReader:
    """
    A probe from the cache, or trained and put there.

    Args:
        place (`Path`): folder that holds a folder for each probe.
        known_by (`list`): all that a probe depends on, in types that JSON has.
        load (`Callable`): takes the folder of a probe, returns its reader.
        train (`Callable`): returns the reader of a new probe, which has `save`.
    """
    folder = place / hashlib.sha256(json.dumps(list(known_by)).encode()).hexdigest()[:24]
    if folder.is_dir():
        return load(folder)
    reader = train()
    try:
        reader.save(folder)
    except FileExistsError:
        logger.info(f"Another process has trained the same probe: {folder}.")
    return reader


__all__ = ["EPOCHS", "ContentsTargets", "ProbeData", "cached_probe", "fit_probe", "poisson_loss"]
