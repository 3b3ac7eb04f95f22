"""The process in which a job of a study runs: of its own, so that a crash of one job leaves the others alone, and that
every job has the threads and the device it is given, whoever started the study."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from logging import INFO, WARNING, basicConfig, getLogger
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..hub_cards.run_results import run_environment
from .study_jobs import CONFIGURATION, FAILURE, RESULTS, claimed, read_json, write_json

logger = logging.get_logger(__name__)

LOG, COST = "log.txt", "cost.json"
HELD_BY_ANOTHER = 75
"""Exit code of a process whose job another one is doing."""

# What a launcher tells the processes that it starts; a job trains alone, whatever started the study.
_OF_LAUNCHERS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK",
)  # fmt: skip
_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "TORCH_NCCL_", "PMI_", "OMPI_")
_SAVE_COST_EVERY, _LOOK_EVERY = 15, 0.2  # seconds


def job_environment(threads: int, local_rank: int = 0) -> dict[str, str]:
    """
    The environment of a job's process.

    Args:
        threads (`int`): threads that it computes with.
        local_rank (`int`, *optional*, defaults to 0): number of the worker on this machine, which decides on the GPU.

    Returns:
        `dict[str, str]`: that of this process without what launchers set, with threads and one GPU, if there are any,
        and without progress bars.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_LAUNCHERS and not name.startswith(_PREFIXES)
    }
    kept |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}  # the output goes to a file
    kept |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    if devices := _visible_devices():
        kept["CUDA_VISIBLE_DEVICES"] = devices[local_rank % len(devices)]
    return kept


def _visible_devices() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def launch_in_process(
    output: Path, threads: int, local_rank: int = 0, stop: threading.Event | None = None
) -> Callable[[Mapping[str, Any]], None]:
    """
    Makes what [`run_jobs`] calls: it runs a job in a process of its own, whose output goes to `log.txt` in its folder.

    Args:
        output (`Path`): folder of the study.
        threads, local_rank (`int`): see [`job_environment`].
        stop (`threading.Event`, *optional*): ends the process, and the job stays unfinished, once it is set.
    """
    environment, stop = job_environment(threads, local_rank), stop or threading.Event()

    def launch(configuration: Mapping[str, Any]) -> None:
        folder = output / configuration["job"]
        command = [sys.executable, "-m", __name__, str(output), configuration["job"]]
        logger.info(f"{configuration['job']}: begins (see {folder / LOG}).")
        started = time.perf_counter()
        with open(folder / LOG, "ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None and not stop.wait(_LOOK_EVERY):
                    pass
            finally:  # an interrupted worker leaves nobody behind
                if process.poll() is None:
                    process.terminate()
                code = process.wait()
        if code == HELD_BY_ANOTHER or stop.is_set():
            return
        if code or not (folder / RESULTS).exists():
            failure: dict[str, Any] = {"time": time.time(), "exit code": code, "end of the log": _end_of(folder / LOG)}
            write_json(folder / FAILURE, failure)
            logger.warning(f"{configuration['job']}: failed with code {code}. {failure['end of the log'][-1:]}")
        else:
            logger.info(f"{configuration['job']}: finished after {time.perf_counter() - started:.0f} s.")

    return launch


def _end_of(log: Path, num_lines: int = 12) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]


class Cost:
    """
    What a job has cost so far, over all sessions: written from time to time, so that one that is killed counts too.

    Args:
        folder (`Path`): of the job.
    """

    def __init__(self, folder: Path):
        self._path = folder / COST
        self._before = read_json(self._path) or {"cpu_seconds": 0.0, "wall_seconds": 0.0, "sessions": 0}
        self._started = time.perf_counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._save_now_and_then, daemon=True)

    def __enter__(self) -> "Cost":
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()
        write_json(self._path, self.total())

    def total(self) -> dict[str, Any]:
        """Seconds of processors and of the clock, sessions, threads, and the device."""
        used = os.times()
        seconds = used.user + used.system + used.children_user + used.children_system
        return {
            "cpu_seconds": round(self._before["cpu_seconds"] + seconds, 1),
            "wall_seconds": round(self._before["wall_seconds"] + time.perf_counter() - self._started, 1),
            "sessions": self._before["sessions"] + 1,
            "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        }

    def _save_now_and_then(self) -> None:
        while not self._ended.wait(_SAVE_COST_EVERY):
            write_json(self._path, self.total())


def do_job(output: Path, name: str, kinds: Mapping[str, Callable[..., dict[str, Any]]]) -> int:
    """
    Does a job, as its `configuration.json` says, and writes its `results.json`.

    Args:
        output (`Path`): folder of the study.
        name (`str`): of the job.
        kinds (`dict[str, Callable]`): what does the jobs of each kind: called with the config, the folder of the job,
            and the folder of the study, it returns the results, as JSON has them.

    Returns:
        `int`: exit code of the process.
    """
    folder = output / name
    with claimed(output, name, "work", timeout=10) as mine:
        if not mine:
            return HELD_BY_ANOTHER
        configuration = read_json(folder / CONFIGURATION)
        with Cost(folder) as cost:
            results = kinds[configuration["kind"]](configuration["config"], folder, output)
        document = {**configuration, "cost": cost.total(), "environment": run_environment(), "results": results}
        write_json(folder / RESULTS, json.loads(json.dumps(document)))
        for checkpoint in folder.glob("*/checkpoint-*"):  # nothing goes on from them any more
            shutil.rmtree(checkpoint)
    return 0


def prepare_process() -> None:
    """Makes the process of a job tidy up when it is ended, and keep progress bars out of its log."""
    import datasets

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unfinished folders and locks go as after an error
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    prepare_process()
    from .stage_comparison_jobs import KINDS as STAGES
    from .study_cells import KINDS as CELLS

    basicConfig(format="%(message)s", level=WARNING)
    getLogger("vistok").setLevel(INFO)
    sys.exit(do_job(Path(sys.argv[1]), sys.argv[2], {**CELLS, **STAGES}))


__all__ = ["Cost", "do_job", "job_environment", "launch_in_process", "prepare_process"]
