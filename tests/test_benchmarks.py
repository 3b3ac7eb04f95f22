"""Every benchmark runs, on tiny sizes, and reports what it is there to measure."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks._measure import interleaved_seconds, median_ratio, peak_bytes
from tests.tiny import save_base_models, tiny_gvt, tiny_processor

ROOT = Path(__file__).parents[1]


def run_benchmark(name: str, folder: Path, *options: str) -> list[dict[str, str]]:
    """The rows that a benchmark writes with --quick."""
    file = folder / "rows.csv"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--csv", str(file), *options]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == 0, result.stderr
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(result.stdout.strip().splitlines()) == 2 + len(rows)
    return rows


def test_resampler_compares_both_formulations_in_both_dtypes(tmp_path):
    rows = run_benchmark("resampler", tmp_path)
    assert [row["formulation"] for row in rows] == ["plain", "absorbed", "absorbed, checkpointed"] * 4
    assert {(row["depth"], row["dtype"]) for row in rows} == {
        (depth, dtype) for depth in ("6", "1") for dtype in ("float32", "bfloat16")
    }
    for plain, absorbed, checkpointed in zip(rows[::3], rows[1::3], rows[2::3]):
        assert plain["time ratio"] == plain["memory ratio"] == plain["FLOP ratio"] == "1.00"
        assert float(absorbed["FLOP ratio"]) > float(checkpointed["FLOP ratio"])


def test_visual_tokens_compares_prompts_of_640_and_96_tokens(tmp_path):
    rows = run_benchmark("visual_tokens", tmp_path)
    assert {row["KV ratio"] for row in rows} == {f"{640 / 96:.2f}"}
    assert {row["prefill"] for row in rows} == {"language model", "with connector", "with tower"}


def test_import_time_compares_vistok_with_llava(tmp_path):
    rows = {row["import"]: row for row in run_benchmark("import_time", tmp_path)}
    assert rows["LLaVA"]["ratio to LLaVA"] == "1.00"
    assert float(rows["torch"]["seconds"]) < float(rows["vistok"]["seconds"])


def test_steps_of_training_that_cost_less_have_the_same_loss(tmp_path):
    vision, text = save_base_models(tmp_path)
    rows = run_benchmark("training", tmp_path, "--vision", vision, "--text", text)
    assert [row["step"] for row in rows] == ["plain", "cached features", "shared rows", "both"]
    losses = [float(row["loss"]) for row in rows]
    assert losses == pytest.approx([losses[0]] * 4, rel=0.01)


def test_a_step_of_distillation_stands_beside_what_it_cannot_do_without(tmp_path):
    vision, _ = save_base_models(tmp_path)
    rows = run_benchmark("distillation", tmp_path, "--teacher", vision, "--sizes", "24")
    assert [row["what"].split(",")[0] for row in rows][1:3] == ["step", "step"]
    assert rows[0]["ratio to alone"] == "1.000" and all(float(row["ms per image"]) > 0 for row in rows)


def test_an_evaluation_and_a_plain_loop_say_the_same(tmp_path):
    model, processor = tiny_gvt(), tiny_processor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = run_benchmark("evaluation", tmp_path, "--model", str(tmp_path / "model"))
    assert [row["way"] for row in rows] == ["plain generate, batch 1", "evaluation, batch 64"] * 2
    assert {row["same answers, %"] for row in rows} == {"100"}
    assert rows[0]["ratio to plain"] == "1.00"


def test_peak_memory_counts_what_is_held_at_once():
    def holds_three_mebibytes():
        first = torch.empty(2**20, dtype=torch.uint8)
        second = torch.empty(2**21, dtype=torch.uint8)
        del first, second
        return torch.empty(2**20, dtype=torch.uint8)

    assert peak_bytes(holds_three_mebibytes) == 3 * 2**20


def test_runs_take_turns_and_the_ratio_is_taken_within_a_round():
    calls = []
    seconds = interleaved_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0
