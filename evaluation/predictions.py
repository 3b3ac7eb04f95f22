"""Predictions on disk, a line each, written as they come, so that a killed evaluation continues where it was."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..modeling.atomic_folder import write_text_atomically
from ..processing.images import image_key
from .processes import Share, wait_for_all
from .vqa import answer_is_right, answer_of, question_of

Examples = Sequence[Mapping[str, Any]]

_FIELDS = ("images", "source", "id", "question", "answer", "prediction")
WEIGHTS_IN_HASH = 1024  # of each parameter, evenly spread: training changes them all


class PredictionsFile:
    """
    A JSONL file whose first line says what was evaluated, and every further one what was answered to a question.

    Of several processes the first writes this file, and each other one a part beside it, `….part<rank>.jsonl`. Parts
    are added to the file by [`PredictionsFile.merge`] and, if a run was killed before, by the next one, of however
    many processes.

    Args:
        path (`str`): the file; made if it does not exist.
        settings (`dict`): what the predictions depend on. A file of other settings is refused.
        share ([`Share`], *optional*): this process's.

    Raises:
        ValueError: if the file holds predictions of other settings (names the difference), or is none of predictions;
            it is left as it is then.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        share: Share = Share(),  # noqa: B008
    ):
        self.path, self.share = Path(path), share
        self.settings = json.loads(json.dumps(settings))
        self._known: dict[tuple[str, str, str], str] = {}
        if share.is_first:
            self._start(self.path)
            self._merge_parts()
        wait_for_all(share)
        if not share.is_first:
            self._read(self.path)
            wait_for_all(share)
            self.path = self._part(share.rank)
            self._start(self.path)
        else:
            wait_for_all(share)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name.removesuffix('.jsonl')}.part{rank}.jsonl")

    def _start(self, path: Path) -> None:
        """Makes a file, or reads the one that is there and cuts off the line that a kill left unfinished."""
        first_line = json.dumps({"settings": self.settings}) + "\n"
        content = path.read_bytes() if path.exists() else b""
        end = content.rfind(b"\n") + 1
        if end:
            self._read(path)  # a file that is not ours ends here, untouched
            if end < len(content):
                with open(path, "r+b") as stream:
                    stream.truncate(end)
        elif first_line.encode().startswith(content):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, first_line)
        else:
            raise ValueError(
                f"{path} is no predictions file of vistok evaluate: give another one, or delete this one."
            )

    def _read(self, path: Path) -> list[dict[str, Any]]:
        if not (lines := _complete_lines(path)):
            return []
        found = lines[0].get("settings")
        if not isinstance(found, dict):
            raise ValueError(f"{path} is no predictions file of vistok evaluate: its first line holds no settings.")
        if found != self.settings:
            differences = [
                f"{name} is {found.get(name)!r} there and {self.settings.get(name)!r} here"
                for name in sorted({*self.settings, *found})
                if found.get(name) != self.settings.get(name)
            ]
            raise ValueError(
                f"{path} holds predictions of another evaluation ({'; '.join(differences)}): give another "
                "predictions file, or delete this one."
            )
        self._known |= {(line["images"], line["source"], line["id"]): line["prediction"] for line in lines[1:]}
        return lines[1:]

    def _merge_parts(self) -> None:
        for part in sorted(self.path.parent.glob(f"{glob.escape(self.path.name.removesuffix('.jsonl'))}.part*.jsonl")):
            before = set(self._known)
            new = [
                json.dumps(line, ensure_ascii=False) + "\n"
                for line in self._read(part)
                if (line["images"], line["source"], line["id"]) not in before
            ]
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write("".join(new))
            part.unlink()

    def merge(self) -> None:
        """Adds what the other processes wrote to the first one's file. All processes have to call it."""
        wait_for_all(self.share)
        if self.share.is_first:
            self._merge_parts()
        wait_for_all(self.share)

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

    def append(
        self,
        images: str,
        examples: Examples,
        predictions: Sequence[str],
        is_right: Callable[[str, Mapping[str, Any]], bool | None] | None = None,
    ) -> None:
        """
        Adds predictions, and hands them to the operating system at once.

        Args:
            images (`str`): which images were shown.
            examples (`list[dict]`): the examples, with their own images.
            predictions (`list[str]`): what was answered to each.
            is_right (`Callable`, *optional*): takes prediction and example; by default [`answer_is_right`]. `None` is
                not written.
        """
        lines = []
        for (source, name), example, prediction in zip(_names(examples), examples, predictions):
            answer = answer_of(example)
            line = {
                "id": name,
                "source": source,
                "images": images,
                "question": example.get("question") or question_of(example),
                "answer": answer,
                "prediction": prediction,
                "right": answer_is_right(prediction, answer) if is_right is None else is_right(prediction, example),
                "files": [image["path"] for image in example.get("images") or [] if _has_path(image)],
            }
            line = {key: value for key, value in line.items() if value is not None and (key != "files" or value)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            self._known[(images, source, name)] = prediction
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write("".join(lines))


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without the line that a kill left unfinished: settings first, then predictions."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path} is no predictions file of vistok evaluate: line {number} is not JSON ({error})."
            ) from error
        fields = ("settings",) if number == 1 else _FIELDS
        if not isinstance(record, dict) or any(field not in record for field in fields):
            raise ValueError(
                f"{path} is no predictions file of vistok evaluate: line {number} is {line[:80]!r}, expected a record "
                f"with {', '.join(fields)}."
            )
        lines.append(record)
    return lines


def _has_path(image: Any) -> bool:
    return isinstance(image, Mapping) and bool(image.get("path"))


def read_predictions(path: str | os.PathLike, images: str = "given") -> list[dict[str, Any]]:
    """
    Reads the lines of a predictions file, which stays as it is.

    Args:
        path (`str`): a file that an evaluation wrote.
        images (`str`, *optional*, defaults to `"given"`): which images were shown.

    Returns:
        `list[dict]`: `id`, `source`, `question`, `answer`, `prediction` and, where there are, `right` and `files`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none of predictions; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no predictions file {path}: expected one that vistok evaluate wrote.")
    found = [line for line in _complete_lines(path)[1:] if line["images"] == images]
    if not found:
        raise ValueError(f"{path} holds no predictions about {images} images: expected a file of vistok evaluate.")
    return found


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
        processor (`ProcessorMixin`): writes prompts and prepares images; or an image processor alone.
        examples (`list[dict]`): what is asked.

    Returns:
        `dict[str, str]`: hashes of the weights, of the configuration (with that of the generation), of the processor
        (with its image processor and tokenizer), of the questions and of the images.
    """
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:  # as weights are that device_map="auto" keeps on disk
            some = parameter.detach().flatten()[:: parameter.numel() // WEIGHTS_IN_HASH + 1].contiguous()
            weights.update(some.view(torch.uint8).cpu().numpy().tobytes())
    generation = getattr(model, "generation_config", None)
    configured = [model.config.to_dict(), generation and generation.to_dict()]
    image_processor = getattr(processor, "image_processor", processor)
    prepared = [getattr(processor, "chat_template", None), processor.to_dict(), image_processor.to_dict()]
    if (tokenizer := getattr(processor, "tokenizer", None)) is not None:
        prepared.append(_tokenizer_state(tokenizer))
    asked = json.dumps([[*name, question_of(example)] for name, example in zip(_names(examples), examples)])
    shown = json.dumps([[image_key(image) for image in example.get("images") or []] for example in examples])
    return {
        "weights": weights.hexdigest()[:16],
        "configuration": _hash_of(configured),
        "processor": _hash_of(prepared),
        "questions": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "images": hashlib.sha256(shown.encode()).hexdigest()[:16],
    }


# What says where something comes from, or is told apart by itself, and does not change an answer.
_NAMES = frozenset(
    ["_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_model_config", "dtype"]
)


def _hash_of(settings: Any) -> str:
    return hashlib.sha256(json.dumps(_nameless(settings), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _nameless(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {str(key): _nameless(value) for key, value in settings.items() if key not in _NAMES}
    return [_nameless(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _tokenizer_state(tokenizer) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"vocabulary": tokenizer.get_vocab()}
    else:  # padding and truncation are what the last call has set
        state = {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")
        }
    return [state, tokenizer.chat_template, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}]


def _names(examples: Examples) -> list[tuple[str, str]]:
    return [(str(example.get("source")), str(example["id"])) for example in examples]


__all__ = ["PredictionsFile", "check_distinct", "fingerprint", "read_predictions"]
