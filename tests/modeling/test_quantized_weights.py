"""Weights in 8 and 4 bits: of which modules, what they compute, and what is saved of them."""

import json
import logging
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig

from tests.tiny import same, tiny_gvt, tiny_t5_config
from tests.tiny_adapted import (
    ADAPTED,
    LLM,
    LOADED,
    adapted_inputs,
    compose_kind,
    largest,
    liven_adapters,
    quantization,
    save_wide_base_models,
)
from vistok import SeTokForPreTraining, save_trained_weights
from vistok.modeling.lora_adapters import ordinary_model
from vistok.modeling.quantized_weights import is_quantized, num_weight_bytes
from vistok.trainer.freezing import set_trainable

every_kind = pytest.mark.parametrize("saved", ADAPTED, indirect=True)
both_widths = pytest.mark.parametrize("bits", LOADED)


@pytest.fixture(scope="module")
def wide_base_models(tmp_path_factory):
    return save_wide_base_models(tmp_path_factory.mktemp("wide"))


class Saved:
    """A model in a folder of all its weights, and in one of what its base models lack."""

    def __init__(self, kind, folder, base_models):
        self.kind, self.whole, self.trained = ADAPTED[kind], folder / "whole", folder / "trained"
        self.model = compose_kind(kind, base_models)
        self.inputs = adapted_inputs(self.model)
        self.logits = self.model(**self.inputs).logits
        self.model.save_pretrained(self.whole)
        set_trainable(self.model, dict.fromkeys(self.kind.in_full, "full"))
        save_trained_weights(self.model, self.trained)

    def load(self, folder, bits, **options):
        return self.kind.model_class.from_pretrained(folder, quantization_config=quantization(bits), **options)


@pytest.fixture(scope="module")
def saved(request, tmp_path_factory, wide_base_models):
    return Saved(getattr(request, "param", "gvt"), tmp_path_factory.mktemp("saved"), wide_base_models)


def quantized_layers(model) -> set[str]:
    return {name for name, module in model.named_modules() if is_quantized(module)}


def linear_layers(model, *prefixes: str) -> set[str]:
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name for name in layers if name.startswith(prefixes)}


def logits_of_weights(model, inputs) -> torch.Tensor:
    """Without rounding what layers read, which 8-bit ones do but in training on a CPU; there is no dropout."""
    return model.train()(**inputs).logits.detach()


@every_kind
@both_widths
def test_tower_and_language_model_are_quantised_and_nothing_else(saved, bits):
    for folder in (saved.whole, saved.trained):
        model = saved.load(folder, bits)
        assert quantized_layers(model) == linear_layers(saved.model, saved.kind.tower, LLM) != set()
        in_numbers = {str(parameter.dtype) for name, parameter in model.named_parameters() if "embed" in name}
        assert in_numbers == {"torch.float32"}
        logits = model(**saved.inputs).logits
        assert logits.isfinite().all() and not same(logits, saved.logits)
        core = AutoModel.from_pretrained(folder, quantization_config=quantization(bits))
        assert {f"model.{name}" for name in quantized_layers(core)} == quantized_layers(model)


@both_widths
def test_what_is_quantised_generates_and_is_smaller(saved, bits):
    model = AutoModelForImageTextToText.from_pretrained(saved.trained, quantization_config=quantization(bits))
    assert (
        model.generate(**saved.inputs, max_new_tokens=3, do_sample=False).shape[1]
        == 3 + saved.inputs["input_ids"].shape[1]
    )
    saving = sum(saved.model.get_submodule(name).weight.numel() for name in quantized_layers(model))
    stays = num_weight_bytes(saved.model) - 4 * saving
    bytes_each = (num_weight_bytes(model) - stays) / saving
    assert {"int8": 1.0, "nf4": 0.5}[bits] < bytes_each < {"int8": 1.2, "nf4": 0.6}[bits]


@both_widths
def test_a_quantised_layer_multiplies_with_what_it_is_in_plain_numbers(saved, bits, tmp_path):
    model = saved.load(saved.trained, bits)
    ordinary_model(model).save_pretrained(tmp_path)
    plain = type(model).from_pretrained(tmp_path)
    assert not quantized_layers(plain) and not hasattr(plain.config, "quantization_config")
    for name in quantized_layers(model):
        scale = saved.model.get_submodule(name).weight.abs().max().item()
        worst = (plain.get_submodule(name).weight - saved.model.get_submodule(name).weight).abs().max().item()
        assert 0 < worst < {"int8": 0.01, "nf4": 0.2}[bits] * scale
    assert largest(logits_of_weights(model, saved.inputs), plain(**saved.inputs).logits) < 1e-4


@both_widths
def test_a_model_that_was_saved_quantised_is_loaded_as_it_was(saved, bits, tmp_path):
    model = saved.load(saved.trained, bits)
    expected = model(**saved.inputs).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert quantized_layers(loaded) == quantized_layers(model)
    assert same(loaded(**saved.inputs).logits, expected, 1e-4)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["llm_int8_skip_modules"] == type(model).high_precision_modules()


@both_widths
def test_layers_compute_the_same_whether_or_not_they_were_evaluated_before(saved, bits):
    model = saved.load(saved.trained, bits)
    name = next(name for name in sorted(quantized_layers(model)) if name.startswith(LLM))
    before = model.get_submodule(name).weight.detach().clone()
    with torch.no_grad():
        model(**saved.inputs)
    assert torch.equal(model.get_submodule(name).weight, before)
    model.model.projector.requires_grad_(True)
    model(**saved.inputs, labels=saved.inputs["input_ids"]).loss.backward()
    assert model.model.projector.weight.grad.abs().sum() > 0


def test_a_list_of_ones_own_says_what_is_skipped(saved):
    everything_else = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "model.vision_tower"])
    model = saved.kind.model_class.from_pretrained(saved.whole, quantization_config=everything_else)
    assert quantized_layers(model) == linear_layers(saved.model, LLM, "model.resampler", "model.projector")
    assert everything_else.llm_int8_skip_modules == ["lm_head", "model.vision_tower"]
    kept = saved.kind.model_class.high_precision_modules("vision")
    assert kept == ["lm_head", "model.projector", "model.resampler", "model.vision_tower"]
    assert quantization("nf4").llm_int8_skip_modules is None
    plain = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    model = saved.kind.model_class.from_pretrained(saved.whole, quantization_config=plain)
    assert quantized_layers(model) == linear_layers(saved.model, LLM, "model.vision_tower")


def test_a_tokenizer_with_decoders_quantises_its_tower_alone():
    kept = SeTokForPreTraining.high_precision_modules()
    assert {"mask_decoder", "detokenizer.unet", "vision_model.tokenizer.merger"} <= set(kept)
    assert not any("vision_tower" in name for name in kept)


def test_of_an_encoder_decoder_stays_what_transformers_keeps_exact(tmp_path):
    model = tiny_gvt(text_config=tiny_t5_config(d_model=64))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quantization_config=quantization("int8"))
    kept = {name for name in linear_layers(model, LLM) if name.endswith((".wo", ".lm_head"))}
    assert kept and quantized_layers(loaded) == linear_layers(model, "model.vision_tower", LLM) - kept


def test_composing_quantises_and_folders_of_trained_weights_say_nothing_of_it(wide_base_models, tmp_path):
    model = compose_kind("gvt", wide_base_models, quantization_config=quantization("nf4"))
    assert quantized_layers(model) == linear_layers(model, "model.vision_tower", LLM)
    set_trainable(model, {"resampler": "full"})
    save_trained_weights(model, tmp_path)
    assert "quantization" not in (tmp_path / "config.json").read_text()
    assert model.config.quantization_config.load_in_4bit
    assert not quantized_layers(type(model).from_pretrained(tmp_path))


@every_kind
@both_widths
def test_adapters_of_quantised_layers_are_merged_into_plain_numbers(saved, bits, tmp_path):
    model = saved.load(saved.trained, bits)
    in_full = dict.fromkeys(saved.kind.in_full, "full")
    set_trainable(model, {"vision": "lora", "llm": "lora", **in_full}, {"r": 2})
    liven_adapters(model)
    expected = logits_of_weights(model, saved.inputs)
    save_trained_weights(model, tmp_path / "adapters")
    again = saved.load(tmp_path / "adapters", bits)
    assert largest(logits_of_weights(again, saved.inputs), expected) < 1e-4
    model.save_pretrained(tmp_path / "merged")
    merged = type(model).from_pretrained(tmp_path / "merged")
    assert not quantized_layers(merged)
    assert largest(merged(**saved.inputs).logits, expected) < 1e-4
    assert quantized_layers(model), "the model itself can be trained on"


def test_dora_of_quantised_layers_is_not_half_merged(saved, tmp_path):
    model = saved.load(saved.trained, "nf4")
    set_trainable(model, {"llm": "lora"}, {"r": 2, "use_dora": True})
    with pytest.raises(ValueError, match=r"q_proj is quantised and has a DoRA adapter.*save_trained_weights"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_not_trained_in_full(saved):
    model = saved.load(saved.trained, "int8")
    with pytest.raises(ValueError, match=r"llm is to be trained \(full\), but its weights are quantised: set"):
        set_trainable(model, {"llm": "full"})


def test_without_bitsandbytes_the_extra_is_named(saved, monkeypatch):
    config = quantization("nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for folder in (saved.whole, saved.trained):
        with pytest.raises(ImportError, match=r'bitsandbytes is needed.*pip install "vistok\[quantization\]"'):
            saved.kind.model_class.from_pretrained(folder, quantization_config=config)


def test_that_8_bit_layers_cast_is_told_once(saved):
    model = saved.load(saved.trained, "int8")
    messages = logging.getLogger("bitsandbytes.autograd._functions")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    for found in messages.filters:
        found.told = False
    messages.addHandler(handler)
    try:
        with torch.no_grad():
            model(**saved.inputs)
            model(**saved.inputs)
        messages.warning("something else")
    finally:
        messages.removeHandler(handler)
    assert len(told) == 2 and "cast" in told[0] and told[1] == "something else"
