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
    compose,
    inputs_for,
    pixels,
    same,
    save_base_models,
    tiny_gvt,
    tiny_image,
    tiny_llama_config,
)
from vistok import GVTForConditionalGeneration, GVTModel, GVTProcessor, save_trained_weights
from vistok.modeling.atomic_folder import FetchError
from vistok.modeling.base_checkpoints import lasting_name
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError, write_safetensors
from vistok.trainer.freezing import set_trainable


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
    model, _ = trained
    lora = {"r": 2, "lora_dropout": 0.5, "target_modules": r".*language_model.*q_proj"}
    set_trainable(model, {"resampler": "full", "llm": "lora"}, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_trained_weights(model, tmp_path / "lora")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "lora")
    assert [name for name, module in loaded.named_modules() if module.training] == []
    model.eval()
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


@pytest.fixture
def adapted(trained):
    """A model with adapters that do something, and the folder of its trained weights."""
    model, folder = trained
    set_trainable(model, {"resampler": "full", "llm": "lora"}, {"r": 2})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_trained_weights(model, folder)
    return model.eval(), folder


def test_everything_of_a_model_with_adapters_is_saved_with_the_adapters_merged(adapted):
    model, folder = adapted
    names = {name for name, _ in model.named_parameters()}
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded = GVTForConditionalGeneration.from_pretrained(folder)
    inputs = inputs_for(model)
    assert same(loaded(**inputs).logits, model(**inputs).logits, 1e-4)
    assert loaded.config.lora_config is None
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    assert {name for name, _ in model.named_parameters()} == names, "the model itself can be trained on"


def test_adapters_in_a_state_dict_are_not_half_saved(adapted):
    model, folder = adapted
    before = listing(folder)
    with pytest.raises(ValueError, match=r"not merged: .* save_trained_weights"):
        model.save_pretrained(folder, state_dict=model.state_dict())
    assert listing(folder) == before


def test_trained_weights_stay_until_all_weights_are_written(trained):
    model, folder = trained
    model.save_pretrained(folder, is_main_process=False)
    assert (folder / TRAINED_WEIGHTS_NAME).exists()
    model.save_pretrained(folder, variant="half")
    assert (folder / TRAINED_WEIGHTS_NAME).exists(), "a file that is only loaded where it is asked for"
    model.save_pretrained(folder, max_shard_size="50KB")
    assert not (folder / TRAINED_WEIGHTS_NAME).exists()


@pytest.mark.parametrize("with_head", [True, False])
def test_what_a_model_without_a_head_learned_is_loaded_with_its_head_and_without(base_models, tmp_path, with_head):
    core = GVTModel.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES).requires_grad_(False)
    save_trained_weights(core, tmp_path)
    loaded = (GVTForConditionalGeneration if with_head else GVTModel).from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == [340]
    found = loaded.model if with_head else loaded
    for part in ("resampler", "projector"):
        for name, parameter in getattr(core, part).named_parameters():
            assert torch.equal(getattr(found, part).get_parameter(name), parameter), name
    save_trained_weights(loaded.requires_grad_(False), tmp_path / "again")
    first, second = (set(load_file(folder / TRAINED_WEIGHTS_NAME)) for folder in (tmp_path, tmp_path / "again"))
    assert first == second


# Arguments of from_pretrained


@pytest.fixture(params=["trained", "whole"])
def saved(request, trained):
    """A model, and a folder with its trained weights or with all of them."""
    model, folder = trained
    if request.param == "whole":
        folder = folder.parent / "whole"
        model.save_pretrained(folder)
    return model, folder


both_classes = pytest.mark.parametrize("auto_class", [GVTForConditionalGeneration, AutoModelForImageTextToText])


@both_classes
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_dtype_is_the_one_that_is_asked_for(saved, auto_class, name, dtype):
    loaded = auto_class.from_pretrained(saved[1], **{name: dtype})
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, str(dtype).split(".")[-1])}


@both_classes
def test_fields_of_the_config_may_be_overridden(saved, auto_class):
    model, folder = saved
    loaded = auto_class.from_pretrained(folder, vision_feature_layer=-2, output_attentions=True, local_files_only=True)
    assert loaded.config.output_attentions
    found = loaded.model.get_vision_features(pixels(1)).patch_features
    tower = model.model.vision_tower(pixels(1), output_hidden_states=True)
    assert same(found, tower.hidden_states[-2]) and not same(found, tower.hidden_states[-1], 1e-2)


def test_weights_of_another_size_are_passed_over_if_asked(saved):
    model, folder = saved
    sizes = {"resampler_config": {"num_latents": 5}}
    with pytest.raises(CheckpointError, match=r"model\.resampler\.latents"):
        GVTForConditionalGeneration.from_pretrained(folder, **sizes)
    loaded = GVTForConditionalGeneration.from_pretrained(folder, ignore_mismatched_sizes=True, **sizes)
    assert loaded.model.resampler.latents.shape == (5, 24)
    assert loaded.model.resampler.latents.isfinite().all() and loaded.model.resampler.latents.std() > 0
    assert torch.equal(loaded.model.projector.weight, model.model.projector.weight)


def test_embeddings_that_were_trained_stay_tied_to_the_head(tmp_path):
    text = tiny_llama_config(vocab_size=340, tie_word_embeddings=True)
    model = compose(save_base_models(tmp_path, text_config=text))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    save_trained_weights(model, tmp_path / "trained")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


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


def with_base_model(folder, part, name):
    config = json.loads((folder / "config.json").read_text())
    config["base_models"][part] = name
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("name", ["/nowhere/gone", "gone", "no/such/id", "vistok:gone"])
def test_a_base_model_that_is_gone_is_named_with_the_entry_to_edit(trained, part, name):
    _, folder = trained
    with_base_model(folder, part, name)
    with pytest.raises(CheckpointError) as caught:
        GVTForConditionalGeneration.from_pretrained(folder)
    assert f"{folder} is completed by base_models.{part} = {name!r}, which cannot be loaded" in str(caught.value)
    assert f"base_models.{part} into the config.json of {folder}" in str(caught.value)


def test_a_damaged_base_model_is_named_with_the_folder_that_it_completes(tmp_path):
    model = compose(save_base_models(tmp_path))
    save_trained_weights(model, tmp_path / "trained")
    truncated(tmp_path / "text", "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/trained is completed by base_models\.text.*truncated"):
        GVTForConditionalGeneration.from_pretrained(tmp_path / "trained")


def test_a_base_model_of_vistok_that_is_not_fetched_names_the_command(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "empty"))
    with_base_model(trained[1], "vision", "vistok:dinov2-small")
    with pytest.raises(FetchError, match="`vistok fetch dinov2-small`"):
        GVTForConditionalGeneration.from_pretrained(trained[1])


def test_base_models_are_found_from_another_working_directory(tmp_path, monkeypatch):
    save_base_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = compose(("vision", "text"))
    save_trained_weights(model, "trained")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = GVTForConditionalGeneration.from_pretrained("../trained")
    assert torch.equal(loaded.model.projector.weight, model.model.projector.weight)
    assert lasting_name("vistok:dinov2-small") == "vistok:dinov2-small"
    assert lasting_name("facebook/dinov2-small") == "facebook/dinov2-small"
