"""Adapters by plain peft calls, on tower and language model by name, beside modules that are trained in full."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText

from tests.tiny import same
from tests.tiny_adapted import ADAPTED, LLM, adapted_inputs, compose_kind, liven_adapters, save_wide_base_models
from vistok import save_trained_weights
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError
from vistok.trainer.freezing import set_trainable

BOTH_PARTS = r".*(vision_tower|language_model)\..*\.(q_proj|v_proj|query|value)"
every_adapted = pytest.mark.parametrize("adapted", ADAPTED, indirect=True)


class Adapted:
    """A model in a folder, the same model with a lively adapter of peft, and the adapter in a folder."""

    def __init__(self, kind, folder, base_models):
        self.kind, self.whole, self.adapter = ADAPTED[kind], folder / "whole", folder / "adapter"
        compose_kind(kind, base_models).save_pretrained(self.whole)
        model = self.load()
        self.inputs = adapted_inputs(model)
        self.before = model(**self.inputs).logits
        config = LoraConfig(r=2, target_modules=BOTH_PARTS, modules_to_save=list(self.kind.modules))
        self.model = get_peft_model(model, config)
        liven_adapters(self.model)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "modules_to_save" in name:
                    parameter.mul_(1.1)
        self.logits = self.model.eval()(**self.inputs).logits
        self.model.save_pretrained(self.adapter)

    def load(self):
        return self.kind.model_class.from_pretrained(self.whole)


@pytest.fixture(scope="module")
def wide_base_models(tmp_path_factory):
    return save_wide_base_models(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def adapted(request, tmp_path_factory, wide_base_models):
    return Adapted(request.param, tmp_path_factory.mktemp(request.param), wide_base_models)


@every_adapted
def test_the_folder_of_an_adapter_holds_adapters_of_both_parts_and_what_is_trained_in_full(adapted):
    assert {path.name for path in adapted.adapter.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    saved = load_file(adapted.adapter / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.") for name in saved}
    lora = {name for name in names if ".lora_" in name}
    for part in (adapted.kind.tower, LLM):
        assert any(name.startswith(part) for name in lora)
    assert all(name.startswith((adapted.kind.tower, LLM)) for name in lora)
    model = adapted.load()
    in_full = {name: model.get_submodule(name).state_dict() for name in adapted.kind.modules}
    assert names - lora == {f"{module}.{name}" for module, weights in in_full.items() for name in weights}


@every_adapted
def test_an_adapter_comes_back_by_every_call_of_peft_and_transformers(adapted):
    assert not same(adapted.logits, adapted.before, 1e-2)
    by_peft = PeftModel.from_pretrained(adapted.load(), adapted.adapter)
    by_transformers = adapted.load()
    by_transformers.load_adapter(str(adapted.adapter))
    by_class = adapted.kind.model_class.from_pretrained(adapted.adapter)
    by_auto_class = AutoModelForImageTextToText.from_pretrained(adapted.adapter)
    for model in (by_peft, by_transformers, by_class, by_auto_class):
        assert not model.training
        assert same(model(**adapted.inputs).logits, adapted.logits, 1e-4)
    with by_peft.disable_adapter():
        assert same(by_peft(**adapted.inputs).logits, adapted.before, 1e-4)


@every_adapted
def test_a_merged_model_is_saved_whole_and_needs_peft_no_more(adapted, tmp_path):
    merged = PeftModel.from_pretrained(adapted.load(), adapted.adapter).merge_and_unload()
    assert same(merged(**adapted.inputs).logits, adapted.logits, 1e-4)
    merged.save_pretrained(tmp_path / "unloaded")
    unmerged = adapted.kind.model_class.from_pretrained(adapted.adapter)
    unmerged.save_pretrained(tmp_path / "saved")  # which merges, and leaves this one as it is
    assert any(".lora_" in name for name, _ in unmerged.named_parameters())
    plain = {name for name, _ in adapted.load().named_parameters()}
    for folder in ("unloaded", "saved"):
        loaded = adapted.kind.model_class.from_pretrained(tmp_path / folder)
        assert {name for name, _ in loaded.named_parameters()} == plain
        assert same(loaded(**adapted.inputs).logits, adapted.logits, 1e-4)


@every_adapted
def test_a_step_changes_adapters_and_what_is_trained_in_full_and_nothing_else(adapted):
    model = PeftModel.from_pretrained(adapted.load(), adapted.adapter, is_trainable=True).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**adapted.inputs, labels=adapted.inputs["input_ids"]).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert all(".lora_" in name or ".modules_to_save." in name for name in changed)
    for part in (adapted.kind.tower, LLM):
        assert any(part in name and ".lora_" in name for name in changed)
    assert any(".modules_to_save." in name for name in changed)


def test_an_adapter_of_a_folder_of_trained_weights_is_not_passed_over(wide_base_models, tmp_path):
    model = compose_kind("gvt", wide_base_models).requires_grad_(False)
    model.model.resampler.requires_grad_(True)
    model.model.projector.requires_grad_(True)
    save_trained_weights(model, tmp_path / "trained")
    kind = ADAPTED["gvt"].model_class
    adapted = get_peft_model(kind.from_pretrained(tmp_path / "trained"), LoraConfig(r=2, target_modules=BOTH_PARTS))
    liven_adapters(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = adapted_inputs(model)
    expected = adapted.eval()(**inputs).logits
    for auto_class in (kind, AutoModelForImageTextToText):
        loaded = auto_class.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
        assert same(loaded(**inputs).logits, expected, 1e-4)


def test_an_adapter_without_the_name_of_its_model_is_told(wide_base_models, tmp_path):
    model = get_peft_model(compose_kind("gvt", wide_base_models), LoraConfig(r=2, target_modules=BOTH_PARTS))
    model.save_pretrained(tmp_path)  # composed a moment ago: it lies nowhere
    with pytest.raises(CheckpointError, match=r"no base_model_name_or_path: load its model and then model\.load_ad"):
        ADAPTED["gvt"].model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_of_recipes_come_back_in_the_model_without_its_head(kind, wide_base_models, tmp_path):
    model = compose_kind(kind, wide_base_models)
    trainable = {"vision": "lora", "llm": "lora", **dict.fromkeys(ADAPTED[kind].in_full, "full")}
    set_trainable(model, trainable, {"r": 2, "lora_dropout": 0.5})
    liven_adapters(model)
    save_trained_weights(model.eval(), tmp_path)
    adapters = {name for name in load_file(tmp_path / TRAINED_WEIGHTS_NAME) if ".lora_" in name}
    inputs = adapted_inputs(model)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model.model)
    assert sum(".lora_" in name for name, _ in loaded.named_parameters()) == len(adapters)
    expected = model.model(**inputs).last_hidden_state
    assert same(loaded(**inputs).last_hidden_state, expected, 1e-4)
    whole = type(model).from_pretrained(tmp_path)
    assert same(whole(**inputs).logits, model(**inputs).logits, 1e-4)
    assert whole.config.lora_config == loaded.config.lora_config == model.config.lora_config
