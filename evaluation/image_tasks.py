"""The tasks of `vistok evaluate` whose answers are images or masks: what is asked, measured and compared with."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..processing.drawn_images import pixels_of
from ..processing.images import load_image
from .contents_probe import ContentsReading, ProbeReader, reduced
from .contents_scores import CONTENTS_METRICS, TOKEN_METRICS, check_asked, contents_score
from .image_task_files import load_drawing_captions, load_edits, load_pictures, load_references
from .image_writers import true_mask
from .measures import Metric
from .reconstruction import l1_distance, structural_similarity
from .segmentation_scores import PRECISION_THRESHOLDS, mask_overlap
from .task_questions import QuestionFiles, Split
from .written_images import Examples, WrittenImage

Records = list[dict[str, Any]]
CHANGED = 0.04  # of the range of a colour: what an edit changes, beyond what JPEG does
LEAST_PRESENCE = 0.5  # of an object, as a sum of densities in its box


@dataclass(frozen=True)
class ImageTask:
    """
    A task whose answers are images or masks.

    Args:
        name (`str`): what it is called.
        summary (`str`): what it asks, in a few words.
        asked (`str`): what reports count: `"images"`, `"expressions"` …
        load (`Callable`): takes the task's name and [`QuestionFiles`], returns its splits, `list[Split]`.
        score (`Callable`): takes examples, written images, the images that are right and a probe (or `None`), returns
            a record for each example.
        metrics (`tuple[Metric, ...]`): of records, the primary one first.
        floors (`tuple[str, ...]`): conditions that a model has to be better than.
        ceilings (`tuple[str, ...]`): conditions that show how good it could be.
        dealt (`str`, *optional*): a floor that is the written images of other examples.
        needs_probe (`str`, *optional*, defaults to `"no"`): `"yes"`, `"optional"` or `"no"`.
        has_pictures (`bool`, *optional*, defaults to `True`): whether images are written, and not masks.
        token_metrics (`tuple[Metric, ...]`, *optional*): further ones, where a probe reads the tokens of images.
    """

    name: str
    summary: str
    asked: str
    load: Callable[[str, QuestionFiles], list[Split]]
    score: Callable[[Examples, Sequence[WrittenImage], Sequence[WrittenImage], ProbeReader | None], Records]
    metrics: tuple[Metric, ...]
    floors: tuple[str, ...]
    ceilings: tuple[str, ...]
    dealt: str | None = None
    needs_probe: str = "no"
    has_pictures: bool = True
    token_metrics: tuple[Metric, ...] = ()


def _values(*names: str):
    def values(records: Sequence[Any], examples: Any) -> np.ndarray:
        return np.array([[record[name] for name in names] for record in records], dtype=np.float64)

    return values


def _ratio(means: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return means[..., 0] / means[..., 1]


SSIM = Metric("ssim", "SSIM", _values("ssim"), bounds=(-1.0, 1.0), scale=1.0)
L1 = Metric("l1", "L1", _values("l1"), scale=1.0, higher_is_better=False)


def _distances(written: Sequence[WrittenImage], targets: Sequence[WrittenImage]) -> Records:
    records = []
    for image, target in zip(written, targets):
        pixels, true = (pixels_of(one.image())[None] for one in (image, target))
        records.append({"l1": l1_distance(pixels, true).item(), "ssim": structural_similarity(pixels, true).item()})
    return records


def _score_reconstruction(examples, written, targets, probe) -> Records:
    return _distances(written, targets)


def _score_masks(examples, written, targets, probe) -> Records:
    records = []
    for example, image in zip(examples, written):
        mask = np.asarray(load_image(image.file).convert("L")) >= 128
        try:
            shared, united = mask_overlap(mask, true_mask(example))
        except ValueError as error:
            raise ValueError(f"Expression {example['text']!r} ({example['id']}): {error}") from error
        iou = shared / united if united else 1.0
        precisions = {f"precision_at_{round(100 * level)}": float(iou > level) for level in PRECISION_THRESHOLDS}
        records.append({"shared": shared, "united": united, "iou": iou, "empty": not mask.any(), **precisions})
    return records


MASK_METRICS = (
    Metric("ciou", "cIoU", _values("shared", "united"), _ratio, None),
    Metric("giou", "gIoU", _values("iou")),
    *(
        Metric(
            f"precision_at_{round(100 * level)}", f"IoU over {level}", _values(f"precision_at_{round(100 * level)}")
        )
        for level in PRECISION_THRESHOLDS
    ),
)


def _read(written: Sequence[WrittenImage], probe: ProbeReader) -> list[ContentsReading]:
    return probe.read([one.image() for one in written])


def _score_contents(examples, written, targets, probe) -> Records:
    check_asked(examples, probe.config.classes)
    return [contents_score(reading, example["contents"]) for reading, example in zip(_read(written, probe), examples)]


def _score_edits(examples, written, targets, probe) -> Records:
    records = _distances(written, targets)
    for record, example, image, target in zip(records, examples, written, targets):
        pixels, true = pixels_of(image.image()), pixels_of(target.image())
        # Both made smaller in one way: two would differ at every edge.
        before, after = (pixels_of(reduced(load_image(example["images"][n]), image.image().width)) for n in (0, -1))
        changed = (before - after).abs().amax(0) > CHANGED
        difference = (pixels - true).abs().mean(0)
        for name, where in (("changed", changed), ("kept", ~changed)):
            record |= {f"l1_{name}": float(difference[where].sum()), f"num_{name}": int(where.sum())}
        record |= {"done": 0, "known": 0}
    if probe is not None:
        for record, example, reading in zip(records, examples, _read(written, probe)):
            done = edit_is_done(reading, example.get("edit"))
            record |= {"done": int(bool(done)), "known": int(done is not None)}
    return records


def edit_is_done(reading: ContentsReading, edit: Mapping[str, Any] | None) -> bool | None:
    """
    Whether a probe finds in an edited image what an instruction asks for: an object that is added or moved, where it
    is to be, and of one that is moved no second one; of one that is removed nothing where it was; of one that is
    painted the colour, where it is.

    Args:
        reading ([`ContentsReading`]): of the image.
        edit (`dict`, *optional*): `kind`, `name` of the class, `source_box` and `target_box` (x, y, width and height
            in sides of the image), `color`, and `contents` of the edited image (see [`contents_score`]).

    Returns:
        `bool` or `None`: `None` where the edit is not known, or of a class that the probe does not know.
    """
    if edit is None or edit.get("name") not in reading.config.classes:
        return None
    name, kind = edit["name"], edit["kind"]
    if kind == "remove":
        return None if edit.get("source_box") is None else reading.count(name, edit["source_box"]) < LEAST_PRESENCE
    box = edit.get("target_box")
    if box is None:
        return None
    is_there = reading.count(name, box) >= LEAST_PRESENCE
    if kind == "recolor":
        return is_there and reading.ranked_colors(name, box)[:1] == [edit["color"]]
    if kind == "move" and edit.get("contents") is not None:
        wanted = sum(entry["count"] for entry in edit["contents"] if entry["name"] == name)
        return is_there and reading.whole_count(name) <= wanted
    return is_there


EDIT_METRICS = (
    SSIM,
    L1,
    Metric("l1_changed", "L1 where the edit changes something", _values("l1_changed", "num_changed"), _ratio, None,
           1.0, higher_is_better=False),
    Metric("l1_kept", "L1 where it changes nothing", _values("l1_kept", "num_kept"), _ratio, None,
           1.0, higher_is_better=False),
    Metric("done", "edit found by the probe", _values("done", "known"), _ratio, None),
)  # fmt: skip

IMAGE_TASKS: dict[str, ImageTask] = {
    task.name: task
    for task in (
        ImageTask(
            "reconstruction", "images from their own tokens", "images", load_pictures, _score_reconstruction,
            (SSIM, L1), ("grid", "blank_images", "shuffled_images"), ("autoencoder",), "shuffled_images",
        ),
        ImageTask(
            "referring", "masks for expressions", "expressions", load_references, _score_masks, MASK_METRICS,
            ("shuffled_expressions", "whole_image", "largest_cluster"), ("best_cluster", "best_token_mask"),
            has_pictures=False,
        ),
        ImageTask(
            "generation", "images for captions", "captions", load_drawing_captions, _score_contents, CONTENTS_METRICS,
            ("shuffled_captions",), ("true_tokens", "targets"), "shuffled_captions", "yes",
            token_metrics=TOKEN_METRICS,
        ),
        ImageTask(
            "editing", "images that instructions make of others", "edits", load_edits, _score_edits, EDIT_METRICS,
            ("copied_source",), ("true_tokens", "targets"), None, "optional",
        ),
    )
}  # fmt: skip
"""All image tasks by name."""

IMAGE_FLOORS = tuple(dict.fromkeys(floor for task in IMAGE_TASKS.values() for floor in task.floors))


def find_image_task(name: str) -> ImageTask:
    """
    The image task of a name.

    Raises:
        ValueError: if there is none; names what is close.
    """
    if name in IMAGE_TASKS:
        return IMAGE_TASKS[name]
    close = difflib.get_close_matches(name, IMAGE_TASKS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name!r} is no task whose answers are images: choose {', '.join(IMAGE_TASKS)}.{hint}")


__all__ = ["IMAGE_FLOORS", "IMAGE_TASKS", "ImageTask", "edit_is_done", "find_image_task"]
