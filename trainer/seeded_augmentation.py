"""Augmentation whose draws resuming does not change, nor, unless data is streamed, the number of workers."""

import hashlib
from collections.abc import Mapping
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
        identity = (self.seed, int(self.epoch), *(example.get(name) for name in (POSITION, "source", "id")))
        digest = hashlib.sha256(repr(identity).encode()).digest()
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the generators of GPUs as well.
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            return super().load_images(example)


__all__ = ["SeededAugmentationCollator", "number_examples"]
