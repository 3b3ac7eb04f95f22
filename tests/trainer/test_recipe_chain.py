"""Recipes in a row: where each starts from, what is passed over, what goes on, and what a missing start is."""

import json
import shutil
from pathlib import Path

import pytest

from tests.hub_client import turned_to
from tests.hub_server import running_hub
from vistok.trainer.recipe_chain import load_recipes, run_recipes, split_overrides
from vistok.trainer.run_lineage import is_checkpoint, run_is_finished, weights_digest
from vistok.trainer.run_recipe import run_recipe
from vistok.trainer.visual_language_trainer import VisualLanguageTrainer


@pytest.fixture
def files(tmp_path):
    def write(*texts):
        paths = [tmp_path / f"{number}.yaml" for number in range(1, len(texts) + 1)]
        for path, text in zip(paths, texts):
            path.write_text(text)
        return paths

    return write


FIRST = "training: {output_dir: runs/first, max_steps: 5}\n"
SECOND = "model: {checkpoint: runs/first}\ntraining: {output_dir: runs/second}\n"
THIRD = "training: {output_dir: runs/third}\n"


def test_a_recipe_without_a_start_starts_from_the_folder_of_the_one_before_it(files):
    recipes = load_recipes(files(FIRST, SECOND, THIRD))
    assert [recipe.model.checkpoint for recipe in recipes] == [None, "runs/first", "runs/second"]
    assert recipes[0].model.vision == "vistok:dinov2-small"  # the first one starts from base models
    assert recipes[2].model.vision is None and recipes[2].model.text is None


def test_a_recipe_may_start_from_any_folder_that_one_before_it_leaves(files):
    fourth = "model: {checkpoint: runs/first}\ntraining: {output_dir: runs/control}\n"
    assert load_recipes(files(FIRST, SECOND, THIRD, fourth))[3].model.checkpoint == "runs/first"


def test_overrides_are_for_all_or_for_one_by_its_number(files):
    overrides = [
        "--training.seed",
        "3",
        "--2.training.seed=4",
        "--2.training.max_steps",
        "7",
        "--training.bf16",
        "true",
    ]
    first, second, third = load_recipes(files(FIRST, SECOND, THIRD), overrides)
    assert [recipe.training["seed"] for recipe in (first, second, third)] == [3, 4, 3]
    assert [recipe.training.get("max_steps") for recipe in (first, second, third)] == [5, 7, None]
    assert all(recipe.training["bf16"] for recipe in (first, second, third))


def test_a_start_follows_the_folder_that_it_names(files):
    moved = load_recipes(files(FIRST, SECOND, THIRD), ["--1.training.output_dir", "runs/elsewhere"])
    assert [recipe.model.checkpoint for recipe in moved] == [None, "runs/elsewhere", "runs/second"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--4.training.seed", "1"], "--4.training.seed is for recipe 4, but there are 3, numbered from 1"),
        (["--0.training.seed", "1"], "is for recipe 0"),
        (["--2.training.seed"], "--training.seed has no value"),
        (["--training.output_dir", "runs/one"], "1.yaml and .*2.yaml have the same output folder, runs/one"),
    ],
)
def test_what_does_not_fit_in_a_row_is_said(files, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipes(files(FIRST, SECOND, THIRD), overrides)


def test_a_value_that_looks_like_a_number_stays_with_its_override():
    of_all, (first, second) = split_overrides(["--a.b", "-2", "--1.c.d", "3", "--2.e=4"], 2)
    assert (of_all, first, second) == (["--a.b", "-2"], ["--c.d", "3"], ["--e=4"])


def test_a_missing_start_is_said_before_anything_is_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = load_recipes(files(SECOND, THIRD))
    with pytest.raises(
        FileNotFoundError, match=r"runs/second starts from runs/first, where there is no trained model"
    ):
        run_recipes(recipes)
    Path("runs/first").mkdir(parents=True)  # a run that was interrupted before its end
    with pytest.raises(FileNotFoundError, match="run the recipe that leaves it first"):
        run_recipes(recipes)
    assert not Path("runs/second").exists()


def test_one_checkpoint_is_no_start_for_several(files):
    with pytest.raises(ValueError, match="a checkpoint is that of one recipe"):
        run_recipes(load_recipes(files(FIRST, SECOND)), resume="runs/first/checkpoint-3")


class TestRuns:
    @pytest.fixture
    def row(self, base_models, tmp_path, monkeypatch, files):
        """Two stages of a tiny training."""
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        from tests.tiny import tiny_image

        lines = []
        for index in range(4):
            tiny_image(index).save(tmp_path / f"{index}.png")
            turns = [{"from": "human", "value": "<image>\na dog?"}, {"from": "gpt", "value": ("no", "yes")[index % 2]}]
            lines.append(json.dumps({"id": str(index), "image": f"{index}.png", "conversations": turns}))
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        data = {"train": [{"format": "llava", "path": str(tmp_path / "data.jsonl"), "images": str(tmp_path)}]}
        training = {"use_cpu": True, "max_steps": 2, "save_steps": 1, "report_to": "none", "disable_tqdm": True}
        training |= {"per_device_train_batch_size": 2, "learning_rate": 0.01, "logging_steps": 1}
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 10, "num_latents": 4}
        model = {"vision": base_models[0], "text": base_models[1], "resampler": sizes | {"intermediate_size": 40}}

        def recipe(name, **model):
            return json.dumps(
                {"model": model, "data": data, "training": {**training, "output_dir": str(tmp_path / name)}}
            )

        return files(recipe("first", **model), recipe("second", checkpoint=str(tmp_path / "first")))

    def test_a_recipe_pushes_at_each_save_and_at_its_end_with_all_that_it_knows(self, row, tmp_path, monkeypatch):
        repository, options = "org/pushed", ["--training.push_to_hub=true", "--training.save_trained_only=false"]
        options += [f"--training.hub_model_id={repository}", "--card.license=mit"]
        with running_hub() as hub, turned_to(hub, tmp_path / "cache", monkeypatch):
            run_recipe(load_recipes(row[:1], options)[0], command="vistok train 1.yaml")
            commits = [files for files in hub.repositories[repository].commits.values() if files]
        assert len(commits) == 3
        for files in commits:
            assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
            card = files["README.md"].content.decode()
            assert "license: mit" in card and "vistok train 1.yaml" in card and "data.jsonl" in card
            assert str(tmp_path) not in card
        assert "loss.png" in commits[-1] and "loss.png" not in commits[0]

    def test_a_recipe_whose_push_fails_says_how_to_push_what_is_saved(self, row, tmp_path, monkeypatch, caplog):
        options = ["--training.push_to_hub=true", "--training.hub_strategy=end", "--training.hub_model_id=org/pushed"]
        recipe, refused = load_recipes(row[:1], options)[0], "a folder of this machine"  # which trained weights need
        with (
            running_hub() as hub,
            turned_to(hub, tmp_path / "cache", monkeypatch),
            pytest.raises(ValueError, match=refused),
        ):
            run_recipe(recipe)
        assert f"vistok push {tmp_path / 'first'} org/pushed" in caplog.text
        assert is_checkpoint(tmp_path / "first")

    def test_the_second_goes_on_from_the_first_and_what_is_finished_is_passed_over(self, row, tmp_path, monkeypatch):
        told = []
        found = run_recipes(load_recipes(row), on_end=lambda number, results: told.append((number, results["steps"])))
        assert told == [(0, 2), (1, 2)]
        assert found[1]["started_from"] == weights_digest(tmp_path / "first") and found[0]["started_from"] is None
        assert [run["earlier"].get("licences") for run in found] == [None, [{"name": "first", "license": None}]]
        assert len(found[1]["earlier"]["data"]) == 1
        assert all(run_is_finished(recipe) for recipe in load_recipes(row))

        ran = []
        monkeypatch.setattr(
            "vistok.trainer.recipe_chain.run_recipe",
            lambda recipe, **options: (
                ran.append(Path(recipe.training["output_dir"]).name) or run_recipe(recipe, **options)
            ),
        )
        again = run_recipes(load_recipes(row))
        assert ran == [] and [results["train_seconds"] for results in again] == [r["train_seconds"] for r in found]
        # Another second stage leaves the first alone; what only tells more leaves both.
        run_recipes(load_recipes(row, ["--training.logging_steps", "2", "--card.title", "Other"]))
        assert ran == []
        run_recipes(load_recipes(row, ["--2.training.max_steps", "3"]))
        assert ran == ["second"]

    def test_a_row_that_was_killed_in_its_second_stage_ends_as_it_would_have(self, row, tmp_path, monkeypatch):
        run_recipes(load_recipes(row))
        expected = weights_digest(tmp_path / "second")
        for name in ("first", "second"):
            shutil.rmtree(tmp_path / name)
        steps, step = [], VisualLanguageTrainer.training_step

        def killed_in_the_fourth(trainer, *args, **kwargs):
            steps.append(trainer.args.output_dir)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return step(trainer, *args, **kwargs)

        monkeypatch.setattr(VisualLanguageTrainer, "training_step", killed_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run_recipes(load_recipes(row))
        assert is_checkpoint(tmp_path / "first") and not is_checkpoint(tmp_path / "second")
        found = run_recipes(load_recipes(row))
        assert [Path(folder).name for folder in steps] == ["first"] * 2 + ["second"] * 3  # one of them was taken twice
        assert found[1]["steps"] == 2 and weights_digest(tmp_path / "second") == expected

    def test_another_first_stage_makes_the_second_start_anew(self, row, tmp_path):
        run_recipes(load_recipes(row))
        before = weights_digest(tmp_path / "first")
        (changed, _) = load_recipes(row, ["--1.training.seed", "5"])
        run_recipe(changed, resume=False)
        assert weights_digest(tmp_path / "first") != before
        second = load_recipes(row)[1]
        assert not run_is_finished(second)
        with pytest.raises(ValueError, match="started_from is"):  # its checkpoints are of a run from other weights
            run_recipe(second)

    def test_an_interrupted_stage_is_not_finished_and_goes_on(self, row, tmp_path):
        first, second = load_recipes(row)
        run_recipe(first)
        run_recipe(second)
        (tmp_path / "second" / "trained_weights.safetensors").unlink()  # as if it had been killed before its end
        assert not is_checkpoint(tmp_path / "second") and not run_is_finished(second)
        found = run_recipes([first, second])
        assert found[1]["steps"] == 2 and is_checkpoint(tmp_path / "second")
