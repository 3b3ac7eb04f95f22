"""VT-LMM composed of two checkpoints, saved whole or as what was trained, adapted, and on the real base weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.tiny import IMAGE_SIZE, batch, livelier, pixels, same, save_base_models, tiny_image, tiny_t5_config, words
from tests.tiny_kinds import KINDS
from vistok import MLPAdapter, MLPAdapterConfig, VTLMMForCausalLM, VTLMMModel, VTLMMProcessor, save_trained_weights
from vistok.modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError
from vistok.trainer.freezing import set_trainable

ROWS = KINDS["vtlmm"].rows


def compose(base_models, **overrides) -> VTLMMForCausalLM:
    """Always the same; what lies between the checkpoints is lively."""
    torch.manual_seed(3)
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models, **overrides)
    livelier(model.model.adapter)
    livelier(model.model.vm_head)
    return model


def inputs() -> dict:
    return batch(*ROWS) | {"pixel_values": pixels(3), "labels": batch(*ROWS)["input_ids"]}


def test_parts_are_those_of_the_checkpoints_and_the_rest_is_new(base_models):
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models)
    alone = AutoModelForCausalLM.from_pretrained(base_models[1]).eval()
    text = batch(words(6), words(4, 1))
    assert same(model(**text).logits[..., :340], alone(**text).logits, 1e-4)
    assert isinstance(model.model.adapter, MLPAdapter)
    new = {name for name, _ in model.named_parameters() if name.startswith(("model.adapter", "model.vm_head"))}
    assert model.added_weights == new
    assert model.model.vm_head.weight.shape == (344, 48), "the placeholder's rows are in both heads"
    for parameter in (model.model.vm_head.weight, model.model.adapter.linear_1.weight):
        assert abs(parameter.std() - 0.02) < 0.003
    assert model.config.adapter_config.num_tokens == 9
    assert model.config.vm_head_trained is False
    assert VTLMMForCausalLM.from_vision_text_pretrained(*base_models, image_size=40).model.adapter.max_num_tokens == 25


def test_new_weights_follow_the_seed(base_models):
    first, again, other = (
        (torch.manual_seed(seed), VTLMMForCausalLM.from_vision_text_pretrained(*base_models))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(first.model.vm_head.weight, again.model.vm_head.weight)
    assert not torch.equal(first.model.vm_head.weight, other.model.vm_head.weight)


@pytest.mark.parametrize("in_config", [False, True])
def test_overrides_reach_the_config_and_the_adapter(base_models, in_config):
    given = {"adapter_config": MLPAdapterConfig(intermediate_size=20)} if in_config else {"intermediate_size": 20}
    given |= {"vm_head_rank": 4, "vision_feature_layer": -1}
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models, **given)
    assert model.model.adapter.linear_1.weight.shape == (20, 32)
    assert model.model.adapter.linear_2.weight.shape == (48, 20)
    assert model.model.vm_head.up.weight.shape == (344, 4)
    assert model.config.vision_feature_layer == -1
    with pytest.raises(ValueError, match=r"num_latents is no field of VTLMMConfig nor of MLPAdapterConfig"):
        VTLMMForCausalLM.from_vision_text_pretrained(*base_models, num_latents=3)


def test_encoder_decoders_are_refused(tmp_path):
    vision, text = save_base_models(tmp_path, text_config=tiny_t5_config(vocab_size=340), add_eos=True)
    with pytest.raises(ValueError, match=r"t5, an encoder-decoder model.*needs a causal language model"):
        VTLMMForCausalLM.from_vision_text_pretrained(vision, text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_dtype_is_as_asked(base_models, dtype):
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models, dtype=dtype)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{str(dtype).removeprefix('torch.')}"}


def test_model_without_a_head_is_composed_too(base_models):
    torch.manual_seed(3)
    core = VTLMMModel.from_vision_text_pretrained(*base_models)
    livelier(core.adapter)
    model = compose(base_models)
    given = {name: value for name, value in inputs().items() if name != "labels"}
    assert same(core(**given).last_hidden_state, model.model(**given).last_hidden_state, 1e-4)


def test_whole_model_comes_back_by_every_auto_class_with_its_switches(base_models, tmp_path):
    model = compose(base_models, pseudo_image_features=True, vm_head_rank=4)
    model.save_pretrained(tmp_path)
    expected = model(**inputs(), visual_loss="visual_modeling")
    for auto_class in (VTLMMForCausalLM, AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is VTLMMForCausalLM
        found = loaded(**inputs(), visual_loss="visual_modeling")
        assert same(found.loss, expected.loss)
        assert same(found.logits, expected.logits)
    switched = VTLMMForCausalLM.from_pretrained(tmp_path, pseudo_image_features=False)
    assert not same(switched(**inputs()).logits, expected.logits)


@pytest.mark.parametrize("trainable", [("adapter",), ("vm_head",), ("llm", "adapter")], ids=str)
def test_folders_of_trained_weights_hold_what_the_base_models_lack(base_models, tmp_path, trainable):
    model = compose(base_models)
    set_trainable(model, dict.fromkeys(trainable, "full"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    save_trained_weights(model, tmp_path)
    assert (tmp_path / TRAINED_WEIGHTS_NAME).exists()
    loaded = VTLMMForCausalLM.from_pretrained(tmp_path)
    for visual_loss in ("visual_modeling", "visual_tokens"):
        expected, found = (one(**inputs(), visual_loss=visual_loss) for one in (model, loaded))
        assert same(found.loss, expected.loss)
        assert same(found.logits, expected.logits)
    (tmp_path / TRAINED_WEIGHTS_NAME).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="truncated"):
        VTLMMForCausalLM.from_pretrained(tmp_path)


def test_adapters_on_the_language_model_are_merged_when_the_whole_is_saved(base_models, tmp_path):
    model = compose(base_models)
    expected = model(**inputs(), visual_loss="visual_modeling")
    set_trainable(model, {"llm": "lora", "vm_head": "full"}, {"r": 4})
    assert same(model(**inputs(), visual_loss="visual_modeling").loss, expected.loss)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(("language_model" in name and "lora" in name) or "vm_head" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    moved = model(**inputs(), visual_loss="visual_modeling", skip_logits=True)
    assert not same(moved.loss, expected.loss)
    moved.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad and "lora" in name)
    model.save_pretrained(tmp_path / "whole")
    save_trained_weights(model, tmp_path / "trained")
    for folder in ("whole", "trained"):
        loaded = VTLMMForCausalLM.from_pretrained(tmp_path / folder)
        assert same(loaded(**inputs(), visual_loss="visual_modeling").loss, moved.loss, 1e-4)


def test_a_language_head_that_is_adapted_gives_the_losses_of_its_merged_weight(base_models):
    from peft import LoraConfig, get_peft_model

    model = compose(base_models)
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=4))
    head = model.lm_head
    with torch.no_grad():
        head.lora_B["default"].weight.normal_(std=0.1)
    for skip_logits in (True, False):
        found = adapted(**inputs(), visual_loss="visual_modeling", skip_logits=skip_logits)
        found.loss.backward()
        assert head.lora_B["default"].weight.grad.abs().max() > 0
        merged = compose(base_models)
        merged.lm_head.weight.data += head.get_delta_weight("default").detach()
        expected = merged(**inputs(), visual_loss="visual_modeling")
        assert same(found.loss_lm, expected.loss_lm, 1e-4)
        assert same(found.loss_vm, expected.loss_vm, 1e-4)


def test_trained_parts_in_float32_fit_between_frozen_ones_in_bfloat16(base_models):
    for part, visual_loss, rank in (
        ("adapter", None, None), ("vm_head", "visual_tokens", None), ("vm_head", "visual_tokens", 4),
        ("adapter", "visual_modeling", 4),
    ):  # fmt: skip
        model = compose(base_models, dtype=torch.bfloat16, vm_head_rank=rank)
        getattr(model.model, part).float()
        set_trainable(model, {part: "full"})
        model(**inputs(), visual_loss=visual_loss, skip_logits=True).loss.backward()
        gradients = [parameter.grad for parameter in getattr(model.model, part).parameters()]
        assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in gradients)
        assert torch.isfinite(model.get_visual_tokens(pixels(1)).entropy).all()


@pytest.mark.real_weights
def test_real_base_weights_make_a_model_that_answers_and_reads_words():
    parts = ("vistok:dinov2-small", "vistok:smollm2-135m")
    model = VTLMMForCausalLM.from_vision_text_pretrained(*parts, image_size=112)
    processor = VTLMMProcessor.from_vision_text_pretrained(*parts, image_size=112, chat_template="question-answer")
    assert processor.num_image_tokens == model.model.adapter.max_num_tokens == 64
    image = tiny_image(1, (4 * IMAGE_SIZE, 2 * IMAGE_SIZE))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}], tokenize=False
    )
    given = processor(images=image, text=text, return_tensors="pt")
    assert given["pixel_values"].shape == (1, 3, 112, 112)
    with torch.no_grad():
        output = model(**given, labels=given["input_ids"], visual_loss="visual_modeling")
    length = given["input_ids"].shape[1]
    assert output.logits.shape == (1, length, 49160)
    assert output.visual_positions.sum() == 63, "SmolLM2 begins no text, so nothing predicts the first token"
    assert all(torch.isfinite(output[name]) and output[name] > 0 for name in ("loss_lm", "loss_vm"))
    generated = model.generate(**given, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > length
    read = model.get_visual_tokens(given["pixel_values"], top_k=3)
    assert read.probabilities.shape == read.token_ids.shape == (1, 64, 3)
    assert read.grid_size == (8, 8)
    assert torch.isfinite(read.entropy).all()
    similarities, _ = model.nearest_text_tokens(output.image_hidden_states)
    assert similarities.shape == (1, 64, 1)
    assert similarities.abs().max() <= 1 + 1e-5
    model.config.pseudo_image_features = True
    with torch.no_grad():
        assert torch.isfinite(model(**given).logits).all()
