"""Images and masks that a model writes for examples: PNG files, and a predictions file from which a run resumes."""

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..modeling.atomic_folder import write_bytes_atomically
from ..processing.drawn_images import png_bytes
from ..processing.images import load_image
from .answer_run import AnswerRun
from .predictions import PredictionsFile
from .processes import Share, gather_objects

Examples = Sequence[Mapping[str, Any]]
Writer = Callable[[str, list[Mapping[str, Any]]], list[tuple[Image.Image, dict[str, Any]]]]
"""Takes a condition, such as `"given"`, and a batch of examples; returns for each the image that was written and what
else there is to know of it, in types that JSON has."""

UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class WrittenImage:
    """
    An image that was written.

    Args:
        file (`Path`): PNG.
        facts (`dict`): what else there is to know, such as `num_tokens`; `tokens`, if they were kept, as a
            `np.ndarray` of shape `(num_tokens, token_size)`.
    """

    file: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    def image(self) -> Image.Image:
        """Reads it, as RGB."""
        return load_image(self.file)


class ImageStore:
    """
    Where written images are kept: a PNG each, `<folder>/<condition>/<id>.png`, and a line each in a predictions file.
    What is in both is not written again.

    Args:
        folder (`str`): of the PNG files.
        file ([`PredictionsFile`]): whose settings decide whether they may be kept.
        share ([`Share`], *optional*): of several processes.
        batch_size (`int`, *optional*, defaults to 16): examples that are handed to a writer at once.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.

    Attributes:
        num_written (`int`): how many images were written in this run, by all processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        file: PredictionsFile,
        share: Share = Share(),  # noqa: B008
        batch_size: int = 16,
        progress_bar: bool = True,
    ):
        self.folder, self.file, self.share = Path(folder), file, share
        self.batch_size, self.progress_bar = batch_size, progress_bar
        self.num_written = 0

    def write(self, condition: str, examples: Examples, writer: Writer) -> list[WrittenImage]:
        """
        Writes the images of examples that are not there yet, in whole batches, so that each is composed as in any
        other run. All processes have to call it.

        Args:
            condition (`str`): how, such as `"given"`.
            examples (`list[dict]`): with `source`, `id` and `messages`.
            writer (`Callable`): see `Writer`.

        Returns:
            `list[WrittenImage]`: one for each example.

        Raises:
            ValueError: if a writer returns other than one image for each example.
        """
        known = {
            index: answer for index, answer in self.file.known(condition, examples).items() if self._is_there(answer)
        }
        new: dict[int, str] = {}

        def take(indices: list[int], answers: list[str]) -> None:
            new.update(zip(indices, answers))
            self.file.append(condition, [examples[index] for index in indices], answers, lambda *_: None)

        show = self.progress_bar and self.share.is_first and condition.replace("_", " ")
        run = AnswerRun(known, take, self.share, show)
        with run.progress(len(examples)) as progress:
            for start in range(0, len(examples), self.batch_size):
                batch = list(range(start, min(start + self.batch_size, len(examples))))
                if run.takes(batch):
                    run.add(zip(batch, self._written(condition, [examples[index] for index in batch], writer)))
                progress.update(len(batch))
        found = dict(gather_objects(self.share, list(new.items())))
        self.num_written += len(found)
        answers = {**known, **found}
        return [self._image_of(answers[index]) for index in range(len(examples))]

    def _written(self, condition: str, examples: list[Mapping[str, Any]], writer: Writer) -> list[str]:
        images = writer(condition, examples)
        if len(images) != len(examples):
            raise ValueError(f"{len(images)} images were written for {len(examples)} examples, expected one for each.")
        answers = []
        for example, (image, facts) in zip(examples, images):
            name = f"{condition}/{file_stem_of(example)}.png"
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, png_bytes(image))
            answers.append(json.dumps({"file": name, **facts}))
        return answers

    def _is_there(self, answer: str) -> bool:
        return (self.folder / json.loads(answer)["file"]).is_file()

    def _image_of(self, answer: str) -> WrittenImage:
        facts = json.loads(answer)
        if "tokens" in facts:  # of thousands of images, far smaller than as lists
            facts["tokens"] = np.asarray(facts["tokens"], dtype=np.float32)
        return WrittenImage(self.folder / facts.pop("file"), facts)


def file_stem_of(example: Mapping[str, Any]) -> str:
    """A name for the files of an example: its id without what a file cannot be called, and a hash."""
    name = str(example["id"])
    return f"{UNSAFE.sub('-', name)[-80:]}-{zlib.crc32(name.encode()):08x}"


__all__ = ["Examples", "ImageStore", "Writer", "WrittenImage", "file_stem_of"]
