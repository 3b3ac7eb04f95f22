"""Configuration of SeTok with its decoders: sizes that follow, phases, and what is refused."""

import pytest
from transformers import AutoConfig

from tests.tiny_setok import TOKEN_SIZE, tiny_detokenizer_config, tiny_setok_config
from vistok import SeTokConfig, SeTokVisionConfig


def test_the_decoders_follow_the_tokenizer_and_the_tower():
    config = tiny_setok_config()
    assert config.mask_decoder_config.token_size == TOKEN_SIZE
    assert config.mask_decoder_config.patch_hidden_size == 32
    assert config.detokenizer_config.mapper_config.token_size == TOKEN_SIZE
    assert config.detokenizer_config.mapper_config.condition_size == 20
    wider = tiny_setok_config(vision={"output_size": None})
    assert wider.mask_decoder_config.token_size == wider.detokenizer_config.mapper_config.token_size == 32


def test_the_configs_that_it_is_made_of_stay_as_they_are():
    detokenizer = tiny_detokenizer_config()
    detokenizer.mapper_config.token_size = 99
    SeTokConfig(vision_config=tiny_setok_config().vision_config, detokenizer_config=detokenizer)
    assert detokenizer.mapper_config.token_size == 99


def test_a_detokenizer_is_optional(tmp_path):
    config = tiny_setok_config(detokenizer_config=None)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).detokenizer_config is None


@pytest.mark.parametrize("latent", [False, True])
def test_it_comes_back_from_a_folder(latent, tmp_path):
    config = tiny_setok_config(latent, mask_dice_weight=2.5, base_models={"vision": "somewhere"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SeTokConfig)
    assert isinstance(loaded.vision_config, SeTokVisionConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()


def test_each_phase_says_what_it_trains():
    config = tiny_setok_config()
    assert config.phase_trainable("reconstruction") == {"merger": "full", "mapper": "full", "unet": "keys_values"}
    assert config.phase_trainable("boundaries") == {"clustering": "full", "merger": "full", "mask_decoder": "full"}
    from_scratch = tiny_setok_config(detokenizer_config=tiny_detokenizer_config(trained_unet_parts="all"))
    assert from_scratch.phase_trainable("reconstruction")["unet"] == "full"


def test_parts_without_weights_are_not_among_what_is_trained():
    plain = {"merger": "mean", "output_size": None, "learn_kernel_scale": False, "cluster_projection_size": None}
    config = tiny_setok_config(vision=plain)
    assert config.phase_trainable("reconstruction") == {"mapper": "full", "unet": "keys_values"}
    assert config.phase_trainable("boundaries") == {"mask_decoder": "full"}
    nearest = tiny_setok_config(vision={"method": "threshold", "straight_through": False})
    assert "clustering" not in nearest.phase_trainable("boundaries")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="mask_dice_weight is -1"):
        tiny_setok_config(mask_dice_weight=-1)
    with pytest.raises(ValueError, match="cluster_matching_weight is -1"):
        tiny_setok_config(cluster_matching_weight=-1)
    with pytest.raises(ValueError, match="phase is 'I-a': choose one of reconstruction, boundaries"):
        tiny_setok_config().phase_trainable("I-a")
    with pytest.raises(ValueError, match="give SeTokConfig a detokenizer_config"):
        tiny_setok_config(detokenizer_config=None).phase_trainable("reconstruction")
