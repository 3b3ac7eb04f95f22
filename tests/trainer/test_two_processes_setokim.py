"""Two processes that accumulate batches take the step of one with all of them: losses, gradients, evaluation."""

import pytest
import torch

from tests.processes import run_in_two_processes
from tests.trainer.setokim_two_processes import step
from tests.trainer.tiny_setokim_training import save_setok_and_text
from tests.trainer.tiny_training import largest_difference


def test_losses_are_means_over_all_processes_and_batches(tmp_path):
    bases = save_setok_and_text(tmp_path)
    run_in_two_processes("tests.trainer.setokim_two_processes", str(tmp_path), *bases)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone, _ = step(bases, str(tmp_path / "alone"), batch_size=12)
    assert set(first["gradients"]) == set(alone["gradients"])
    assert largest_difference(first["gradients"], alone["gradients"]) < 1e-9
    assert largest_difference(first["gradients"], second["gradients"]) == 0
    for name, value in {**alone["logged"], **alone["metrics"]}.items():
        found = {**first["logged"], **first["metrics"]}[name]
        assert found == pytest.approx(value, rel=1e-5), name
