"""Recipes of the four stages: the values of the paper, the demo, and how overrides reach what a stage trains."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import ConvNextConfig

from tests.tiny import save_base_models, tiny_image
from vistok import VTLMMProcessor
from vistok.configuration.shipped import here_or_shipped, shipped_path
from vistok.trainer.model_recipe import ModelRecipe, build_model
from vistok.trainer.recipe import load_recipe, recipe_from_dict
from vistok.trainer.recipe_chain import load_recipes
from vistok.trainer.visual_modeling_config import VisualModelingConfig

PAPER = [f"recipes/vtlmm/{name}.yaml" for name in ("alignment", "instruction", "visual_tokens", "visual_modeling")]
DEMO = [
    f"recipes/vtlmm/demo/{name}.yaml"
    for name in ("1-alignment", "2-instruction", "3-visual-tokens", "4-visual-modeling")
]
STAGES = ("alignment", "instruction", "visual_tokens", "visual_modeling")
FROZEN = {"vision": "frozen", "adapter": "frozen", "llm": "frozen", "vm_head": "frozen"}
TRAINED = ({"adapter": "full"}, {"adapter": "full", "llm": "full"}, {"vm_head": "full"}, {"llm": "full"})


@pytest.mark.parametrize("number", range(4))
def test_the_recipes_of_the_paper_say_what_the_paper_says(number):
    recipe = load_recipe(shipped_path(PAPER[number]))
    training = recipe.training
    assert training["stage"] == STAGES[number] and recipe.trainable == {**FROZEN, **TRAINED[number]}
    assert training["learning_rate"] == (1e-3, 2e-5, 1e-3, 2e-5)[number]
    assert 8 * training["per_device_train_batch_size"] == (256, 128, 256, 128)[number]  # Table 2, on 8 GPUs
    assert training["warmup_steps"] == 0.03 and training["lr_scheduler_type"] == "cosine"
    assert training["weight_decay"] == 0 and training["num_train_epochs"] == 1
    zero = json.loads(here_or_shipped(training["deepspeed"]).read_text())
    assert zero["zero_optimization"]["stage"] == (2, 3, 2, 3)[number]


@pytest.mark.parametrize("number", range(4))
def test_the_defaults_of_the_arguments_are_those_of_the_paper(number, tmp_path):
    args = VisualModelingConfig(output_dir=str(tmp_path), stage=STAGES[number], use_cpu=True, report_to="none")
    assert args.learning_rate == (1e-3, 2e-5, 1e-3, 2e-5)[number]
    assert args.trainable == {**FROZEN, **TRAINED[number]}
    assert (args.lr_scheduler_type, args.weight_decay, args.num_train_epochs) == ("cosine", 0.0, 1.0)
    assert args.get_warmup_steps(1000) == 30
    assert args.visual_loss == (None, None, "visual_tokens", "visual_modeling")[number]


@pytest.mark.parametrize("paths", [PAPER, DEMO], ids=["paper", "demo"])
def test_each_stage_starts_where_the_one_before_it_ends(paths):
    recipes = load_recipes([shipped_path(path) for path in paths])
    for before, recipe in itertools.pairwise(recipes):
        assert recipe.model.checkpoint == before.training["output_dir"] and recipe.model.kind == "vtlmm"
    moved = load_recipes([shipped_path(path) for path in paths], ["--2.training.output_dir", "runs/other"])
    assert moved[2].model.checkpoint == "runs/other" and moved[3].model.checkpoint == recipes[3].model.checkpoint


def test_what_an_override_trains_otherwise_leaves_the_rest_to_the_stage():
    path = shipped_path(PAPER[1])
    assert load_recipe(path, ["--trainable.llm", "lora"]).trainable == {**FROZEN, "adapter": "full", "llm": "lora"}
    assert load_recipe(path, ["--trainable.adapter", "frozen"]).trainable == {**FROZEN, "llm": "full"}
    with pytest.raises(ValueError, match="vm_head is to be trained"):
        load_recipe(path, ["--trainable.vm_head", "full"])
    with pytest.raises(ValueError, match="unknown stage 'two'"):
        load_recipe(path, ["--training.stage", "two"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visual_loss_weight": -1.0, "stage": "visual_modeling"}, "visual_loss_weight is -1.0"),
        ({"visual_loss_weight": float("nan"), "stage": "visual_modeling"}, "visual_loss_weight is nan"),
        ({"loss_implementation": "fast"}, "unknown loss_implementation 'fast'"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices must stay True"),
        ({"trainable": {"adapters": "full"}, "stage": "visual_tokens"}, "adapters is to be trained"),
        ({"trainable": ["adapter"]}, r"trainable is \['adapter'\]"),
        ({"max_length": 10, "stage": "visual_tokens"}, "max_length is 10, but the stage visual_tokens"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        VisualModelingConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)


def test_parts_are_read_from_a_command_line(tmp_path):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    args = VisualModelingConfig(**options, stage="instruction", trainable='{"llm": "lora"}', lora='{"r": 4}')
    assert args.trainable == {**FROZEN, "adapter": "full", "llm": "lora"} and args.lora == {"r": 4}


class TestModels:
    def recipe(self, base_models, **fields) -> ModelRecipe:
        return ModelRecipe(
            **{"kind": "vtlmm", "vision": base_models[0], "text": base_models[1], "image_size": 32, **fields}
        )

    def test_the_number_of_visual_tokens_follows_the_size_of_images(self, base_models):
        model, processor = build_model(self.recipe(base_models, adapter={"intermediate_size": 20}))
        assert processor.num_image_tokens == 16 == model.config.adapter_config.num_tokens
        assert model.model.adapter.linear_1.out_features == 20

    def test_of_a_convolutional_tower_the_stage_that_is_read_says_how_many_tokens_there_are(self, tmp_path):
        parts = save_base_models(tmp_path, ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4))
        model, processor = build_model(self.recipe(parts, image_size=64, chat_template="chatml"))
        assert processor.num_image_tokens == 16 == model.config.adapter_config.num_tokens  # every 16 pixels
        inputs = processor(images=tiny_image(1, (80, 40)), text="<image>\na dog?", return_tensors="pt")
        output = model(**inputs, visual_loss="visual_modeling")
        assert output.visual_positions.sum() == 15 and torch.isfinite(output.loss_vm)
        assert model.get_visual_tokens(inputs["pixel_values"]).grid_size == (4, 4)
        with pytest.raises(ValueError, match=r"a convolutional network \(convnext\).*give num_image_tokens"):
            VTLMMProcessor.from_vision_text_pretrained(*parts, image_size=64)
        adapter = {"model_type": "mlp_adapter_vistok", "output_size": 16}
        config = {"vision_feature_layer": -3, "vision_feature_select_strategy": "default"}
        _, processor = build_model(self.recipe(parts, kind="gvt", image_size=64, resampler=adapter, config=config))
        assert processor.num_image_tokens == 64  # every 8 pixels

    def test_each_kind_has_one_section_for_its_visual_tokenizer(self, base_models):
        with pytest.raises(ValueError, match=r"model\.resampler is none of vtlmm.*model\.adapter"):
            self.recipe(base_models, resampler={"num_latents": 4})
        with pytest.raises(ValueError, match=r"model\.adapter is none of gvt"):
            ModelRecipe(adapter={"intermediate_size": 4})
        with pytest.raises(ValueError, match="'llava' is no kind of model"):
            ModelRecipe(kind="llava")

    def test_a_checkpoint_keeps_what_it_is_and_switches_what_it_reads(self, base_models, tmp_path):
        torch.manual_seed(0)
        model, processor = build_model(self.recipe(base_models, chat_template="plain"))
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        start = {"kind": "vtlmm", "checkpoint": str(tmp_path)}
        loaded, its_processor = build_model(
            ModelRecipe(**start, config={"pseudo_image_features": True}, chat_template="vicuna", image_size=32)
        )
        assert loaded.config.pseudo_image_features and not model.config.pseudo_image_features
        assert "curious user" in its_processor.chat_template  # that of LLaVA-1.5
        with pytest.raises(ValueError, match=r"model\.image_size is 48, but .* has 32"):
            build_model(ModelRecipe(**start, image_size=48))
        with pytest.raises(ValueError, match=r"model.config.vm_head_rank is 3, but .* has None"):
            build_model(ModelRecipe(**start, config={"vm_head_rank": 3}))

    def test_a_missing_checkpoint_is_named_with_what_leaves_it(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"which is not here: run the recipe that leaves this folder first"
        ):
            build_model(ModelRecipe(kind="vtlmm", checkpoint=str(tmp_path / "a" / "absent")))


def test_settings_of_deepspeed_are_found_from_anywhere(tmp_path, monkeypatch):
    recipe = recipe_from_dict(
        {"trainer": "visual-modeling", "training": {"deepspeed": "recipes/deepspeed/zero3.json"}}
    )
    monkeypatch.chdir(tmp_path)
    assert json.loads(Path(recipe._arguments()["deepspeed"]).read_text())["zero_optimization"]["stage"] == 3
