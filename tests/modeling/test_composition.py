"""Composing a model from two checkpoints, saving only what was trained, and refusing checkpoints that do not fit."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    OwlViTConfig,
    OwlViTModel,
    SiglipConfig,
    SiglipModel,
)

from tests.tiny import (
    IMAGE_SIZE,
    PATCH_SIZE,
    RESAMPLER_SIZES,
    batch,
    compose,
    inputs_for,
    livelier,
    pixels,
    same,
    save_base_models,
    tiny_llama_config,
    tiny_resampler_config,
    tiny_t5_config,
    words,
)
from vistok import GVTForConditionalGeneration, GVTModel, PerceiverResamplerConfig
from vistok.modeling.base_checkpoints import load_vision_tower
from vistok.modeling.trained_weights import CheckpointError


def test_parts_are_those_of_the_checkpoints(base_models):
    vision, text = base_models
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER_SIZES)
    tower, alone = AutoModel.from_pretrained(vision).eval(), AutoModelForCausalLM.from_pretrained(text).eval()
    expected = tower(pixels(2), output_hidden_states=True).hidden_states[-1]
    assert same(model.model.get_vision_features(pixels(2)).patch_features, expected)
    inputs = batch(words(6), words(4, 1))
    assert same(model(**inputs).logits[..., :340], alone(**inputs).logits, 1e-4)
    assert not model.training
    assert model.config.base_models == {"vision": vision, "text": text}


def test_placeholder_is_a_new_row_of_the_embeddings_with_their_mean(base_models):
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES)
    assert model.config.image_token_id == 340
    alone = AutoModelForCausalLM.from_pretrained(base_models[1])
    for grown, before in (
        (model.get_input_embeddings(), alone.get_input_embeddings()),
        (model.get_output_embeddings(), alone.get_output_embeddings()),
    ):
        assert grown.weight.shape[0] == 344, "a multiple of eight"
        assert torch.equal(grown.weight[:340], before.weight)
        assert same(grown.weight[340:], before.weight.mean(0).expand(4, -1))
    assert model.config.text_config.vocab_size == 344


def test_placeholder_is_never_generated(base_models):
    model = compose(base_models)
    with torch.no_grad():
        model.lm_head.weight[340] = 1000 * model.lm_head.weight[:340].abs().max()
        model.lm_head.weight[341] = -model.lm_head.weight[340]  # either of the two has by far the highest logit
    assert model.generation_config.suppress_tokens == [340]
    inputs = inputs_for(model)
    assert set(model(**inputs).logits[:, -1].argmax(-1).tolist()) <= {340, 341}
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert 340 not in generated


def test_a_vocabulary_that_knows_the_placeholder_does_not_grow(tmp_path):
    vision, text = save_base_models(tmp_path, text_config=tiny_llama_config(vocab_size=352))
    tokenizer = AutoTokenizer.from_pretrained(text, extra_special_tokens={"image_token": "<picture>"})
    tokenizer.save_pretrained(text)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER_SIZES)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<picture>") == 340
    assert model.get_input_embeddings().weight.shape[0] == 352


def test_overrides_reach_the_config_and_the_resampler(base_models):
    model = GVTForConditionalGeneration.from_vision_text_pretrained(
        *base_models, **RESAMPLER_SIZES | {"num_latents": 5, "vision_feature_layer": -2}
    )
    assert model.config.vision_feature_layer == -2
    assert model.get_image_features(pixels(1)).last_hidden_state.shape == (1, 5, 48)
    for given in (
        {"num_latents": 4, **OTHER_SIZES},
        PerceiverResamplerConfig(num_latents=4, **OTHER_SIZES),
    ):
        model = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, resampler_config=given)
        assert model.config.resampler_config.num_latents == 4
        assert model.config.resampler_config.patch_hidden_size == 32


OTHER_SIZES = {name: value for name, value in RESAMPLER_SIZES.items() if name != "num_latents"}


def test_unknown_override_is_refused_by_name_and_the_fields_are_listed(base_models):
    with pytest.raises(
        ValueError, match=r"num_latent is no field of GVTConfig nor of PerceiverResamplerConfig.*num_latents"
    ):
        GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, num_latent=4)


@pytest.mark.parametrize("field", [{"image_token_id": 5}, {"base_models": None}, {"vision_config": {}}], ids=str)
def test_what_follows_from_the_checkpoints_cannot_be_overridden(base_models, field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} cannot be chosen: it follows from the two checkpoints"):
        GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES, **field)


def test_a_language_model_is_no_vision_tower(base_models):
    text = base_models[1]
    with pytest.raises(CheckpointError, match=f"{text} holds a model of type llama, which has no patch_size"):
        GVTForConditionalGeneration.from_vision_text_pretrained(text, text, **RESAMPLER_SIZES)


def test_seed_alone_decides_on_the_new_weights(base_models, tmp_path):
    other = save_base_models(
        tmp_path, text_config=GPT2Config(n_embd=48, n_layer=1, n_head=4, vocab_size=340, n_positions=64)
    )
    first, second = compose(base_models), compose((base_models[0], other[1]))
    for name, parameter in first.model.resampler.state_dict().items():
        assert torch.equal(parameter, second.model.resampler.state_dict()[name]), name
    torch.manual_seed(4)
    third = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES)
    assert not torch.equal(third.model.resampler.latents, first.model.resampler.latents)


def test_new_weights_are_drawn_like_those_of_a_model_from_its_config(base_models):
    sizes = RESAMPLER_SIZES | {"hidden_size": 64, "num_latents": 64}
    composed = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **sizes).model
    built = GVTForConditionalGeneration(composed.config).model
    assert abs(composed.resampler.latents.std() - 1) < 0.1
    assert abs(composed.projector.weight.std() - 0.02) < 0.005
    for name, parameter in composed.resampler.named_parameters():
        expected = built.resampler.get_parameter(name)
        assert abs(parameter.std() - expected.std()) <= 0.3 * expected.std(), name
        assert abs(parameter.mean() - expected.mean()) <= max(0.5 * expected.std(), 1e-6), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "float16"])
def test_dtype_is_that_of_the_language_model_or_as_asked(tmp_path, dtype):
    vision, text = save_base_models(tmp_path)
    AutoModelForCausalLM.from_pretrained(text).to(torch.bfloat16).save_pretrained(text)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, dtype=dtype, **RESAMPLER_SIZES)
    expected = {None: torch.bfloat16, torch.bfloat16: torch.bfloat16, "float16": torch.float16}[dtype]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_attention_backend_may_be_chosen(base_models):
    model = GVTForConditionalGeneration.from_vision_text_pretrained(
        *base_models, attn_implementation={"vision_config": "eager", "text_config": "sdpa"}, **RESAMPLER_SIZES
    )
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.model.language_model.config._attn_implementation == "sdpa"


VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
DUAL_ENCODERS = {
    "clip": (CLIPModel, CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
    "siglip": (SiglipModel, SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "owlvit": (OwlViTModel, OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
}


@pytest.mark.parametrize("name", DUAL_ENCODERS)
def test_of_a_checkpoint_with_text_the_vision_part_is_the_tower(name, tmp_path, base_models):
    model_class, config = DUAL_ENCODERS[name]
    whole = livelier(model_class(config)).eval()
    whole.save_pretrained(tmp_path)
    tower = load_vision_tower(str(tmp_path)).eval()
    images = pixels(2)
    part = whole.vision_model(images, output_hidden_states=True)
    assert same(tower(images, output_hidden_states=True).hidden_states[-1], part.hidden_states[-1])
    model = GVTForConditionalGeneration.from_vision_text_pretrained(str(tmp_path), base_models[1], **RESAMPLER_SIZES)
    assert same(model.model.get_vision_features(images).patch_features, part.hidden_states[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_encoder_decoder_is_composed_with_its_own_head(tmp_path, tied):
    vision, text = save_base_models(tmp_path, text_config=tiny_t5_config(vocab_size=340), add_eos=True)
    alone = AutoModelForSeq2SeqLM.from_pretrained(text)
    if not tied:  # as Flan-T5: its head is no copy of the embeddings, and its states are not scaled
        alone.lm_head.weight = torch.nn.Parameter(torch.randn_like(alone.lm_head.weight))
        alone.config.scale_decoder_outputs = False
        alone.save_pretrained(text)
        alone = AutoModelForSeq2SeqLM.from_pretrained(text)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER_SIZES)
    inputs = batch(words(6), words(4, 1)) | {"labels": torch.tensor([words(3), words(3, 5)])}
    assert same(model(**inputs).logits[..., :340], alone(**inputs).logits, 1e-4)
    model.save_pretrained(tmp_path / "saved")
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert same(loaded(**inputs).logits, model(**inputs).logits, 1e-4)


def test_model_without_a_head_is_composed_too(base_models):
    torch.manual_seed(3)
    core = GVTModel.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES)
    livelier(core.resampler)
    livelier(core.projector)
    model = compose(base_models)
    inputs = inputs_for(model)
    assert same(core(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state, 1e-4)


def test_composed_and_configured_models_are_one_architecture(base_models):
    model = compose(base_models)
    rebuilt = GVTForConditionalGeneration(model.config)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert type(model.config.resampler_config) is type(tiny_resampler_config())
