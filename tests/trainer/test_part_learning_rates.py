"""Parts learn at their own rates, and everything else as it would without."""

import copy

import pytest
import torch

from tests.trainer.tiny_training import moved, parameters, questions
from vistok import VisualLanguageConfig

BOTH = {"vision": "full", "resampler": "full", "llm": "frozen"}


def rates_of(trainer) -> dict[str, set[float]]:
    """The rates that parameters of each part are trained with, from the optimizer."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates: dict[str, set[float]] = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            part = "vision" if names[id(parameter)].startswith("model.vision_tower.") else "rest"
            rates.setdefault(part, set()).add(group["lr"])
    return rates


def test_a_part_has_its_own_rate_and_every_trained_parameter_one(model, trainer_for):
    trainer = trainer_for(model, questions(4), trainable=BOTH, learning_rate=1e-2, learning_rates={"vision": 1e-4})
    trainer.create_optimizer()
    assert rates_of(trainer) == {"vision": {1e-4}, "rest": {1e-2}}
    grouped = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_biases_and_norms_of_the_part_stay_without_weight_decay(model, trainer_for):
    trainer = trainer_for(model, questions(4), trainable=BOTH, weight_decay=0.1, learning_rates={"vision": 1e-4})
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if names[id(parameter)] in decayed else 0.0)


def test_a_step_of_plain_descent_is_scaled_by_the_rate_of_its_part(composed, trainer_for):
    change = {}
    for rate in (1e-2, 1e-3):
        model = copy.deepcopy(composed)
        before = parameters(model)
        trainer = trainer_for(
            model, questions(4), trainable=BOTH, learning_rates={"vision": rate}, optim="sgd",
            lr_scheduler_type="constant", max_steps=1, max_grad_norm=0.0, learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        change[rate] = {name: (p.detach() - before[name]) for name, p in model.named_parameters()}
        assert any(name.startswith("model.vision_tower.") for name in moved(model, before))
    for name in change[1e-2]:
        factor = 10 if name.startswith("model.vision_tower.") else 1
        torch.testing.assert_close(change[1e-2][name], factor * change[1e-3][name], atol=1e-6, rtol=1e-3)


def test_the_schedule_goes_for_all_parts(model, trainer_for):
    trainer = trainer_for(
        model, questions(4), trainable=BOTH, learning_rates={"vision": 1e-4}, lr_scheduler_type="linear", max_steps=2
    )
    trainer.create_optimizer_and_scheduler(4)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    rates = rates_of(trainer)
    assert [max(rates["vision"]), max(rates["rest"])] == pytest.approx([0.75e-4, 0.75e-2])
    assert trainer._get_learning_rate() == 0.75e-2  # what is logged


def test_a_run_with_rates_of_parts_is_resumed_as_if_it_had_not_stopped(composed, trainer_for, tmp_path):
    options = {"trainable": BOTH, "learning_rates": {"vision": 1e-3}, "save_strategy": "steps", "save_steps": 2}
    whole = copy.deepcopy(composed)
    trainer_for(whole, questions(8), max_steps=4, **options).train()
    resumed = copy.deepcopy(composed)
    trainer_for(resumed, questions(8), max_steps=4, **options).train(str(tmp_path / "run" / "checkpoint-2"))
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, dict(whole.named_parameters())[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"vision": 1e-4}, "vision, which is frozen"),
        ({"resampler": 0.0}, "learning_rates.resampler is 0.0"),
        ({"resampler": "high"}, "learning_rates.resampler is 'high'"),
        ({"resampler": True}, "learning_rates.resampler is True"),
        (1e-4, "learning_rates is 0.0001, expected a number for each part"),
    ],
)
def test_a_rate_that_goes_for_nothing_is_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        VisualLanguageConfig(output_dir="unused", use_cpu=True, report_to="none", learning_rates=rates)


def test_an_optimizer_of_the_user_and_rates_of_parts_are_one_too_many(model, trainer_for):
    trainer = trainer_for(model, questions(4), learning_rates={"resampler": 1e-4})
    trainer.optimizer = torch.optim.SGD(model.model.resampler.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="trainer's own optimizer"):
        trainer.train()


def test_trained_again_the_rates_of_parts_stay(model, trainer_for):
    trainer = trainer_for(
        model, questions(4), trainable=BOTH, learning_rate=1e-2, learning_rates={"vision": 1e-4}, max_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    for _ in range(2):
        trainer.train()
        assert rates_of(trainer) == {"vision": {1e-4}, "rest": {1e-2}}
