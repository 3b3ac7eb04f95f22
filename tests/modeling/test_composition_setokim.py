"""Setokim is composed of a tower or a trained SeTok and a language model, and comes back from a folder of either."""

import sys

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from tests.tiny import (
    batch,
    livelier,
    pixels,
    same,
    save_base_models,
    tiny_image_processor,
    tiny_t5_config,
    words,
)
from tests.tiny_setokim import MAX_TOKENS, tiny_setok_config, tiny_setok_vision_config
from vistok import (
    SeTokForPreTraining,
    SetokimForConditionalGeneration,
    SetokimModel,
    SetokimProcessor,
    SeTokVisionModel,
    save_trained_weights,
)
from vistok.modeling.completed_model import CheckpointError

CHOSEN = {
    "method": "threshold",
    "score_threshold": 0.32,
    "num_neighbors": 2,
    "max_tokens": MAX_TOKENS,
    "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16},
}


def inputs(processor):
    row = processor.tokenizer(processor.replace_image_token({}, 0))["input_ids"]
    return batch([*row, *words(5)], [*row, *words(5, 1)]) | {"pixel_values": pixels(2)}


@pytest.fixture(scope="module")
def setok_folders(tmp_path_factory):
    """A trained SeTok with its decoders, and one without, each in a folder as users have them."""
    folder = tmp_path_factory.mktemp("setok")
    torch.manual_seed(0)
    models = {
        "setok": livelier(SeTokForPreTraining(tiny_setok_config(draws=True))),
        "setok_vision": livelier(SeTokVisionModel(tiny_setok_vision_config())),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_image_processor().save_pretrained(folder / name)
    return {name: (str(folder / name), model) for name, model in models.items()}


def test_composed_of_a_tower_it_has_new_tokens_around_images(base_models):
    model = SetokimForConditionalGeneration.from_vision_text_pretrained(*base_models, **CHOSEN, visual_loss_weight=0.5)
    processor = SetokimProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=MAX_TOKENS)
    ids = [model.config.image_token_id, model.config.image_start_token_id, model.config.image_end_token_id]
    assert ids == [processor.image_token_id, processor.image_start_token_id, processor.image_end_token_id]
    assert len(set(ids)) == 3 and min(ids) == 340
    embeddings = model.get_input_embeddings().weight
    assert embeddings.shape[0] == 344
    rows = embeddings[340:343].detach()
    assert (rows[0] - rows[1]).abs().max() > 0 and (rows[1] - rows[2]).abs().max() > 0, "they can be told apart"
    spread = embeddings[:340].std(0).mean()
    assert ((rows - embeddings[:340].mean(0)).abs().mean(1) < 0.2 * spread).all(), "close to the mean"
    assert model.config.visual_loss_weight == 0.5
    assert model.model.visual_tokenizer.max_num_tokens == MAX_TOKENS
    assert model.model.setok.mask_decoder.config.hidden_size == 16
    assert model(**inputs(processor)).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["setok", "setok_vision"])
def test_composed_of_a_trained_setok_it_has_its_weights(base_models, setok_folders, kind):
    folder, setok = setok_folders[kind]
    model = SetokimForConditionalGeneration.from_vision_text_pretrained(folder, base_models[1])
    inside = model.model.setok if kind == "setok" else model.model.setok.vision_model
    for (name, weight), (other, expected) in zip(inside.state_dict().items(), setok.state_dict().items(), strict=True):
        assert name == other and torch.equal(weight, expected), name
    assert (model.model.setok.detokenizer is not None) == (kind == "setok")
    processor = SetokimProcessor.from_vision_text_pretrained(folder, base_models[1])
    assert processor.num_image_tokens == MAX_TOKENS
    fewer = SetokimForConditionalGeneration.from_vision_text_pretrained(folder, base_models[1], max_tokens=2)
    assert fewer.model.visual_tokenizer.max_num_tokens == 2


@pytest.mark.parametrize("of", ["tower", "setok"])
def test_a_folder_of_trained_weights_is_completed(base_models, setok_folders, tmp_path, of):
    vision, chosen = (base_models[0], CHOSEN) if of == "tower" else (setok_folders["setok"][0], {})
    torch.manual_seed(0)
    model = SetokimForConditionalGeneration.from_vision_text_pretrained(vision, base_models[1], **chosen)
    model.requires_grad_(False)
    model.output_projection.requires_grad_(True)
    save_trained_weights(model, tmp_path)
    processor = SetokimProcessor.from_vision_text_pretrained(
        vision, base_models[1], num_image_tokens=model.model.visual_tokenizer.max_num_tokens
    )
    processor.save_pretrained(tmp_path)
    loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path)
    given = inputs(AutoProcessor.from_pretrained(tmp_path))
    labels = given["input_ids"].clone()
    labels[:, 0] = -100
    expected, found = model(**given, labels=labels), loaded(**given, labels=labels)
    assert same(found.loss, expected.loss) and same(found.logits, expected.logits)
    core = SetokimModel.from_pretrained(tmp_path)
    assert same(core(**given).last_hidden_state, model.model(**given).last_hidden_state)


@pytest.mark.parametrize("whole", [True, False])
def test_without_the_detokenizer_it_reads_where_diffusers_is_missing(
    base_models, setok_folders, tmp_path, monkeypatch, whole
):
    vision = setok_folders["setok"][0]
    torch.manual_seed(0)
    model = SetokimForConditionalGeneration.from_vision_text_pretrained(vision, base_models[1])
    if whole:
        model.save_pretrained(tmp_path)
    else:
        model.requires_grad_(False)
        for part in (model.output_projection, model.model.setok.detokenizer.mapper):
            part.requires_grad_(True)
        save_trained_weights(model, tmp_path)
    given = inputs(SetokimProcessor.from_vision_text_pretrained(vision, base_models[1]))
    expected = model(**given)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "vistok\[generation\]"'):
        SetokimForConditionalGeneration.from_pretrained(tmp_path)
    without = {"setok_config": {"detokenizer_config": None}, "output_loading_info": True}
    loaded, info = SetokimForConditionalGeneration.from_pretrained(tmp_path, **without)
    core, of_core = SetokimModel.from_pretrained(tmp_path, **without)
    # A whole folder read without a head has that over.
    assert not info["unexpected_keys"] and of_core["unexpected_keys"] <= {"lm_head.weight"}
    assert loaded.model.setok.detokenizer is None
    assert same(loaded(**given).logits, expected.logits)
    assert same(core(**given).last_hidden_state, model.model(**given).last_hidden_state)


def test_a_processor_comes_back_from_disk_as_it_was(base_models, tmp_path):
    processor = SetokimProcessor.from_vision_text_pretrained(
        *base_models, num_image_tokens=5, segmentation_instruction="Find {}.", chat_template="chatml"
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SetokimProcessor
    assert (loaded.num_image_tokens, loaded.segmentation_instruction) == (5, "Find {}.")
    assert loaded.task_prompt("segment", "a dog") == processor.task_prompt("segment", "a dog")
    assert AutoTokenizer.from_pretrained(tmp_path).image_start_token == "[Img]"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_latents": 3}, "num_latents is no field of SetokimConfig, SeTokConfig nor SeTokVisionConfig"),
        ({"image_start_token_id": 3}, "image_start_token_id cannot be chosen"),
        ({"vision_config": {}}, "vision_config cannot be chosen"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(base_models, overrides, message):
    with pytest.raises(ValueError, match=message):
        SetokimForConditionalGeneration.from_vision_text_pretrained(*base_models, **overrides)


def test_encoder_decoders_and_broken_folders_are_refused(tmp_path, base_models, setok_folders):
    vision, text = save_base_models(tmp_path, text_config=tiny_t5_config(vocab_size=340), add_eos=True)
    with pytest.raises(ValueError, match="t5, an encoder-decoder model, which writes no images"):
        SetokimForConditionalGeneration.from_vision_text_pretrained(vision, text)
    livelier(SeTokVisionModel(tiny_setok_vision_config())).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        SetokimForConditionalGeneration.from_vision_text_pretrained(str(tmp_path / "cut"), base_models[1])
