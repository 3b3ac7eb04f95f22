"""Two processes that accumulate batches take the step of one with all of them: losses, gradients, evaluation."""

import pytest
import torch

from tests.processes import run_in_two_processes
from tests.trainer.tiny_training import largest_difference
from tests.trainer.visual_modeling_two_processes import STAGES, step


@pytest.fixture(scope="module")
def two_processes(base_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    run_in_two_processes("tests.trainer.visual_modeling_two_processes", str(folder), *base_models)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_means_over_all_processes_and_batches(two_processes, base_models, tmp_path, stage):
    first, second = (torch.load(two_processes / f"{stage}-{rank}.pt") for rank in range(2))
    alone, _ = step(base_models, str(tmp_path), stage, batch_size=8)
    assert set(first["gradients"]) == set(alone["gradients"]) and alone["gradients"]
    assert largest_difference(first["gradients"], alone["gradients"]) < 1e-9
    assert largest_difference(first["gradients"], second["gradients"]) == 0
    for name, value in alone["logged"].items():
        assert first["logged"][name] == pytest.approx(value, rel=1e-6), name
    for name, value in alone["metrics"].items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert (stage == "texts") == (alone["logged"].get("loss_vm") == 0.0)
