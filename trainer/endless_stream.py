"""A stream that is passed over without end, in a new order each time."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset


class EndlessStream(IterableDataset):
    """
    Passes over a stream again and again, each time as the epoch of that number shuffles it. The order depends on the
    stream alone, so that a run that resumes meets the examples that it would have met.

    It is one epoch to the `Trainer`: how long a pass is, a run that resumes behind its end could not know. It is a
    stream of `datasets`, because only of these does `accelerate` give each process its own shards.

    Args:
        stream (`IterableDataset`): what to pass over.
        position (`str`, *optional*):
            Column for the position of each example, counted over all passes by each data loader worker.
    """

    def __init__(self, stream: IterableDataset, position: str | None = None):
        super().__init__(stream._ex_iterable, info=stream.info, split=stream.split)
        self.stream, self.position = stream, position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Workers share a stream's epoch, and are not in the same pass at the same time.
        stream, positions = copy.deepcopy(self.stream), itertools.count()
        for number in itertools.count():
            stream.set_epoch(number)
            empty = True
            for example in stream:
                empty = False
                yield example if self.position is None else {**example, self.position: next(positions)}
            if empty:  # a worker without shards, say
                return

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> "EndlessStream":
        """`IterableDataset.shard` of the stream, passed over without end."""
        return EndlessStream(self.stream.shard(num_shards, index, contiguous), self.position)


__all__ = ["EndlessStream"]
