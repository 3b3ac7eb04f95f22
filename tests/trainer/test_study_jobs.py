"""Jobs of a study: each is done once, in order, by any number of workers, and again only where it has to be."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.study_worker import be_a_worker, plan, stand_in, work
from vistok.trainer.study_jobs import (
    Job,
    Plan,
    check_unchanged,
    claimed,
    clear_changed,
    configuration_hash,
    is_finished,
    job_state,
    run_jobs,
)
from vistok.trainer.study_process import do_job, job_environment

REPOSITORY = Path(__file__).parents[2]


def journal(output: Path) -> list[str]:
    """Names of the jobs that were begun, in this order."""
    return [line.split()[0] for line in (output / "journal.txt").read_text().splitlines()]


def states(output: Path, study: Plan) -> dict[str, str]:
    return {name: job_state(output, configuration) for name, configuration in study.configurations.items()}


def start_worker(output: Path, hangs: bool = False, seconds: float = 0.0):
    """A process of its own: forked, for all it needs is here already, and its jobs are stand-ins without torch."""
    worker = multiprocessing.get_context("fork").Process(target=be_a_worker, args=(output, hangs, seconds))
    worker.start()
    return worker


def exit_code(worker) -> int:
    worker.join(120)
    return worker.exitcode


def wait_until(condition, seconds: float = 60) -> None:
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "it did not happen in time"
        time.sleep(0.05)


def results(output: Path, study: Plan) -> dict[str, dict]:
    found = {}
    for name in study.configurations:
        document = json.loads((output / name / "results.json").read_text())
        found[name] = {key: document[key] for key in ("job", "config", "needs", "hash", "results")}
    return found


def test_every_job_is_done_once_and_behind_what_it_needs(tmp_path):
    study = plan()
    assert set(states(tmp_path, study).values()) == {"not started"}
    outcome = work(tmp_path, study)
    assert journal(tmp_path) == outcome.finished == [job.name for job in study.jobs]
    assert set(states(tmp_path, study).values()) == {"finished"}
    assert all(all(document["results"]["inputs"]) for document in results(tmp_path, study).values())
    work(tmp_path, study)
    assert len(journal(tmp_path)) == len(study.jobs)


def test_three_workers_do_each_job_once_with_the_results_of_one(tmp_path):
    several, alone = tmp_path / "several", tmp_path / "alone"
    several.mkdir()
    workers = [start_worker(several, seconds=0.2) for _ in range(3)]
    assert [exit_code(worker) for worker in workers] == [0] * 3
    assert [(several / f"{worker.pid}.txt").read_text() for worker in workers] == ["9"] * 3
    study = plan(seconds=0.2)
    assert sorted(journal(several)) == sorted(job.name for job in study.jobs)
    assert len({line.split()[1] for line in (several / "journal.txt").read_text().splitlines()}) > 1
    alone.mkdir()
    work(alone, study)
    assert results(several, study) == results(alone, study)


def test_the_job_of_a_worker_that_was_killed_is_taken_over(tmp_path):
    worker = start_worker(tmp_path, hangs=True)
    try:
        wait_until(lambda: (tmp_path / "journal.txt").exists() and "encoders/a" in journal(tmp_path))
        study = plan(hangs=True)
        assert states(tmp_path, study)["encoders/a"] == "running"
        with claimed(tmp_path, "encoders/a") as mine:
            assert not mine
    finally:
        worker.kill()
    assert exit_code(worker) == -signal.SIGKILL
    assert states(tmp_path, study)["encoders/a"] == "interrupted"

    def no_longer_hangs(config, folder, output):
        return stand_in({**config, "hangs": False}, folder, output)

    outcome = work(tmp_path, study, no_longer_hangs)
    assert len(outcome.finished) == 9 and journal(tmp_path).count("encoders/a") == 2
    assert journal(tmp_path).count("scenes") == 1


def test_a_worker_waits_for_what_another_one_does(tmp_path):
    study = plan()
    with claimed(tmp_path, "scenes") as mine:
        assert mine
        waiting = start_worker(tmp_path)
        time.sleep(1)
        assert waiting.exitcode is None and not (tmp_path / "journal.txt").exists()
    assert exit_code(waiting) == 0 and (tmp_path / f"{waiting.pid}.txt").read_text() == "9"
    assert set(states(tmp_path, study).values()) == {"finished"}


def test_what_fails_blocks_only_what_is_built_on_it_and_is_tried_again_next_time(tmp_path):
    study = Plan(
        [
            Job("a", "stand-in", {"fails": True}),
            Job("b", "stand-in", {}),
            Job("on-a", "stand-in", {}, ("a",)),
            Job("on-on-a", "stand-in", {}, ("on-a",)),
            Job("on-b", "stand-in", {}, ("b",)),
        ]
    )
    tries = []

    def launch(configuration):
        tries.append(configuration["job"])
        try:
            do_job(tmp_path, configuration["job"], {"stand-in": stand_in})
        except RuntimeError:
            failure = tmp_path / configuration["job"] / "failure.json"
            failure.write_text(json.dumps({"time": time.time(), "exit code": 1}))

    outcome = run_jobs(tmp_path, study, study.jobs, launch, poll_seconds=0.01)
    assert (outcome.finished, outcome.failed, outcome.blocked) == (["b", "on-b"], ["a"], ["on-a", "on-on-a"])
    assert tries == ["a", "b", "on-b"] and states(tmp_path, study)["a"] == "failed"
    run_jobs(tmp_path, study, study.jobs, launch, poll_seconds=0.01)
    assert tries == ["a", "b", "on-b", "a"]


def test_another_configuration_is_named_and_refused_and_done_anew_on_demand(tmp_path):
    before, now = plan(), plan(value=2)
    work(tmp_path, before)
    assert set(states(tmp_path, now).values()) == {"changed"}  # all of it is built on the scenes
    with pytest.raises(ValueError, match=r"value is 2 and was 1.*as 8 more are.*--recompute"):
        check_unchanged(tmp_path, now, now.jobs)
    clear_changed(tmp_path, now, now.jobs)
    assert not (tmp_path / "scenes").exists()
    work(tmp_path, now)
    assert results(tmp_path, now)["scenes"]["results"]["value"] == 2
    check_unchanged(tmp_path, now, now.jobs)


def test_a_change_of_one_encoder_leaves_the_cells_of_the_other_alone(tmp_path):
    before, now = plan(), plan(hangs=True)
    changed = {name for name in before.configurations if before.configurations[name] != now.configurations[name]}
    assert changed == {"encoders/a", "cells/a-0", "cells/a-1", "cells/a-2"}


def test_what_is_running_is_not_cleared(tmp_path):
    before, now = plan(), plan(value=2)
    work(tmp_path, before)
    with claimed(tmp_path, "scenes"), pytest.raises(ValueError, match="scenes is worked on"):
        clear_changed(tmp_path, now, now.jobs)
    assert is_finished(tmp_path, before.configurations["scenes"])


def test_chosen_jobs_come_with_what_they_need():
    assert [job.name for job in plan().chosen("cells/b-1")] == ["scenes", "encoders/b", "cells/b-1"]
    assert len(plan().chosen(None)) == 9
    with pytest.raises(ValueError, match="No job of the study matches 'cells/c"):
        plan().chosen("cells/c*")


def test_the_hash_is_of_the_values_and_not_of_their_order():
    assert configuration_hash({"a": 1, "b": {"c": 2, "d": 3}}) == configuration_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert configuration_hash({"a": 1}) != configuration_hash({"a": 2})


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job("a", "x", {}), Job("a", "x", {})], "Two jobs of the study are called 'a'"),
        ([Job("a", "x", {}, ("b",)), Job("b", "x", {})], "needs 'b', which is no job before it"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(jobs, message):
    with pytest.raises(ValueError, match=message):
        Plan(jobs)


def test_a_broken_file_is_named(tmp_path):
    work(tmp_path, plan())
    (tmp_path / "scenes" / "results.json").write_text('{"hash": ')
    with pytest.raises(ValueError, match=r"scenes/results.json is no valid JSON"):
        job_state(tmp_path, plan().configurations["scenes"])


def test_a_job_runs_alone_whatever_started_the_study(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    environment = job_environment(threads=1, local_rank=3)
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_CPU"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "1" and environment["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment["PATH"] == os.environ["PATH"]


def test_the_cost_adds_up_over_sessions(tmp_path):
    study = Plan([Job("a", "stand-in", {"seconds": 0.2})])
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "cost.json").write_text(json.dumps({"cpu_seconds": 100.0, "wall_seconds": 50.0, "sessions": 1}))
    work(tmp_path, study)
    cost = json.loads((folder / "results.json").read_text())["cost"]
    assert cost["sessions"] == 2 and cost["cpu_seconds"] >= 100 and 50.2 <= cost["wall_seconds"] < 60


def test_a_job_that_is_ended_tidies_up_and_shows_no_progress_bars(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tqdm import tqdm\n"
        "from transformers.utils import logging\n"
        "from vistok.modeling.atomic_folder import write_folder_atomically\n"
        "from vistok.trainer.study_process import prepare_process\n"
        "prepare_process()\n"
        "list(logging.tqdm(range(3))); list(tqdm(range(3)))\n"
        "with write_folder_atomically(Path(sys.argv[1]) / 'data'):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = job_environment(threads=1) | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready" and list(tmp_path.iterdir())
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 143 and not list(tmp_path.iterdir()) and "it/s" not in shown
