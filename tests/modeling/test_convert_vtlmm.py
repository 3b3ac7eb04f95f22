"""LLaVA-1.5 and VW-LMM as published become a VT-LMM that computes the same."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

from tests.modeling.published_llava import (
    NUM_PATCHES,
    ORIGINAL_LAYOUTS,
    TINY_TOWER,
    VOCAB_SIZE,
    dtype_of,
    layout,
    random_checkpoint,
    save_checkpoint,
    shapes_of,
    tiny_config,
)
from tests.tiny import batch, livelier, pixels, same, tiny_clip_config, tiny_llama_config, tiny_tokenizer, words
from vistok import VTLMMConfig, VTLMMForCausalLM
from vistok.modeling import published_llava
from vistok.modeling.checkpoint_shards import StoredTensor
from vistok.modeling.completed_model import expected_shapes
from vistok.modeling.convert_vtlmm import convert_llava
from vistok.modeling.published_llava import PublishedNames, read_published_config

TOWER_NAME = "openai/clip-vit-large-patch14-336"
ROWS = 352  # of the reference's embeddings; only the first VOCAB_SIZE are in LLaVA's layout


@pytest.fixture
def tiny_tower(monkeypatch):
    """The tower that published configs name is as small as that of the tiny checkpoints."""
    monkeypatch.setitem(published_llava.PUBLISHED_TOWERS, TOWER_NAME, TINY_TOWER)


@pytest.fixture(scope="module")
def reference():
    """A LLaVA of transformers."""
    torch.manual_seed(5)
    text_config = tiny_llama_config(vocab_size=ROWS)
    config = LlavaConfig(vision_config=tiny_clip_config(), text_config=text_config, image_token_index=VOCAB_SIZE)
    return livelier(LlavaForConditionalGeneration(config)).eval()


def llava_inputs():
    image = [VOCAB_SIZE] * NUM_PATCHES
    return batch([*words(3), *image, *words(5, 1)], [*image, *words(2, 2)]) | {"pixel_values": pixels(2)}


def original_names(state_dict, with_tower=True):
    """Weights of transformers' LLaVA as LLaVA's authors call them, without rows for the placeholder."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = re.sub(r"^model\.language_model\.", "model.", name)
        name = name.replace("multi_modal_projector.linear_1", "mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
        if name.startswith("model.vision_tower.") and not with_tower:
            continue
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        is_vocabulary = name in ("lm_head.weight", "model.embed_tokens.weight")
        renamed[name] = tensor[:VOCAB_SIZE].clone() if is_vocabulary else tensor
    return renamed


def hub_names(state_dict):
    """Weights of transformers' LLaVA as llava-hf/llava-1.5-7b-hf has them."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
        name = re.sub(r"^model\.vision_tower\.", "vision_tower.vision_model.", name)
        renamed[re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)] = tensor
    return renamed


def saved_reference(reference, folder, kind):
    """A checkpoint of the reference, and what says where its tower is."""
    if kind.startswith("original"):
        tensors = original_names(reference.state_dict(), with_tower=kind == "original")
        save_checkpoint(folder, tensors, tiny_config("llava_1_5_7b", rms_norm_eps=1e-6))
        if kind == "original":
            return {}
        reference.model.vision_tower.save_pretrained(folder.parent / "clip")
        return {"vision": str(folder.parent / "clip")}
    if kind == "hub":
        config = reference.config.to_dict()
        save_checkpoint(folder, hub_names(reference.state_dict()), config, suffix=".safetensors", num_shards=3)
        return {}
    reference.save_pretrained(folder, save_original_format=kind == "transformers 5")
    tiny_tokenizer(add_bos=True).save_pretrained(folder)
    return {}


@pytest.mark.usefixtures("tiny_tower")
@pytest.mark.parametrize(
    "kind", ["original", "original, without tower", "hub", "transformers 5", "transformers 5, inner names"]
)
def test_a_converted_llava_has_the_logits_of_transformers(reference, tmp_path, kind):
    options = saved_reference(reference, tmp_path / "llava", kind)
    conversion = convert_llava(tmp_path / "llava", tmp_path / "out", **options)
    model = VTLMMForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = reference(**llava_inputs()).logits[..., :VOCAB_SIZE]
        found = model(**llava_inputs()).logits
    mask = llava_inputs()["attention_mask"].bool()
    assert same(found[mask][:, :VOCAB_SIZE], expected[mask]) and expected.std() > 0.5
    assert (conversion.kind, conversion.new, conversion.dropped) == ("llava", ["model.vm_head.weight"], [])
    assert conversion.num_parameters == model.num_parameters()
    assert model.config.image_token_id == VOCAB_SIZE
    assert found.shape[-1] == (344 if kind.startswith("original") else ROWS)


@pytest.mark.usefixtures("tiny_tower")
def test_a_converted_vw_lmm_has_the_published_distributions_over_the_vocabulary(tmp_path):
    tensors = random_checkpoint("vw_lmm_vicuna_7b")
    tensors["vm_head.weight"] *= 0.05
    save_checkpoint(tmp_path / "vw", tensors, tiny_config("vw_lmm_vicuna_7b"))
    conversion = convert_llava(tmp_path / "vw", tmp_path / "out")
    assert (conversion.kind, conversion.new, conversion.chat_template) == ("vw-lmm", [], "vicuna")
    model = VTLMMForCausalLM.from_pretrained(tmp_path / "out")

    prefix = "model.vision_tower.vision_tower.vision_model."
    tower = CLIPVisionModel(tiny_clip_config()).eval()
    tower.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if prefix in key})
    with torch.no_grad():
        features = tower(pixels(2), output_hidden_states=True).hidden_states[-2][:, 1:]
        inner = features @ tensors["model.mm_projector.0.weight"].T + tensors["model.mm_projector.0.bias"]
        inner = torch.nn.functional.gelu(inner)
        image = inner @ tensors["model.mm_projector.2.weight"].T + tensors["model.mm_projector.2.bias"]
        published = (image @ tensors["vm_head.weight"].T).softmax(-1)
        found = model.get_visual_tokens(pixels(2), return_distribution=True).distribution
    old, new = found[..., :VOCAB_SIZE], found[..., VOCAB_SIZE:]
    assert same(old / old.sum(-1, keepdim=True), published) and published.amax(-1).std() > 0.01
    # Jensen's inequality: the row that is the mean of all has at most the mean of their probabilities.
    assert (new.sum(-1) <= new.shape[-1] / VOCAB_SIZE * old.sum(-1)).all() and (new > 0).all()


@pytest.mark.usefixtures("tiny_tower")
def test_rows_for_the_placeholder_are_the_mean_of_the_others(tmp_path):
    tensors = random_checkpoint("vw_lmm_mistral_7b", dtype=torch.bfloat16)
    save_checkpoint(tmp_path / "vw", tensors, tiny_config("vw_lmm_mistral_7b"))
    convert_llava(tmp_path / "vw", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    names = {"model.embed_tokens.weight": "model.language_model.embed_tokens.weight"}
    names |= {"lm_head.weight": "lm_head.weight", "vm_head.weight": "model.vm_head.weight"}
    for published, own in names.items():
        assert written[own].shape == (344, 48) and written[own].dtype == torch.bfloat16
        assert torch.equal(written[own][:VOCAB_SIZE], tensors[published])
        mean = tensors[published].double().mean(0).to(torch.bfloat16)
        assert torch.equal(written[own][VOCAB_SIZE:], mean.expand(4, -1))


@pytest.mark.usefixtures("tiny_tower")
class TestConfig:
    def converted(self, tmp_path, name, source="vw", dtype=torch.float16, **fields):
        save_checkpoint(tmp_path / source, random_checkpoint(name, dtype=dtype), tiny_config(name, **fields))
        return convert_llava(tmp_path / source, tmp_path / "out")

    def test_a_mistral_keeps_what_llama_has_not(self, tmp_path):
        conversion = self.converted(tmp_path, "vw_lmm_mistral_7b")
        config = VTLMMConfig.from_pretrained(tmp_path / "out")
        assert config.text_config.model_type == "mistral" and config.text_config.sliding_window is None
        assert config.text_config.rope_parameters["rope_theta"] == 1_000_000.0
        assert config.dtype == torch.float16 and config.architectures == ["VTLMMForCausalLM"]
        assert config.vm_head_trained is True
        assert conversion.chat_template == "mistral" and not config.pseudo_image_features

    def test_a_mistral_without_a_name_is_known_by_its_sliding_window(self, tmp_path):
        conversion = self.converted(tmp_path, "vw_lmm_mistral_7b", architectures=None, sliding_window=4096)
        assert conversion.config.text_config.sliding_window == 4096 and conversion.chat_template == "mistral"

    def test_a_vicuna_is_a_llama(self, tmp_path):
        config = self.converted(tmp_path, "vw_lmm_vicuna_7b", rope_scaling={"type": "linear", "factor": 2.0}).config
        assert config.text_config.model_type == "llama"
        assert config.text_config.rope_parameters == {
            "rope_type": "linear",
            "factor": 2.0,
            "rope_theta": 10000.0,
            "type": "linear",
        }
        assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
        assert config.text_config.vocab_size == 344 and config.image_token_id == VOCAB_SIZE
        assert config.base_models is None and config.text_config.pad_token_id == 2

    @pytest.mark.parametrize(
        "source, fields", [("VW-LMM-Vicuna-pif-7b", {}), ("vw", {"architectures": ["vwPifLlamaForCausalLM"]})]
    )
    def test_pseudo_image_features_are_known_by_name_as_their_authors_do(self, tmp_path, source, fields):
        assert self.converted(tmp_path, "vw_lmm_vicuna_7b", source=source, **fields).config.pseudo_image_features

    def test_pseudo_image_features_can_be_said(self, tmp_path):
        save_checkpoint(tmp_path / "pif", random_checkpoint("vw_lmm_vicuna_7b"), tiny_config("vw_lmm_vicuna_7b"))
        for chosen in (True, False):
            conversion = convert_llava(tmp_path / "pif", tmp_path / str(chosen), pseudo_image_features=chosen)
            assert conversion.config.pseudo_image_features is chosen

    def test_generation_stops_where_the_published_one_does_and_never_writes_the_placeholder(self, tmp_path):
        self.converted(tmp_path, "vw_lmm_vicuna_7b")
        generation_config = VTLMMForCausalLM.from_pretrained(tmp_path / "out").generation_config
        assert generation_config.eos_token_id == 1 and generation_config.pad_token_id == 2
        assert generation_config.suppress_tokens == [VOCAB_SIZE]
        assert generation_config.temperature is None and generation_config.top_p is None

    def test_images_are_padded_where_they_were_in_training(self, tmp_path):
        assert self.converted(tmp_path, "vw_lmm_vicuna_7b").pad_to_square
        save_checkpoint(
            tmp_path / "b",
            random_checkpoint("vw_lmm_vicuna_7b"),
            tiny_config("vw_lmm_vicuna_7b", image_aspect_ratio=None),
        )
        assert not convert_llava(tmp_path / "b", tmp_path / "b-out").pad_to_square


@pytest.mark.parametrize("name", [*ORIGINAL_LAYOUTS, "llava_1_5_7b_hf"])
def test_every_weight_of_the_published_models_has_its_place_and_shape(tmp_path, name):
    published = layout(name)
    shapes = shapes_of(published)
    stored = {
        key: StoredTensor(tmp_path, torch.Size(shape), dtype_of(key, torch.float16)) for key, shape in shapes.items()
    }
    num_bytes = sum(tensor.shape.numel() * tensor.dtype.itemsize for tensor in stored.values())
    assert num_bytes == published.get("num_bytes", num_bytes)
    names = PublishedNames(stored)
    assert names.unknown == [] and all(key.endswith("inv_freq") for key in names.dropped)
    numbers = [stored[key].shape.numel() for key in names.own]
    assert sum(numbers) == published["num_parameters"]

    (tmp_path / "config.json").write_text(json.dumps(published["config"]))
    config = read_published_config(tmp_path)
    assert config.text_config.vocab_size == published["sizes"]["vocab"]
    vision_config = config.vision_config or CLIPVisionConfig(**published_llava.PUBLISHED_TOWERS[config.vision_tower])
    expected = expected_shapes(
        VTLMMForCausalLM,
        VTLMMConfig(vision_config=vision_config, text_config=config.text_config, image_token_id=31999),
    )
    absent = {key for key in expected if key not in names.published}
    assert all(key.startswith("model.vision_tower.") for key in absent - {"model.vm_head.weight"})
    assert bool(absent - {"model.vm_head.weight"}) == (published["num_tower_layers"] == 0)
    assert ("model.vm_head.weight" in absent) == name.startswith("llava")
    for own, key in names.published.items():
        assert stored[key].shape == expected[own], key
