"""Augmentation whose draws resuming does not change, nor, unless data is streamed, the number of workers."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from PIL import Image

from ..processing.collator import VisualLanguageCollator
from .endless_stream import EndlessStream

POSITION = "position"
"""Column that tells examples of a data set apart, also when it repeats some."""


def number_examples(dataset: Dataset | EndlessStream) -> Dataset | EndlessStream:
    """
    Gives each example its position in the data set; in a stream, that among the examples of its data loader worker,
    counted on over all passes.

    Args:
        dataset (`Dataset` or [`EndlessStream`]): training examples.

    Returns:
        The data set with the column `position`.
    """
    if isinstance(dataset, EndlessStream):
        return EndlessStream(dataset.stream, POSITION)
    return dataset.add_column(POSITION, list(range(len(dataset))))


@dataclass
class SeededAugmentationCollator(VisualLanguageCollator):
    """
    A [`VisualLanguageCollator`] whose `image_transform` draws anew for each example in each epoch, and the same again
    whenever the same training is run: killed and resumed, or, unless its data is a stream, with another number of
    workers.

    Args:
        seed (`int`): of the training.
        epoch (`torch.LongTensor` of shape `()`): current epoch; shared with data loader workers.
    """

    seed: int = 0
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())

    def load_images(self, example: Mapping[str, Any]) -> list[Image.Image]:
        with draws_of(example, self.seed, int(self.epoch)):
            return super().load_images(example)


@contextlib.contextmanager
def draws_of(example: Mapping[str, Any], seed: int, epoch: int, purpose: str | None = None) -> Iterator[None]:
    """
    Makes what is drawn within, from torch's generator for CPUs, a function of the example alone, whatever process or
    worker meets it and whatever was drawn before. Outside, nothing changes.

    Args:
        example (`Mapping`): with `position`, `source` and `id`, as far as it has them.
        seed (`int`): of the training.
        epoch (`int`): current epoch.
        purpose (`str`, *optional*): what is drawn, if it is to be independent of other draws.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reset the generators of GPUs as well.
        torch.default_generator.manual_seed(seed_of(example, seed, epoch, purpose))
        yield


def seed_of(example: Mapping[str, Any], seed: int, epoch: int, purpose: str | None = None) -> int:
    """A seed, of 64 bits, for what is drawn for an example. Arguments are those of [`draws_of`]."""
    identity = (seed, epoch, *(example.get(name) for name in (POSITION, "source", "id")))
    identity = identity if purpose is None else (*identity, purpose)
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:8], "little", signed=True)


__all__ = ["POSITION", "SeededAugmentationCollator", "draws_of", "number_examples", "seed_of"]
