"""Evaluations of questions about images: metrics beside what the same questions yield without their images."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.utils import logging

from .answer_run import AnswerRun
from .choices import choose_answers
from .image_controls import control_images, shown_images
from .image_text_models import ImageTextModel
from .measures import measure
from .prediction_checks import check_positive
from .predictions import PredictionsFile, check_distinct, fingerprint
from .processes import Share, gather_objects
from .protocol import Protocol
from .vqa import BREAKDOWNS, choose_questions, image_clusters, question_only_prior, two_fold_priors

logger = logging.get_logger(__name__)

Examples = Sequence[Mapping[str, Any]]

FLOORS = ("majority", "question_only_prior", "blank_images", "shuffled_images")
NOT_ASKED_WITH = ("mode", "max_floor_questions")
"""Settings that no single answer depends on: predictions may be read again with others."""


def evaluate_questions(
    model,
    processor,
    test: Iterable[Mapping[str, Any]],
    train: Iterable[Mapping[str, Any]] | None = None,
    *,
    batch_size: int = 32,
    features: Mapping[str, torch.Tensor] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """
    Lets a model answer questions, and measures what of its score needs the images.

    Args:
        model ([`GVTForConditionalGeneration`] or any image-text-to-text model): answers, see [`ImageTextModel`].
        processor ([`GVTProcessor`] or alike): writes the prompts.
        test (`list[dict]`): examples that end with the right answer.
        train (`list[dict]`, *optional*): training examples, for the question-only prior. Their images are not read.
        batch_size (`int`, *optional*, defaults to 32): questions per batch.
        features (`Mapping[str, torch.Tensor]`, *optional*): of the tower of a composed model, see [`ImageEncoder`].
        **arguments: of [`evaluate_task`].

    Returns:
        `dict`: see [`evaluate_task`].

    Raises:
        ValueError: see [`evaluate_task`].
    """
    answerer = ImageTextModel(model, processor, batch_size)
    if features is not None:
        answerer.encoder(arguments.get("protocol", Protocol()).image_size, features)
    return evaluate_task(answerer, test, train, **arguments)


def evaluate_task(
    answerer: ImageTextModel,
    test: Iterable[Mapping[str, Any]],
    train: Iterable[Mapping[str, Any]] | None = None,
    *,
    task: str = "questions",
    split: str = "test",
    protocol: Protocol = Protocol(),  # noqa: B008
    floors: Sequence[str] = FLOORS,
    max_floor_questions: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    predictions_file: str | os.PathLike | None = None,
    progress_bar: bool = True,
    command: str | None = None,
    share: Share = Share(),  # noqa: B008
    answered: dict[Any, str] | None = None,
) -> dict[str, Any]:
    """
    Lets a model answer the questions of a task, and measures what of its score needs the images.

    Args:
        answerer ([`ImageTextModel`]): the model.
        test (`list[dict]`): examples that end with the right answer.
        train (`list[dict]`, *optional*): training examples, for a prior that learns from these. Their images are not
            read.
        task, split (`str`): what the report calls them.
        protocol ([`Protocol`], *optional*): how the questions are asked and measured; by default short answers,
            decoded greedily, and exact matches.
        floors (`list[str]`, *optional*): which to measure: `"majority"` (one constant answer),
            `"question_only_prior"` (see [`question_only_prior`] and [`two_fold_priors`]), `"blank_images"` and
            `"shuffled_images"` (this model, see [`control_images`]). What cannot be measured is left out with a
            warning, and a note in the report.
        max_floor_questions (`int`, *optional*): ask only so many, a choice by `seed`, about blank and shuffled images.
        max_new_tokens (`int`, *optional*): limit of an answer, in tokens; by default the protocol's.
        seed (`int`, *optional*, defaults to 0): of the choices, the shuffling and the divisions of the
            prior.
        predictions_file (`str`, *optional*): JSONL that predictions are added to as they come. An evaluation that was
            killed continues from it with the same result.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        command (`str`, *optional*): the command line, for the report.
        share ([`Share`], *optional*): of several processes, which all get the same results.
        answered (`dict`, *optional*): answers to what was asked before, by what was shown; further ones are added.
            Given to several calls of one model and protocol, nothing is asked twice.

    Returns:
        `dict`: `task`, `split`, `model`; what [`measure`] returns of the answers; `measured_by`, what there is to know
        of the metrics; `floors`, the same measures for each floor (of the majority, `per_type` and `breakdowns` are
        the majority of each type and group); `gains` of the primary metric over majority and prior, with their
        intervals; `settings`, `command`; `notes`, why a floor is missing; `seconds` of the answers about the
        given images and of all; `num_generated`, how many of these answers were found in this time and not read from
        `predictions_file`.

    Raises:
        ValueError: if a floor is unknown, a number less than 1, there are no questions, or `predictions_file` is of
            another evaluation.
    """
    check_floors(floors)
    check_positive(max_floor_questions=max_floor_questions, max_new_tokens=max_new_tokens)
    test = list(test)
    if not test:
        raise ValueError(f"The {split} split of {task} has no questions to ask.")
    if max_new_tokens is not None:
        protocol = replace(protocol, settings=replace(protocol.settings, max_new_tokens=max_new_tokens))
    started = time.perf_counter()
    settings = {
        **_decoding(protocol),
        "max_floor_questions": max_floor_questions,
        "batch_size": answerer.batch_size,
        "seed": seed,
        "dtype": str(answerer.model.dtype).removeprefix("torch."),
        **protocol.recorded,
    }
    file = None
    if predictions_file is not None:
        check_distinct(test)
        asked_with = {name: value for name, value in settings.items() if name not in NOT_ASKED_WITH}
        known_by = asked_with | fingerprint(answerer.model, answerer.processor, test)
        file = PredictionsFile(predictions_file, known_by, share)
    fewer = choose_questions(range(len(test)), max_floor_questions, seed)
    controls, notes = _controls(floors, test, fewer, seed)
    asking = _Asking(
        answerer, protocol, seed, file, share, progress_bar and share.is_first, {} if answered is None else answered
    )
    predictions = asking("given", test)
    num_generated, answering = asking.num_generated, time.perf_counter() - started
    guesses, why_not = _guess(floors, test, train, protocol, seed)

    def measured(texts: Sequence[str], examples: Examples, others: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        return measure(
            texts, examples, protocol.type_column, metrics=protocol.metrics, unanswered=protocol.unanswered,
            others=others,
        )  # fmt: skip

    results = {
        "task": task,
        "split": split,
        "model": str(answerer.model.name_or_path),
        **measured(predictions, test),
        "measured_by": protocol.describe_metrics(),
        "floors": {floor: measured(texts[0], test, texts[1:]) for floor, texts in guesses.items()},
        "gains": _gains(predictions, guesses, test, protocol),
        "settings": {**settings, "device": answerer.model.device.type, "threads": torch.get_num_threads()},
        "command": command,
        "notes": [*notes, *why_not],
    }
    if "majority" in guesses:
        results["floors"]["majority"] |= _majority(test, guesses["majority"][0], protocol)
    for floor, (images, shown) in controls.items():
        examples = [test[index] for index in fewer]
        results["floors"][floor] = measured(asking(images, examples, shown), examples)
    if file is not None:
        file.merge()
    results["num_generated"] = num_generated
    results["seconds"] = {"answers": round(answering, 1), "all": round(time.perf_counter() - started, 1)}
    return results


def check_floors(floors: Sequence[str]) -> None:
    """Refuses unknown floors.

    Raises:
        ValueError: if one is none of `FLOORS`; names it.
    """
    if unknown := [floor for floor in floors if floor not in FLOORS]:
        raise ValueError(f"{unknown[0]!r} is no floor: choose {', '.join(FLOORS)}.")


def _decoding(protocol: Protocol) -> dict[str, Any]:
    decoding = {"answers": "by likelihood"} if protocol.by_likelihood else protocol.settings.to_dict()
    return decoding if protocol.image_size is None else {**decoding, "image_size": list(protocol.image_size)}


@dataclass
class _Asking:
    """Asks the same questions about given, blank and shuffled images, together with the other processes."""

    answerer: ImageTextModel
    protocol: Protocol
    seed: int
    file: PredictionsFile | None
    share: Share
    progress_bar: bool
    answered: dict[Any, str]
    num_generated: int = 0

    def _is_right(self, prediction: str, example: Mapping[str, Any]) -> bool | None:
        """What is right by one mode and wrong by the other is decided where predictions are read."""
        return None if "mode" in self.protocol.recorded else self.protocol.is_right(prediction, example)

    def __call__(self, images: str, examples: list, shown: list | None = None) -> list[str]:
        """Answers; `shown` are the examples with the images to be shown, where these were dealt before."""
        shown = examples if shown is None else shown
        known = self.file.known(images, examples) if self.file is not None else {}
        keys = [
            (
                images == "blank",
                json.dumps(example["messages"][:-1]),
                *example.get("choices", ()),
                shown_images(example),
            )
            for example in shown
        ]
        again = {
            index: self.answered[key] for index, key in enumerate(keys) if key in self.answered and index not in known
        }
        if self.file is not None and self.share.is_first and again:
            self.file.append(images, [examples[i] for i in again], list(again.values()), self._is_right)
        known |= again
        new: dict[int, str] = {}

        def take(indices: list[int], answers: list[str]) -> None:
            new.update(zip(indices, answers))
            if self.file is not None:
                chosen = [examples[index] for index in indices]
                self.file.append(images, chosen, answers, self._is_right)

        common: dict[str, Any] = {
            "images": "blank" if images == "blank" else "given",
            "seed": self.seed,
            "image_size": self.protocol.image_size,
            "own_prompt": self.protocol.own_prompt,
            "run": AnswerRun(known, take, self.share, self.progress_bar and f"{images} images"),
        }
        if self.protocol.by_likelihood:
            choose_answers(self.answerer, shown, **common)
        else:
            self.answerer.answer(shown, self.protocol.settings, **common)
        found = dict(gather_objects(self.share, list(new.items())))
        self.num_generated = len(found)
        answers = {**known, **found}
        self.answered.update((key, answers[index]) for index, key in enumerate(keys))
        return [answers[index] for index in range(len(examples))]


def _controls(floors, test, fewer: Sequence[int], seed: int) -> tuple[dict[str, tuple[str, list]], list[str]]:
    """For each floor of other images what they are, and the examples with them; and why one is left out. Images are
    dealt among all questions, however few of them are asked."""
    controls: dict[str, tuple[str, list]] = {}
    if "blank_images" in floors:
        controls["blank_images"] = ("blank", [test[index] for index in fewer])
    if "shuffled_images" in floors:
        try:
            dealt = control_images(test, "shuffled", seed)
        except ValueError as error:
            note = f"The shuffled images are left out: {str(error)[:1].lower()}{str(error)[1:]}"
            logger.warning(note)
            return controls, [note]
        controls["shuffled_images"] = ("shuffled", [dealt[index] for index in fewer])
    return controls, []


def _guess(floors, test, train, protocol: Protocol, seed: int) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Predictions of the floors that need no model, of which each may have several; and why one is left out."""
    guesses = {}
    if "majority" in floors:
        guesses["majority"] = [protocol.constant(test)]
    if "question_only_prior" not in floors:
        return guesses, []
    if protocol.prior == "none":
        return guesses, [protocol.no_prior] if protocol.no_prior else []
    note = None
    if protocol.prior == "two_fold":
        if len(set(image_clusters(test))) < 2:
            note = "The question-only prior is left out: all questions are about one image."
        else:
            guesses["question_only_prior"] = two_fold_priors(test, seed)
    elif train is None:
        note = "The question-only prior is left out: it needs the training examples."
    else:
        guesses["question_only_prior"] = [question_only_prior(list(train), test)]
    if note is not None:
        logger.warning(note)
    return guesses, [] if note is None else [note]


def _majority(test, guesses, protocol: Protocol) -> dict[str, Any]:
    """The constant guess; and per type or group, the best constant guess of it, which scores higher."""
    told: dict[str, Any] = {"answer": guesses[0]}
    told |= {} if protocol.constant_label is None else {"label": protocol.constant_label}
    if protocol.types_by_answer:
        return told

    def of_groups(column: str) -> list[str]:
        members: dict[Any, list[int]] = defaultdict(list)
        for index, example in enumerate(test):
            members[example.get(column)].append(index)
        best: dict[int, str] = {}
        for rows in members.values():
            best.update(zip(rows, protocol.constant([test[row] for row in rows])))
        return [best[index] for index in range(len(test))]

    has = {column for example in test for column, value in example.items() if value is not None}
    if protocol.type_column in has:
        of_type = measure(of_groups(protocol.type_column), test, protocol.type_column, {}, protocol.metrics)
        told["per_type"] = of_type["per_type"]
    for column in (column for column in BREAKDOWNS if column in has):
        groups = measure(of_groups(column), test, "", {column: BREAKDOWNS[column]}, protocol.metrics)
        told["breakdowns"] = {**told.get("breakdowns", {}), **groups.get("breakdowns", {})}
    return told


def _gains(predictions, guesses, test, protocol: Protocol) -> dict[str, Any]:
    """How much better the model is than what needs neither model nor images."""
    metric, clusters = protocol.primary, image_clusters(test)
    columns = metric.columns(predictions, test)
    return {
        floor: metric.gain(columns, metric.mean_columns(texts, test), clusters) for floor, texts in guesses.items()
    }


__all__ = ["FLOORS", "check_floors", "evaluate_questions", "evaluate_task"]
