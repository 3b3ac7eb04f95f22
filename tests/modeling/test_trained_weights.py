"""Folders with only the trained weights come back as the whole model; those that do not fit are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    pipeline,
)

from tests.tiny import (
    RESAMPLER_SIZES,
    inputs_for,
    same,
    save_base_models,
    tiny_gvt,
    tiny_image,
)
from vistok import GVTForConditionalGeneration, GVTModel, GVTProcessor, save_trained_weights
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError, write_safetensors


def test_folder_of_trained_weights_holds_nothing_else(trained):
    model, folder = trained
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", TRAINED_WEIGHTS_NAME}
    weights = load_file(folder / TRAINED_WEIGHTS_NAME)
    own = {name for name, _ in model.named_parameters() if name.startswith(("model.resampler", "model.projector"))}
    assert set(weights) == own
    assert str(folder.parent) not in (folder / "config.json").read_text().replace(model.config.base_models["text"], "")


@pytest.mark.parametrize("auto_class", [GVTForConditionalGeneration, AutoModelForImageTextToText])
@pytest.mark.parametrize("options", [{}, {"device_map": "auto"}, {"attn_implementation": "eager"}, {"dtype": "auto"}])
def test_trained_weights_and_base_models_make_the_same_model_again(trained, auto_class, options):
    model, folder = trained
    loaded = auto_class.from_pretrained(folder, **options)
    inputs = inputs_for(model)
    assert same(loaded(**inputs).logits, model(**inputs).logits, 1e-4)
    assert not loaded.training
    assert loaded.config.base_models == model.config.base_models
    assert loaded.generation_config.suppress_tokens == [340]
    for (name, parameter), (_, expected) in zip(loaded.named_parameters(), model.named_parameters()):
        assert torch.equal(parameter, expected), name


def test_auto_model_makes_the_model_without_its_head(trained):
    model, folder = trained
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is GVTModel
    inputs = inputs_for(model)
    assert same(loaded(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state, 1e-4)


def test_loading_information_is_given_when_asked_for(trained):
    _, folder = trained
    model, info = GVTForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert type(model) is GVTForConditionalGeneration
    assert not info["missing_keys"]


def test_pipeline_answers_from_a_folder_of_trained_weights(trained, base_models):
    model, folder = trained
    processor = GVTProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=3)
    processor.save_pretrained(folder)
    answer = pipeline("image-text-to-text", model=str(folder))
    content = [{"type": "image", "image": tiny_image()}, {"type": "text", "text": "is there a dog?"}]
    found = answer(
        text=[{"role": "user", "content": content}], max_new_tokens=4, do_sample=False, return_full_text=False
    )
    inputs = processor(images=tiny_image(), text="<image>\nQuestion: is there a dog? Answer:", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert found[0]["generated_text"] == processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_trained_weights_may_be_saved_in_half_precision(trained, tmp_path):
    model, _ = trained
    save_trained_weights(model, tmp_path / "half", dtype=torch.bfloat16)
    weights = load_file(tmp_path / "half" / TRAINED_WEIGHTS_NAME)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}, "that of the language model"


def test_lora_adapters_are_saved_and_come_back(trained, tmp_path):
    from vistok.trainer.freezing import set_trainable

    model, _ = trained
    set_trainable(model, {"resampler": "full", "llm": "lora"}, {"r": 2, "target_modules": r".*language_model.*q_proj"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_trained_weights(model, tmp_path / "lora")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "lora")
    inputs = inputs_for(model)
    assert same(loaded(**inputs).logits, model(**inputs).logits, 1e-4)
    plain = load_file(tmp_path / "lora" / TRAINED_WEIGHTS_NAME)
    assert sum(".lora_" in name for name in plain) == 4, "A and B of two layers"
    config = json.loads((tmp_path / "lora" / "config.json").read_text())
    config["lora_config"] = None
    (tmp_path / "lora" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lora.*adapters.*lora_config"):
        GVTForConditionalGeneration.from_pretrained(tmp_path / "lora")


def test_saving_everything_over_trained_weights_leaves_no_doubt_about_which_count(trained):
    model, folder = trained
    with torch.no_grad():
        model.model.projector.bias.add_(1)
    model.save_pretrained(folder)
    loaded = GVTForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(loaded.model.projector.bias, model.model.projector.bias)


def test_a_model_without_base_models_or_trained_weights_is_not_saved_in_part(base_models, tmp_path):
    with pytest.raises(ValueError, match="base_models is None"):
        save_trained_weights(tiny_gvt(), tmp_path / "trained")
    assert not (tmp_path / "trained").exists()


def test_an_interrupted_save_leaves_the_old_weights_and_nothing_half_made(trained, monkeypatch):
    _, folder = trained
    before = (folder / TRAINED_WEIGHTS_NAME).read_bytes()
    names = {path.name for path in folder.iterdir()}

    def interrupted(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("vistok.modeling.trained_weights.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors({"weight": torch.zeros(1)}, folder / TRAINED_WEIGHTS_NAME)
    assert (folder / TRAINED_WEIGHTS_NAME).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == names


# Checkpoints that do not fit


def truncated(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def rewritten(change):
    def damage(folder, name):
        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return damage


def shorter_bias(weights):
    weights["model.projector.bias"] = torch.zeros(7)


DAMAGES = {
    "truncated": (truncated, "truncated"),
    "empty": (lambda folder, name: (folder / name).write_bytes(b""), "truncated"),
    "text": (lambda folder, name: (folder / name).write_text("no weights at all, only words"), "truncated"),
    "missing weight": (rewritten(lambda w: w.pop("model.projector.bias")), "model.projector.bias"),
    "wrong shape": (rewritten(shorter_bias), r"model.projector.bias.*\(?7"),
    "missing file": (lambda folder, name: (folder / name).unlink(), "safetensors"),
}


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["trained", "whole"])
@pytest.mark.parametrize("auto_class", [GVTForConditionalGeneration, AutoModelForImageTextToText])
def test_damaged_checkpoint_gives_one_error_that_names_it(trained, damage, kind, auto_class):
    model, folder = trained
    name = TRAINED_WEIGHTS_NAME
    if kind == "whole":
        folder, name = folder.parent / "whole", "model.safetensors"
        model.save_pretrained(folder)
    break_it, message = DAMAGES[damage]
    break_it(folder, name)
    before = listing(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        auto_class.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert listing(folder) == before


def test_unknown_weights_beside_the_trained_ones_are_refused(trained):
    _, folder = trained
    rewritten(lambda weights: weights.update({"model.other.weight": torch.zeros(1)}))(folder, TRAINED_WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"model\.other\.weight is unknown"):
        GVTForConditionalGeneration.from_pretrained(folder)


def test_trained_weights_of_another_size_name_both_shapes(trained):
    _, folder = trained
    config = json.loads((folder / "config.json").read_text())
    config["resampler_config"]["num_latents"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"model\.resampler\.latents has shape \(3, 24\) instead of \(9, 24\)"):
        GVTForConditionalGeneration.from_pretrained(folder)


def test_a_model_of_another_kind_is_refused_by_its_type(base_models):
    for folder in base_models:
        with pytest.raises(CheckpointError, match=r"holds a model of type (llama|dinov2), not gvt"):
            GVTForConditionalGeneration.from_pretrained(folder)


def test_weights_of_another_model_under_our_config_are_refused(trained, base_models, tmp_path):
    model, _ = trained
    model.save_pretrained(tmp_path / "foreign")
    shutil.copy(f"{base_models[1]}/model.safetensors", tmp_path / "foreign" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"do not fit its config: .* is missing"):
        GVTForConditionalGeneration.from_pretrained(tmp_path / "foreign")


@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_base_model_gives_one_error_that_names_it(tmp_path, part, damage):
    vision, text = save_base_models(tmp_path)
    DAMAGES[damage][0](tmp_path / part, "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path / part}.*truncated"):
        GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER_SIZES)


def test_a_base_model_that_is_gone_is_named(trained, tmp_path):
    _, folder = trained
    config = json.loads((folder / "config.json").read_text())
    config["base_models"]["text"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((OSError, ValueError), match="gone"):
        GVTForConditionalGeneration.from_pretrained(folder)
