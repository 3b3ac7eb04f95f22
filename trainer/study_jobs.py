"""Jobs of a study: what each depends on, which are done, and who works on which, for any number of workers.

A job has a folder under the output of the study, named after it. `configuration.json` there says exactly what it is,
and `results.json`, which is written last, that it is done. Nothing else is shared between workers but the file locks
by which they claim jobs; the system frees those of a process that died, whichever way it did.
"""

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..modeling.atomic_folder import write_text_atomically

logger = logging.get_logger(__name__)

CONFIGURATION, RESULTS, FAILURE = "configuration.json", "results.json", "failure.json"
STATES = ("finished", "running", "failed", "changed", "interrupted", "not started")


@dataclass(frozen=True)
class Job:
    """
    A piece of work of a study.

    Args:
        name (`str`): its folder under the output of the study, such as `"cells/dinov2-frozen-seed0/training"`.
        kind (`str`): what is done, such as `"training"`.
        config (`dict`): all that it depends on, save for what other jobs make; plain values, as JSON has them.
        needs (`tuple[str, ...]`, *optional*): jobs that have to be finished before.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """
    The jobs of a study, in the order in which they are taken.

    Args:
        jobs (`list[Job]`): each behind those that it needs.
        configurations (`dict[str, dict]`): of each job by name: its `job`, `kind`, `config`, and `needs` with the hash
            of each job that it needs. A change of one job changes all that are built on it.

    Raises:
        ValueError: if two jobs have the same name, or one needs what does not come before it.
    """

    jobs: Sequence[Job]
    configurations: Mapping[str, Mapping[str, Any]] = field(init=False)

    def __post_init__(self):
        configurations: dict[str, Mapping[str, Any]] = {}
        for job in self.jobs:
            if job.name in configurations:
                raise ValueError(f"Two jobs of the study are called {job.name!r}.")
            if missing := [name for name in job.needs if name not in configurations]:
                raise ValueError(f"The job {job.name} needs {missing[0]!r}, which is no job before it.")
            configuration = {
                "job": job.name,
                "kind": job.kind,
                "config": json.loads(json.dumps(job.config)),
                "needs": {name: configurations[name]["hash"] for name in job.needs},
            }
            configurations[job.name] = {**configuration, "hash": configuration_hash(configuration)}
        object.__setattr__(self, "configurations", configurations)

    def chosen(self, pattern: str | None) -> list[Job]:
        """
        Jobs whose names match a pattern, and all that they need.

        Args:
            pattern (`str`, *optional*): as of files, such as `"cells/dinov2-*"`; by default all jobs.

        Raises:
            ValueError: if no job matches.
        """
        wanted = {job.name for job in self.jobs if pattern is None or fnmatchcase(job.name, pattern)}
        if not wanted:
            raise ValueError(f"No job of the study matches {pattern!r}: see their names with --list.")
        for job in reversed(self.jobs):
            if job.name in wanted:
                wanted |= set(job.needs)
        return [job for job in self.jobs if job.name in wanted]


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """The first 16 digits of the sha256 of a configuration as JSON, without a `hash` of its own."""
    values = {name: value for name, value in configuration.items() if name != "hash"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """
    Reads a JSON file of a study.

    Returns:
        its value, or `None` if there is no such file.

    Raises:
        ValueError: if it is malformed; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is no valid JSON ({error}): delete it, and what it says is worked out again."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file of a study, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


@contextlib.contextmanager
def claimed(output: Path, name: str, purpose: str = "claim", timeout: float = 0.0) -> Iterator[bool]:
    """
    Claims a job for this process, which holds it until it leaves the context or dies.

    Args:
        output (`Path`): folder of the study.
        name (`str`): of the job.
        purpose (`str`, *optional*, defaults to `"claim"`): `"claim"` of the worker that starts a job, `"work"` of the
            process that does it, which may outlive a worker that is killed.
        timeout (`float`, *optional*, defaults to 0): how long to try, in seconds.

    Yields:
        `bool`: whether the claim succeeded; `False` if another process holds it.
    """
    folder = output / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name.replace('/', '--')}.{purpose}.lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_running(output: Path, name: str) -> bool:
    """Whether a process works on a job at this moment."""
    with claimed(output, name, "work") as free:
        return not free


def is_finished(output: Path, configuration: Mapping[str, Any]) -> bool:
    """Whether a job has results, and those of this configuration."""
    results = read_json(output / configuration["job"] / RESULTS)
    return isinstance(results, dict) and results.get("hash") == configuration["hash"]


def job_state(output: Path, configuration: Mapping[str, Any]) -> str:
    """
    How far a job is.

    Args:
        output (`Path`): folder of the study.
        configuration (`dict`): of the job, from [`Plan`].

    Returns:
        `str`: one of [`STATES`]; `"changed"` if its folder is of another configuration.
    """
    folder = output / configuration["job"]
    found = read_json(folder / CONFIGURATION)
    if found is None:
        return "not started"
    if found.get("hash") != configuration["hash"]:
        return "changed"
    if is_finished(output, configuration):
        return "finished"
    if is_running(output, configuration["job"]):
        return "running"
    return "failed" if (folder / FAILURE).exists() else "interrupted"


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """
    What is otherwise in two configurations of a job.

    Args:
        found, wanted (`dict`): of the folder, and of the plan.

    Returns:
        `list[str]`: a phrase for each field, such as `"protocol.training.max_steps is 300 and was 200"`.
    """
    before, now = dict(_fields(found.get("config"))), dict(_fields(wanted["config"]))
    changed = [name for name in dict.fromkeys([*now, *before]) if before.get(name, _UNSET) != now.get(name, _UNSET)]
    phrases = [f"{name} is {_word(now, name)} and was {_word(before, name)}" for name in changed]
    needs_before = found.get("needs") or {}
    phrases += [f"{name} is another" for name, value in wanted["needs"].items() if needs_before.get(name) != value]
    return phrases


_UNSET = object()


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        yield name, value
    else:
        for key, entry in entries:
            yield from _fields(entry, f"{name}.{key}" if name else str(key))


def _word(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "not set"


def check_unchanged(output: Path, plan: Plan, jobs: Sequence[Job]) -> None:
    """
    Makes sure that what lies in the folders of jobs is of the same configuration.

    Args:
        output (`Path`): folder of the study.
        plan ([`Plan`]): of the study.
        jobs (`list[Job]`): those that are wanted.

    Raises:
        ValueError: names the jobs, and of the first what is otherwise.
    """
    changed = [job.name for job in jobs if job_state(output, plan.configurations[job.name]) == "changed"]
    if not changed:
        return
    found = read_json(output / changed[0] / CONFIGURATION)
    what = "; ".join(differences(found, plan.configurations[changed[0]])[:5])
    others = f", as {len(changed) - 1} more are" if len(changed) > 1 else ""
    raise ValueError(
        f"{output / changed[0]} is of another configuration ({what}){others}. Put this back, give another "
        "--output, or have it done anew with --recompute."
    )


def clear_changed(output: Path, plan: Plan, jobs: Sequence[Job]) -> None:
    """
    Removes the folders of jobs that are of another configuration.

    Args:
        output, plan, jobs: see [`check_unchanged`].

    Raises:
        ValueError: if somebody works on one of them.
    """
    for job in jobs:
        with claimed(output, job.name) as mine:
            if job_state(output, plan.configurations[job.name]) != "changed":
                continue
            if not mine or is_running(output, job.name):
                raise ValueError(
                    f"{job.name} is worked on with another configuration: wait for it, or end that study."
                )
            shutil.rmtree(output / job.name)


@dataclass(frozen=True)
class Outcome:
    """
    What came of running jobs.

    Args:
        finished (`list[str]`): jobs that are finished, now or before.
        failed (`list[str]`): jobs that failed just now.
        blocked (`list[str]`): jobs that need one that failed.
    """

    finished: list[str]
    failed: list[str]
    blocked: list[str]


def run_jobs(
    output: Path,
    plan: Plan,
    jobs: Sequence[Job],
    launch: Callable[[Mapping[str, Any]], None],
    poll_seconds: float = 1.0,
    stop: threading.Event | None = None,
) -> Outcome:
    """
    Takes the next free job until none is left. Several processes may do so at once: each job is done by one of them.
    A job that failed before is tried again, but not one that fails while this runs.

    Args:
        output (`Path`): folder of the study.
        plan ([`Plan`]): of the study.
        jobs (`list[Job]`): those that are wanted, each behind those that it needs.
        launch (`Callable`): does the job of a configuration, and leaves its `results.json`, or a `failure.json`.
        poll_seconds (`float`, *optional*, defaults to 1): how often to look when others hold all that is left.
        stop (`threading.Event`, *optional*): takes no further job once it is set.
    """
    started = time.time()
    stop = stop or threading.Event()
    while True:
        standing = _standing(output, plan, jobs, started)
        free = [job for job in jobs if standing[job.name] == "free"]
        if not any(_take(output, plan.configurations[job.name], launch, started) for job in free):
            if not free and "waiting" not in standing.values():
                break
            stop.wait(poll_seconds)
        if stop.is_set():
            break
    return Outcome(
        *([name for name, how in standing.items() if how == it] for it in ("finished", "failed", "blocked"))
    )


def _standing(output: Path, plan: Plan, jobs: Sequence[Job], started: float) -> dict[str, str]:
    """Of each job whether it is `finished`, has `failed`, is `blocked`, `waiting` for another, or `free`."""
    standing: dict[str, str] = {}
    for job in jobs:
        needed = {standing[name] for name in job.needs}
        if is_finished(output, plan.configurations[job.name]):
            standing[job.name] = "finished"
        elif needed & {"failed", "blocked"}:
            standing[job.name] = "blocked"
        elif needed - {"finished"}:
            standing[job.name] = "waiting"
        else:
            standing[job.name] = "failed" if _failed_since(output / job.name, started) else "free"
    return standing


def _failed_since(folder: Path, started: float) -> bool:
    failure = read_json(folder / FAILURE)
    return failure is not None and failure["time"] >= started


def _take(output: Path, configuration: Mapping[str, Any], launch, started: float) -> bool:
    """Does a job, unless another process has it or was faster."""
    name = configuration["job"]
    with claimed(output, name) as mine:
        if not mine or is_running(output, name):
            return False
        folder = output / name
        if is_finished(output, configuration) or _failed_since(folder, started):
            return True
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIGURATION, configuration)
        (folder / FAILURE).unlink(missing_ok=True)
        launch(configuration)
    return True


__all__ = [
    "CONFIGURATION",
    "FAILURE",
    "RESULTS",
    "STATES",
    "Job",
    "Outcome",
    "Plan",
    "check_unchanged",
    "claimed",
    "clear_changed",
    "configuration_hash",
    "differences",
    "is_finished",
    "job_state",
    "read_json",
    "run_jobs",
    "write_json",
]
