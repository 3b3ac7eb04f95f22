"""The script that users copy runs through all four stages: each trains its part and leaves a folder for the next."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_image
from tests.trainer.tiny_training import largest_difference, moved, parameters
from vistok import VTLMMForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_vtlmm.py"


@pytest.fixture
def example(monkeypatch):
    specification = importlib.util.spec_from_file_location("finetune_vtlmm", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    trainers = []

    class Watched(module.StageTrainer):
        def train(self, *args, **kwargs):
            trainers.append((self, parameters(self.model)))
            return super().train(*args, **kwargs)

    def run(*arguments):
        monkeypatch.setattr(module, "StageTrainer", Watched)
        monkeypatch.setattr(sys, "argv", ["finetune_vtlmm.py", *map(str, arguments)])
        module.main()
        return trainers[-1]

    run.stages = module.STAGES
    return run


def test_the_example_trains_all_stages_one_after_another(example, base_models, tmp_path, capsys):
    lines = []
    for index in range(4):
        tiny_image(index).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]
        lines.append(json.dumps({"id": str(index), "image": f"{index}.png", "conversations": turns}))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    data = ("--data", "llava", "--path", tmp_path / "mine.jsonl", "--images", tmp_path, "--max_steps", 2)
    start = ("--vision", base_models[0], "--text", base_models[1], "--image_size", 24)
    for stage, (trained, _) in example.stages.items():
        folder = tmp_path / stage
        trainer, before = example("--stage", stage, *start, *data, "--batch_size", 2, "--output_dir", folder)
        assert " | " in capsys.readouterr().out
        (logged,) = [entry for entry in trainer.state.log_history if "train_loss" in entry]
        assert math.isfinite(logged["train_loss"]) and logged["train_loss"] > 0
        assert moved(trainer.model, before) == {name for name in before if name.startswith(trained)}
        # What was saved is all that was trained so far, and the rest is loaded from the base models.
        loaded = VTLMMForCausalLM.from_pretrained(folder)
        assert largest_difference(parameters(loaded), parameters(trainer.model)) < 0.01  # rounded where it is frozen
        start = ("--model", folder)


def test_the_example_is_short_enough_to_read():
    assert len(EXAMPLE.read_text().splitlines()) <= 120
