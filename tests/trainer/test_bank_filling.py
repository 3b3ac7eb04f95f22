"""Banks of real visual tokens: how a training fills them, once, and what it logs of choices."""

import copy

import pytest
import torch

from tests.trainer.tiny_setokim_training import (
    compose_setokim,
    save_setok_and_text,
    setokim_processor,
    task_examples,
    trainer_of,
)
from vistok import SetokimForConditionalGeneration, SetokimTrainingConfig
from vistok.modeling.trained_weights import read_trained_weights

SIZE = 9
TASKS = ("generate", "edit", None, "segment")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_setok_and_text(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def processor(bases):
    return setokim_processor(bases)


@pytest.fixture(scope="module")
def composed(bases):
    return compose_setokim(bases)


@pytest.fixture
def trainer_for(composed, processor, tmp_path):
    def make(stage="pretraining", *data, model=None, folder="run", **options):
        model = copy.deepcopy(composed) if model is None else model
        torch.manual_seed(3)
        options = {"token_bank_size": SIZE, **options}
        return trainer_of(model, processor, tmp_path / folder, stage, *data, **options)

    return make


def bank_of(trainer) -> torch.Tensor:
    return trainer.model.token_bank.tokens.detach().clone()


def test_the_bank_has_tokens_of_images_of_rows_that_the_seed_draws(trainer_for):
    data = task_examples(8, TASKS)
    trainer = trainer_for("pretraining", data, trainable={"llm": "lora"}, seed=5)
    assert not bank_of(trainer).any()
    trainer.train()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5)).tolist()
    core, tokens = trainer.model.model, []
    for index in order:
        batch = trainer._train_collator([data[index]])
        if "pixel_values" in batch:
            features = core.get_image_features(batch["pixel_values"].double())
            tokens.append(features.tokens[features.token_mask])
    torch.testing.assert_close(bank_of(trainer), torch.cat(tokens)[:SIZE])


def test_a_bank_is_filled_once_and_learned_with_the_projections(trainer_for, tmp_path):
    data = task_examples(8, TASKS)
    trainer = trainer_for("pretraining", data, data.select(range(4)), trainable={"llm": "lora"})
    trainer.train()
    bank = bank_of(trainer)
    logs = [entry["loss_choice"] for entry in trainer.state.log_history if "loss_choice" in entry]
    assert len(logs) == 2 and logs[1] != logs[0] > 0
    metrics = trainer.evaluate()
    terms = sum(metrics[f"eval_loss_{name}"] * trainer.weights[name] for name in trainer.weights)
    assert metrics["eval_loss_choice"] > 0 and metrics["eval_loss"] == pytest.approx(terms)
    assert trainer.model.token_bank.query.weight.abs().sum() > 0
    trainer.train()  # further on
    assert torch.equal(bank_of(trainer), bank)
    trainer.save_final(tmp_path / "final")
    assert {"token_bank.tokens", "token_bank.query.weight"} <= set(read_trained_weights(tmp_path / "final"))
    loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path / "final").double()
    torch.testing.assert_close(loaded.token_bank.tokens.detach(), bank)
    next_stage = trainer_for("instruction", data, model=loaded, folder="next", lora=None, token_bank_size=0)
    assert not next_stage.model.token_bank.tokens.requires_grad
    next_stage.train()
    torch.testing.assert_close(bank_of(next_stage), bank)
    assert "loss_choice" in next_stage.state.log_history[0]


def test_a_model_that_was_made_with_a_bank_gets_it_filled(composed, bases, trainer_for):
    model = compose_setokim(bases, token_bank_size=SIZE)
    trainer = trainer_for("pretraining", task_examples(8, TASKS), model=model, token_bank_size=0)
    trainer.train()
    own = trainer_for("pretraining", task_examples(8, TASKS))
    own.train()
    assert bank_of(trainer).any() and torch.equal(bank_of(trainer), bank_of(own))


def test_the_second_trainer_of_a_model_that_was_not_trained_fills_its_bank(composed, trainer_for):
    model = copy.deepcopy(composed)
    trainer_for("pretraining", task_examples(8, TASKS), model=model)
    trainer = trainer_for("pretraining", task_examples(8, TASKS), model=model)
    assert not bank_of(trainer).any()
    trainer.train()
    assert bank_of(trainer).any()


def test_the_next_stage_saves_the_bank_too(bases, trainer_for, tmp_path):
    data = task_examples(8, TASKS)
    first = trainer_for("pretraining", data, trainable={"llm": "lora"})
    first.train()
    first.save_final(tmp_path / "first")
    loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path / "first")
    second = trainer_for("instruction", data, model=loaded, folder="second", lora=None, token_bank_size=0)
    second.train()
    second.save_final(tmp_path / "second")
    saved = read_trained_weights(tmp_path / "second")
    torch.testing.assert_close(saved["token_bank.tokens"].double(), bank_of(first))


def test_a_weight_of_choices_without_a_bank_is_an_error(trainer_for):
    with pytest.raises(ValueError, match=r"choice_loss_weight is 0\.2, but the model has no bank"):
        trainer_for("pretraining", task_examples(4, TASKS), choice_loss_weight=0.2, token_bank_size=0)


def test_a_training_that_is_resumed_has_the_bank_of_its_checkpoint(trainer_for, tmp_path):
    data = task_examples(8, TASKS)
    options = {"trainable": {"llm": "lora"}, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = trainer_for("pretraining", data, folder="whole", **options)
    whole.train()
    resumed = trainer_for("pretraining", data.select(range(7, -1, -1)), folder="other", **options)
    assert not bank_of(resumed).any()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(bank_of(resumed), bank_of(whole))


def test_losses_of_a_step_are_the_same_in_one_batch_and_in_two(trainer_for):
    data = task_examples(8, TASKS)
    options = {"trainable": {"llm": "lora"}, "max_steps": 2, "train_sampling_strategy": "sequential"}
    one = trainer_for("pretraining", data, per_device_train_batch_size=4, **options)
    two = trainer_for("pretraining", data, gradient_accumulation_steps=2, **options)
    one.train()
    two.train()
    for first, second in zip(one.state.log_history[:2], two.state.log_history[:2]):
        assert first["loss_choice"] == pytest.approx(second["loss_choice"], rel=1e-6)
    torch.testing.assert_close(one.model.token_bank.query.weight, two.model.token_bank.query.weight)


def test_models_without_a_bank_log_none_of_it(trainer_for):
    trainer = trainer_for("pretraining", task_examples(4, TASKS), task_examples(4, TASKS), token_bank_size=0)
    trainer.train()
    assert trainer.model.token_bank is None and "choice" not in trainer.weights
    assert "loss_choice" not in trainer.state.log_history[0] and "eval_loss_choice" not in trainer.evaluate()


def test_images_with_fewer_tokens_than_the_bank_are_an_error_that_names_both(trainer_for):
    trainer = trainer_for("pretraining", task_examples(2, ("generate",)), token_bank_size=500)
    with pytest.raises(ValueError, match=r"token_bank_size is 500, but .* have \d+ visual tokens"):
        trainer.train()


def test_data_of_unknown_size_are_an_error(trainer_for):
    with pytest.raises(ValueError, match="token_bank_size needs data of known size"):
        trainer_for("pretraining", task_examples(4, TASKS).to_iterable_dataset())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"token_bank_size": -1}, "token_bank_size is -1"),
        ({"token_bank_size": 8, "trainable": {"projections": "frozen"}}, "token_bank_size is 8, but projections"),
        ({"choice_loss_weight": -0.5}, "choice_loss_weight is -0.5"),
    ],
)
def test_bad_options_are_errors(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        SetokimTrainingConfig(output_dir=str(tmp_path), stage="pretraining", **options)
