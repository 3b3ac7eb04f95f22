"""Every trainer takes the steps of one process with DDP, FSDP2 and ZeRO: losses, weights, metrics and final folder."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import REPOSITORY
from tests.trainer.distributed_runs import (
    ALONE,
    DIFFERENT,
    FIGURES,
    RESUMED,
    SESSIONS,
    STRATEGIES,
    differences,
    read,
    report,
    runs_here,
    weight_difference,
    write_page,
)
from tests.trainer.distributed_trainers import TRAINERS
from vistok.modeling.trained_weights import CheckpointError
from vistok.trainer.checkpoints import check_strategy
from vistok.trainer.sharded_training import prepare_fsdp
from vistok.trainer.zero_checkpoints import parts_put_together

QUANTIZED = "Quantised weights stay whole on every process"
REFUSED = {
    ("VisualLanguageTrainer, QLoRA", "FSDP2"): QUANTIZED,
    ("VisualLanguageTrainer, QLoRA", "ZeRO-3"): QUANTIZED,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All trainings, by one process that imports once: a fork with threads of its own might never end."""
    folder = tmp_path_factory.mktemp("distributed")
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    command = [sys.executable, "-m", "tests.trainer.distributed_runs", str(folder)]
    told = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, timeout=1200)
    assert told.returncode == 0, told.stderr[-5000:]
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_train_and_evaluate_as_one_with_the_batches_of_both(runs, trainer, strategy):
    _skip_without(strategy)
    found, alone = read(runs, strategy, trainer), read(runs, ALONE, trainer)
    if (trainer, strategy) in REFUSED:
        assert REFUSED[trainer, strategy] in found["refused"]
        return
    far = differences(runs, strategy, trainer)
    # DeepSpeed computes in float32, where gradients are large too.
    exact = not strategy.startswith("ZeRO")
    assert far["weight"] < (1e-7 if exact else 1e-4) and far["weight"] < 0.01 * alone["moved"]
    assert far["loss"] < (1e-5 if exact else 1e-3) and far["gradient"] < (1e-6 if exact else 1e-3)
    for name, value in alone["metrics"].items():
        if not name.endswith(DIFFERENT):
            assert found["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), name


RESUMPTIONS = [
    (name, strategy, session)
    for name in RESUMED
    for strategy, all_of in SESSIONS.items()
    for session in all_of
    if session != "whole"
]


def resumed_exactly(strategy: str, session: str) -> float:
    """Of weights. Other numbers of processes add up gradients in another order, and DeepSpeed does in float32."""
    if session == "on":
        return 1e-12
    return 1e-6 if strategy.startswith("ZeRO") else 1e-9


@pytest.mark.parametrize(("trainer", "strategy", "session"), RESUMPTIONS)
def test_a_divided_checkpoint_goes_on_as_if_nothing_had_been(runs, trainer, strategy, session):
    """With another number of processes too."""
    _skip_without(strategy)
    place = runs / "resumed" / trainer / strategy
    assert weight_difference(place / "whole", place / session) < resumed_exactly(strategy, session)
    first, second = (json.loads((place / name / "outcome.json").read_text()) for name in ("whole", session))
    for name, value in first["logged"][0].items():  # means since the first step, of which others took a part
        assert name.endswith(DIFFERENT) or second["logged"][0][name] == pytest.approx(value, rel=1e-6), name
    if strategy == "FSDP2":
        assert (place / SESSIONS[strategy][session][1] / "pytorch_model_fsdp_0").is_dir()


class _Processes:
    """Of an accelerator, what asks whether a checkpoint is of as many processes."""

    num_processes, is_main_process = 3, True

    def __init__(self):
        plugin = SimpleNamespace(deepspeed_config={}, hf_ds_config=SimpleNamespace(config={}))
        self.state = SimpleNamespace(deepspeed_plugin=plugin)

    def wait_for_everyone(self) -> None: ...


@pytest.fixture
def parts(tmp_path):
    folder = tmp_path / "checkpoint-2" / "global_step2"
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"cut")
    return folder


def test_parts_that_cannot_be_put_together_are_an_error_and_leave_nothing(parts):
    _skip_without("ZeRO-2")
    names = "go on with 2 processes, or from an earlier checkpoint"
    with pytest.raises(CheckpointError, match=names), parts_put_together(_Processes(), parts.parent):
        raise AssertionError("a training began")
    assert list(parts.parent.iterdir()) == [parts]


def test_the_state_of_another_optimizer_than_adam_goes_on_with_as_many_processes_alone(parts):
    _skip_without("ZeRO-2")
    state = {"base_optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "zero_stage": 2}
    for file in parts.iterdir():
        torch.save({"optimizer_state_dict": state}, file)
    processes = _Processes()
    with pytest.raises(CheckpointError, match="not one of Adam's kind"), parts_put_together(processes, parts.parent):
        raise AssertionError("a training began")
    assert list(parts.parent.iterdir()) == [parts]


def test_what_a_killed_process_left_beside_the_parts_goes(parts):
    _skip_without("ZeRO-2")
    (parts.parent / ".universal-x").mkdir()
    with pytest.raises(CheckpointError), parts_put_together(_Processes(), parts.parent):
        raise AssertionError("a training began")
    assert list(parts.parent.iterdir()) == [parts]


@pytest.mark.parametrize(("name", "stage"), [("mp_rank_00", 2), ("bf16_zero_pp_rank_0_mp_rank_00", 3)])
def test_a_checkpoint_of_another_stage_is_refused(parts, name, stage):
    (parts / f"{name}_model_states.pt").touch()
    check_strategy(parts.parent, deepspeed=True, zero_stage=stage)
    with pytest.raises(CheckpointError, match=f"of ZeRO stage {stage}, and this training is with stage {5 - stage}"):
        check_strategy(parts.parent, deepspeed=True, zero_stage=5 - stage)


def test_parts_of_as_many_processes_are_read_as_they_are(parts):
    processes = _Processes()
    processes.num_processes = 2
    with parts_put_together(processes, parts.parent) as were_put_together:
        assert not were_put_together
    with parts_put_together(processes, None) as were_put_together:
        assert not were_put_together
    assert list(parts.parent.iterdir()) == [parts]


def _skip_without(strategy: str) -> None:
    if not runs_here(strategy):
        pytest.skip("deepspeed is not installed: pip install 'vistok[deepspeed]' (nothing has to be compiled)")


def test_what_fsdp_saves_in_the_end_is_a_model_as_one_process_saves_it(runs):
    name = "VisualLanguageTrainer, all parts, LoRA"
    configs = [json.loads((runs / strategy / name / "config.json").read_text()) for strategy in (ALONE, "FSDP2")]
    assert configs[0] == configs[1] and configs[1]["architectures"] == ["GVTForConditionalGeneration"]
    assert not any("lora" in weight for weight in load_file(runs / "FSDP2" / name / "model.safetensors"))


def test_a_checkpoint_of_another_strategy_is_refused(runs):
    divided = runs / "resumed" / RESUMED[0] / "FSDP2" / "whole" / "checkpoint-2"
    check_strategy(divided, fsdp=True)
    for options, told in (({}, "with neither"), ({"deepspeed": True}, "with DeepSpeed")):
        with pytest.raises(CheckpointError, match=f"of a training with FSDP, and this one is {told}"):
            check_strategy(divided, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"fsdp_version": 1}, "fsdp_version is 1"), ({"cpu_ram_efficient_loading": True}, "ram_efficient_loading is on")],
)
def test_what_trainers_cannot_do_with_fsdp_is_refused(options, told):
    class Plugin:
        fsdp_version, cpu_ram_efficient_loading, transformer_cls_names_to_wrap = 2, False, ["Layer"]

    plugin = Plugin()
    vars(plugin).update(options)
    with pytest.raises(ValueError, match=told):
        prepare_fsdp(plugin, None)


PAGE = REPOSITORY / "docs" / "distributed.md"


def rows_of(text: str) -> list[list[list[str]]]:
    """The tables of a page, without their heads."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            tables[-1].append(line.strip("| ").split(" | "))
        elif tables[-1]:
            tables.append([])
    return [table[2:] for table in tables if table]


def test_the_page_has_every_trainer_with_every_strategy_and_every_resumed_training():
    weights, steps, resumed = rows_of(FIGURES.search(PAGE.read_text(encoding="utf-8"))[0])
    assert [row[0] for row in weights] == [row[0] for row in steps] == list(TRAINERS)
    for row in weights:
        for strategy, cell in zip(STRATEGIES, row[3:], strict=True):
            if (row[0], strategy) in REFUSED:
                assert cell.startswith("refused (")
            else:
                assert float(cell) < (1e-4 if strategy.startswith("ZeRO") else 1e-7), (row[0], strategy)
    assert [tuple(row[:2]) for row in resumed] == [run[:2] for run in RESUMPTIONS]
    assert all(float(row[3]) < resumed_exactly(*run[1:]) for row, run in zip(resumed, RESUMPTIONS))


def test_the_tables_of_the_runs_are_those_of_the_page(runs):
    """But for the numbers, which follow versions and processors."""
    found = rows_of(report(runs))[0]
    written = rows_of(FIGURES.search(PAGE.read_text(encoding="utf-8"))[0])[0]
    assert [row[:2] for row in found] == [row[:2] for row in written]
    for row, known in zip(found, written, strict=True):
        for cell, other in zip(row[3:], known[3:], strict=True):
            assert cell == "not installed" or cell.startswith("refused") == other.startswith("refused")


def test_a_page_keeps_what_is_around_its_figures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- figures -->\nold\n<!-- end of figures -->\nbelow\n")
    write_page(page, r"new \1" + "\n")
    assert page.read_text() == "above\n<!-- figures -->\nnew \\1\n<!-- end of figures -->\nbelow\n"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match=r"page\.md has no part between <!-- figures -->"):
        write_page(page, "new\n")
