"""Two processes distil as one does with the batches of both: augmentation, masks and learning rates included."""

import json

import pytest

from tests.processes import run_in_two_processes
from tests.trainer.distillation_two_processes import KINDS, distil, outcome


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    run_in_two_processes("tests.trainer.distillation_two_processes", str(folder))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_distil_and_evaluate_as_one_with_the_batches_of_both(two_processes, tmp_path, name):
    first, second = (json.loads((two_processes / f"{name}-{rank}.json").read_text()) for rank in range(2))
    assert first["losses"] == pytest.approx(second["losses"]) and first["sums"] == pytest.approx(second["sums"])
    alone = outcome(distil(str(tmp_path), name, batch_size=4))
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first["losses"][-1] != pytest.approx(first["losses"][0], abs=1e-3)  # there was something to learn
    assert first["rates"] == pytest.approx(alone["rates"]) and max(first["rates"]) == pytest.approx(0.1)
    assert first["sums"] == pytest.approx(alone["sums"], abs=1e-3)
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
