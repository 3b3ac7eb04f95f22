"""The tasks of `vistok evaluate` by name: where their questions come from, how they are asked, what is measured."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .generation_settings import GenerationSettings
from .image_tasks import IMAGE_TASKS
from .protocol import MODES, PROMPT_STYLES, REFERENCE_IMAGE_SIZE, Protocol
from .task_benchmarks import load_captions, load_pope_splits, load_seed_bench_choices, load_vqa
from .task_gvtbench import load_gvtbench
from .task_metrics import (
    CAPTION_METRICS,
    CHOICE_METRICS,
    POPE_METRICS,
    constant_caption,
    constant_vqa_answer,
    counting_metrics,
    identification_metrics,
    vqa_metrics,
    without_count,
    without_yes_no,
)
from .task_questions import QuestionFiles, Split
from .vqa import is_unanswered

REFERENCE_NEW_TOKENS = 32


@dataclass(frozen=True)
class Task:
    """
    Questions that a model can be asked, and how.

    Args:
        name (`str`): what it is called.
        summary (`str`): what it asks, in a few words.
        load (`Callable`): takes the task's name and [`QuestionFiles`], returns its splits, `list[Split]`.
        protocol (`Callable`): takes a prompt style and a mode, returns the [`Protocol`].
        needs_files (`bool`, *optional*, defaults to `True`): whether `--questions` has to be given.
    """

    name: str
    summary: str
    load: Callable[[str, QuestionFiles], list[Split]]
    protocol: Callable[[str, str], Protocol] = field(default=lambda style, mode: Protocol())
    needs_files: bool = True

    def splits(self, files: QuestionFiles) -> list[Split]:
        """Its questions, see [`QuestionFiles`]."""
        if files.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"prompt_style is {files.prompt_style!r}, expected {' or '.join(PROMPT_STYLES)}.")
        return self.load(self.name, files)

    def asked(self, prompt_style: str = "paper", mode: str = "reference") -> Protocol:
        """
        How it is asked and measured.

        Args:
            prompt_style (`str`, *optional*, defaults to `"paper"`): `"paper"`: `Question: … Answer:`. `"reference"`:
                prompts, decoding and image size of GVT's released code.
            mode (`str`, *optional*, defaults to `"reference"`): which scoring comes first: that of the released code,
                comparable with published numbers, or `"strict"`; the other stands beside it.

        Raises:
            ValueError: if one of them is unknown.
        """
        for what, value, known in (("prompt_style", prompt_style, PROMPT_STYLES), ("mode", mode, MODES)):
            if value not in known:
                raise ValueError(f"{what} is {value!r}, expected {' or '.join(known)}.")
        return self.protocol(prompt_style, mode)


def _file_task(style: str, reference: Mapping[str, Any] | None = None, **fields: Any) -> Protocol:
    """A protocol of a task that is read from files: prompts as its style says, in words of its own."""
    settings = {"max_new_tokens": REFERENCE_NEW_TOKENS}
    settings |= (reference or {}) if style == "reference" else {}
    return Protocol(
        **{
            "settings": GenerationSettings(**settings),
            "prior": "two_fold",
            "own_prompt": True,
            "image_size": REFERENCE_IMAGE_SIZE if style == "reference" else None,
            "recorded": {"prompt_style": style},
            **fields,
        }
    )


def _counting(style: str, mode: str) -> Protocol:
    return _file_task(
        style, metrics=counting_metrics(mode), unanswered=without_count, type_column="counted",
        types_by_answer=True, recorded={"prompt_style": style, "mode": mode},
    )  # fmt: skip


def _identification(style: str, mode: str) -> Protocol:
    return _file_task(
        style, metrics=identification_metrics(mode), unanswered=without_yes_no, type_column="objects",
        recorded={"prompt_style": style, "mode": mode},
    )  # fmt: skip


def _vqa(style: str, mode: str) -> Protocol:
    return _file_task(
        style, {"repetition_penalty": 1.5}, metrics=vqa_metrics(), constant=constant_vqa_answer,
        constant_label="best constant answer",
    )  # fmt: skip


def _caption(style: str, mode: str) -> Protocol:
    return _file_task(
        style, {"num_beams": 5}, metrics=CAPTION_METRICS, constant=constant_caption,
        constant_label="best constant caption", prior="none",
        no_prior="There is no question-only prior: every image is asked the same question.",
    )  # fmt: skip


def _pope(style: str, mode: str) -> Protocol:
    return _file_task(style, metrics=POPE_METRICS, unanswered=without_yes_no)


def _seed_bench(style: str, mode: str) -> Protocol:
    return _file_task(
        style, metrics=CHOICE_METRICS, unanswered=is_unanswered, by_likelihood=True, type_column="dimension"
    )


def data_source_task(
    name: str, test: Mapping[str, Any], train: Mapping[str, Any] | None = None, summary: str = ""
) -> Task:
    """
    A task whose questions are a data source, as a recipe describes it.

    Args:
        name (`str`): of the task.
        test (`dict`): description of the questions.
        train (`dict`, *optional*): of the training examples, for the question-only prior.
        summary (`str`, *optional*): what it asks.
    """
    return Task(name, summary, functools.partial(_load_data_source, test, train), needs_files=False)


def _load_data_source(test, train, name: str, files: QuestionFiles) -> list[Split]:
    if files.load_source is None:
        raise ValueError(f"Task {name} is a data source: give a function that loads it.")
    examples = files.load_source(test)
    columns = getattr(examples, "column_names", None) or ()
    if "kind" in columns:  # what other formats call the type of a question
        examples = examples.rename_column("kind", "answer_type")
    training = _TrainingExamples(files.load_source, train) if train else None
    return [Split(test.get("split") or "test", examples, training)]


@dataclass(frozen=True)
class _TrainingExamples:
    """Training examples that are loaded when they are needed, without their images."""

    load_source: Callable[[Mapping[str, Any]], Any]
    description: Mapping[str, Any]

    def __iter__(self):
        loaded = self.load_source(self.description)
        # A data set decodes no other column then.
        return iter(loaded.select_columns(["messages"]) if hasattr(loaded, "select_columns") else loaded)


def _shipped_source(format: str, summary: str, train: Mapping[str, Any], test: Mapping[str, Any]) -> Task:
    return data_source_task(
        format,
        {"format": format, "name": f"{format}-test", "split": "test", **test},
        {"format": format, "split": "train", **train},
        summary,
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _shipped_source("easy-vqa", "9,673 questions about drawings of shapes", {}, {}),
        # The scenes of the recipe demo.yaml: the prior learns from what the model was trained on, and nothing is
        # rendered again.
        _shipped_source(
            "cutout-scenes", "about 3,000 questions about 600 scenes", {"options": {"num_scenes": 8000}},
            {"options": {"num_scenes": 600}},
        ),
        Task("coco_oc", "GVTBench, object counting on COCO", load_gvtbench, _counting),
        Task("coco_mci", "GVTBench, multi-class identification on COCO", load_gvtbench, _identification),
        Task("vcr_oc", "GVTBench, object counting on VCR", load_gvtbench, _counting),
        Task("vcr_mci", "GVTBench, multi-class identification on VCR", load_gvtbench, _identification),
        Task("vqa", "VQAv2, or questions in its format", load_vqa, _vqa),
        Task("caption", "COCO captions, by CIDEr", load_captions, _caption),
        Task("pope", "POPE, objects that are not there", load_pope_splits, _pope),
        Task("seed_bench", "SEED-Bench, by likelihood", load_seed_bench_choices, _seed_bench),
    )
}  # fmt: skip
"""Tasks by name."""


def find_tasks(names: str | Sequence[str | Task]) -> list[Task]:
    """
    Tasks by their names.

    Args:
        names (`str` or `list[str | Task]`): names, or one text with commas between them; tasks stay as they are.

    Raises:
        ValueError: if one is unknown, or none or one twice is named; names the closest.
    """
    listed = [part.strip() for part in names.split(",") if part.strip()] if isinstance(names, str) else list(names)
    found = []
    for name in listed:
        if isinstance(name, Task):
            found.append(name)
        elif name in TASKS:
            found.append(TASKS[name])
        else:
            if name in IMAGE_TASKS:
                raise ValueError(f"{name!r} asks for images, which evaluate_images_command evaluates.")
            close = difflib.get_close_matches(name, (*TASKS, *IMAGE_TASKS), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"There is no task {name!r}: give {', '.join(TASKS)} or a YAML file; or, of those whose answers are "
                f"images, {', '.join(IMAGE_TASKS)}.{hint}"
            )
    if not found or len({task.name for task in found}) < len(found):
        raise ValueError(f"The tasks are {[task.name for task in found]}, expected one or more, each once.")
    return found


__all__ = ["TASKS", "QuestionFiles", "Task", "data_source_task", "find_tasks"]
