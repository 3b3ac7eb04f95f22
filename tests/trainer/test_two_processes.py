"""Two processes train as one does with the batches of both."""

import json

import pytest

from tests.processes import run_in_two_processes
from tests.trainer.two_processes import outcome, train


@pytest.fixture(scope="module")
def two_processes(base_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    run_in_two_processes("tests.trainer.two_processes", str(folder), *base_models)
    return folder


@pytest.mark.parametrize("name", ["groups", "stream", "qlora"])
def test_two_processes_train_and_evaluate_as_one_with_the_batches_of_both(two_processes, base_models, tmp_path, name):
    first, second = (json.loads((two_processes / f"{name}-{rank}.json").read_text()) for rank in range(2))
    assert first["losses"] == pytest.approx(second["losses"]) and first["sums"] == pytest.approx(second["sums"])
    alone = outcome(train(list(base_models), str(tmp_path), name, batch_size=4))
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first["sums"] == pytest.approx(alone["sums"], abs=1e-3)
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
