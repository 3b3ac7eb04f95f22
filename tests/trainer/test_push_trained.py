"""What was trained is published by its trainer, with its card."""

import json

import pytest

from tests.hub_client import turned_to
from tests.hub_server import TOKEN, running_hub
from tests.trainer.tiny_training import questions
from vistok import GVTForConditionalGeneration

REPO = "org/gvt-trained"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as server, turned_to(server, tmp_path / "cache", monkeypatch):
        yield server


def test_a_trainer_pushes_what_it_trained_with_a_card_of_its_run(model, trainer_for, hub, monkeypatch):
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=False, learning_rate=0.0123)
    trainer.train()
    pushed = trainer.push_to_hub()
    files = hub.files(REPO)
    assert pushed.url.endswith(REPO)
    assert {"model.safetensors", "README.md", "results.json", "processor_config.json", "vistok_classes.py"} <= set(
        files
    )
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    card = files["README.md"].decode()
    assert "| learning_rate | 0.0123 |" in card and "| steps | 2 |" in card
    assert json.loads(files["results.json"])["steps"] == 2
    assert all(TOKEN.encode() not in content for content in files.values())
    loaded = GVTForConditionalGeneration.from_pretrained(REPO)
    for name, weight in trainer.model.state_dict().items():
        assert loaded.state_dict()[name].equal(weight), name


def test_trained_weights_on_base_models_of_this_machine_are_not_pushed_alone(model, trainer_for, hub):
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=True)
    with pytest.raises(ValueError, match="a folder of this machine"):
        trainer.push_to_hub()
    assert REPO not in hub.repositories


def test_a_repository_has_to_be_named(model, trainer_for):
    with pytest.raises(ValueError, match="hub_model_id is None"):
        trainer_for(model, questions(4)).push_to_hub()
