"""What a computation costs while it runs, also on tensors that are fake and hold nothing: operations and memory."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _sdpa_forward(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _sdpa_backward(grad_out, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_out.shape, query.shape, key.shape, value.shape)


_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # Of CPUs, which torch does not count.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}


class LiveCosts(TorchDispatchMode):
    """
    Adds up operations, as torch's `FlopCounterMode` does, and the sizes of the tensors that they make, as long as
    anybody holds them. What was made before does not count. Like torch's profiler, it sees what a computation holds,
    not what an allocator rounds up or keeps. (`FlopCounterMode` itself holds tensors that would be gone.)

    Attributes:
        flops (`dict[str, int]`): floating-point operations of each [`part`].
        peak (`int`): the most memory at any moment, in bytes.
    """

    def __init__(self):
        super().__init__()
        self._held: dict[int, int] = {}
        self._part = "other"
        self.flops: dict[str, int] = {}
        self.current = self.peak = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs within is counted as this part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = {self._key(tensor) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        out = func(*args, **kwargs)
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            self.flops[self._part] = self.flops.get(self._part, 0) + formula(*args, **kwargs, out_val=out)
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


__all__ = ["LiveCosts"]
