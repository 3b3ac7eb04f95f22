"""Shuffling of a stream that can be left anywhere and gone on with, without losing what it holds."""

import copy
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
from datasets import IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable


def shuffle_stream(stream: IterableDataset, seed: int, buffer_size: int) -> IterableDataset:
    """
    `IterableDataset.shuffle` whose state is exact. That of `datasets` keeps no examples of the buffer, and a stream
    that is restored loses them. Here the examples of up to ten shards, which take turns, are shuffled in windows of
    `buffer_size`: each is read whole, and given out whole before the next is read. A restored stream reads the window
    anew in which it was left, and gives out the rest of it.

    Args:
        stream (`IterableDataset`): what to shuffle.
        seed (`int`): of the order of shards, and of examples in their windows; both also follow the epoch.
        buffer_size (`int`): examples of a window, which are held in memory.

    Returns:
        `IterableDataset`: the same examples in another order.
    """
    shuffled = stream.shuffle(seed=seed, buffer_size=buffer_size)
    buffered = shuffled._ex_iterable
    windows = _Windows(buffered.ex_iterable, buffer_size, buffered.generator)
    return IterableDataset(windows, info=shuffled.info.copy(), split=shuffled.split)


class _Windows(BufferShuffledExamplesIterable):
    """In place of the buffer: `datasets` passes epochs, shards and workers on through its other methods."""

    iter_arrow = None  # examples one by one

    def _init_state_dict(self) -> dict[str, Any]:
        self.ex_iterable._init_state_dict()
        self._state_dict = {"window": 0, "window_start": None, "given_out": 0, "type": type(self).__name__}
        return self._state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        self._init_state_dict()
        self._state_dict.update(copy.deepcopy(state_dict))
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        seed = int(copy.deepcopy(self.generator).integers(1 << 63))
        state: dict[str, Any] = self._state_dict or {"window": 0, "given_out": 0}
        if state.get("window_start") is not None:
            self.ex_iterable.load_state_dict(state["window_start"])
        given_out = state["given_out"]
        examples = iter(self.ex_iterable)
        for number in count(state["window"]):
            if self._state_dict:
                state.update(window=number, window_start=self.ex_iterable.state_dict(), given_out=given_out)
            window = list(islice(examples, self.buffer_size))
            if not window:
                return
            order = np.random.default_rng((seed, number)).permutation(len(window))
            for index in order[given_out:]:
                state["given_out"] += 1
                yield window[index]
            given_out = 0

    def shift_rngs(self, value: int) -> "_Windows":
        return self._with(self.ex_iterable, super().shift_rngs(value).generator)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Windows":
        return self._with(self.ex_iterable.shuffle_data_sources(generator), self.generator)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_Windows":
        return self._with(self.ex_iterable.shard_data_sources(num_shards, index, contiguous), self.generator)

    def reshard_data_sources(self) -> "_Windows":
        return self._with(self.ex_iterable.reshard_data_sources(), self.generator)

    def _with(self, ex_iterable: Any, generator: np.random.Generator) -> "_Windows":
        return _Windows(ex_iterable, self.buffer_size, generator)


__all__ = ["shuffle_stream"]
