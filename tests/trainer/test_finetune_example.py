"""The script that users copy runs as it stands: it trains, saves a folder that loads, and answers."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_image
from tests.trainer.tiny_training import largest_difference, moved, parameters
from vistok import GVTForConditionalGeneration

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_gvt.py"


@pytest.fixture
def example(monkeypatch):
    specification = importlib.util.spec_from_file_location("finetune_gvt", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    trainers = []

    class Watched(module.Trainer):
        def train(self, *args, **kwargs):
            trainers.append((self, parameters(self.model)))
            return super().train(*args, **kwargs)

    def run(*arguments):
        monkeypatch.setattr(module, "Trainer", Watched)
        monkeypatch.setattr(sys, "argv", ["finetune_gvt.py", *map(str, arguments)])
        module.main()
        ((trainer, before),) = trainers
        return trainer, before

    return run


@pytest.mark.parametrize("question", ["<image>\nhow many?", "how many?\n<image>", "<image><image>\nthe same?"])
def test_the_example_fine_tunes_on_ones_own_data(example, base_models, tmp_path, capsys, question):
    tiny_image(0).save(tmp_path / "a.png")
    conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": "two"}]
    image = ["a.png"] * question.count("<image>")
    rows = [{"id": index, "image": image, "conversations": conversation} for index in range(4)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    trainer, before = example(
        *("--vision", base_models[0], "--text", base_models[1], "--output_dir", tmp_path / "out"),
        *("--data", "llava", "--path", tmp_path / "mine.json", "--images", tmp_path, "--max_samples", 3),
        *("--max_steps", 2, "--batch_size", 2, "--image_size", 24, "--num_latents", 4),
    )
    words = question.replace("<image>", "").strip()
    assert f"{words} →" in capsys.readouterr().out
    model = GVTForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.model.resampler.latents.shape == (4, 384)
    (logged,) = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    assert math.isfinite(logged["train_loss"]) and logged["train_loss"] > 0
    assert moved(trainer.model, before) == {
        name for name in before if name.startswith(("model.resampler.", "model.projector."))
    }
    # What was saved is what was trained, and the rest is loaded from the models that it started from.
    assert largest_difference(parameters(model), parameters(trainer.model)) == 0


def test_the_example_is_short_enough_to_read():
    assert len(EXAMPLE.read_text().splitlines()) < 100
