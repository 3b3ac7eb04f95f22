"""Configs of VT-LMM and its adapter: defaults of the paper, what follows from the parts, the way through a file."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
    T5Config,
    ViTMAEConfig,
)

from tests.tiny import tiny_resampler_config
from tests.tiny_kinds import tiny_vtlmm_config
from vistok import MLPAdapterConfig, PerceiverResamplerConfig, VTLMMConfig


def test_defaults_are_those_of_the_paper():
    config = VTLMMConfig()
    assert type(config.vision_config) is CLIPVisionConfig
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1024, 24)
    assert (config.vision_config.patch_size, config.vision_config.image_size) == (14, 336)
    assert type(config.text_config) is LlamaConfig
    adapter = config.adapter_config
    assert type(adapter) is MLPAdapterConfig
    assert (adapter.patch_hidden_size, adapter.intermediate_size, adapter.output_size) == (1024, 4096, 4096)
    assert (adapter.hidden_act, adapter.num_tokens) == ("gelu", 576)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.pseudo_image_features, config.vm_head_rank) == (False, None)
    config.check_image_token()


@pytest.mark.parametrize("text_config", [LlamaConfig(), Qwen2Config(tie_word_embeddings=True)])
def test_a_config_comes_back_from_a_file_unchanged(tmp_path, text_config):
    config = tiny_vtlmm_config(
        text_config=text_config,
        vision_feature_layer="final",
        vision_feature_select_strategy="full",
        pseudo_image_features=True,
        vm_head_rank=8,
        base_models={"vision": "a", "text": "b"},
        lora_config={"r": 4},
    )
    config.save_pretrained(tmp_path)
    for loaded in (VTLMMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is VTLMMConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert type(loaded.vision_config) is Dinov2Config
        assert type(loaded.text_config) is type(text_config)
        assert loaded.adapter_config.to_dict() == config.adapter_config.to_dict()


def test_parts_may_be_dictionaries():
    config = VTLMMConfig(
        vision_config={"model_type": "dinov2", "hidden_size": 48},
        text_config={"model_type": "qwen2", "hidden_size": 64},
        adapter_config={"hidden_act": "relu"},
    )
    assert type(config.vision_config) is Dinov2Config
    assert type(config.text_config) is Qwen2Config
    assert type(config.adapter_config) is MLPAdapterConfig
    assert config.adapter_config.hidden_act == "relu"


def test_widths_of_the_adapter_follow_the_tower_and_the_language_model():
    config = VTLMMConfig(vision_config=ViTMAEConfig(hidden_size=96, image_size=224), text_config=LlamaConfig())
    adapter = config.adapter_config
    assert (adapter.patch_hidden_size, adapter.intermediate_size, adapter.output_size) == (96, 4096, 4096)
    assert adapter.num_tokens == 14 * 14
    assert config.vision_config.mask_ratio == 0
    given = MLPAdapterConfig(patch_hidden_size=5, output_size=7, intermediate_size=9, num_tokens=11)
    adapter = VTLMMConfig(text_config=LlamaConfig(hidden_size=64), adapter_config=given).adapter_config
    assert (adapter.patch_hidden_size, adapter.output_size) == (1024, 64)
    assert (adapter.intermediate_size, adapter.num_tokens) == (9, 11), "these are the caller's"
    assert (given.patch_hidden_size, given.output_size) == (5, 7), "and so is the config, which stays as it was"
    narrow = OPTConfig(hidden_size=64, word_embed_proj_dim=32)
    assert VTLMMConfig(text_config=narrow).adapter_config.output_size == 32, "of the embeddings"
    wide = Dinov2Config(image_size=(28, 42), patch_size=14)
    assert VTLMMConfig(vision_config=wide).adapter_config.num_tokens == 6


def test_width_of_a_convolutional_tower_is_that_of_the_stage_that_is_read():
    tower = ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])
    for layer, width in ((-1, 20), (-2, 16), (1, 8), ("final", 20)):
        adapter = tiny_vtlmm_config(vision_config=tower, vision_feature_layer=layer).adapter_config
        assert (adapter.patch_hidden_size, adapter.num_tokens) == (width, None)
    with pytest.raises(ValueError, match=r"vision_feature_layer is 5, .*4 layers.*0 to 4 "):
        tiny_vtlmm_config(vision_config=tower, vision_feature_layer=5)


def test_another_visual_tokenizer_may_be_the_adapter():
    config = tiny_vtlmm_config(adapter_config=tiny_resampler_config(patch_hidden_size=5))
    assert type(config.adapter_config) is PerceiverResamplerConfig
    assert config.adapter_config.patch_hidden_size == 32


def test_tying_follows_the_language_model():
    assert VTLMMConfig(text_config=LlamaConfig(tie_word_embeddings=True)).tie_word_embeddings
    assert not VTLMMConfig(text_config=LlamaConfig(tie_word_embeddings=False)).tie_word_embeddings
    assert not VTLMMConfig().is_encoder_decoder


def test_encoder_decoders_are_refused():
    with pytest.raises(ValueError, match=r"t5, an encoder-decoder model.*such as Llama, Mistral, Qwen or SmolLM"):
        VTLMMConfig(text_config=T5Config())


@pytest.mark.parametrize("layer", [3, -4])
def test_feature_layer_that_the_tower_lacks_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"vision_feature_layer is {layer}, .*2 layers.*0 to 2 .*-3 to -1"):
        tiny_vtlmm_config(vision_feature_layer=layer)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="vm_head_rank is 0: give 1 or more, or None"):
        tiny_vtlmm_config(vm_head_rank=0)


@pytest.mark.parametrize(
    "field, value",
    [
        ("vision_feature_select_strategy", "cls"),
        ("pseudo_image_features", "yes"),
        ("vm_head_rank", 1.5),
        ("image_token_id", "32000"),
    ],
)
def test_fields_of_the_wrong_type_or_value_are_refused_by_name(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_vtlmm_config(**{field: value})


def test_a_placeholder_that_is_no_token_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"image_token_id is 384, .*vocab_size=384.*ids 0 to 383"):
        tiny_vtlmm_config(image_token_id=384).check_image_token()


def test_model_types_are_new_to_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert not {"vtlmm", "mlp_adapter_vistok"} & set(CONFIG_MAPPING_NAMES)
