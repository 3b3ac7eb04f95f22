"""A worker of a study for test_study_jobs.py, whose jobs are stand-ins: they note who did them, and take time."""

import os
import time
from pathlib import Path

from vistok.trainer.study_jobs import Job, Plan, run_jobs
from vistok.trainer.study_process import do_job


def stand_in(config, folder: Path, output: Path) -> dict:
    with open(output / "journal.txt", "a") as journal:
        journal.write(f"{folder.relative_to(output)} {os.getpid()}\n")
    if config.get("hangs"):
        time.sleep(600)
    time.sleep(config.get("seconds", 0))
    if config.get("fails"):
        raise RuntimeError("as it was told")
    inputs = [(output / name / "results.json").exists() for name in config.get("reads", [])]
    return {"value": config.get("value", 0), "inputs": inputs}


def plan(hangs: bool = False, seconds: float = 0.0, value: int = 1) -> Plan:
    jobs = [
        Job("scenes", "stand-in", {"seconds": seconds, "value": value}),
        Job("encoders/a", "stand-in", {"seconds": seconds, "reads": ["scenes"], "hangs": hangs}, ("scenes",)),
        Job("encoders/b", "stand-in", {"seconds": seconds, "reads": ["scenes"]}, ("scenes",)),
    ]
    for encoder in "ab":
        needs = ("scenes", f"encoders/{encoder}")
        jobs += [Job(f"cells/{encoder}-{i}", "stand-in", {"reads": list(needs)}, needs) for i in range(3)]
    return Plan(jobs)


def work(output: Path, study: Plan, kind=stand_in, **options):
    def launch(configuration):
        assert do_job(output, configuration["job"], {"stand-in": kind}) == 0

    return run_jobs(output, study, study.jobs, launch, poll_seconds=0.05, **options)


def be_a_worker(output: Path, hangs: bool, seconds: float) -> None:
    """What a process does that works on the study; how many jobs it saw finished goes to a file of its number."""
    outcome = work(output, plan(hangs, seconds))
    (output / f"{os.getpid()}.txt").write_text(str(len(outcome.finished)))
