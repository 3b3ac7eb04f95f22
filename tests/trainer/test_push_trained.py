"""What was trained is published by its trainer, with its card."""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

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


def test_a_second_run_in_a_folder_is_pushed_with_its_own_results(model, trainer_for, hub):
    for steps in (1, 2):
        trainer = trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=False, max_steps=steps)
        trainer.train()
        trainer.push_to_hub()
    assert json.loads(hub.files(REPO)["results.json"])["steps"] == 2
    trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=False).push_to_hub()  # not trained anew
    assert json.loads(hub.files(REPO)["results.json"])["steps"] == 2


def test_a_card_without_a_recipe_names_base_models_of_all_weights(model, trainer_for, hub):
    model.config.base_models = {"vision": "vistok:dinov2-small", "text": "org/text"}
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=False)
    trainer.train()
    trainer.push_to_hub()
    files = hub.files(REPO)
    assert json.loads(files["config.json"])["base_models"] is None
    assert {"facebook/dinov2-small", "org/text"} == set(ModelCard(files["README.md"].decode()).data.base_model)


def test_trained_weights_on_base_models_of_this_machine_are_not_pushed_alone(model, trainer_for, hub):
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, save_trained_only=True)
    with pytest.raises(ValueError, match="a folder of this machine"):
        trainer.push_to_hub()
    assert REPO not in hub.repositories


def test_a_repository_has_to_be_named(model, trainer_for):
    with pytest.raises(ValueError, match="hub_model_id is None"):
        trainer_for(model, questions(4)).push_to_hub()


def test_each_save_of_a_training_pushes_the_model_with_a_card_and_nothing_pickled(
    model, trainer_for, hub, monkeypatch
):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, push_to_hub=True, save_trained_only=False, **saves)
    trainer.train()
    repository = hub.repositories[REPO]
    commits = [files for files in repository.commits.values() if "model.safetensors" in files]
    assert len(commits) == 2 and commits[0]["model.safetensors"].content != commits[1]["model.safetensors"].content
    for files in commits:
        assert {"README.md", "results.json", "vistok_classes.py"} <= set(files)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    assert not (Path(trainer.args.output_dir) / "README.md").exists()
    loaded = GVTForConditionalGeneration.from_pretrained(REPO)
    assert all(loaded.state_dict()[name].equal(weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"trainable": {"resampler": "full", "llm": "lora"}, "lora": {"r": 2}}])
def test_pushing_changes_nothing_of_a_training(model, trainer_for, hub, options):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_trained_only": False, **options}
    trained = []
    for push in ({}, {"push_to_hub": True, "hub_model_id": REPO}):
        torch.manual_seed(1)  # of new adapters
        trainer = trainer_for(copy.deepcopy(model), questions(6), **saves, **push)
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert trained[0].keys() == trained[1].keys()
    assert all(weight.equal(trained[1][name]) for name, weight in trained[0].items())


def test_a_hub_that_goes_away_costs_no_training(model, trainer_for, hub, caplog):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = trainer_for(model, questions(4), hub_model_id=REPO, push_to_hub=True, save_trained_only=False, **saves)
    hub.faults.cut_uploads, hub.faults.cut_uploads_after = 100, 1000
    trainer.train()
    assert trainer.state.global_step == 2
    assert caplog.text.count("Training goes on, and pushes again at the next save") == 2
    assert not any("model.safetensors" in files for files in hub.repositories[REPO].commits.values())


def test_at_the_end_alone_nothing_is_pushed_before(model, trainer_for, hub):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_strategy": "end"}
    trainer_for(model, questions(4), hub_model_id=REPO, push_to_hub=True, save_trained_only=False, **saves).train()
    assert not any("model.safetensors" in files for files in hub.repositories[REPO].commits.values())


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_pushed(model, trainer_for, strategy):
    with pytest.raises(ValueError, match=f"hub_strategy is '{strategy}'.*Choose 'every_save'"):
        trainer_for(model, questions(4), hub_model_id=REPO, push_to_hub=True, hub_strategy=strategy)
