"""A recipe is read as YAML 1.2 has it, overridden field by field, and what is wrong in it is said by name."""

import pytest

from tests.trainer.test_visual_language_config import RECIPES
from vistok.trainer.recipe import load_recipe, parse_overrides, read_yaml, recipe_from_dict

TEXT = """
model:
  vision: towers/small      # a comment
  resampler: {num_latents: 16}
data:
  train:
    - {format: llava, name: first, path: a.json, images: photos}
    - {format: llava, name: second, path: b.json, images: photos, weight: 2}
training:
  learning_rate: 1e-3
  save_strategy: no
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text=TEXT, *overrides):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load_text


def test_a_recipe_is_read_and_what_it_leaves_out_has_defaults(load):
    recipe = load()
    assert recipe.model.vision == "towers/small" and recipe.model.text == "vistok:smollm2-135m"
    assert recipe.model.resampler == {"num_latents": 16}
    assert recipe.trainable == {"vision": "frozen", "resampler": "full", "llm": "frozen"}
    assert recipe.training == {"learning_rate": 0.001, "save_strategy": "no"}
    assert [source["name"] for source in recipe.data.train] == ["first", "second"]
    assert recipe.lora is None and recipe.card == {} and recipe.data.eval == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("5E+2", 500.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("10", 10),
        ("-1", -1),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("vistok:smollm2-135m", "vistok:smollm2-135m"),
        ("[a, 1e2]", ["a", 100.0]),
        ("{min_lr: 1e-5}", {"min_lr": 1e-5}),
        ("'1e-3'", "1e-3"),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    found = read_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_reading_recipes_changes_nothing_for_other_users_of_yaml():
    import yaml

    read_yaml("no", "here")
    assert yaml.safe_load("no") is False


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_says_how_to_launch_and_override_it(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Launch" in line for line in header) and any("Override" in line for line in header)
    # and stays the same when it is written and read again
    recipe = load_recipe(path)
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_fields_are_overridden_one_by_one(load):
    recipe = load(
        TEXT,
        *("--training.max_steps", "100", "--training.learning_rate=2e-4", "--data.train.1.max_samples", "64"),
        *("--model.resampler.num_latents", "8", "--training.lr_scheduler_kwargs", "{min_lr: 1e-5}"),
        *("--model.image_size=-1", "--lora.r", "4", "--trainable.llm", "lora", "--card.title", "A b"),
    )
    assert recipe.training["max_steps"] == 100 and recipe.training["learning_rate"] == 2e-4
    assert recipe.training["lr_scheduler_kwargs"] == {"min_lr": 1e-5}
    assert recipe.training["save_strategy"] == "no"
    assert [source.get("max_samples") for source in recipe.data.train] == [None, 64]
    assert recipe.model.resampler == {"num_latents": 8} and recipe.model.image_size == -1
    assert recipe.lora == {"r": 4} and recipe.card == {"title": "A b"}


def test_overriding_one_part_leaves_the_others_as_they_are_by_default(load):
    assert load(TEXT, "--trainable.llm", "lora").trainable == {"vision": "frozen", "resampler": "full", "llm": "lora"}


def test_an_override_makes_sections_that_are_absent_or_empty(load):
    assert load("training:\nmodel:\n", "--training.seed", "3").training == {"seed": 3}
    assert load("", "--training.seed", "3").training == {"seed": 3}


def test_whole_numbers_may_be_written_with_an_exponent(load):
    recipe = load(TEXT, "--training.max_steps", "1e3", "--training.save_steps", "0.5")
    assert recipe.training["max_steps"] == 1000 and isinstance(recipe.training["max_steps"], int)
    assert recipe.training["save_steps"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps", "3"], "'training.max_steps' is no override: write --section.field value"),
        (["--max_steps", "3"], "'--max_steps' is no override"),
        (["--training.max_steps"], "--training.max_steps has no value"),
        (["--training.max_steps", "--training.seed", "3"], "--training.max_steps has no value"),
        (["--training.seed", "[1"], "--training.seed is no valid YAML"),
        (["--trainin.seed", "3"], "'trainin' is no field of recipe; did you mean training"),
        (["--training.max_step", "3"], "'max_step' is no field of training; did you mean max_steps"),
        (["--model.tower", "x"], "'tower' is no field of model; it has: vision, text"),
        (["--data.sources", "x"], "'sources' is no field of data"),
        (["--data.train.2.weight", "3"], "--data.train.2.weight: data.train is a list of 2, numbered from 0"),
        (["--data.train.first.weight", "3"], "has no 'first'"),
        (["--data.train.0.weigth", "3"], "weigth"),
        (["--training.seed.x", "3"], "--training.seed.x: training.seed is"),
        (["--training.max_steps", "many"], "training.max_steps is 'many', expected int"),
        (["--training.max_steps", "1.5"], "training.max_steps is 1.5, expected int"),
        (["--training.bf16", "yes"], "training.bf16 is 'yes', expected bool"),
        (["--training.learning_rate", "small"], "training.learning_rate is 'small', expected float"),
        (["--training.trainable", "{llm: full}"], "'trainable' is a section of its own"),
        (["--data.train", "easy-vqa"], "data.train is 'easy-vqa', expected a list of data sources"),
        (["--data.train", "[easy-vqa]"], "data.train.0 is 'easy-vqa', expected fields with values"),
        (["--card.licence", "mit"], "'licence' is no field of a card"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_override_is_named(load, overrides, message):
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        load(TEXT + "  seed: 1\n", *overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: [1\n", "recipe.yaml is no valid YAML"),
        ("- a\n- b\n", r"recipe.yaml is \['a', 'b'\], expected fields with values"),
        ("model: gvt\n", "model is 'gvt', expected fields with values"),
        ("data: {train: [{path: x}]}\n", "a data source needs a format"),
        ("data: {train: [{format: llava}, {format: llava}]}\n", "Several sources of data.train are called 'llava'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(load, text, message):
    with pytest.raises(ValueError, match=message):
        load(text)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no recipe .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_last_of_two_overrides_counts():
    assert parse_overrides(["--training.seed", "1", "--training.seed=2"]) == {"training.seed": 2}
