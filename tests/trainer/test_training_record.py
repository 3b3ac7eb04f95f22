"""A checkpoint knows the recipe of its run, which goes on with no other, and the time that all its sessions took."""

import copy
import json

import pytest

from tests.trainer.tiny_training import questions
from vistok import VisualLanguageTrainer
from vistok.trainer.recipe import recipe_from_dict
from vistok.trainer.training_record import TrainingRecord, check_same_recipe, seconds_trained

RECIPE = {
    "model": {"vision": "towers/small", "resampler": {"num_latents": 16}},
    "data": {"train": [{"format": "llava", "path": "a.json", "images": "photos"}]},
    "training": {"learning_rate": 1e-3, "max_steps": 10, "save_steps": 5, "save_dtype": "bfloat16"},
    "card": {"title": "Tiny"},
}


def recipe(**sections) -> dict:
    """The recipe with some fields of its sections changed."""
    changed = {name: {**RECIPE.get(name, {}), **fields} for name, fields in sections.items()}
    return recipe_from_dict(copy.deepcopy({**RECIPE, **changed})).to_dict()


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run with this recipe, as far as its state goes."""
    callbacks = {"TrainingRecord": TrainingRecord(recipe(), seconds=30.0).state()}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 5, "stateful_callbacks": callbacks}))
    return tmp_path


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"learning_rate": 0.1}}, r"training\.learning_rate is 0\.1 and was 0\.001\."),
        ({"training": {"weight_decay": 0.5}}, r"training\.weight_decay is 0\.5 and was not set\."),
        (
            {"training": {"seed": 1, "learning_rate": 0.1}},
            r"learning_rate is 0\.1 .*; training\.seed is 1 and was",
        ),
        ({"model": {"vision": None, "checkpoint": "first"}}, r"model\.vision is not set and was 'towers/small'"),
        ({"training": {"save_dtype": "float32"}}, r"training\.save_dtype is 'float32' and was 'bfloat16'"),
        ({"training": {"dataloader_drop_last": True}}, r"training\.dataloader_drop_last is True"),
        ({"data": {"train": [{"format": "llava", "path": "b.json"}]}}, r"data\.train\.0\.path is 'b.json' and was 'a"),
        ({"model": {"resampler": {"num_latents": 8}}}, r"model\.resampler\.num_latents is 8 and was 16"),
        ({"trainable": {"vision": "full"}}, r"trainable\.vision is 'full' and was 'frozen'"),
    ],
    ids=str,
)
def test_a_run_goes_on_with_no_other_recipe(checkpoint, sections, message):
    with pytest.raises(ValueError, match=message) as error:
        check_same_recipe(checkpoint, recipe(**sections))
    assert str(checkpoint) in str(error.value) and "--resume never" in str(error.value)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"max_steps": 20, "num_train_epochs": 2.0}},
        {"training": {"save_steps": 1, "save_total_limit": 1, "logging_steps": 1, "eval_strategy": "steps"}},
        {"training": {"disable_tqdm": True, "report_to": "none", "output_dir": "elsewhere", "feature_cache_dir": "c"}},
        {"training": {"dataloader_num_workers": 2, "per_device_eval_batch_size": 7, "gradient_checkpointing": True}},
        {"lora": {}},
        {"card": {"title": "Another"}},
    ],
    ids=str,
)
def test_how_far_a_run_goes_and_what_it_saves_and_logs_may_change(checkpoint, sections):
    check_same_recipe(checkpoint, recipe(**sections))


def test_what_is_measured_after_the_training_may_change(tmp_path):
    before = {"trainer": "feature-distillation", "training": {"seed": 1}, "probe": {"k": 0}}
    # As former versions noted it, with the probe.
    noted = {"TrainingRecord": {"args": {"recipe": before, "seconds": 1.0}}}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 5, "stateful_callbacks": noted}))
    check_same_recipe(tmp_path, {**before, "probe": {"k": 20}})
    check_same_recipe(tmp_path, {**before, "probe": None})
    with pytest.raises(ValueError, match=r"training\.seed is 2 and was 1"):
        check_same_recipe(tmp_path, {**before, "training": {"seed": 2}})
    assert "probe" not in TrainingRecord(before).recipe


def test_no_key_to_a_hub_is_noted():
    assert "planted" not in json.dumps(TrainingRecord(recipe(training={"hub_token": "planted"})).state())


def test_a_run_that_was_begun_without_a_record_goes_on_and_has_one_from_then_on(model, trainer_for):
    options = {"save_strategy": "steps", "save_steps": 1}
    first = trainer_for(copy.deepcopy(model), questions(8), max_steps=1, **options)
    first.train()
    folder = f"{first.args.output_dir}/checkpoint-"
    check_same_recipe(f"{folder}1", recipe())
    second = trainer_for(model, questions(8), max_steps=2, callbacks=[TrainingRecord(recipe())], **options)
    second.train(resume_from_checkpoint="auto")
    assert second.state.global_step == 2 and seconds_trained(second.state) > 0
    with pytest.raises(ValueError, match="learning_rate"):
        check_same_recipe(f"{folder}2", recipe(training={"learning_rate": 0.1}))


@pytest.mark.parametrize("restore", [False, True])
def test_the_time_of_all_sessions_is_counted_once(model, trainer_for, monkeypatch, restore):
    clock, training_step = [100.0], VisualLanguageTrainer.training_step

    def slow(self, *args, **kwargs):
        clock[0] += 10
        return training_step(self, *args, **kwargs)

    def session(steps):
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps}
        options |= {"restore_callback_states_from_checkpoint": restore, "callbacks": [TrainingRecord(recipe())]}
        trainer = trainer_for(copy.deepcopy(model), questions(8), **options)
        clock[0] += 1000  # what lies between two sessions
        trainer.train(resume_from_checkpoint="auto")
        return seconds_trained(trainer.state)

    monkeypatch.setattr("vistok.trainer.training_record.perf_counter", lambda: clock[0])
    monkeypatch.setattr(VisualLanguageTrainer, "training_step", slow)
    assert [session(2), session(3), session(3)] == [20, 30, 30]
