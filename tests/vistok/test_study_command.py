"""`vistok study`: what it lists, reports and refuses, and how workers share the jobs."""

import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.planted_study import _results, plant_study, planted_recipe
from tests.vistok.commands import fails
from vistok import cli
from vistok.trainer.study import StudyError, run_study
from vistok.trainer.study_jobs import write_json
from vistok.trainer.study_plan import plan_study


@pytest.fixture
def study_file(tmp_path):
    yaml = pytest.importorskip("yaml")
    recipe = planted_recipe(tmp_path / "study")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(asdict(recipe), sort_keys=False))
    return path


def test_the_list_says_how_far_each_job_is(study_file, capsys, tmp_path):
    plant_study(planted_recipe(tmp_path / "study"), leave_out=("cells/fd-tuned-seed1/answers",))
    assert cli.main(["study", str(study_file), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["finished", "scenes/train"]
    assert "not started  cells/fd-tuned-seed1/answers" in lines and lines[-1] == "50 finished, 1 not started"
    assert cli.main(["study", str(study_file), "--list", "--only", "encoders/fd*"]) == 0
    listed = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert listed == ["scenes/train", "scenes/test", "encoders/dino", "encoders/fd", "encoders/fd-masked"]


def test_the_report_is_written_without_running_anything(study_file, capsys, tmp_path):
    plant_study(planted_recipe(tmp_path / "study"), leave_out=("cells/fd-tuned-seed1/answers",))
    assert cli.main(["study", str(study_file), "--report"]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {file.name for file in files} == {"study.json", "study.csv", "study.md", "study.png", "attention.png"}
    assert all(file.exists() for file in files)


def test_another_configuration_is_refused_and_named(study_file, capsys, tmp_path):
    plant_study(planted_recipe(tmp_path / "study"))
    message = fails(capsys, "study", str(study_file), "--protocol.training.max_steps", "7")
    assert "protocol.training.max_steps is 7 and was not set" in message and "--recompute" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml", "--list"], "There is no study missing.yaml"),
        (["STUDY", "--only", "cells/none*"], "No job of the study matches 'cells/none*'"),
        (["STUDY", "--workers", "0"], "workers is 0, expected at least 1"),
        (["STUDY", "--report"], "nothing to report yet"),
        (["STUDY", "--thread", "2"], "'--thread' is no override"),
        (["STUDY", "--protocl.training.max_steps", "3"], "unknown section of the study 'protocl'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(study_file, capsys, arguments, message):
    arguments = [str(study_file) if argument == "STUDY" else argument for argument in arguments]
    assert message in fails(capsys, "study", *arguments)


def test_fields_that_are_no_section_are_overridden_too(study_file, capsys):
    arguments = ["--threads", "2", "--title", "My towers", "--seeds", "[7]", "--list", "--only", "cells/*/training"]
    assert cli.main(["study", str(study_file), *arguments]) == 0
    cells = [line for line in capsys.readouterr().out.splitlines() if "/training" in line]
    assert len(cells) == 6 and all("seed7" in line for line in cells)


@pytest.fixture
def planted_jobs(monkeypatch):
    """Jobs that take a moment and then have planted results, or fail; returns who did them."""
    done: list[tuple[str, int]] = []
    failing: set[str] = set()

    def make(output, threads, local_rank=0, stop=None):
        def launch(configuration):
            name = configuration["job"]
            done.append((name, threading.get_ident()))
            time.sleep(0.02)
            if name in failing:
                write_json(output / name / "failure.json", {"time": time.time(), "exit code": 1})
                return
            job = next(job for job in plan_study(planted_recipe(output)).jobs if job.name == name)
            results = _results(job, output / name, np.zeros(40), np.random.default_rng(len(name)))
            cost = {"cpu_seconds": 1.0, "wall_seconds": 1.0, "sessions": 1, "threads": 1}
            document = {**configuration, "cost": cost, "environment": {"hardware": "h", "software": "s"}}
            write_json(output / name / "results.json", {**document, "results": results})

        return launch

    monkeypatch.setattr("vistok.trainer.study_workers.launch_in_process", make)
    return done, failing


def test_several_workers_do_each_job_once_and_the_report_follows(tmp_path, planted_jobs):
    done, _ = planted_jobs
    files = run_study(planted_recipe(tmp_path), workers=3)
    names = [name for name, _ in done]
    assert sorted(names) == sorted(job.name for job in plan_study(planted_recipe(tmp_path)).jobs)
    assert len({thread for _, thread in done}) > 1
    assert names.index("encoders/dino") < names.index("encoders/fd") < names.index("cells/fd-frozen-seed0/training")
    assert files["study.md"].exists()


def test_a_failure_is_named_at_the_end_and_the_rest_is_done_and_reported(tmp_path, planted_jobs):
    done, failing = planted_jobs
    failing.add("encoders/fd")
    with pytest.raises(StudyError, match=r"1 jobs failed: encoders/fd\. 15 jobs that need them were not begun"):
        run_study(planted_recipe(tmp_path))
    assert (tmp_path / "study.md").exists() and "cells/dino-tuned-seed1/answers" in [name for name, _ in done]
    failing.clear()
    done.clear()
    run_study(planted_recipe(tmp_path))
    assert done[0][0] == "encoders/fd" and len(done) == 16


def test_the_first_process_alone_writes_the_report(tmp_path, planted_jobs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run_study(planted_recipe(tmp_path)) == {}
    assert not (tmp_path / "study.md").exists()
    monkeypatch.setenv("RANK", "0")
    assert "study.md" in run_study(planted_recipe(tmp_path))
