"""`vistok merge`: what was trained becomes a folder of all weights, which needs neither base models nor adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor

from tests.tiny import inputs_for, same
from tests.tiny_adapted import liven_adapters
from tests.vistok.commands import fails
from vistok import GVTForConditionalGeneration, cli, save_trained_weights
from vistok.trainer.freezing import set_trainable


@pytest.fixture(params=["recipe", "peft"])
def adapted(request, adapter_folder, tmp_path):
    """A model with adapters, and the folder that a recipe or that peft makes of it."""
    model = GVTForConditionalGeneration.from_pretrained(adapter_folder)
    folder = tmp_path / "adapted"
    if request.param == "recipe":
        set_trainable(model, {"resampler": "full", "llm": "lora"}, {"r": 2})
        liven_adapters(model)
        save_trained_weights(model, folder)
        AutoProcessor.from_pretrained(adapter_folder).save_pretrained(folder)
    else:
        config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", modules_to_save=["resampler"])
        model = get_peft_model(model, config)
        liven_adapters(model)
        model.save_pretrained(folder)
    return model.eval(), folder


def test_what_was_trained_becomes_a_folder_that_needs_nothing_else(adapted, tmp_path, capsys):
    model, folder = adapted
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(["merge", str(folder), str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'whole'}: gvt, ")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["base_models"] is None and config["lora_config"] is None
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    inputs = inputs_for(model)
    assert same(loaded(**inputs).logits, model(**inputs).logits, 1e-4)
    assert AutoProcessor.from_pretrained(tmp_path / "whole").num_image_tokens == 3
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_dtype_is_the_one_that_is_asked_for_and_a_missing_processor_is_told(adapter_folder, tmp_path, capsys):
    folder = tmp_path / "bare"
    shutil.copytree(adapter_folder, folder, ignore=shutil.ignore_patterns("processor*", "preprocessor*"))
    assert cli.main(["merge", str(folder), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "without a processor" in capsys.readouterr().out
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_what_cannot_be_merged_is_told_and_leaves_nothing(adapter_folder, base_models, tmp_path, capsys):
    out = tmp_path / "out"
    assert "There is no folder" in fails(capsys, "merge", str(tmp_path / "nowhere" / "else"), str(out))
    assert "type dinov2, which is none of vistok's" in fails(capsys, "merge", base_models[0], str(out))
    Path(tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "adapter_config.json").write_text("{}")
    assert "no base_model_name_or_path" in fails(capsys, "merge", str(tmp_path / "nameless"), str(out))
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "would be overwritten" in fails(capsys, "merge", adapter_folder, str(out))
