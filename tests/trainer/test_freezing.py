"""Which parameters change and which stay, by name, and what notices when it is otherwise."""

import copy

import pytest
import torch
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.tiny import tiny_dinov2_config, tiny_gvt, tiny_llama_config
from tests.trainer.tiny_training import moved, parameters, question, questions
from vistok.modeling.trainable_parts import part_prefixes
from vistok.trainer.freezing import count_parameters, rest_frozen_parts, set_trainable, upcast_trained

VISION, LLM = "model.vision_tower.", "model.language_model."
RESAMPLER = ("model.resampler.", "model.projector.")
# The tower's last norm stands behind the features that are used; its mask token is for pre-training.
UNUSED = {f"{VISION}layernorm.weight", f"{VISION}layernorm.bias", f"{VISION}embeddings.mask_token"}


def parts(vision="frozen", resampler="frozen", llm="frozen"):
    return {"vision": vision, "resampler": resampler, "llm": llm}


@pytest.mark.parametrize(
    "trainable",
    [
        parts(resampler="full"),
        parts(vision="full"),
        parts(llm="full"),
        parts(vision="full", resampler="full", llm="full"),
        parts(llm="lora"),
        parts(resampler="full", llm="lora"),
        parts(vision="lora", resampler="full"),
        parts(resampler="lora", llm="full"),
        {"resampler": "full"},  # what is left out is frozen
    ],
    ids=str,
)
def test_what_is_to_be_trained_changes_and_nothing_else(model, trainer_for, trainable):
    before = parameters(model)
    trainer_for(model, questions(4), trainable=trainable).train()
    prefixes = {"vision": (VISION,), "resampler": RESAMPLER, "llm": (LLM, "lm_head")}
    expected = set()
    for part, mode in trainable.items():
        names = {name for name, _ in model.named_parameters() if name.startswith(prefixes[part])}
        expected |= {name for name in names if mode == ("lora" if ".lora_" in name else "full")} - UNUSED
        assert mode == "frozen" or expected & names
    # An adapter's layer is called otherwise, and is what it was.
    plain = {name.replace(".base_layer.", "."): value for name, value in parameters(model).items()}
    changed = {name for name in plain if name not in before or not torch.equal(plain[name], before[name])}
    assert changed == {name.replace(".base_layer.", ".") for name in expected}


def test_adapters_are_put_into_the_layers_that_are_named_and_only_in_the_part_that_is_adapted(model):
    set_trainable(model, parts(llm="lora"), {"target_modules": ["q_proj", "value"], "r": 2})
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    # The resampler has a q_proj as well, the tower a layer called value.
    assert adapted == {f"{LLM}layers.{layer}.self_attn.q_proj" for layer in range(2)}
    assert {p.shape[0] for name, p in model.named_parameters() if ".lora_A" in name} == {2}


def test_adapters_of_a_part_cover_its_linear_layers_and_leave_the_head_alone(model):
    set_trainable(model, parts(resampler="lora", llm="lora"))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linear = {name.removesuffix(".base_layer") for name in linear if ".lora_" not in name}
    assert adapted == {name for name in linear if name.startswith((*RESAMPLER, "model.projector", LLM))}
    assert "model.projector" in adapted and "lm_head" not in adapted


@pytest.mark.parametrize(
    ("trainable", "lora", "message"),
    [
        ({"tower": "full"}, None, "'tower' is no part .* vision, resampler, llm"),
        ({"vision": "trained"}, None, "vision is to be 'trained': choose frozen, full, lora"),
        (parts(), None, "freezes every part"),
        ({}, None, "freezes every part"),
        (parts(llm="lora"), {"rank": 4}, "no field of peft.LoraConfig.*rank"),
        (
            parts(llm="lora"),
            {"modules_to_save": ["lm_head"]},
            r"modules_to_save=\['lm_head'\].* to `full`",
        ),
        (parts(llm="lora"), {"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\].*`full`"),
    ],
)
def test_what_cannot_be_trained_is_said(model, trainable, lora, message):
    with pytest.raises(ValueError, match=message):
        set_trainable(model, trainable, lora)


def test_adapters_that_are_there_are_trained_on_but_not_made_anew(model):
    set_trainable(model, parts(llm="lora"), {"r": 4})
    before = parameters(model)
    set_trainable(model, parts(resampler="full", llm="lora"), {"r": 4})
    assert parameters(model).keys() == before.keys()
    with pytest.raises(ValueError, match="asks for r=8, but the model has adapters with r=4"):
        set_trainable(model, parts(llm="lora"), {"r": 8})
    with pytest.raises(ValueError, match=r"vision is to be trained \(lora\), but the model has no such weights"):
        set_trainable(model, parts(vision="lora"))


class Planted(TrainerCallback):
    """Does something to the model at one point of the first step."""

    def __init__(self, event, change):
        setattr(self, event, lambda args, state, control, model=None, **kwargs: change(model))


@pytest.mark.parametrize("name", [f"{VISION}embeddings.cls_token", f"{LLM}norm.weight", "lm_head.weight"])
def test_training_stops_when_a_frozen_parameter_moves(model, trainer_for, name):
    def move(model):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-3

    trainer = trainer_for(model, questions(4), callbacks=[Planted("on_optimizer_step", move)])
    with pytest.raises(RuntimeError, match=f"1 frozen parameters changed in the first step.*{name}"):
        trainer.train()


def test_training_stops_when_a_frozen_parameter_was_opened_behind_its_back(model, trainer_for):
    trainer = trainer_for(model, questions(4))
    model.model.language_model.norm.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"1 frozen parameters changed.*language_model\.norm"):
        trainer.train()


def test_training_stops_when_a_part_gets_no_gradient(model, trainer_for, monkeypatch):
    project = model.model.projector.forward
    monkeypatch.setattr(model.model.projector, "forward", lambda tokens: project(tokens).detach())
    trainer = trainer_for(model, questions(4), trainable=parts(resampler="full", llm="full"))
    with pytest.raises(RuntimeError, match=r"resampler is to be trained \(full\), but none of its \d+ parameters got"):
        trainer.train()


def test_a_first_batch_without_images_is_no_reason_to_stop(model, trainer_for):
    from datasets import Dataset

    from vistok.trainer.data_examples import FEATURES

    text_only = Dataset.from_list([question(i) for i in range(4)], features=FEATURES)
    before = parameters(model)
    trainer_for(model, text_only, weight_decay=0.0).train()
    assert not moved(model, before)  # text teaches a resampler nothing
    trainer_for(model, text_only, trainable=parts(resampler="full", llm="full")).train()
    assert all(name.startswith((LLM, "lm_head")) for name in moved(model, before))


def test_trained_weights_are_float32_and_frozen_ones_stay_in_bfloat16(model):
    model = copy.deepcopy(model).to(torch.bfloat16)
    set_trainable(model, parts(resampler="full"))
    upcast_trained(model)
    trained = {name: p.dtype for name, p in model.named_parameters() if name.startswith(RESAMPLER)}
    assert set(trained.values()) == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in trained} == {torch.bfloat16}


def test_frozen_parts_have_no_dropout_and_trained_ones_do():
    model = tiny_gvt(tiny_dinov2_config(hidden_dropout_prob=0.5), tiny_llama_config(attention_dropout=0.5))
    model.train()
    rest_frozen_parts(model, parts(llm="full"))
    assert not any(module.training for name, module in model.named_modules() if name.startswith(VISION[:-1]))
    assert all(module.training for name, module in model.named_modules() if name.startswith(LLM))


def test_frozen_layers_that_save_memory_by_computing_twice_still_do():
    model = tiny_gvt()
    model.gradient_checkpointing_enable()
    model.train()
    rest_frozen_parts(model, parts(resampler="full"))
    layers = [
        module for module in model.model.language_model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    assert len(layers) == 2 and all(layer.training for layer in layers)
    assert not model.model.language_model.layers[0].self_attn.training


def test_parameters_are_counted(model):
    set_trainable(model, parts(resampler="full"))
    counts = count_parameters(model)
    resampler = sum(p.numel() for p in (*model.model.resampler.parameters(), *model.model.projector.parameters()))
    assert counts == {"trained": resampler, "all": sum(p.numel() for p in model.parameters())}
    assert part_prefixes(model, "resampler") == ("model.resampler", "model.projector")
