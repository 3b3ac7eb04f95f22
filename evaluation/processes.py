"""Several processes that evaluate together: each answers its share, and all of them know all answers."""

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Share:
    """
    Which part of the work is this process's.

    Args:
        rank (`int`, *optional*, defaults to 0): number of this process.
        num_processes (`int`, *optional*, defaults to 1): how many there are.
    """

    rank: int = 0
    num_processes: int = 1

    def takes(self, number: int) -> bool:
        """Whether the piece of work of this number is done here. Whole batches are dealt, so that each is composed as
        it is in one process."""
        return number % self.num_processes == self.rank

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def join_processes(device: str | None = None) -> Share:
    """
    Meets the other processes, where `accelerate launch` or `torchrun` has started several.

    Args:
        device (`str`, *optional*): `"cpu"` keeps the processes off the GPUs.

    Returns:
        [`Share`]: this process's.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    from accelerate import PartialState

    # One process may wait for another as long as a slow model needs for its last batches.
    state = PartialState(cpu=device == "cpu", timeout=datetime.timedelta(days=7))
    return Share(state.process_index, state.num_processes)


def local_device(share: Share) -> str:
    """The device of this process where the user names none: its own GPU, or the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if share.num_processes == 1 else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def gather_objects(share: Share, objects: list[Any]) -> list[Any]:
    """
    What all processes have, in the order of their ranks. Waits for all of them.

    Args:
        share ([`Share`]): this process's.
        objects (`list`): what this process has.
    """
    if share.num_processes == 1:
        return objects
    from accelerate.utils import gather_object

    return gather_object(objects)


def wait_for_all(share: Share) -> None:
    """Waits until all processes are here."""
    if share.num_processes > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


__all__ = ["Share", "gather_objects", "join_processes", "local_device", "wait_for_all"]
