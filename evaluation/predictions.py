"""Predictions on disk, a line each, written as they come, so that a killed evaluation continues where it was."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..processing.images import image_key
from .vqa import answer_is_right, answer_of, question_of

Examples = Sequence[Mapping[str, Any]]

WEIGHTS_IN_HASH = 1024  # of each parameter, evenly spread: training changes them all


class PredictionsFile:
    """
    A JSONL file whose first line says what was evaluated, and every further one what was answered to a question.

    Args:
        path (`str`): the file; made if it does not exist.
        settings (`dict`): what the predictions depend on. A file of other settings is refused.

    Raises:
        ValueError: if the file holds predictions of other settings; names the difference.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any]):
        self.path = Path(path)
        settings = json.loads(json.dumps(settings))
        lines = self._complete_lines()
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
        elif (found := lines[0].get("settings")) != settings:
            differences = [
                f"{name} is {(found or {}).get(name)!r} there and {settings.get(name)!r} here"
                for name in sorted({*settings, *(found or {})})
                if (found or {}).get(name) != settings.get(name)
            ]
            raise ValueError(
                f"{self.path} holds predictions of another evaluation ({'; '.join(differences)}): give another "
                "predictions file, or delete this one."
            )
        self._known = {
            (line["images"], line["source"], line["id"]): line["prediction"] for line in lines if "prediction" in line
        }

    def _complete_lines(self) -> list[dict[str, Any]]:
        """Reads the file, and cuts off the line that a kill left unfinished."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with open(self.path, "r+b") as stream:
                stream.truncate(end)
        return [json.loads(line) for line in content[:end].splitlines()]

    def known(self, images: str, examples: Examples) -> dict[int, str]:
        """
        Predictions that the file holds.

        Args:
            images (`str`): which images were shown, see [`control_images`].
            examples (`list[dict]`): examples.

        Returns:
            `dict[int, str]`: predictions by the position of their example.
        """
        names = [(images, *name) for name in _names(examples)]
        return {index: self._known[name] for index, name in enumerate(names) if name in self._known}

    def append(self, images: str, examples: Examples, predictions: Sequence[str]) -> None:
        """
        Adds predictions, and hands them to the operating system at once.

        Args:
            images (`str`): which images were shown.
            examples (`list[dict]`): the examples, with their own images.
            predictions (`list[str]`): what was answered to each.
        """
        lines = []
        for (source, name), example, prediction in zip(_names(examples), examples, predictions):
            answer = answer_of(example)
            line = {
                "id": name,
                "source": source,
                "images": images,
                "question": question_of(example),
                "answer": answer,
                "prediction": prediction,
                "right": answer_is_right(prediction, answer),
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            self._known[(images, source, name)] = prediction
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write("".join(lines))


def check_distinct(examples: Examples) -> None:
    """
    Makes sure that predictions can be told apart by the ids of their examples.

    Raises:
        ValueError: if two examples of a source have the same id; names it.
    """
    seen = set()
    for source, name in _names(examples):
        if (source, name) in seen:
            raise ValueError(
                f"Two examples of {source!r} have the id {name!r}, and predictions are kept by id: give distinct ids."
            )
        seen.add((source, name))


def fingerprint(model, processor, examples: Examples) -> dict[str, str]:
    """
    What predictions depend on, beside the arguments of an evaluation.

    Args:
        model (`PreTrainedModel`): answers.
        processor (`ProcessorMixin`): writes prompts and prepares images.
        examples (`list[dict]`): what is asked.

    Returns:
        `dict[str, str]`: hashes of the weights, of the processor, of the questions and of the images.
    """
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:  # as weights are that device_map="auto" keeps on disk
            some = parameter.detach().flatten()[:: parameter.numel() // WEIGHTS_IN_HASH + 1].contiguous()
            weights.update(some.view(torch.uint8).cpu().numpy().tobytes())
    prepared = json.dumps([processor.chat_template, processor.image_processor.to_json_string()])
    asked = json.dumps([[*name, question_of(example)] for name, example in zip(_names(examples), examples)])
    shown = json.dumps([[image_key(image) for image in example.get("images") or []] for example in examples])
    return {
        "weights": weights.hexdigest()[:16],
        "processor": hashlib.sha256(prepared.encode()).hexdigest()[:16],
        "questions": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "images": hashlib.sha256(shown.encode()).hexdigest()[:16],
    }


def _names(examples: Examples) -> list[tuple[str, str]]:
    return [(str(example.get("source")), str(example["id"])) for example in examples]


__all__ = ["PredictionsFile", "check_distinct", "fingerprint"]
