"""Training beside quantised weights: by recipes and by trainers, resumed, merged, and refused where it cannot be."""

import copy
import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import calls, tiny_image
from tests.tiny_adapted import (
    ADAPTED,
    LLM,
    RESAMPLER,
    TOWER,
    adapted_inputs,
    compose_kind,
    largest,
    quantization,
    save_wide_base_models,
)
from tests.trainer.tiny_training import ANSWERS, QUESTIONS, losses, moved, parameters, questions
from vistok import GVTForConditionalGeneration, GVTProcessor
from vistok.modeling.quantized_weights import is_quantized
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME
from vistok.trainer.freezing import count_parameters
from vistok.trainer.model_recipe import ModelRecipe, build_model
from vistok.trainer.recipe import recipe_from_dict
from vistok.trainer.run_recipe import run_recipe

LORA = {"r": 2, "lora_dropout": 0.0}
QLORA = {"vision": "lora", "resampler": "full", "llm": "lora"}
IN_FULL = ("model.resampler.", "model.projector.")


@pytest.fixture(scope="module")
def wide_base_models(tmp_path_factory):
    return save_wide_base_models(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def processor(wide_base_models):
    return GVTProcessor.from_vision_text_pretrained(*wide_base_models, num_image_tokens=3)


@pytest.fixture(scope="module", params=["int8", "nf4"])
def composed(request, wide_base_models):
    return compose_kind("gvt", wide_base_models, quantization_config=quantization(request.param))


@pytest.fixture
def model(composed):
    return copy.deepcopy(composed)


def test_a_projection_is_aligned_beside_quantised_weights_that_stay_where_they_are(model, trainer_for, monkeypatch):
    trainer = trainer_for(model, questions(6), alignment_examples=6, trainable=QLORA, lora=LORA)
    before, moves = parameters(model), calls(monkeypatch, type(model), "to")
    trainer._align()
    assert moved(model, before) == {"model.projector.weight", "model.projector.bias"}
    assert not moves


def test_a_step_of_qlora_changes_adapters_and_what_is_trained_in_full_and_nothing_else(model, trainer_for):
    before = parameters(model)
    trainer_for(
        model, questions(4), questions(3), trainable=QLORA, lora=LORA, eval_strategy="steps", eval_steps=1
    ).train()
    changed = moved(model, {name.replace(".base_layer.", "."): value for name, value in before.items()})
    new_names = {name for name in changed if ".base_layer." in name}  # the same weights, called otherwise
    for name in new_names:
        assert torch.equal(model.get_parameter(name), before[name.replace(".base_layer.", ".")])
    changed -= new_names
    assert all(".lora_" in name or name.startswith(IN_FULL) for name in changed)
    for part in (TOWER, LLM, *IN_FULL):
        assert any(name.startswith(part) for name in changed), part
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_visual_tokenizer_learns_before_a_quantised_model_without_adapters(model, trainer_for):
    before = parameters(model)
    trainer = trainer_for(model, questions(4), questions(3), eval_strategy="steps", eval_steps=1, learning_rate=0.05)
    trainer.train()
    changed = moved(model, before)
    assert changed and all(name.startswith(IN_FULL) for name in changed)
    assert model.is_quantized


def test_quantised_training_resumes_as_if_it_had_not_been_interrupted(composed, trainer_for, tmp_path):
    def trainer(folder, max_steps):
        options = {"trainable": QLORA, "lora": LORA, "save_strategy": "steps", "save_steps": 2}
        return trainer_for(
            copy.deepcopy(composed), questions(6), max_steps=max_steps, output_dir=str(tmp_path / folder), **options,
            lr_scheduler_type="constant", warmup_steps=0,
        )  # fmt: skip

    torch.manual_seed(0)
    whole = trainer("whole", 4)
    whole.train()
    torch.manual_seed(0)
    trainer("interrupted", 2).train()
    again = trainer("interrupted", 4)
    again.train(resume_from_checkpoint=True)
    assert losses(again)[-2:] == pytest.approx(losses(whole)[-2:], rel=1e-5)
    trained = {name: p for name, p in whole.model.named_parameters() if p.requires_grad}
    for name, parameter in again.model.named_parameters():
        if name in trained:
            assert torch.allclose(parameter, trained[name], atol=1e-6), name


def test_everything_that_quantised_training_saves_at_its_end_is_plain(model, trainer_for, tmp_path):
    trainer = trainer_for(model, questions(4), trainable=QLORA, lora=LORA, save_trained_only=False)
    trainer.train()
    trainer.save_final(tmp_path / "whole")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert not any(is_quantized(module) for module in loaded.modules())
    inputs = adapted_inputs(model)
    assert largest(loaded(**inputs).logits, model.train()(**inputs).logits) < 1e-4


# Recipes


OF_KIND = {
    "gvt": ({"kind": "gvt", "resampler": RESAMPLER}, {}, QLORA),
    "vtlmm": (
        {"kind": "vtlmm", "adapter": {"intermediate_size": 40}, "chat_template": "question-answer"},
        {"stage": "instruction"},
        {"vision": "lora", "llm": "lora"},
    ),
    "setok_llava": (
        {"kind": "setok_llava", "setok": ADAPTED["setok_llava"].fields, "image_size": 24},
        {},
        {"vision": "lora", "projector": "full", "llm": "lora"},
    ),
    "setokim": (
        {"kind": "setokim", "config": ADAPTED["setokim"].fields, "chat_template": "chatml"},
        {"stage": "instruction", "sample_steps": 0},
        {},  # the stage adapts the language model, and leaves SeTok as it is
    ),
}
TRAINERS = {"vtlmm": "visual-modeling", "setokim": "setokim"}


@pytest.fixture
def recipe_of(wide_base_models, tmp_path, monkeypatch):
    """Makes a recipe of QLoRA on a few questions about images in a folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = []
    for index in range(4):
        tiny_image(index).save(tmp_path / f"{index}.png")
        turns = zip(("human", "gpt"), (f"<image>\n{QUESTIONS[index % 3]}", ANSWERS[index]))
        conversation = [{"from": role, "value": text} for role, text in turns]
        lines.append(json.dumps({"id": str(index), "image": f"{index}.png", "conversations": conversation}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))

    def make(kind: str, **fields):
        own, arguments, trainable = OF_KIND[kind]
        vision, text = wide_base_models
        values = {
            "trainer": TRAINERS.get(kind, "visual-language"),
            "model": {"vision": vision, "text": text, "dtype": "float32", **own, **fields},
            "trainable": trainable,
            "lora": LORA,
            "data": {
                "train": [{"format": "llava", "path": str(tmp_path / "questions.jsonl"), "images": str(tmp_path)}]
            },
        }
        arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no", **arguments}
        arguments |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 2}
        return recipe_from_dict({**values, "training": arguments})

    return make


@pytest.mark.parametrize(("kind", "switch"), [*((kind, "load_in_4bit") for kind in OF_KIND), ("gvt", "load_in_8bit")])
def test_a_recipe_with_a_switch_does_qlora(kind, switch, recipe_of, tmp_path):
    recipe = recipe_of(kind, **{switch: True})
    run_recipe(recipe)
    trained = load_file(tmp_path / "run" / TRAINED_WEIGHTS_NAME)
    for part in (LLM, *([] if kind == "setokim" else [ADAPTED[kind].tower])):
        assert any(name.startswith(part) and ".lora_" in name for name in trained)
    assert all(".lora_" in name for name in trained if name.startswith((ADAPTED[kind].tower, LLM)))
    loaded = ADAPTED[kind].model_class.from_pretrained(tmp_path / "run")
    assert not any(is_quantized(module) for module in loaded.modules())
    assert any(".lora_" in name for name, _ in loaded.named_parameters())
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"vision tower and language model, in {4 if switch == 'load_in_4bit' else 8} bits" in card


def test_what_a_recipe_trains_in_full_is_not_quantised(wide_base_models):
    vision, text = wide_base_models
    recipe = ModelRecipe(vision=vision, text=text, resampler=dict(RESAMPLER), load_in_4bit=True, dtype="float32",
                         quantization={"bnb_4bit_use_double_quant": True})  # fmt: skip
    model, _ = build_model(recipe, {"vision": "full", "llm": "lora"})
    layers = {name for name, module in model.named_modules() if is_quantized(module)}
    plain, _ = build_model(dataclasses.replace(recipe, load_in_4bit=False, quantization={}))
    assert count_parameters(model)["all"] == sum(parameter.numel() for parameter in plain.parameters())
    assert layers and all(name.startswith(LLM) for name in layers)
    config = model.config.quantization_config
    assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    with pytest.raises(ValueError, match="trains vision and llm in full: set one of them to lora or frozen"):
        build_model(recipe, {"vision": "full", "llm": "full"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and model.load_in_8bit are both true"),
        ({"load_in_4bit": "nf4"}, "model.load_in_4bit is 'nf4', expected true or false"),
        ({"quantization": {"bnb_4bit_quant_type": "fp4"}}, "set model.load_in_4bit or model.load_in_8bit too"),
        ({"load_in_4bit": True, "quantization": {"bits": 3}}, "holds 'bits', expected fields of BitsAndBytes"),
    ],
)
def test_what_a_recipe_cannot_mean_by_quantisation_is_said(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelRecipe(**fields)


def test_weights_that_processes_divide_are_not_quantised(wide_base_models):
    vision, text = wide_base_models
    recipe = ModelRecipe(vision=vision, text=text, load_in_8bit=True)
    zero3 = SimpleNamespace(zero_stage=3)
    for args in (SimpleNamespace(fsdp="full_shard"), SimpleNamespace(fsdp="", deepspeed_plugin=zero3)):
        with pytest.raises(ValueError, match=r"leave fsdp and DeepSpeed's stage 3 out.*zero2\.json"):
            build_model(recipe, {"resampler": "full"}, args)


def test_a_recipe_without_bitsandbytes_names_the_extra(wide_base_models, monkeypatch):
    vision, text = wide_base_models
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r'pip install "vistok\[quantization\]"'):
        build_model(ModelRecipe(vision=vision, text=text, load_in_4bit=True))


def test_a_recipe_without_quantisation_is_written_as_before_there_was_any():
    plain = {"data": {"train": [{"format": "easy-vqa"}]}, "training": {"output_dir": "runs/gvt"}}
    named = {"load_in_4bit", "load_in_8bit", "quantization"}
    assert not named & set(recipe_from_dict(plain).to_dict()["model"])
    quantised = recipe_from_dict({**plain, "model": {"load_in_8bit": True}}).to_dict()
    assert named <= set(quantised["model"]) and recipe_from_dict(quantised).model.load_in_8bit
