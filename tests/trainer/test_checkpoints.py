"""A training that was killed goes on as if it had not been, from the last checkpoint that was written to its end."""

import copy
import json
import shutil

import pytest
import torch

from tests.trainer.tiny_training import largest_difference, losses, moved, parameters, questions
from vistok.modeling.trained_weights import CheckpointError
from vistok.trainer.checkpoints import check_checkpoint, last_complete_checkpoint
from vistok.trainer.visual_language_trainer import VisualLanguageTrainer

LORA = {"trainable": {"vision": "frozen", "resampler": "full", "llm": "lora"}, "lora": {"lora_dropout": 0.3}}
TOLERANCE = 1e-5  # rounding, which differs with the alignment of memory


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(monkeypatch, step: int) -> None:
    """The process dies in the step after this one."""
    training_step = VisualLanguageTrainer.training_step

    def mortal(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(VisualLanguageTrainer, "training_step", mortal)


@pytest.fixture
def interrupted(model, trainer_for, tmp_path, monkeypatch):
    """Trains once in one go, and once killed and resumed with nothing left but the disk; returns both trainers."""

    def train(data, steps=6, saved=3, killed=4, **options):
        options = {"max_steps": steps, **options}
        torch.manual_seed(5)
        whole = trainer_for(copy.deepcopy(model), data(), output_dir=str(tmp_path / "whole"), **options)
        whole.train()
        options |= {"save_strategy": "steps", "save_steps": saved, "output_dir": str(tmp_path / "killed")}
        with monkeypatch.context() as context:
            kill_after(context, killed)
            torch.manual_seed(5)
            with pytest.raises(Killed):
                trainer_for(copy.deepcopy(model), data(), **options).train()
        torch.manual_seed(99)
        resumed = trainer_for(copy.deepcopy(model), data(), **options)
        resumed.train(resume_from_checkpoint="auto")
        return whole, resumed

    return train


@pytest.mark.parametrize(
    ("num_questions", "options"),
    [
        (16, {}),
        (6, {}),  # the checkpoint is the end of an epoch
        (8, {}),  # the second epoch begins behind it
        (16, {"logging_steps": 2}),  # the checkpoint is between two losses that are logged
        (14, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}),
        (16, {"conversations_per_row": 3}),
        (16, {"cache_features": True}),
        (10, {"augment": True}),
        (16, {"augment": True, "dataloader_num_workers": 1}),
        (16, {"save_trained_only": False}),
        (16, LORA),
        (16, {**LORA, "save_trained_only": False}),
        (16, {"trainable": {"vision": "full", "resampler": "lora", "llm": "full"}}),
    ],
    ids=str,
)
def test_a_killed_training_goes_on_exactly(interrupted, tmp_path, num_questions, options):
    if options.get("cache_features"):
        options = {**options, "feature_cache_dir": str(tmp_path / "features")}
    whole, resumed = interrupted(lambda: questions(num_questions, per_image=4), **options)
    assert resumed.state.global_step == 6
    assert losses(resumed) == pytest.approx(losses(whole), abs=TOLERANCE)
    assert largest_difference(parameters(resumed.model), parameters(whole.model)) < 20 * TOLERANCE
    told = resumed.state.log_history[-1]["train_loss"]
    assert told == pytest.approx(losses(resumed)[-1], rel=0.2), "the mean of its own steps, not with what was restored"


@pytest.mark.parametrize("num_questions", [20, 3])
def test_a_killed_training_on_a_stream_goes_on_exactly_also_behind_the_first_pass(interrupted, num_questions):
    def stream():
        return questions(num_questions).to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=3)

    whole, resumed = interrupted(stream, augment=True)
    assert losses(resumed) == pytest.approx(losses(whole), abs=TOLERANCE)
    assert largest_difference(parameters(resumed.model), parameters(whole.model)) < 20 * TOLERANCE


def test_freezing_is_restored_on_resuming(model, trainer_for):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = trainer_for(copy.deepcopy(model), questions(8), **options)
    trainer.train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    resumed = trainer_for(model, questions(8), **options)
    before = parameters(model)
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert moved(model, before) == {n for n, _ in model.named_parameters() if "resampler" in n or "projector" in n}


@pytest.fixture
def run(model, trainer_for):
    """A finished run of six steps with checkpoints of steps 2, 4 and 6."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    trainer = trainer_for(copy.deepcopy(model), questions(16), **options)
    trainer.train()

    def again(**changed):
        return trainer_for(copy.deepcopy(model), questions(16), **{**options, **changed})

    again.folder, again.trainer = trainer.args.output_dir, trainer
    return again


def test_a_finished_run_takes_no_further_step(run):
    resumed = run()
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == 6
    assert losses(resumed) == losses(run.trainer)
    assert largest_difference(parameters(resumed.model), parameters(run.trainer.model)) == 0


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


BREAKAGES = {
    "trainer_state.json absent": lambda folder: (folder / "trainer_state.json").unlink(),
    "trainer_state.json": lambda folder: truncate(folder / "trainer_state.json"),
    "trained_weights.safetensors": lambda folder: truncate(folder / "trained_weights.safetensors", 0.9),
    "trained_weights.safetensors header": lambda folder: truncate(folder / "trained_weights.safetensors", 0.01),
    "holds no weights": lambda folder: (folder / "trained_weights.safetensors").unlink(),
    "optimizer.pt": lambda folder: truncate(folder / "optimizer.pt"),
    "rng_state.pth": lambda folder: truncate(folder / "rng_state.pth", 0.0),
    "optimizer.pt absent": lambda folder: (folder / "optimizer.pt").unlink(),
    "scheduler.pt absent": lambda folder: (folder / "scheduler.pt").unlink(),
    "rng_state.pth absent": lambda folder: (folder / "rng_state.pth").unlink(),
    "save_only_model": lambda folder: [path.unlink() for path in (*folder.glob("*.pt"), *folder.glob("*.pth"))],
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_half_written_checkpoint_is_passed_over_with_a_warning(run, breakage, tmp_path, caplog, monkeypatch):
    from pathlib import Path

    broken = Path(run.folder, "checkpoint-6")
    BREAKAGES[breakage](broken)
    with pytest.raises(CheckpointError, match=breakage.split()[0]) as error:
        check_checkpoint(broken)
    assert "checkpoint-6" in str(error.value)
    with caplog.at_level("WARNING", logger="vistok"):
        assert last_complete_checkpoint(run.folder) == f"{run.folder}/checkpoint-4"
    assert "Passing over a checkpoint" in caplog.text


def test_resuming_from_a_half_written_checkpoint_is_one_clear_error(run):
    from pathlib import Path

    folder = Path(run.folder, "checkpoint-6")
    truncate(folder / "trained_weights.safetensors")
    trainer = run()
    before = parameters(trainer.model)
    with pytest.raises(CheckpointError, match=r"checkpoint-6/trained_weights\.safetensors \(\d+ bytes\) is truncated"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert largest_difference(parameters(trainer.model), before) == 0
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert losses(trainer) == pytest.approx(losses(run.trainer), abs=TOLERANCE)


def test_a_checkpoint_of_all_weights_in_shards_is_checked_shard_by_shard(model, tmp_path):
    folder = tmp_path / "checkpoint-1"
    model.save_pretrained(folder, max_shard_size="50KB")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)
    assert check_checkpoint(folder).global_step == 1
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[-1].name} .absent. is truncated or damaged"):
        check_checkpoint(folder)


@pytest.mark.parametrize("of_its_own", ["global_step1", "pytorch_model_fsdp_0", "optimizer_0"])
def test_a_checkpoint_of_deepspeed_or_fsdp_keeps_the_rest_in_files_of_its_own(model, tmp_path, of_its_own):
    model.save_pretrained(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    with pytest.raises(CheckpointError, match=r"holds weights without optimizer\.pt, scheduler\.pt, rng_state\.pth"):
        check_checkpoint(tmp_path)
    (tmp_path / of_its_own).mkdir()
    assert check_checkpoint(tmp_path).global_step == 1


def test_where_nothing_but_the_model_was_saved_a_training_starts_anew_and_says_why(model, trainer_for, caplog):
    options = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    trainer_for(copy.deepcopy(model), questions(4), max_steps=2, **options).train()
    again = trainer_for(model, questions(4), max_steps=1, **options)
    with caplog.at_level("WARNING", logger="vistok"):
        again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 1
    assert "checkpoint-2 holds weights without optimizer.pt" in caplog.text and "save_only_model off" in caplog.text


def test_without_a_complete_checkpoint_training_starts_anew_or_says_so(run, tmp_path):
    shutil.rmtree(run.folder)
    assert last_complete_checkpoint(run.folder) is None
    with pytest.raises(ValueError, match="There is no complete checkpoint in"):
        run().train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*/elsewhere"):
        run().train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    trainer = run(max_steps=1)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1


def test_a_checkpoint_of_another_training_is_refused(run):
    trainer = run(trainable={"vision": "frozen", "resampler": "full", "llm": "lora"})
    with pytest.raises(CheckpointError, match=r"lora_A.* is missing.*with the model and the `trainable` of that run"):
        trainer.train(resume_from_checkpoint=f"{run.folder}/checkpoint-4")


def test_the_best_checkpoint_is_loaded_at_the_end_if_asked_for(model, trainer_for):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 3.0}  # gets worse
    trainer = trainer_for(model, questions(6), questions(3), **options)
    trainer.train()
    history = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(set(history)) == 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(history), rel=1e-4)
