"""An evaluation that is killed and resumed, or shared by two processes, ends as one that ran through."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import tiny_gvt, tiny_image, tiny_processor
from vistok import cli
from vistok.evaluation.predictions import PredictionsFile
from vistok.evaluation.processes import Share

REPOSITORY = Path(__file__).parents[2]
NUM_IMAGES = 12
SCRIPT = ["-m", "tests.evaluation.killed_evaluation"]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A saved model and questions about a dozen images, in the form of GVTBench's files."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "images").mkdir()
    names = ["bears", "cups", "books"]
    questions = []
    for number in range(NUM_IMAGES):
        tiny_image(number).save(folder / "images" / f"{number:012d}.jpg")
        for name in names:
            text = f"How many {name} are there in the image?"
            questions.append({"image_id": number, "text_in": text, "text_out": str(1 + number % 3), "n_obj_exist": 4})
    (folder / "coco_oc.json").write_text(json.dumps(questions))
    model, processor = tiny_gvt(), tiny_processor()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def arguments(material, output):
    options = {"--model": material / "model", "--questions": material, "--images": material / "images"}
    options |= {"--task": "coco_oc", "--batch-size": 4, "--max-new-tokens": 6, "--output": output}
    return ["evaluate", *(str(part) for pair in options.items() for part in pair)]


def outcome(output):
    """Report and predictions, without what differs from run to run."""
    results = json.loads((output / "coco_oc-test.json").read_text("utf-8"))
    lines = (output / "coco_oc-test.predictions.jsonl").read_text("utf-8").splitlines()
    assert sorted(file.suffix for file in output.iterdir()) == [".json", ".jsonl", ".md", ".png"]
    return {key: results[key] for key in results if key not in ("seconds", "num_generated", "command")}, lines


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    assert cli.main(arguments(material, output)) == 0
    return outcome(output)


def start(material, output, seconds, launch=()):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launch, *SCRIPT, str(seconds), *arguments(material, output)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_after(process, output, num_lines):
    """Kills the process as soon as so many predictions are written."""
    deadline = time.monotonic() + 120
    while sum(len(file.read_bytes().splitlines()) for file in output.glob("*.jsonl")) < num_lines:
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, "it writes nothing"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)


LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")  # fmt: skip


def test_an_evaluation_killed_by_the_system_continues_to_the_same_result(material, whole, tmp_path):
    process = start(material, tmp_path / "out", seconds=0.3)
    kill_after(process, tmp_path / "out", num_lines=14)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "coco_oc-test.json").exists()
    kept = (tmp_path / "out" / "coco_oc-test.predictions.jsonl").read_text("utf-8").splitlines()
    assert 14 <= len(kept) < len(whole[1])
    assert cli.main(arguments(material, tmp_path / "out")) == 0
    assert outcome(tmp_path / "out") == whole
    assert json.loads((tmp_path / "out" / "coco_oc-test.json").read_text())["num_generated"] < 3 * NUM_IMAGES


def test_two_processes_report_what_one_does(material, whole, tmp_path):
    finished = start(material, tmp_path / "two", 0, LAUNCH)
    _, errors = finished.communicate(timeout=180)
    assert finished.returncode == 0, errors[-3000:]
    results, lines = outcome(tmp_path / "two")
    assert results == whole[0]
    assert sorted(lines) == sorted(whole[1])


def test_one_process_continues_what_several_began(material, whole, tmp_path):
    settings, *lines = whole[1]
    stem = tmp_path / "out" / "coco_oc-test.predictions"
    stem.parent.mkdir()
    for rank, begun in enumerate((lines[:4], lines[8:12], lines[16:20] + [lines[20][:30]])):
        part = "" if rank == 0 else f".part{rank}"
        Path(f"{stem}{part}.jsonl").write_text("\n".join([settings, *begun]) + "\n" * (rank < 2), "utf-8")
    assert cli.main(arguments(material, tmp_path / "out")) == 0
    results, found = outcome(tmp_path / "out")
    assert results == whole[0]
    assert sorted(found) == sorted(whole[1])
    report = json.loads((tmp_path / "out" / "coco_oc-test.json").read_text("utf-8"))
    assert report["num_generated"] == 3 * NUM_IMAGES - 12


def test_every_piece_of_work_is_one_process_s():
    shares = [Share(rank, 3) for rank in range(3)]
    assert [[share.takes(number) for share in shares].count(True) for number in range(10)] == [1] * 10
    assert [share.is_first for share in shares] == [True, False, False]
    assert all(Share().takes(number) for number in range(3))


def test_a_part_of_another_evaluation_is_refused(tmp_path):
    path = tmp_path / "a.predictions.jsonl"
    PredictionsFile(path, {"seed": 0})
    (tmp_path / "a.predictions.part1.jsonl").write_text(json.dumps({"settings": {"seed": 1}}) + "\n")
    with pytest.raises(ValueError, match=r"part1.jsonl holds predictions of another evaluation \(seed is 1 there"):
        PredictionsFile(path, {"seed": 0})
