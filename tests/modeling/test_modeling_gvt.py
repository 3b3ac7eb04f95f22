"""GVT's forward pass: images in text, padding, losses, precision, compilation, and what it refuses."""

import shutil

import pytest
import torch

from tests.tiny import (
    IMAGE,
    NUM_LATENTS,
    NUM_PATCHES,
    batch,
    pixels,
    same,
    tiny_dinov2_config,
    tiny_gvt,
    tiny_gvt_config,
    tiny_llama_config,
    tiny_resampler_config,
    tiny_t5_config,
    words,
)
from vistok import GVTModel, VisionFeatures

# One image, two images, none.
ROWS = [[*IMAGE, *words(6)], [*words(2, 1), *IMAGE, *words(1, 2), *IMAGE, *words(4, 3)], words(5, 4)]
IMAGES_OF_ROWS = [[0], [1, 2], []]


def test_encoded_images_and_cached_features_equal_pixels():
    model = tiny_gvt(vision_feature_layer=-2, vision_feature_select_strategy="default")
    inputs, images = batch(*ROWS), pixels(3)
    expected = model(**inputs, pixel_values=images)
    encoded = model.get_image_features(images)
    assert same(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected.logits)
    features = model.model.get_vision_features(images)
    assert isinstance(features, VisionFeatures)
    assert features.patch_features.shape == (3, NUM_PATCHES, 32)
    from_cache = model(**inputs, vision_features=features.patch_features)
    assert model.get_image_features(vision_features=features.patch_features).num_prefix_tokens == 0
    whole = tiny_gvt().get_image_features(vision_features=features.patch_features)
    assert whole.num_prefix_tokens is None, "how many of them are [CLS] and registers, nobody knows"
    assert same(from_cache.logits, expected.logits)
    assert same(from_cache.image_hidden_states, encoded.last_hidden_state)


def test_image_features_are_a_list_of_projected_tokens_per_image():
    model = tiny_gvt()
    output = model.get_image_features(pixels(2))
    assert [tokens.shape for tokens in output.pooler_output] == [(NUM_LATENTS, 48)] * 2
    assert torch.equal(torch.stack(output.pooler_output), output.last_hidden_state)
    assert output.token_mask.all()
    assert (output.grid_size, output.num_prefix_tokens) == ((3, 3), 1)


@pytest.mark.parametrize("formulation", ["absorbed", "plain"])
def test_attention_maps_of_both_the_resampler_and_the_language_model(formulation):
    model = tiny_gvt(
        None,
        None,
        tiny_resampler_config(attention_formulation=formulation),
        attn_implementation={"text_config": "eager"},
    )
    output = model(**batch(*ROWS), pixel_values=pixels(3), output_attentions=True, output_hidden_states=True)
    assert [attention.shape for attention in output.image_attentions] == [(3, 2, 3, 1 + NUM_PATCHES + 3)] * 2
    assert [attention.shape for attention in output.attentions] == [(3, 4, 13, 13)] * 2
    assert len(output.hidden_states) == 3
    for attention in output.image_attentions:
        assert same(attention.sum(-1), torch.ones(3, 2, 3))
        assert attention.std() > 1e-3
    assert model(**batch(*ROWS), pixel_values=pixels(3)).image_attentions is None


def test_gradient_checkpointing_of_the_whole_model_gives_equal_gradients():
    plain, checkpointed = tiny_gvt().train(), tiny_gvt().train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.gradient_checkpointing_enable()
    runs = []
    for layers in (checkpointed.model.resampler.layers, checkpointed.model.language_model.layers):
        next(layers[0].children()).register_forward_hook(lambda module, *_: runs.append(type(module).__name__))
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    for model in (plain, checkpointed):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert sorted(runs) == ["LlamaAttention"] * 2 + ["PerceiverAttention"] * 2, "each ran again in the backward pass"
    for (name, parameter), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or same(parameter.grad, other.grad), name


def test_trained_parts_in_float32_fit_between_frozen_ones_in_bfloat16():
    model = tiny_gvt().to(torch.bfloat16)
    model.model.resampler.float()
    model.model.projector.float()
    output = model(**batch(*ROWS), pixel_values=pixels(3), labels=batch(*ROWS)["input_ids"])
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    assert model.model.resampler.latents.grad.dtype == torch.float32


@pytest.mark.parametrize("text_config", [tiny_llama_config(), tiny_t5_config()], ids=["llama", "t5"])
def test_a_config_may_ask_for_tuples(text_config):
    model = tiny_gvt(text_config=text_config)
    inputs = batch(*ROWS) | {"pixel_values": pixels(3), "labels": batch(*ROWS)["input_ids"]}
    expected = model(**inputs)
    assert same(expected["loss"], expected.loss)
    model.config.return_dict = False
    loss, logits, *_ = model(**inputs)
    assert same(loss, expected.loss)
    assert same(logits, expected.logits)
    assert same(model(**inputs, return_dict=True).logits, expected.logits)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_compiles_to_machine_code():
    one_layer = {"num_hidden_layers": 1}
    parts = (tiny_dinov2_config(**one_layer), tiny_llama_config(**one_layer), tiny_resampler_config(**one_layer))
    model = tiny_gvt(*parts)
    inputs = batch(ROWS[0]) | {"pixel_values": pixels(1)}
    with torch.no_grad():
        expected = model(**inputs).logits
        assert same(torch.compile(model, fullgraph=True)(**inputs).logits, expected, 1e-4)


def test_cached_features_of_another_tower_are_refused_with_both_widths():
    with pytest.raises(ValueError, match=r"31 wide.*patch_hidden_size=32"):
        tiny_gvt()(**batch(ROWS[0]), vision_features=torch.randn(1, NUM_PATCHES, 31))


def test_lora_on_the_language_model_leaves_everything_else_alone():
    from peft import LoraConfig, get_peft_model

    model = tiny_gvt()
    inputs = batch(*ROWS) | {"pixel_values": pixels(3)}
    expected = model(**inputs).logits
    adapted = get_peft_model(
        model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["projector"])
    )
    assert same(adapted(**inputs).logits, expected)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(("language_model" in name and "lora" in name) or "projector" in name for name in trained)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_a_placeholder_that_is_no_token_is_refused_with_both_numbers():
    for image_token_id in (384, -1):
        with pytest.raises(ValueError, match=rf"image_token_id is {image_token_id}, .*vocab_size=384.*ids 0 to 383"):
            GVTModel(tiny_gvt_config(image_token_id=image_token_id))


def test_default_model_is_that_of_the_paper():
    with torch.device("meta"):
        model = GVTModel._from_config(tiny_gvt_config(resampler_config={"model_type": "perceiver_resampler_vistok"}))
    assert model.resampler.config.num_latents == 32
    assert model.resampler.config.patch_hidden_size == 32, "follows the tower"
