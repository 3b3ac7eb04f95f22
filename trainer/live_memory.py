"""How much memory tensors hold while a computation runs, also where they are fake and hold none."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """
    Adds up the sizes of the tensors that operations make, as long as anybody holds them. What was made before does not
    count. Like torch's profiler, it sees what a computation holds, not what an allocator rounds up or keeps.

    Attributes:
        peak (`int`): the most at any moment, in bytes.
    """

    def __init__(self):
        super().__init__()
        self._held: dict[int, int] = {}
        self.current = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {self._key(tensor) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and self._key(tensor) not in inputs:
                self._hold(tensor.untyped_storage())
        return out

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _hold(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._held:
            return
        self._held[key] = storage.nbytes()
        self.current += self._held[key]
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.current -= self._held.pop(key, 0)


__all__ = ["LiveMemory"]
