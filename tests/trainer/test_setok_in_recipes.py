"""SeTok as the visual tokenizer of GVT and VT-LMM, and behind LLaVA's projector, in recipes and in plain Trainers."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline

from tests.tiny import NUM_PATCHES, tiny_dinov2_config, tiny_image, tiny_image_processor
from tests.tiny_llava import VARIABLE, tiny_llava, tiny_llava_processor, tiny_setok_llava
from tests.tiny_setokim import MAX_TOKENS as MAX_SETOK
from tests.tiny_setokim import tiny_setok_config, tiny_setok_vision_config
from tests.trainer.tiny_training import moved, parameters, questions
from vistok import SeTokForPreTraining, SeTokVisionModel
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.modeling.completed_model import expected_shapes
from vistok.modeling.setok_composition import compose_setok_config
from vistok.processing.collator import VisualLanguageCollator
from vistok.trainer.model_recipe import ModelRecipe, build_model
from vistok.trainer.recipe import load_recipe, recipe_from_dict
from vistok.trainer.run_recipe import run_recipe

MAX_TOKENS = 5
SETOK = {"method": "threshold", "score_threshold": 0.3, "num_neighbors": 2, "max_tokens": MAX_TOKENS}
MERGED = SETOK | {"model_type": "setok_tokenizer", "merger_num_layers": 1}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Eight questions about four images in a folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = []
    for index in range(8):
        tiny_image(index // 2).save(tmp_path / f"{index // 2}.png")
        turns = [{"from": "human", "value": "<image>\na dog?"}, {"from": "gpt", "value": ("no", "yes")[index % 2]}]
        lines.append(json.dumps({"id": str(index), "image": f"{index // 2}.png", "conversations": turns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return {"format": "llava", "path": str(tmp_path / "data.jsonl"), "images": str(tmp_path)}


def trained(source, folder, model, **more):
    """The results of a short run of a recipe."""
    training = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": 2, "report_to": "none"}
    training |= {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_strategy": "no", "logging_steps": 1}
    training |= more.pop("training", {})
    return run_recipe(recipe_from_dict({"model": model, "data": {"train": [source]}, "training": training, **more}))


def ask(folder):
    """What the model in a folder answers, and how many visual tokens its images have."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    pictures = [tiny_image(seed) for seed in range(6)]
    inputs = processor(images=pictures, text=["<image>a dog?"] * 6, return_tensors="pt", padding=True)
    counts = model.get_image_features(inputs["pixel_values"]).token_mask.sum(1).tolist()
    placeholders = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert written.shape == (6, inputs["input_ids"].shape[1] + 2)
    return model, counts, placeholders


@pytest.mark.parametrize(("kind", "section"), [("gvt", "resampler"), ("vtlmm", "adapter")])
def test_it_is_the_visual_tokenizer_of_gvt_and_vtlmm(base_models, source, tmp_path, kind, section):
    model = {"kind": kind, "vision": base_models[0], "text": base_models[1], "image_size": 24, section: MERGED}
    model["config"] = {"vision_feature_select_strategy": "default"}
    more = {"cache_features": True, "feature_cache_dir": str(tmp_path / "features"), "conversations_per_row": 2}
    trained(source, tmp_path / "run", model, training=more)
    loaded, counts, placeholders = ask(tmp_path / "run")
    assert type(loaded.model.visual_tokenizer).__name__ == "SeTokTokenizer"
    assert placeholders == [MAX_TOKENS] * 6 and len(set(counts)) > 1 and max(counts) <= MAX_TOKENS
    assert "1 to 5, as the image asks for" in (tmp_path / "run/README.md").read_text() or kind == "vtlmm"


@pytest.mark.parametrize("decoders", [False, True])
def test_a_trained_setok_gives_its_tower_and_its_tokenizer(base_models, source, tmp_path, decoders):
    setok = SeTokForPreTraining(tiny_setok_config()) if decoders else SeTokVisionModel(tiny_setok_vision_config())
    setok.save_pretrained(tmp_path / "setok")
    tiny_image_processor().save_pretrained(tmp_path / "setok")
    parts = {"vision": str(tmp_path / "setok"), "text": base_models[1], "image_size": 24}
    expected = getattr(setok, "vision_model", setok).state_dict()

    gvt, processor = build_model(ModelRecipe(**parts))
    assert processor.num_image_tokens == gvt.config.resampler_config.max_tokens == MAX_SETOK
    assert gvt.config.vision_feature_select_strategy == "default" and gvt.config.vision_feature_layer == -1
    for name, tensor in gvt.model.resampler.state_dict().items():
        assert torch.equal(tensor, expected[f"tokenizer.{name}"])
    assert all(torch.equal(t, expected[f"vision_tower.{n}"]) for n, t in gvt.model.vision_tower.state_dict().items())

    vtlmm, _ = build_model(ModelRecipe(kind="vtlmm", **parts))
    new = {name for name in vtlmm.added_weights if name.startswith("model.adapter.")}
    assert new == {f"model.adapter.merger.output_projection.{name}" for name in ("weight", "bias")}
    trained(source, tmp_path / "run", {"kind": "gvt", **parts}, trainable={"resampler": "full"})
    _, counts, _ = ask(tmp_path / "run")
    assert max(counts) <= MAX_SETOK


@pytest.mark.parametrize("kind", ["gvt", "vtlmm"])
def test_a_trained_setok_that_draws_is_a_tower_without_diffusers(base_models, tmp_path, monkeypatch, kind):
    setok = SeTokForPreTraining(tiny_setok_config(draws=True))
    setok.save_pretrained(tmp_path)
    tiny_image_processor().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    model, _ = build_model(ModelRecipe(kind=kind, vision=str(tmp_path), text=base_models[1], image_size=24))
    expected = setok.vision_model.vision_tower.state_dict()
    found = model.model.vision_tower.state_dict()
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_token_for_each_patch_serves_gvt_too(base_models):
    every_patch = {"model_type": "mlp_adapter_vistok", "output_size": 16}
    parts = {"vision": base_models[0], "text": base_models[1], "image_size": 24, "resampler": every_patch}
    with pytest.raises(ValueError, match="strategy to default"):
        build_model(ModelRecipe(**parts))
    patches_alone = {"vision_feature_select_strategy": "default"}
    model, processor = build_model(ModelRecipe(**parts, config=patches_alone))
    inputs = processor(images=[tiny_image()], text="<image>", return_tensors="pt")
    assert processor.num_image_tokens == NUM_PATCHES
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_a_recipe_plugs_it_into_a_llava_and_trains_that(source, tmp_path):
    llava = tiny_llava()
    llava.generation_config.eos_token_id = 1
    llava.save_pretrained(tmp_path / "llava")
    tiny_llava_processor().save_pretrained(tmp_path / "llava")
    model = {"kind": "setok_llava", "llava": str(tmp_path / "llava"), "setok": VARIABLE, "dtype": "float32"}
    trainable = {"vision": "frozen", "projector": "full", "llm": "lora"}
    results = trained(source, tmp_path / "run", model, trainable=trainable, lora={"r": 2})
    assert results["parameters"]["trained"] < results["parameters"]["all"] / 2
    _, counts, placeholders = ask(tmp_path / "run")
    assert placeholders == [NUM_PATCHES] * 6 and max(counts) <= VARIABLE["max_tokens"]
    card = (tmp_path / "run/README.md").read_text()
    assert "reads semantic tokens" in card and "1 to 7, as the image asks for" in card
    folder, picture = str(tmp_path / "run"), tiny_image(1)
    (answer,) = ImageTextModel.from_pretrained(folder).generate(["a dog?"], [[picture]], max_new_tokens=3)
    turn = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "a dog?"}]}
    piped = pipeline("image-text-to-text", model=folder)(text=[turn], max_new_tokens=3, return_full_text=False)
    assert piped[0]["generated_text"].strip() == answer
    with pytest.raises(ValueError, match="give kind: setok_llava"):
        ModelRecipe(llava="here")
    with pytest.raises(ValueError, match=r"model\.vision does not go"):
        ModelRecipe(kind="setok_llava", llava="here", vision="there")


def test_a_recipe_composes_such_a_llava_of_two_checkpoints(base_models, source, tmp_path):
    model = {"kind": "setok_llava", "vision": base_models[0], "text": base_models[1], "image_size": 24, "setok": SETOK}
    more = {"cache_features": True, "feature_cache_dir": str(tmp_path / "features"), "conversations_per_row": 2}
    trained(source, tmp_path / "run", model, training=more)
    _, counts, placeholders = ask(tmp_path / "run")
    assert placeholders == [NUM_PATCHES] * 6 and max(counts) <= MAX_TOKENS
    again = {"kind": "setok_llava", "checkpoint": str(tmp_path / "run"), "setok": SETOK}
    trained(source, tmp_path / "again", again)


def test_the_shipped_recipe_is_that_of_the_paper():
    recipe = load_recipe("recipes/setok/plug-in.yaml")
    assert recipe.model.llava == "llava-hf/llava-1.5-7b-hf" and recipe.model.setok["merger"] == "mean"
    assert recipe.data.train[0]["max_samples"] == 10_000
    control = ["--model.setok", "{method: threshold, min_tokens: 576, max_tokens: 576}"]
    assert load_recipe("recipes/setok/plug-in.yaml", control).model.setok["min_tokens"] == 576


def test_the_parts_of_the_demos_setok_fit_one_another():
    fields = load_recipe("recipes/setok/demo/1a-boundaries.yaml").model.config
    fields = {**fields, **load_recipe("recipes/setok/demo/1c-reconstruction.yaml").model.config}
    tower = tiny_dinov2_config(hidden_size=384, num_hidden_layers=3)  # as wide as that of the recipe
    shapes = expected_shapes(SeTokForPreTraining, compose_setok_config(tower, None, fields))
    unet, detokenizer = "detokenizer.unet", fields["detokenizer_config"]
    channels = 3 * detokenizer["pixel_patch_size"] ** 2
    assert shapes[f"{unet}.conv_out.weight"][0] == channels == 12
    assert shapes[f"{unet}.conv_in.weight"][1] == 2 * channels + detokenizer["num_position_channels"]
    assert shapes["detokenizer.mapper.projection.weight"][0] == detokenizer["unet_config"]["cross_attention_dim"]
    assert shapes["detokenizer.mapper.token_norm.weight"] == (fields["output_size"],)
    assert shapes["detokenizer.query_grid.preview.weight"][0] == channels * 4 * 4  # 8 × 8 squares of 32 × 32 places
    without = {**fields, "detokenizer_config": {**detokenizer, "num_position_channels": 0}}
    with pytest.raises(ValueError, match="in_channels=40 and out_channels=12, expected 24 and 12"):
        expected_shapes(SeTokForPreTraining, compose_setok_config(tower, None, without))


def test_the_trainer_of_transformers_trains_it(tmp_path):
    model, processor = tiny_setok_llava(), tiny_llava_processor()
    before = parameters(model)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, remove_unused_columns=False, report_to="none", disable_tqdm=True,
        save_strategy="no", gradient_accumulation_steps=2, per_device_train_batch_size=2, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, VisualLanguageCollator(processor), questions(8))
    trainer.train()
    assert {name.split(".")[1] for name in moved(model, before)} >= {"multi_modal_projector", "language_model"}
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry)
