"""Arguments of the trainer: what they are by default, and that what does not go together is said at once."""

import dataclasses
from pathlib import Path

import pytest

from vistok import VisualLanguageConfig
from vistok.configuration.shipped import shipped_path
from vistok.modeling.trainable_parts import MODES
from vistok.trainer.recipe import load_recipe
from vistok.trainer.visual_language_recipe import VisualLanguageRecipe

# A study is no training: see test_study_recipe.py and test_stage_comparison.py.
STUDIES = ("study.yaml", "comparison.yaml")
FOLDERS = ("gvt", "setok", "setokim", "vtlmm")
FILES = [file for folder in FOLDERS for file in Path(shipped_path("recipes"), folder).rglob("*.yaml")]
RECIPES = sorted(file for file in FILES if file.name not in STUDIES)


def is_visual_language(path) -> bool:
    return isinstance(load_recipe(path), VisualLanguageRecipe)


def config(**options) -> VisualLanguageConfig:
    return VisualLanguageConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", **options})


def test_by_default_the_resampler_is_trained_and_nothing_else():
    assert config().trainable == {"vision": "frozen", "resampler": "full", "llm": "frozen"}
    assert config().save_trained_only and not config().augment and not config().cache_features


def test_two_configs_share_no_dictionary():
    first = config()
    first.trainable["llm"] = "full"
    assert config().trainable["llm"] == "frozen"


def test_dictionaries_are_read_from_a_command_line():
    parsed = config(trainable='{"resampler": "full", "llm": "lora"}', lora='{"r": 4}')
    assert parsed.trainable == {"resampler": "full", "llm": "lora"} and parsed.lora == {"r": 4}


def test_the_order_of_examples_is_seeded_like_everything_else():
    assert config(seed=7).data_seed == 7
    assert config(seed=7, data_seed=8).data_seed == 8


def test_every_option_is_documented_and_has_a_help_text():
    own = {field.name for field in dataclasses.fields(VisualLanguageConfig)}
    own -= {field.name for field in dataclasses.fields(VisualLanguageConfig.__bases__[0])}
    assert {"trainable", "lora", "cache_features", "augment", "conversations_per_row", "save_dtype"} <= own
    for field in dataclasses.fields(VisualLanguageConfig):
        if field.name in own:
            assert f"        {field.name} (" in VisualLanguageConfig.__doc__
            assert field.metadata["help"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove_unused_columns": True}, "remove_unused_columns must stay False"),
        ({"conversations_per_row": 0}, "conversations_per_row is 0, expected at least 1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"cache_features": True, "augment": True}, "choose one of the two"),
        ({"cache_features": True, "trainable": {"vision": "lora"}}, "needs a frozen tower, but vision is 'lora'"),
        ({"save_dtype": "bfloat15"}, "save_dtype is 'bfloat15'"),
        ({"save_dtype": "nn"}, "save_dtype is 'nn'"),
        ({"trainable": "resampler"}, "trainable is 'resampler'"),
        ({"trainable": None}, "trainable is None"),
        ({"lora": {"r": 4}}, "lora is given, but trainable adapts no part"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("path", [path for path in RECIPES if is_visual_language(path)], ids=lambda path: path.name)
def test_every_shipped_recipe_makes_valid_arguments(path, tmp_path):
    recipe = load_recipe(path, ["--training.use_cpu", "true"])
    settings = {**recipe.training, "output_dir": str(tmp_path), "report_to": "none", "deepspeed": None}
    args = recipe.arguments_class(trainable=recipe.trainable, lora=recipe.lora, **settings)
    assert set(args.trainable.values()) <= set(MODES)
    assert args.max_steps > 0 or args.num_train_epochs > 0
    assert recipe.data.train and recipe.training["output_dir"]


def test_the_recipe_of_the_paper_says_what_the_paper_says():
    recipe = load_recipe(shipped_path("recipes/gvt/instruct.yaml"))
    assert recipe.trainable == {"vision": "frozen", "resampler": "full", "llm": "frozen"}
    resampler = recipe.model.resampler
    assert (resampler["num_latents"], resampler["num_hidden_layers"]) == (32, 6)  # Section 4.1
    assert recipe.training["max_steps"] == 50_000 and recipe.training["learning_rate"] == 1e-4
    assert recipe.training["warmup_steps"] == 2000 and recipe.training["lr_scheduler_type"] == "linear"
    assert recipe.model.image_size == 224 and recipe.training["augment"] is True
