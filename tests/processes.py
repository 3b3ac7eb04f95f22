"""Two processes that know of each other, as a launcher starts them, without waiting for the launcher itself."""

import gc
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]


def run_in_two_processes(module: str, *arguments: str, timeout: float = 600) -> None:
    """Runs a module of the tests in two processes of one group, which has to end well in both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    together |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryFile("w+") as told:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=told,
            )
            for rank in range(2)
        ]
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        told.seek(0)
        assert codes == [0, 0], told.read()[-3000:]


def leave_process_group() -> None:
    """Ends the threads of the group, so call it where no model or trainer of the group has a name any more.

    A thread that still hands over a result while Python ends aborts its process.
    """
    gc.collect()
    torch.distributed.destroy_process_group()
