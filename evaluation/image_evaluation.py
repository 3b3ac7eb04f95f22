"""Evaluations whose answers are images or masks: scores beside floors and ceilings, in the reports of all others."""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..processing.images import image_key
from .cluster_quality import rank_correlation_interval, token_count_statistics
from .contents_probe import ProbeReader
from .contents_scores import CONTENTS_METRICS
from .frechet_distance import frechet_distance
from .image_controls import derange
from .image_representations import ImageTower, representations_of
from .image_tasks import ImageTask
from .measures import Metric, measure
from .prediction_checks import check_positive
from .predictions import PredictionsFile, check_distinct
from .processes import Share
from .token_contents_probe import TokenProbeReader
from .vqa import choose_questions, image_clusters
from .written_images import Examples, ImageStore, Writer, WrittenImage

logger = logging.get_logger(__name__)

NOT_WRITTEN_WITH = ("max_floor_questions",)
"""Settings that no single image depends on."""


@dataclass(frozen=True)
class FrechetExtractor:
    """
    What Fréchet distances are measured in.

    Args:
        name (`str`): of the tower, for reports.
        tower ([`ImageTower`]): makes a vector of each image: the mean of its patches.
    """

    name: str
    tower: ImageTower

    @property
    def description(self) -> str:
        """Tower, layer and pooling."""
        layer = self.tower.feature_layer
        return f"{self.name}, {'final features' if layer in (None, 'final') else f'layer {layer}'}, mean of patches"


@dataclass
class ImageRun:
    """
    How an evaluation of images runs.

    Args:
        folder (`str`): where written images are kept.
        predictions_file (`str`): JSONL from which a run that was killed continues.
        known_by (`dict`): what written images depend on: fingerprint of the model, settings.
        share ([`Share`], *optional*): of several processes.
        batch_size (`int`, *optional*, defaults to 16): examples at once.
        seed (`int`, *optional*, defaults to 0): of the choice of examples and of what is dealt.
        max_floor_questions (`int`, *optional*): limit of the examples of floors and ceilings that are written.
        by_background (`bool`, *optional*, defaults to `False`): intervals resample the photographs behind scenes.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        probe ([`ProbeReader`], *optional*): that reads images.
        extractor ([`FrechetExtractor`], *optional*): for Fréchet distances.
        token_probe ([`TokenProbeReader`], *optional*): that reads the tokens of images, for tasks with metrics of it.
    """

    folder: str | os.PathLike
    predictions_file: str | os.PathLike
    known_by: Mapping[str, Any] = field(default_factory=dict)
    share: Share = Share()  # noqa: RUF009
    batch_size: int = 16
    seed: int = 0
    max_floor_questions: int | None = None
    by_background: bool = False
    progress_bar: bool = True
    probe: ProbeReader | None = None
    extractor: FrechetExtractor | None = None
    token_probe: TokenProbeReader | None = None


def evaluate_images(
    task: ImageTask,
    writer: Writer,
    examples: Examples,
    run: ImageRun,
    *,
    split: str = "test",
    model: str = "",
    conditions: Sequence[str] | None = None,
) -> tuple[dict[str, Any], dict[str, list[WrittenImage]]]:
    """
    Lets a model write the images of a task, and measures them beside floors and ceilings.

    Args:
        task ([`ImageTask`]): what is asked and measured.
        writer (`Callable`): writes images; takes the name of a condition and examples.
        examples (`list[dict]`): what is asked.
        run ([`ImageRun`]): how.
        split, model (`str`, *optional*): what the report calls them.
        conditions (`list[str]`, *optional*): floors and ceilings to measure; by default all of the task.

    Returns:
        `tuple`: results as [`evaluate_task`] has them, with `ceilings` beside `floors`, `asked`, `num_tokens` and
        `frechet_distance` where there are; and the written images of each condition.

    Raises:
        ValueError: if there is nothing to ask, a condition is none of the task, a probe or a photograph is missing,
            or the predictions file is of another evaluation.
        BadSampleError: if an image cannot be read.
    """
    check_positive(max_floor_questions=run.max_floor_questions, batch_size=run.batch_size)
    clusters = _clusters(task, examples, run.by_background)
    chosen = [*task.floors, *task.ceilings] if conditions is None else list(conditions)
    if unknown := [name for name in chosen if name not in (*task.floors, *task.ceilings)]:
        known = ", ".join((*task.floors, *task.ceilings))
        raise ValueError(f"{unknown[0]!r} is nothing to compare {task.name} with: choose {known}.")
    if task.needs_probe == "yes" and run.probe is None:
        raise ValueError(
            f"Task {task.name} is scored by a probe: give --probe-scenes, a folder of training scenes that vistok "
            "scenes --drawing-captions 1 wrote."
        )
    if "autoencoder" in chosen and not getattr(writer, "has_autoencoder", False):
        chosen.remove("autoencoder")
    check_distinct(examples)
    started = time.perf_counter()
    file = PredictionsFile(run.predictions_file, dict(run.known_by), run.share)
    store = ImageStore(run.folder, file, run.share, run.batch_size, run.progress_bar)
    fewer = choose_questions(range(len(examples)), run.max_floor_questions, run.seed)
    notes: list[str] = []
    asked, dealt = _dealt(task, examples, chosen, run.seed, notes)
    written = {name: store.write(name, asked, writer) for name in ("given", "targets")}
    num_given, seconds = store.num_written, time.perf_counter() - started
    for name in (name for name in chosen if name != "targets"):
        if name == task.dealt and dealt is not None:
            written[name] = [written["given"][dealt[index]] for index in fewer]
        elif name != task.dealt:
            written[name] = store.write(name, [asked[index] for index in fewer], writer)
    file.merge()
    scored = _Scored(task, asked, written, fewer, clusters, run)
    results: dict[str, Any] = {
        "task": task.name,
        "split": split,
        "model": model,
        "asked": task.asked,
        **scored.measured("given"),
        "measured_by": [_described(metric) for metric in scored.metrics],
        "floors": {name: scored.measured(name) for name in task.floors if name in written},
        "ceilings": {name: scored.measured(name) for name in task.ceilings if name in written and name in chosen},
        "gains": {name: scored.gain(name) for name in task.floors if name in written},
        "notes": [*notes, *scored.notes()],
        "resampled": "the photographs behind scenes" if run.by_background else "images",
        "num_generated": num_given,
        "settings": {},
        "command": None,
        **scored.token_counts(),
    }
    if task.has_pictures and run.extractor is not None:
        results["frechet_distance"] = _frechet_distances(task, written, fewer, run.extractor, run)
    if run.probe is not None:
        config = run.probe.config
        read = {"tower": config.tower, "tower_size": config.tower_size, "image_size": config.image_size}
        results["probe"] = {**run.probe.facts, **read}
    if scored.token_probe is not None:
        results["token_probe"] = {**scored.token_probe.facts, "token_size": scored.token_probe.config.token_size}
    results["seconds"] = {"answers": round(seconds, 1), "all": round(time.perf_counter() - started, 1)}
    return results, written


def _described(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "label": metric.label,
        "scale": metric.scale,
        "higher_is_better": metric.higher_is_better,
    }


def _clusters(task: ImageTask, examples: Examples, by_background: bool) -> list[Any]:
    if not examples:
        raise ValueError(f"Task {task.name} has nothing to ask: there are no {task.asked}.")
    if not by_background:
        return image_clusters(_of_first_images(examples))
    if missing := [example for example in examples if example.get("background") is None]:
        raise ValueError(
            f"The photograph behind {Path(str(missing[0]['images'][0]['path'])).name} is not known, only scenes have "
            "one: leave by_background out."
        )
    return [example["background"] for example in examples]


def _of_first_images(examples: Examples) -> list[dict[str, Any]]:
    """Examples with the image that is asked about alone, whatever is to be made of it."""
    return [{**example, "images": example["images"][:1]} for example in examples]


def _dealt(task: ImageTask, examples: Examples, chosen: list[str], seed: int, notes: list[str]):
    """The examples, with another one's text where a floor asks with it; and the one whose image each is dealt."""
    name = task.dealt or "shuffled_expressions"
    if name not in chosen:
        return list(examples), None
    keys = [str(index) for index in range(len(examples))]
    images = [image_key(example["images"][-1 if task.has_pictures else 0]) for example in examples]
    of_image: dict[str, set[str]] = {}
    for key, image in zip(keys, images):
        of_image.setdefault(image, set()).add(key)
    try:
        partner = derange(keys, {key: of_image[image] for key, image in zip(keys, images)}, random.Random(seed))
    except ValueError:
        note = f"The {name.replace('_', ' ')} are left out: too few of the {task.asked} are about different images."
        logger.warning(note)
        notes.append(note)
        chosen.remove(name)
        return list(examples), None
    dealt = [int(partner[key]) for key in keys]
    return [{**example, "other": examples[other].get("text")} for example, other in zip(examples, dealt)], dealt


class _Scored:
    """Records of the written images of each condition, and what they come to."""

    def __init__(self, task: ImageTask, examples: Examples, written, fewer: Sequence[int], clusters, run: ImageRun):
        self.task, self.examples, self.written, self.run = task, examples, written, run
        everything = list(range(len(examples)))
        self.rows = {name: everything if name in ("given", "targets") else list(fewer) for name in written}
        self.clusters = clusters
        self.token_probe = run.token_probe if task.token_metrics else None
        self.metrics = (*task.metrics, *(() if self.token_probe is None else task.token_metrics))
        self.records: dict[str, list[Any]] = {}
        for name in written:
            if name == "targets" and name not in task.ceilings:
                continue
            asked = [examples[row] for row in self.rows[name]]
            targets = [written["targets"][row] for row in self.rows[name]]
            records = task.score(asked, written[name], targets, run.probe)
            if self.token_probe is not None:
                tokens = [image.facts.get("tokens") for image in written[name]]
                of_tokens = self.token_probe.score(tokens, asked)
                records = [{**record, **further} for record, further in zip(records, of_tokens)]
            self.records[name] = records

    def measured(self, name: str) -> dict[str, Any]:
        rows = self.rows[name]
        return measure(
            self.records[name],
            _of_first_images([self.examples[row] for row in rows]),
            "kind",
            {},
            self.metrics,
            lambda record: bool(record.get("empty")),  # type: ignore[attr-defined]
            clusters=[self.clusters[row] for row in rows],
        )

    def gain(self, name: str) -> dict[str, Any]:
        metric, rows = self.task.metrics[0], self.rows[name]
        examples = [self.examples[row] for row in rows]
        given = [self.records["given"][row] for row in rows]
        columns = [metric.columns(records, examples) for records in (given, self.records[name])]
        return metric.gain(columns[0], columns[1], [self.clusters[row] for row in rows])

    def token_counts(self) -> dict[str, Any]:
        """How many tokens were written, beside how many the tokenizer makes of the image that is right."""
        given = [image.facts.get("num_tokens") for image in self.written["given"]]
        if None in given:
            return {}
        found: dict[str, Any] = {"written": token_count_statistics(given)}
        if "true_tokens" in self.written:
            true = [image.facts["num_tokens"] for image in self.written["true_tokens"]]
            rows = self.rows["true_tokens"]
            found["true"] = token_count_statistics(true)
            pairs = [given[row] for row in rows], true
            groups = [str(self.clusters[row]) for row in rows]
            found["rank_correlation"] = rank_correlation_interval(*pairs, seed=self.run.seed, groups=groups)
            found["mean_difference"] = sum(abs(a - b) for a, b in zip(*pairs)) / len(rows)
        return {"num_tokens": found}

    def notes(self) -> list[str]:
        notes = []
        if self.run.by_background:
            notes.append(f"The scenes are over {len(set(self.clusters))} photographs.")
        if self.run.probe is not None and (facts := self.run.probe.facts):
            config = self.run.probe.config
            notes.append(
                f"The probe reads {config.tower} (layer {config.layer}, {config.tower_size} pixels) at "
                f"{config.image_size} × {config.image_size} pixels; it was trained on {facts['num_scenes']:,} scenes."
                f"{_held_out(facts.get('held_out') or {})}"
            )
        if self.token_probe is not None:
            notes += self._notes_of_tokens(self.token_probe)
        if self.run.probe is None and self.task.needs_probe == "optional":
            notes.append("Without --probe-scenes no probe says whether edits are done.")
        return notes

    def _notes_of_tokens(self, probe: TokenProbeReader) -> Iterator[str]:
        if facts := probe.facts:
            yield (
                f"The token probe reads the tokens themselves ({probe.config.token_size} numbers each), before they "
                f"are drawn; it was trained on what the tokenizer makes of {facts['num_scenes']:,} scenes."
                f"{_held_out(facts.get('held_out') or {})}"
            )
        if without := sum("tokens" not in image.facts for image in self.written["given"]):
            yield (
                f"Of {without:,} images the predictions file holds no tokens, so that there are no scores by tokens: "
                "delete it and evaluate again."
            )


def _held_out(shares: Mapping[str, float | None]) -> str:
    """How well a probe reads scenes of its training set that it did not see, whose pictures it has seen elsewhere."""
    labels = {metric.name: metric.label for metric in CONTENTS_METRICS}
    said = [f"{labels[name]} {100 * share:.1f}" for name, share in shares.items() if share is not None]
    return f" On scenes of these that were held out it reaches, in percent: {', '.join(said)}." if said else ""


def _frechet_distances(
    task: ImageTask,
    written: Mapping[str, list[WrittenImage]],
    fewer: Sequence[int],
    extractor: FrechetExtractor,
    run: ImageRun,
) -> dict[str, Any]:
    """
    Of the images of each condition that draws some to those that are right, and of two halves of these. All are of the
    examples that every condition has: the distance falls with their number.
    """
    names = [name for name in written if name not in (task.dealt, "blank_images")]
    features = {
        name: representations_of(
            {"tower": extractor.tower}, [str(image.file) for image in written[name]], "mean", run.batch_size
        )["tower"]
        for name in names
    }
    real = features.pop("targets")
    found: dict[str, Any] = {}
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(run.seed))
    rows = torch.tensor(list(fewer))
    pairs = {name: (real[rows], of_name[rows] if name == "given" else of_name) for name, of_name in features.items()}
    pairs["halves of the true images"] = (real[order[: len(real) // 2]], real[order[len(real) // 2 :]])
    for name, (first, second) in pairs.items():
        if min(len(first), len(second)) >= 2:
            found[name] = frechet_distance(first, second, extractor.description)
    return found


__all__ = ["NOT_WRITTEN_WITH", "FrechetExtractor", "ImageRun", "evaluate_images"]
