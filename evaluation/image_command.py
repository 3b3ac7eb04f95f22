"""What `vistok evaluate` does with tasks whose answers are images or masks."""

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration.optional import require
from ..processing.images import image_key
from .command import DTYPES, available_device, predictions_path
from .contents_probe import ProbeReader
from .contents_probe_training import probe_of_scenes, read_scenes
from .image_evaluation import NOT_WRITTEN_WITH, FrechetExtractor, ImageRun, evaluate_images
from .image_representations import ImageTower
from .image_task_pictures import draw_pictures
from .image_tasks import ImageTask, find_image_task
from .image_writers import NEEDS_DETOKENIZER, Drawing, load_writer
from .prediction_checks import check_positive
from .predictions import fingerprint
from .processes import Share, gather_objects, join_processes, local_device, wait_for_all
from .report_table import file_stem, save_report, save_summary
from .task_questions import QuestionFiles, Split
from .token_contents_probe import TokenProbeReader, token_probe_of_scenes
from .token_sources import load_token_source
from .vqa import choose_questions

EXTRACTOR = "vistok:dinov2-small"
EXTRACTOR_SIZE = 224  # pixels


def evaluate_images_command(
    model: str | os.PathLike,
    tasks: Sequence[str],
    *,
    questions: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    load_source: Callable[[Mapping[str, Any]], Any] | None = None,
    missing_images: str = "error",
    max_questions: int | None = None,
    output: str | os.PathLike | None = None,
    conditions: Sequence[str] | None = None,
    max_floor_questions: int | None = None,
    batch_size: int = 16,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    probe_scenes: str | os.PathLike | None = None,
    probe_tower: str = EXTRACTOR,
    probe_tower_size: int = 168,
    extractor: str | None = EXTRACTOR,
    by_background: bool = False,
    num_shown: int = 12,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
    command: str | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Evaluates what a SeTok draws of its tokens, and what a Setokim segments, draws and edits; writes the reports.
    Started by `accelerate launch`, several processes share the examples; the first one writes the reports.

    Args:
        model (`str`): folder or Hub id of a trained Setokim, or of a SeTok to reconstruct.
        tasks (`list[str]`): names of `IMAGE_TASKS`.
        questions, images: files, see [`QuestionFiles`]; a folder that `vistok scenes` wrote holds those of all tasks.
        load_source, missing_images: see [`QuestionFiles`].
        max_questions (`int`, *optional*): ask only so many of each split, a choice by `seed`.
        output (`str`, *optional*): folder for `<task>-<split>.json`, `.md`, `.png`, `.predictions.jsonl`,
            `.pictures.png` and a folder `<task>-<split>.images` with all that was written. A run that was killed
            continues from there. By default nothing is kept.
        conditions (`list[str]`, *optional*): floors and ceilings to measure; by default all of each task.
        max_floor_questions (`int`, *optional*): limit of the examples of these.
        batch_size (`int`, *optional*, defaults to 16): examples at once.
        num_inference_steps, guidance_scale: see [`Drawing`].
        probe_scenes (`str`, *optional*): folder of training scenes that probes are trained on, see
            [`probe_of_scenes`] and [`token_probe_of_scenes`]. To score generated images it is needed.
        probe_tower, probe_tower_size: of the probe, see [`probe_of_scenes`].
        extractor (`str`, *optional*): tower whose features Fréchet distances are measured in; `None` for none.
        by_background (`bool`, *optional*, defaults to `False`): intervals resample the photographs behind scenes.
        num_shown (`int`, *optional*, defaults to 12): examples in the picture.
        dtype, device, attn_implementation: of the model, as in [`evaluate_command`].
        seed (`int`, *optional*, defaults to 0): of everything random.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show some.
        command (`str`, *optional*): the command line, for the report.

    Returns:
        `dict[str, dict]`: results by the name of the task, or `<task>-<split>` where the split is not called test.

    Raises:
        ValueError: if an argument is out of range or unknown, the model is of another kind or draws no images.
        BadSampleError: if an image is missing or an example malformed; names its row.
        FileNotFoundError: if a file or folder is missing.
        ImportError: if an extra is not installed; at once, before anything is written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected {', '.join(DTYPES)}.")
    check_positive(
        max_questions=max_questions, max_floor_questions=max_floor_questions, batch_size=batch_size,
        num_inference_steps=num_inference_steps, num_shown=num_shown, probe_tower_size=probe_tower_size,
    )  # fmt: skip
    chosen = [find_image_task(name) for name in tasks]
    _require_extras(chosen, output)
    _check_conditions(chosen, conditions)
    if probe_scenes is None and any(task.needs_probe == "yes" for task in chosen):
        raise ValueError(
            "Generated images are scored by a probe: give --probe-scenes, a folder of training scenes that vistok "
            "scenes --drawing-captions 1 wrote."
        )
    share = join_processes(device)
    device = available_device(device or local_device(share))
    files = QuestionFiles(questions, images, missing_images=missing_images, load_source=load_source, seed=seed)
    # All questions are read before anything is written: what is missing is told now, not hours later.
    splits = [
        (task, split) for task in chosen for split in _in_turn(share, functools.partial(task.load, task.name, files))
    ]
    if probe_scenes is not None:
        _check_apart(probe_scenes, [(task, split) for task, split in splits if task.needs_probe != "no"])
    evaluation = _Evaluation(
        model, share, device, Drawing(seed, num_inference_steps, guidance_scale), output, conditions,
        max_questions, max_floor_questions, batch_size, probe_scenes, probe_tower, probe_tower_size, extractor,
        by_background, num_shown, dtype, attn_implementation, progress_bar, command,
    )  # fmt: skip
    results = {
        task.name if split.name == "test" else file_stem(task.name, split.name): evaluation.of(task, split)
        for task, split in splits
    }
    if output is not None and share.is_first and len(results) > 1:
        save_summary(list(results.values()), output)
    return results


@dataclass(frozen=True)
class _Evaluation:
    """The arguments of [`evaluate_images_command`], for each split in turn."""

    model: str | os.PathLike
    share: Share
    device: str
    drawing: Drawing
    output: str | os.PathLike | None
    conditions: Sequence[str] | None
    max_questions: int | None
    max_floor_questions: int | None
    batch_size: int
    probe_scenes: str | os.PathLike | None
    probe_tower: str
    probe_tower_size: int
    extractor: str | None
    by_background: bool
    num_shown: int
    dtype: str
    attn_implementation: str | None
    progress_bar: bool
    command: str | None

    def of(self, task: ImageTask, split: Split) -> dict[str, Any]:
        """Results of a split, with its report written."""
        writer, loaded, processor = load_writer(
            self.model, task.name, self.drawing, self.dtype, self.device, self.attn_implementation, self.batch_size
        )
        examples = choose_questions(split.test, self.max_questions, self.drawing.seed)
        settings = {
            "num_inference_steps": self.drawing.num_inference_steps,
            "guidance_scale": self.drawing.guidance_scale,
            "max_floor_questions": self.max_floor_questions,
            "batch_size": self.batch_size,
            "seed": self.drawing.seed,
            "dtype": str(loaded.dtype).removeprefix("torch."),
        }
        known_by = {name: value for name, value in settings.items() if name not in NOT_WRITTEN_WITH}
        known_by |= fingerprint(loaded, processor, examples)
        with _place(self.output, task, split, self.share) as (folder, predictions):
            run = ImageRun(
                folder, predictions, known_by, self.share, self.batch_size, self.drawing.seed,
                self.max_floor_questions, self.by_background, self.progress_bar, self._probe(task, writer),
                self._extractor(task), self._token_probe(task, writer),
            )  # fmt: skip
            found, written = evaluate_images(
                task, writer, examples, run, split=split.name, model=str(loaded.name_or_path),
                conditions=_of_task(task, self.conditions),
            )  # fmt: skip
            found["settings"] = {**settings, "device": loaded.device.type, "threads": torch.get_num_threads()}
            found["command"] = self.command
            if split.num_missing:
                found["num_missing"] = split.num_missing
            if self.output is not None and self.share.is_first:
                save_report(found, self.output)
                picture = Path(self.output) / f"{file_stem(task.name, split.name)}.pictures.png"
                fewer = choose_questions(range(len(examples)), self.max_floor_questions, self.drawing.seed)
                draw_pictures(task, examples, written, picture, self.num_shown, fewer)
        wait_for_all(self.share)
        return found

    def _probe(self, task: ImageTask, writer: Any) -> ProbeReader | None:
        if self.probe_scenes is None or task.needs_probe == "no":
            return None
        make = functools.partial(
            probe_of_scenes, self.probe_scenes, writer.side, tower=self.probe_tower,
            tower_size=self.probe_tower_size, device=self.device,
        )  # fmt: skip
        return _in_turn(self.share, make)

    def _token_probe(self, task: ImageTask, writer: Any) -> TokenProbeReader | None:
        if self.probe_scenes is None or not task.token_metrics:
            return None
        return _in_turn(self.share, functools.partial(token_probe_of_scenes, self.probe_scenes, writer.tokenizer))

    def _extractor(self, task: ImageTask) -> FrechetExtractor | None:
        if self.extractor is None or not task.has_pictures:
            return None
        source = load_token_source(self.extractor, image_size=EXTRACTOR_SIZE, device=self.device)
        tower = ImageTower(source.model.vision_tower, source.image_processor, source.feature_layer)
        return FrechetExtractor(self.extractor, tower)


def _check_apart(probe_scenes: str | os.PathLike, splits: Sequence[tuple[ImageTask, Split]]) -> None:
    """A probe that was trained on the very images that it reads knows them by heart."""
    if not splits:
        return
    known = {image_key(str(scene.image.file)) for scene in read_scenes(probe_scenes)}
    for task, split in splits:
        shared = {image_key(image) for example in split.test for image in example["images"]} & known
        if shared:
            raise ValueError(
                f"{len(shared)} images of the task {task.name} are among the scenes of --probe-scenes "
                f"({probe_scenes}): train the probe on scenes of the other split."
            )


def _require_extras(chosen: Sequence[ImageTask], output) -> None:
    if output is not None:
        require("matplotlib.figure", "draw")
    if any(task.name in NEEDS_DETOKENIZER for task in chosen):
        require("diffusers", "generation")


def _check_conditions(chosen: Sequence[ImageTask], conditions: Sequence[str] | None) -> None:
    known = list(dict.fromkeys(name for task in chosen for name in (*task.floors, *task.ceilings)))
    if unknown := [name for name in conditions or () if name not in known]:
        names = ", ".join(task.name for task in chosen)
        raise ValueError(f"{unknown[0]!r} is nothing to compare {names} with: choose {', '.join(known)}.")


def _of_task(task: ImageTask, conditions: Sequence[str] | None) -> list[str] | None:
    own = (*task.floors, *task.ceilings)
    return None if conditions is None else [name for name in conditions if name in own]


@contextmanager
def _place(output, task: ImageTask, split: Split, share: Share) -> Iterator[tuple[Path, Path]]:
    """Where written images and the predictions file are: beside the report, or in a folder that is gone afterwards."""
    if output is not None:
        yield (
            Path(output) / f"{file_stem(task.name, split.name)}.images",
            predictions_path(output, task.name, split.name),
        )
        return
    with tempfile.TemporaryDirectory(prefix="vistok-evaluation-") as own:
        folder = Path(gather_objects(share, [own])[0])  # that of the first process, for all
        yield folder / "images", folder / "predictions.jsonl"
        wait_for_all(share)


def _in_turn(share: Share, make: Callable[[], Any]) -> Any:
    """The first process makes first: what it caches, the others find."""
    if not share.is_first:
        wait_for_all(share)
    made = make()
    if share.is_first:
        wait_for_all(share)
    return made


__all__ = ["EXTRACTOR", "evaluate_images_command"]
