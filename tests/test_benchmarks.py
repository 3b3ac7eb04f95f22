"""Every benchmark runs, on tiny sizes, and reports what it is there to measure."""

import csv
import importlib
import sys

import pytest
import torch

from benchmarks._measure import interleaved_seconds, median_ratio, peak_bytes
from tests.tiny import save_base_models, tiny_gvt, tiny_processor
from tests.tiny_adapted import compose_kind, save_wide_base_models


@pytest.fixture
def run_benchmark(tmp_path, monkeypatch, capsys):
    """Runs a benchmark with --quick, in this process; returns the rows that it writes."""

    def run(name: str, *options: str) -> list[dict[str, str]]:
        file = tmp_path / "rows.csv"
        benchmark = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr("sys.argv", [f"benchmarks/{name}.py", "--quick", "--csv", str(file), *options])
        capsys.readouterr()
        benchmark.main()
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(table) == 2 + len(rows)
        return rows

    return run


def test_resampler_compares_both_formulations_in_both_dtypes(run_benchmark):
    rows = run_benchmark("resampler")
    assert [row["formulation"] for row in rows] == ["plain", "absorbed", "absorbed, checkpointed"] * 4
    assert {(row["depth"], row["dtype"]) for row in rows} == {
        (depth, dtype) for depth in ("6", "1") for dtype in ("float32", "bfloat16")
    }
    for plain, absorbed, checkpointed in zip(rows[::3], rows[1::3], rows[2::3]):
        assert plain["time ratio"] == plain["memory ratio"] == plain["FLOP ratio"] == "1.00"
        assert float(absorbed["FLOP ratio"]) > float(checkpointed["FLOP ratio"])


def test_visual_tokens_compares_prompts_of_640_and_96_tokens(run_benchmark):
    rows = run_benchmark("visual_tokens")
    assert {row["KV ratio"] for row in rows} == {f"{640 / 96:.2f}"}
    assert {row["prefill"] for row in rows} == {"language model", "with connector", "with tower"}


def test_semantic_tokens_compares_real_tokens_with_masked_and_with_all(run_benchmark):
    rows = run_benchmark("semantic_tokens")
    assert [row["read"] for row in rows] == ["all", "masked", "compact"] * 4
    alone, together = rows[:3], rows[3:6]
    read = 66 + 8  # text, brackets, and the new tokens that were read
    assert [row["KV ratio"] for row in alone] == ["1.00", "1.00", f"{(576 + read) / (30 + read):.2f}"]
    assert together[2]["KV ratio"] == f"{(576 + read) / (40 + read):.2f}", "a batch is as long as its longest"


def test_token_batches_compares_ways_to_read_samples_of_different_lengths(run_benchmark):
    rows = run_benchmark("token_batches")
    assert [row["read"] for row in rows] == ["alone", "padded", "two buckets", "packed"] * 2
    padding = {row["read"]: float(row["padding, %"]) for row in rows}
    assert padding["alone"] == padding["packed"] == 0 < padding["two buckets"] < padding["padded"]
    assert {row["forward ratio"] for row in rows[3::4]} == {row["step ratio"] for row in rows[3::4]} == {"1.00"}


def test_density_peaks_compares_clustering_and_merging_with_loops(run_benchmark):
    rows = run_benchmark("density_peaks")
    assert {row["work"].split(",")[0] for row in rows} == {"threshold", "iterative", "merger"}
    ours = [row for row in rows if row["formulation"] == "ours"]
    assert {row["time ratio"] for row in ours} == {row["memory ratio"] for row in ours} == {"1.00"}
    others = {row["formulation"] for row in rows} - {"ours"}
    assert others == {
        *("loop over images", "naive loop", "Chat-UniVi's, transcribed"),
        *("loop over clusters", "linear layers alone", "without attention"),
    }


def test_import_time_compares_vistok_with_llava(run_benchmark):
    rows = {row["import"]: row for row in run_benchmark("import_time")}
    assert rows["LLaVA"]["ratio to LLaVA"] == "1.00"
    assert float(rows["torch"]["seconds"]) < float(rows["vistok"]["seconds"])


def test_steps_of_training_that_cost_less_have_the_same_loss(run_benchmark, tmp_path):
    vision, text = save_base_models(tmp_path)
    rows = run_benchmark("training", "--vision", vision, "--text", text)
    assert [row["step"] for row in rows] == ["plain", "cached features", "shared rows", "both"]
    losses = [float(row["loss"]) for row in rows]
    assert losses == pytest.approx([losses[0]] * 4, rel=0.01)


def test_rows_by_length_have_less_padding_and_checkpointed_layers_less_memory(run_benchmark, tmp_path):
    vision, text = save_base_models(tmp_path)
    rows = run_benchmark("instruction_steps", "--vision", vision, "--text", text)
    assert [row["step"] for row in rows] == ["random order", "rows by length", "checkpointed"]
    random_order, by_length, checkpointed = rows
    assert float(by_length["padding %"]) < 0.6 * float(random_order["padding %"])
    assert float(checkpointed["MiB"]) < float(by_length["MiB"])


def test_a_step_of_distillation_stands_beside_what_it_cannot_do_without(run_benchmark, tmp_path):
    vision, _ = save_base_models(tmp_path)
    rows = run_benchmark("distillation", "--teacher", vision, "--sizes", "24")
    assert [row["what"].split(",")[0] for row in rows][1:3] == ["step", "step"]
    assert rows[0]["ratio to alone"] == "1.000" and all(float(row["ms per image"]) > 0 for row in rows)


def test_generation_writes_the_same_with_a_growing_and_a_static_cache_compiled_or_not(run_benchmark, tmp_path):
    vision, text = save_base_models(tmp_path)
    rows = run_benchmark("generation", "--vision", vision, "--text", text, "--backend", "eager")
    assert [row["way"] for row in rows] == ["dynamic", "static", "static, compiled"] * 2
    assert {row["same"] for row in rows} == {"5 of 5"}
    assert [row["compiling, s"] == "–" for row in rows] == [True, True, False] * 2


def test_an_evaluation_and_a_plain_loop_say_the_same(run_benchmark, tmp_path):
    model, processor = tiny_gvt(), tiny_processor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = run_benchmark("evaluation", "--model", str(tmp_path / "model"))
    assert [row["way"] for row in rows] == ["plain generate, batch 1", "evaluation, batch 64"] * 2
    assert {row["same answers, %"] for row in rows} == {"100"}
    assert rows[0]["ratio to plain"] == "1.00"


class TestVisualModeling:
    def test_the_losses_stand_beside_their_peers(self, run_benchmark, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda function: function)  # which would take a minute
        rows = run_benchmark("visual_modeling")
        names = {row["implementation"].partition(":")[0] for row in rows}
        assert names == {"formula", "log_softmax", "compiled", "Liger", "vistok"}
        measured = [row for row in rows if ":" not in row["implementation"]]
        assert {row["memory ratio"] for row in measured if row["implementation"] == "formula"} == {"1.000"}
        for row in measured:
            distances = [float(distance) for distance in row["off"].split(", ")]
            assert len(distances) == (2 if row["trained"] == "states and head" else 1)
            assert max(distances) < (1e-5 if row["dtype"] == "float32" else 0.02)

    def test_what_cannot_be_had_here_is_said(self, run_benchmark, monkeypatch):
        def fails(function):
            def compiled(*arguments):
                raise torch._dynamo.exc.TorchDynamoException("no compiler")

            return compiled

        monkeypatch.setattr(torch, "compile", fails)
        monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
        rows = run_benchmark("visual_modeling")
        missing = {row["implementation"] for row in rows if row["ms"] == "–"}
        assert missing == {"compiled: does not compile here: TorchDynamoException", "Liger: not installed"}


def test_a_step_of_stage_four_stands_beside_one_of_stage_two(run_benchmark, tmp_path):
    vision, text = save_base_models(tmp_path)
    rows = run_benchmark("visual_modeling_step", "--vision", vision, "--text", text, "--dtypes", "bfloat16")
    assert [row["stage"] for row in rows] == ["II", "IV", "IV, Loss_LM alone", "III"] * 2
    assert [(row["trained"], row["dtype"]) for row in rows[::4]] == [("lora", "bfloat16"), ("full", "bfloat16")]
    for two, four, alone, _ in zip(*(rows[number::4] for number in range(4))):
        assert two["time ratio"] == two["memory ratio"] == "1.000" and float(alone["memory ratio"]) > 0
        assert float(four["MiB"]) >= float(alone["MiB"])


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


def test_plug_in_compares_llava_with_semantic_tokens_behind_its_projector(run_benchmark):
    rows = run_benchmark("plug_in")
    assert [row["reads"] for row in rows[:5]] == ["LLaVA", "576 tokens", "144 tokens", "64 tokens", "30 tokens"]
    assert len(rows) == 2 * 2 * 5
    kv = [row["KV ratio"] for row in rows[:5]]
    assert kv == ["1.00", *(f"{(576 + 64) / (count + 64):.2f}" for count in (576, 144, 64, 30))]
    assert rows[1]["FLOP ratio"] == "1.00" and float(rows[4]["FLOP ratio"]) > 5


def test_quantised_weights_stand_beside_plain_ones(run_benchmark, tmp_path):
    model = compose_kind("gvt", save_wide_base_models(tmp_path))
    model.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    rows = {row["weights"]: row for row in run_benchmark("quantization", "--model", str(tmp_path / "model"))}
    assert list(rows) == ["float32", "bfloat16", "int8", "nf4"]
    sizes = [float(row["MB of weights"]) for row in rows.values()]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert rows["float32"]["speed to float32"] == "1.00"
    assert rows["float32"]["planted, same answers, %"] == "100.0"
    assert all(float(row["peak MB, training"]) > 0 for row in rows.values())
