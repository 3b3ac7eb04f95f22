"""A stream that is passed over without end, in a new order each time, and gone on with where a training left it."""

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.utils.data
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import BufferShuffledExamplesIterable

STREAM_STATE = "stream_state"
"""Of an example, and of the batch that it is the last of: where its stream stands behind it, as JSON."""


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
        tells_state (`bool`, *optional*, defaults to `False`):
            Adds to each example where the stream stands behind it, which a [`StreamCollator`] puts in the batch.
    """

    def __init__(self, stream: IterableDataset, position: str | None = None, tells_state: bool = False):
        super().__init__(stream._ex_iterable, info=stream.info, split=stream.split)
        self.stream, self.position, self.tells_state = stream, position, tells_state
        self._states: dict[int, dict[str, Any]] = {}

    def go_on_from(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """
        Lets each data loader worker go on where it was left. What it gave out before stands for nothing in the next
        iteration: an example without content in the place of each, for a `Trainer` to skip, which read nothing.

        Args:
            states (`dict`): of each worker, by number, the state of its last example that was trained on.
        """
        self._states = {worker: dict(state) for worker, state in states.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        left = self._states.get(worker, {"pass": 0, "examples": 0, "stream": None})
        yield from itertools.repeat({STREAM_STATE: ""}, left["examples"])
        # Workers share a stream's epoch, and are not in the same pass at the same time.
        stream, positions = copy.deepcopy(self.stream), itertools.count(left["examples"])
        if left["stream"] is not None:
            stream.load_state_dict(left["stream"])
        for number in itertools.count(left["pass"]):
            stream.set_epoch(number)
            empty = left["stream"] is None or number > left["pass"]
            for example in stream:
                empty = False
                position = next(positions)
                if self.position is not None:
                    example = {**example, self.position: position}
                if self.tells_state:
                    state = {"worker": worker, "pass": number, "examples": position + 1, "stream": stream.state_dict()}
                    example = {**example, STREAM_STATE: json.dumps(state)}
                yield example
            if empty:  # a worker without shards, say
                return

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> "EndlessStream":
        """
        The part of the stream that one of several processes passes over, without end: of each pass its share of the
        shards; or, where there are fewer shards than processes, every `num_shards`-th example.
        """
        strategy = "shards" if self.stream.num_shards >= num_shards else "examples"
        part = split_dataset_by_node(self.stream, index, num_shards, strategy)
        return EndlessStream(part, self.position, self.tells_state)

    @property
    def n_shards(self) -> int:
        """What `accelerate` asks, to decide whether [`shard`] serves so many processes: it always does."""
        return sys.maxsize


def has_exact_state(stream: IterableDataset) -> bool:
    """
    Whether a stream goes on exactly from its `state_dict`. One that `IterableDataset.shuffle` shuffles does not: what
    lay in its buffer is in no state, and a run that resumes has to read again what was read.

    Args:
        stream (`IterableDataset`): before or behind what `datasets` does with it.
    """
    parts: list[Any] = [stream._ex_iterable]
    for part in parts:
        if type(part) is BufferShuffledExamplesIterable:  # the windows of `shuffle_stream` derive from it
            return False
        parts += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return True


class StreamCollator:
    """
    Makes a batch of examples of a stream that tells its state, with the state behind the last of them.

    Args:
        collator (`Callable`): makes the batch.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Any]):
        self.collator = collator

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        """
        Args:
            examples (`list[dict]`): of an [`EndlessStream`].

        Returns:
            `dict`: the batch with the key [`STREAM_STATE`]; empty if all examples stand for what was trained on. What
            is no mapping stays as it is, and a run that resumes then reads again what was read.
        """
        state = examples[-1][STREAM_STATE]
        if not state:
            return {}
        batch = self.collator([{k: v for k, v in example.items() if k != STREAM_STATE} for example in examples])
        return {**batch, STREAM_STATE: state} if isinstance(batch, Mapping) else batch


__all__ = ["STREAM_STATE", "EndlessStream", "StreamCollator", "has_exact_state"]
