"""What a computation costs: floating-point operations, counted, and the processor's time."""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """
    Floating-point operations of a call: two for each multiplication and addition of matrix products, convolutions and
    attention, forward and backward, whatever processor they run on. What is no such product (norms, activations,
    sorting) is not counted, as is usual.

    Args:
        function (`Callable`): called once.

    Returns:
        `int`: the number of operations.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


__all__ = ["count_flops"]
