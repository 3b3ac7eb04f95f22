"""Running the jobs of a study, whatever it studies: any number of workers, processes and machines share them."""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..hub_cards.published_text import published_values
from .study_jobs import Outcome, Plan, check_unchanged, clear_changed, run_jobs, write_json
from .study_process import LOG, launch_in_process


class StudyError(ValueError):
    """Jobs of a study failed; the message names them and their logs."""


def run_plan(
    plan: Plan,
    output: Path,
    recipe: Mapping[str, Any],
    threads: int,
    only: str | None = None,
    recompute: bool = False,
    workers: int = 1,
) -> Outcome | None:
    """
    Does the jobs of a plan that are not finished yet, each in a process of its own.

    Args:
        plan ([`Plan`]): the jobs.
        output (`Path`): folder of the study; made if it does not exist.
        recipe (`Mapping`): what the study is, for `recipe.json` in its folder.
        threads (`int`): that each job computes with.
        only, recompute, workers: see [`run_study`].

    Returns:
        [`Outcome`] of the first process, which speaks for all; `None` for the others.

    Raises:
        ValueError: if what lies in the output folder is of another configuration; names what is otherwise.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1.")
    output.mkdir(parents=True, exist_ok=True)
    jobs = plan.chosen(only)
    (clear_changed if recompute else check_unchanged)(output, plan, jobs)
    if rank == 0:
        write_json(output / "recipe.json", published_values(recipe))
    stop = threading.Event()
    launchers = [launch_in_process(output, threads, local_rank * workers + number, stop) for number in range(workers)]
    with ThreadPoolExecutor(workers) as pool:  # a thread waits for processes, and computes nothing
        working = [pool.submit(run_jobs, output, plan, jobs, launch, stop=stop) for launch in launchers]
        try:
            outcome, *_ = [worker.result() for worker in working]
        except BaseException:
            stop.set()
            raise
    return outcome if rank == 0 else None  # a launcher ends all processes when one fails


def raise_failures(output: Path, outcome: Outcome) -> None:
    """
    Says which jobs failed, if any did.

    Args:
        output (`Path`): folder of the study.
        outcome ([`Outcome`]): of its jobs.

    Raises:
        StudyError: names the jobs that failed and their logs.
    """
    if not outcome.failed:
        return
    blocked = f" {len(outcome.blocked)} jobs that need them were not begun." if outcome.blocked else ""
    logs = ", ".join(str(output / name / LOG) for name in outcome.failed[:3])
    raise StudyError(
        f"{len(outcome.failed)} jobs failed: {', '.join(outcome.failed)}.{blocked} See {logs}. What is finished "
        "stays; start the study again to go on."
    )


__all__ = ["StudyError", "raise_failures", "run_plan"]
