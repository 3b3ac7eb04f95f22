"""What a training leaves behind loads as it was, with its base models or without, and is whole or not there."""

import copy
import json
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer.tiny_training import parameters, questions
from vistok import GVTForConditionalGeneration, VisualLanguageCollator
from vistok.modeling.lora_adapters import ordinary_model
from vistok.trainer.final_folder import replacing_files

PARTS = {"vision": "frozen", "resampler": "full", "llm": "frozen"}
LORA = {**PARTS, "llm": "lora"}


@pytest.fixture
def logits(processor):
    batch = VisualLanguageCollator(processor)(list(questions(3)))
    del batch["labels"]

    def compute(model):
        with torch.no_grad():
            return model.eval()(**batch).logits

    return compute


@pytest.fixture
def trained(model, trainer_for):
    def train(model=model, **options):
        trainer = trainer_for(model, questions(6), max_steps=3, learning_rate=0.03, **options)
        trainer.train()
        return trainer

    return train


def stored(folder, name="trained_weights.safetensors") -> dict[str, torch.Tensor]:
    with safe_open(folder / name, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    "trainable", [PARTS, LORA, {**PARTS, "vision": "full"}, {**LORA, "resampler": "lora"}], ids=str
)
def test_a_folder_of_trained_weights_holds_these_and_loads_as_the_model_was(
    trained, logits, tmp_path, composed, trainable
):
    trainer = trained(trainable=trainable)
    trainer.save_final(tmp_path / "final")
    assert not logits(trainer.model).allclose(logits(composed), atol=1e-2)
    names = set(stored(tmp_path / "final"))
    parts = {name.split(".")[1] for name in names}
    assert parts == {"resampler", "projector"} | ({"vision_tower"} if trainable["vision"] == "full" else set()) | (
        {"language_model"} if trainable["llm"] == "lora" else set()
    )
    assert all(".lora_" in name for name in names if "language_model" in name)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    assert "use_cache" not in vars(loaded.config)
    assert torch.allclose(logits(loaded), logits(trainer.model), atol=1e-5)
    assert AutoProcessor.from_pretrained(tmp_path / "final").num_image_tokens == 3
    assert sum(path.stat().st_size for path in (tmp_path / "final").glob("*.safetensors")) < 600_000


@pytest.mark.parametrize("trainable", [PARTS, LORA, {**LORA, "vision": "lora"}], ids=str)
def test_a_folder_of_everything_is_an_ordinary_model_without_adapters_or_base_models(
    trained, logits, tmp_path, base_models, monkeypatch, trainable
):
    trainer = trained(trainable=trainable, save_trained_only=False)
    expected, before = logits(trainer.model), parameters(trainer.model)
    trainer.save_final(tmp_path / "final")
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["base_models"] is None and config["lora_config"] is None
    assert not (tmp_path / "final" / "trained_weights.safetensors").exists()
    assert "lora" not in " ".join(stored(tmp_path / "final", "model.safetensors"))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "peft", None)  # as if it were not installed
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    assert torch.allclose(logits(loaded), expected, atol=1e-4)
    # The trainer's model can be trained on.
    assert parameters(trainer.model).keys() == before.keys()
    assert torch.equal(logits(trainer.model), expected)


@pytest.mark.parametrize("save_trained_only", [True, False])
def test_the_final_weights_have_the_dtype_that_was_asked_for(trained, logits, tmp_path, save_trained_only):
    trainer = trained(save_trained_only=save_trained_only, save_dtype="bfloat16")
    trainer.save_final(tmp_path / "final")
    name = "trained_weights.safetensors" if save_trained_only else "model.safetensors"
    assert {tensor.dtype for tensor in stored(tmp_path / "final", name).values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert torch.allclose(logits(loaded), logits(trainer.model), atol=0.3)


def test_tied_embeddings_stay_tied(tmp_path, trainer_for, logits):
    from tests.tiny import save_base_models, tiny_llama_config
    from tests.trainer.conftest import RESAMPLER

    folders = save_base_models(tmp_path, text_config=tiny_llama_config(vocab_size=340, tie_word_embeddings=True))
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*folders, **RESAMPLER)
    trainer = trainer_for(model, questions(4), trainable={**PARTS, "llm": "full"}, save_trained_only=False)
    trainer.train()
    trainer.save_final(tmp_path / "final")
    assert "lm_head.weight" not in stored(tmp_path / "final", "model.safetensors")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "final")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


def test_a_second_training_keeps_what_the_first_one_learned(trained, logits, tmp_path):
    trained(trainable={"vision": "full", "resampler": "full", "llm": "lora"}).save_final(tmp_path / "first")
    model = GVTForConditionalGeneration.from_pretrained(tmp_path / "first")
    second = trained(model, trainable=PARTS)
    second.save_final(tmp_path / "second")
    assert stored(tmp_path / "second").keys() == stored(tmp_path / "first").keys()
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "second")
    assert torch.allclose(logits(loaded), logits(second.model), atol=1e-5)


def test_a_training_that_starts_from_everything_saves_everything(trained, logits, tmp_path):
    trained(trainable={**PARTS, "llm": "full"}, save_trained_only=False).save_final(tmp_path / "first")
    model = GVTForConditionalGeneration.from_pretrained(tmp_path / "first")
    second = trained(model, trainable=PARTS)  # its language model is no base model any more
    second.save_final(tmp_path / "second")
    assert (tmp_path / "second" / "model.safetensors").exists()
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "second")
    assert torch.allclose(logits(loaded), logits(second.model), atol=1e-5)


def test_saving_replaces_weights_of_another_kind(trained, logits, tmp_path):
    first = trained()
    first.save_final(tmp_path / "final")
    (tmp_path / "final" / "notes.txt").write_text("mine")
    first.args.save_trained_only = False
    first.save_final(tmp_path / "final")
    assert not (tmp_path / "final" / "trained_weights.safetensors").exists()
    first.args.save_trained_only = True
    first.save_final(tmp_path / "final")
    assert not (tmp_path / "final" / "model.safetensors").exists()
    assert (tmp_path / "final" / "notes.txt").read_text() == "mine"
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "final")
    assert torch.allclose(logits(loaded), logits(first.model), atol=1e-5)


def test_a_save_that_fails_leaves_the_folder_as_it_was(trained, logits, tmp_path, monkeypatch):
    trainer = trained()
    trainer.save_final(tmp_path / "final")
    content = {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()}

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        trainer.model.model.projector.weight.zero_()
    monkeypatch.setattr(trainer.processing_class, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_final(tmp_path / "final")
    assert {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()} == content


def test_files_are_replaced_together_and_weights_last(tmp_path, monkeypatch):
    import os

    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), replace(source, target)))
    with replacing_files(tmp_path / "new" / "folder") as folder:
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            (folder / name).write_text(name)
        (folder / "templates").mkdir()
        (folder / "templates" / "chat.jinja").write_text("{{ x }}")
        assert not list((tmp_path / "new" / "folder").glob("*.json"))
    assert order == ["config.json", "chat.jinja", "tokenizer.json", "model.safetensors"]
    assert (tmp_path / "new" / "folder" / "templates" / "chat.jinja").exists()
    assert not [path for path in (tmp_path / "new" / "folder").iterdir() if path.name.startswith(".")]


def test_an_ordinary_model_shares_what_needs_no_change(model):
    ordinary = ordinary_model(copy.copy(model))
    weight = model.model.vision_tower.embeddings.cls_token
    assert ordinary.model.vision_tower.embeddings.cls_token.data_ptr() == weight.data_ptr()
