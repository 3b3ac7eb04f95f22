"""The checkpoint of GVT's authors becomes a folder of trained weights that computes the same visual tokens."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig

from tests.modeling.published_eva import layout, random_checkpoint, shapes_of, slow_resampler, slow_tower
from tests.tiny import inputs_for, save_base_models, tiny_llama_config
from vistok import GVTConfig, GVTForConditionalGeneration, PerceiverResamplerConfig, save_trained_weights
from vistok.modeling import base_checkpoints
from vistok.modeling.completed_model import expected_shapes
from vistok.modeling.convert_gvt import convert_gvt, own_gvt_names
from vistok.modeling.trained_weights import CheckpointError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A language model as wide as the projector, whose vocabulary has no row for the placeholder."""
    return save_base_models(tmp_path_factory.mktemp("base"))[1]


def convert_tiny(source, folder, text, **kwargs):
    """The published sizes are not those of a tiny GVT."""
    return convert_gvt(source, folder, text, **{"head_dim": 10, "num_layers": 2, "num_tower_layers": 2, **kwargs})


def saved(tensors, folder):
    path = folder / "gvt.ckpt"
    torch.save({"state_dict": tensors, "global_step": 50_000}, path)
    return path


@pytest.fixture
def converted(text, tmp_path):
    tensors = random_checkpoint("gvt") | {"llm.model.norm.weight": torch.ones(48)}
    conversion = convert_tiny(saved(tensors, tmp_path), tmp_path / "out", text)
    return tensors, conversion, tmp_path / "out"


def test_every_name_and_shape_of_the_resampler_and_projector_has_its_place():
    shapes = shapes_of(layout("gvt"))
    assert len(shapes) == layout("gvt")["num_tensors"]
    parameters = [torch.Size(shape).numel() for name, shape in shapes.items() if "rope.freqs" not in name]
    assert sum(parameters) == layout("gvt")["num_parameters"]
    own, unknown = own_gvt_names({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert unknown == []
    # The defaults are GVT's; Vicuna-7B is as wide as LLaMA-7B.
    config = GVTConfig(
        text_config=LlamaConfig(num_hidden_layers=1, vocab_size=32008), resampler_config=PerceiverResamplerConfig()
    )
    expected = {
        name: shape
        for name, shape in expected_shapes(GVTForConditionalGeneration, config).items()
        if name.startswith(("model.resampler", "model.projector"))
    }
    assert {name: tensor.shape for name, tensor in own.items()} == expected


def test_a_converted_gvt_makes_the_visual_tokens_of_the_original(converted):
    tensors, _, folder = converted
    model = GVTForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        found = model.get_image_features(images).last_hidden_state
    for number, image in enumerate(images):
        expected = slow_resampler(tensors, slow_tower(tensors, image, "visual_encoder.")[-1])
        assert np.abs(found[number].numpy() - expected).max() < 1e-9
        assert expected.std() > 0.5


def test_its_config_is_that_of_the_paper_in_small(converted):
    _, conversion, folder = converted
    config = GVTConfig.from_pretrained(folder)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    resampler = config.resampler_config
    assert (resampler.num_latents, resampler.num_hidden_layers) == (32, 2)
    assert (resampler.num_attention_heads, resampler.head_dim, resampler.intermediate_size) == (2, 10, 56)
    assert config.vision_config.model_type == "eva_vision" and not config.vision_config.use_final_norm
    assert config.image_token_id == 340 and config.text_config.vocab_size == 344
    assert config.base_models["vision"] == "./vision_tower"
    assert "input_ln.weight" in conversion.dropped and "llm.model.norm.weight" in conversion.dropped
    assert not any(name.startswith(("perceiver", "ln_vision", "llm_proj")) for name in conversion.dropped)
    assert all(
        "fc_norm" in name or "head" in name or "rope" in name for name in conversion.dropped if "visual" in name
    )


def test_the_folder_can_be_moved_and_what_is_trained_further_saved_elsewhere(converted, tmp_path):
    _, _, folder = converted
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = inputs_for(model) | {"pixel_values": torch.randn(2, 3, 24, 24, dtype=model.dtype)}
    expected = model(**inputs).logits
    moved = tmp_path / "elsewhere" / "gvt"
    shutil.move(folder, moved)
    model = AutoModelForImageTextToText.from_pretrained(moved)
    assert torch.equal(model(**inputs).logits, expected)
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    save_trained_weights(model, tmp_path / "further")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "further")
    assert torch.equal(loaded(**inputs).logits, expected)
    assert loaded.config.base_models["vision"] == str(moved / "vision_tower")


def test_a_tower_in_a_repository_of_the_hub_is_downloaded_with_its_weights(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(name=name, **options)
        return str(tmp_path)

    monkeypatch.setattr(base_checkpoints, "snapshot_download", snapshot_download)
    names = {"vision": "./vision_tower", "text": "lmsys/vicuna-7b-v1.1"}
    found = base_checkpoints.located_base_models(names, "somebody/gvt", revision="v1", subfolder="best")
    assert found == {"vision": str(tmp_path / "best" / "vision_tower"), "text": "lmsys/vicuna-7b-v1.1"}
    assert asked == {"name": "somebody/gvt", "revision": "v1", "allow_patterns": ["best/vision_tower/*"]}
    assert base_checkpoints.located_base_models({"vision": "/a", "text": "b/c"}, "x/y") == {
        "vision": "/a",
        "text": "b/c",
    }


class TestRefusals:
    def refused(self, tmp_path, tensors, text, match, head_dim=10):
        with pytest.raises(CheckpointError, match=match) as told:
            convert_tiny(saved(tensors, tmp_path), tmp_path / "out", text, head_dim=head_dim)
        assert [path.name for path in tmp_path.iterdir()] == ["gvt.ckpt"]
        return str(told.value)

    def test_missing_weights_are_listed(self, text, tmp_path):
        tensors = random_checkpoint("gvt")
        for name in ("perceiver.layers.0.0.to_kv.weight", "perceiver.layers.1.0.to_kv.weight", "ln_vision.bias"):
            del tensors[name]
        told = self.refused(tmp_path, tensors, text, "are not those of GVT")
        assert told.splitlines()[1:] == ["- missing ln_vision.bias", "- missing perceiver.layers.{0-1}.0.to_kv.weight"]

    def test_last_layers_that_are_missing_are_not_taken_for_a_smaller_gvt(self, text, tmp_path):
        tensors = random_checkpoint("gvt")
        short = {name: value for name, value in tensors.items() if "perceiver.layers.1." not in name}
        told = self.refused(tmp_path, short, text, "are not those of GVT")
        assert "- missing perceiver.layers.1.0.to_q.weight" in told and len(told.splitlines()) == 1 + 11
        stray = tensors | {"perceiver.layers.3000.1.0.bias": torch.zeros(48)}
        told = self.refused(tmp_path, stray, text, "are not those of GVT")
        assert told.splitlines()[1:] == ["- unknown perceiver.layers.3000.*"]
        short = {name: value for name, value in tensors.items() if "visual_encoder.blocks.1." not in name}
        told = self.refused(tmp_path, short, text, "vision transformer of 2 layers of 32")
        assert told.splitlines()[1:] == ["- missing visual_encoder.blocks.1.*"]

    def test_the_published_gvt_has_six_layers_of_resampler(self, text, tmp_path):
        with pytest.raises(CheckpointError) as told:
            convert_gvt(saved(random_checkpoint("gvt"), tmp_path), tmp_path / "out", text, head_dim=10)
        assert "- missing perceiver.layers.{2-5}.0.to_q.weight" in str(told.value).splitlines()

    def test_a_checkpoint_without_a_tower_is_refused(self, text, tmp_path):
        tensors = {name: value for name, value in random_checkpoint("gvt").items() if "visual_encoder" not in name}
        self.refused(tmp_path, tensors, text, r"missing visual_encoder\.\*")
        del tensors["perceiver.latents"]
        self.refused(tmp_path, tensors | {"x.y": torch.ones(1)}, text, "missing perceiver.latents[\\s\\S]*unknown x.y")

    def test_a_language_model_of_another_width_is_named(self, tmp_path, tmp_path_factory):
        config = tiny_llama_config(vocab_size=340, hidden_size=32)
        wide = save_base_models(tmp_path_factory.mktemp("other"), text_config=config)[1]
        told = self.refused(tmp_path, random_checkpoint("gvt"), wide, "a language model of width 32")
        assert "llm_proj.weight has shape (48, 32), expected (32, 32)" in told

    def test_other_shapes_and_numbers_are_named(self, text, tmp_path):
        tensors = random_checkpoint("gvt")
        tensors["perceiver.media_pos_emb"] = torch.zeros(4, 1, 32)
        tensors["perceiver.layers.1.1.3.weight"][0, 0] = float("inf")
        told = self.refused(tmp_path, tensors, text, "has shape")
        assert "perceiver.media_pos_emb has shape (4, 32), expected (1, 32)" in told
        assert "perceiver.layers.1.1.3.weight holds numbers that are not finite" in told
        tensors["perceiver.latents"] = torch.zeros(32)
        self.refused(tmp_path, tensors, text, r"perceiver.latents has shape \(32,\)")
        self.refused(tmp_path, random_checkpoint("gvt"), text, "20 channels, no multiple of 96", head_dim=96)
