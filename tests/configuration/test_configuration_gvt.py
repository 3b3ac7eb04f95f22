"""Configs of GVT and of its resampler: defaults of the paper, cross-checks, and the way through a file."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, Dinov2Config, LlamaConfig, Qwen2Config, T5Config, ViTMAEConfig

from tests.tiny import tiny_gvt_config
from vistok import EvaVisionConfig, GVTConfig, PerceiverResamplerConfig


def test_defaults_are_those_of_the_paper():
    config = GVTConfig()
    assert type(config.vision_config) is EvaVisionConfig
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1024, 24)
    assert (config.vision_config.patch_size, config.vision_config.image_size) == (14, 224)
    assert type(config.text_config) is LlamaConfig
    resampler = config.resampler_config
    assert type(resampler) is PerceiverResamplerConfig
    sizes = (resampler.num_latents, resampler.num_hidden_layers, resampler.num_attention_heads, resampler.head_dim)
    assert sizes == (32, 6, 16, 96)
    assert (resampler.hidden_size, resampler.intermediate_size, resampler.layer_norm_eps) == (1024, 4096, 1e-5)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")


@pytest.mark.parametrize("text_config", [LlamaConfig(), T5Config(), Qwen2Config(tie_word_embeddings=True)])
def test_a_config_comes_back_from_a_file_unchanged(tmp_path, text_config):
    config = tiny_gvt_config(
        text_config=text_config,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        base_models={"vision": "a", "text": "b"},
        lora_config={"r": 4},
    )
    config.save_pretrained(tmp_path)
    for loaded in (GVTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is GVTConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert type(loaded.vision_config) is Dinov2Config
        assert type(loaded.text_config) is type(text_config)
        assert loaded.resampler_config.to_dict() == config.resampler_config.to_dict()


def test_parts_may_be_dictionaries():
    config = GVTConfig(
        vision_config={"model_type": "dinov2", "hidden_size": 48},
        text_config={"model_type": "qwen2", "hidden_size": 64},
        resampler_config={"num_latents": 7},
    )
    assert type(config.vision_config) is Dinov2Config
    assert type(config.text_config) is Qwen2Config
    assert type(config.resampler_config) is PerceiverResamplerConfig
    assert config.resampler_config.num_latents == 7
    assert config.resampler_config.patch_hidden_size == 48


def test_what_follows_from_the_parts():
    config = GVTConfig(vision_config=ViTMAEConfig(hidden_size=96), text_config=T5Config())
    assert config.is_encoder_decoder
    assert config.vision_config.mask_ratio == 0
    assert config.resampler_config.patch_hidden_size == 96
    assert not GVTConfig().is_encoder_decoder
    assert GVTConfig(text_config=LlamaConfig(tie_word_embeddings=True)).tie_word_embeddings
    assert not GVTConfig(text_config=LlamaConfig(tie_word_embeddings=False)).tie_word_embeddings


def test_default_placeholder_is_a_token_of_the_default_language_model():
    GVTConfig().check_image_token()
    GVTConfig(text_config=T5Config()).check_image_token()
    with pytest.raises(ValueError, match=r"image_token_id is 32000, .*vocab_size=32000.*vocab_size of 32001 or more"):
        GVTConfig(text_config=LlamaConfig(vocab_size=32000)).check_image_token()


def test_parts_that_a_config_is_made_of_stay_as_they_were():
    tower, resampler, values = ViTMAEConfig(hidden_size=96), PerceiverResamplerConfig(), {"num_latents": 7}
    before = [tower.to_dict(), resampler.to_dict(), dict(values)]
    assert GVTConfig(vision_config=tower, resampler_config=resampler).resampler_config.patch_hidden_size == 96
    assert GVTConfig(vision_config=tower, resampler_config=values).resampler_config.num_latents == 7
    assert [tower.to_dict(), resampler.to_dict(), values] == before


def test_get_text_config_is_the_language_model():
    config = tiny_gvt_config()
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize("layer", [3, -4])
def test_feature_layer_that_the_tower_lacks_is_refused_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"vision_feature_layer is {layer}, .*2 layers.*0 to 2 .*-3 to -1"):
        tiny_gvt_config(vision_feature_layer=layer)


@pytest.mark.parametrize("layer", [2, -3, 0, "final"])
def test_first_and_last_layers_are_accepted(layer):
    assert tiny_gvt_config(vision_feature_layer=layer).vision_feature_layer == layer


@pytest.mark.parametrize(
    "field, value",
    [
        ("vision_feature_layer", "-1"),
        ("vision_feature_layer", 1.0),
        ("vision_feature_select_strategy", "cls"),
        ("image_token_id", "32000"),
    ],
)
def test_fields_of_the_wrong_type_or_value_are_refused_by_name(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_gvt_config(**{field: value})


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "num_latents", "intermediate_size"],
)
def test_resampler_of_no_size_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} is 0, a Perceiver resampler needs at least 1"):
        PerceiverResamplerConfig(**{field: 0})


def test_unknown_formulation_is_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="attention_formulation"):
        PerceiverResamplerConfig(attention_formulation="fast")


def test_patches_are_as_wide_as_the_queries_by_default():
    assert PerceiverResamplerConfig(hidden_size=64).patch_hidden_size == 64
    assert PerceiverResamplerConfig(hidden_size=64, patch_hidden_size=32).patch_hidden_size == 32


def test_model_types_are_new_to_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert not {"gvt", "perceiver_resampler_vistok"} & set(CONFIG_MAPPING_NAMES)
