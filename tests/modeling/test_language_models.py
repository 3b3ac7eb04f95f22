"""Any causal language model gives in a composed model the logits that it gives alone; encoder-decoders do in GVT."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5ForConditionalGeneration,
)
from transformers.generation import utils as generation_utils

from tests.tiny import (
    IMAGE,
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    batch,
    livelier,
    pixels,
    same,
    tiny_gvt,
    tiny_llama_config,
    tiny_t5_config,
    words,
)
from tests.tiny_kinds import KINDS
from vistok import GVTForConditionalGeneration

NAMES_OF_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCAB_SIZE}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LANGUAGE_MODELS = {
    "llama": tiny_llama_config(),
    "llama-tied": tiny_llama_config(tie_word_embeddings=True),
    "mistral": tiny_llama_config(MistralConfig),
    "mistral-window": tiny_llama_config(MistralConfig, sliding_window=6),
    "qwen2": tiny_llama_config(Qwen2Config),
    "qwen3": tiny_llama_config(Qwen3Config, head_dim=12),
    "gemma2": tiny_llama_config(Gemma2Config, head_dim=12, sliding_window=6, final_logit_softcapping=3.0),
    "gemma3": tiny_llama_config(Gemma3TextConfig, head_dim=12, sliding_window=6, layer_types=None),
    "gemma3-capped": tiny_llama_config(Gemma3TextConfig, head_dim=12, final_logit_softcapping=3.0),
    "phi": tiny_llama_config(PhiConfig, num_key_value_heads=4),
    "gpt2": GPT2Config(**NAMES_OF_GPT2, **TOKENS),
    "opt": OPTConfig(
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
        **{"vocab_size": VOCAB_SIZE, "max_position_embeddings": 128, "word_embed_proj_dim": 48},
        **TOKENS,
    ),
    "opt-projected": OPTConfig(  # as OPT-350m: embeddings are narrower than the states
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
        **{"vocab_size": VOCAB_SIZE, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
        **{"do_layer_norm_before": False, **TOKENS},
    ),
    "gpt-neox": tiny_llama_config(GPTNeoXConfig),
    "cohere": tiny_llama_config(CohereConfig, logit_scale=0.4),
    "granite": tiny_llama_config(GraniteConfig, logits_scaling=3.0, embedding_multiplier=2.0),
    "smollm3": tiny_llama_config(SmolLM3Config, no_rope_layers=[1, 0]),
    "olmo2": tiny_llama_config(Olmo2Config),
    "bloom": BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=VOCAB_SIZE, **TOKENS),
}
every_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)
both_kinds = pytest.mark.parametrize("kind", [KINDS["gvt"], KINDS["vtlmm"]], ids=["gvt", "vtlmm"])


def pair(kind, name):
    """A composed model on a language model, and that model alone, of the same weights."""
    config = LANGUAGE_MODELS[name]
    model = kind.make(text_config=config)
    alone = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        decoder = getattr(alone, alone.base_model_prefix)
        decoder.load_state_dict(model.model.language_model.state_dict())
        alone.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    return model, alone


@both_kinds
@every_language_model
def test_logits_of_text_are_those_of_the_language_model_alone(kind, name):
    model, alone = pair(kind, name)
    inputs = batch(words(12), words(9, 1), side="right")
    kept = inputs["attention_mask"].bool()
    logits, expected = model(**inputs).logits, alone(**inputs).logits
    assert expected[kept].std() > 0.05
    assert same(logits[kept], expected[kept], 1e-4)
    assert same(model(**inputs, logits_to_keep=2).logits, logits[:, -2:], 1e-4)


@both_kinds
@every_language_model
def test_loss_is_that_of_the_language_model_alone(kind, name):
    model, alone = pair(kind, name)
    inputs = batch(words(12), words(9, 1), side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    expected = alone(**inputs, labels=labels).loss
    assert same(model(**inputs, labels=labels).loss, expected, 1e-4)
    assert same(model(**inputs, labels=labels, skip_logits=True).loss, expected, 1e-4)


@both_kinds
@every_language_model
def test_visual_tokens_enter_as_embeddings_on_either_side_of_padding(kind, name):
    model, alone = pair(kind, name)
    rows = [[*kind.image, *words(6)], [*words(3, 1), *kind.image, *words(7, 2)]]
    images = pixels(2)
    tokens = model.get_image_features(images).last_hidden_state
    for side in ("left", "right"):
        inputs = batch(*rows, side=side)
        logits = model(**inputs, pixel_values=images).logits[inputs["attention_mask"].bool()]
        expected = []
        for row, image in zip(rows, tokens):
            embeddings = model.get_input_embeddings()(torch.tensor(row))
            embeddings[torch.tensor(row) == IMAGE_TOKEN_ID] = image
            expected.append(alone(inputs_embeds=embeddings.unsqueeze(0)).logits[0])
        assert same(logits, torch.cat(expected), 1e-3), side


@both_kinds
@every_language_model
def test_decoding_with_a_cache_is_decoding_without_one(kind, name):
    model, _ = pair(kind, name)
    inputs = batch([*kind.image, *words(6)], [*words(3, 1), *kind.image, *words(7, 2)]) | {"pixel_values": pixels(2)}
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached, repeated = model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, repeated.sequences)
    assert same(torch.stack(cached.logits), torch.stack(repeated.logits), 1e-3)
    assert (cached.logits[1] - cached.logits[2]).abs().max() > 1e-3, "states that do not move show nothing"


@both_kinds
@pytest.mark.parametrize("name", [name for name in LANGUAGE_MODELS if name != "bloom"])  # it knows no static cache
def test_decoding_with_a_static_cache_is_decoding_with_a_growing_one(kind, name):
    model, _ = pair(kind, name)
    inputs = batch([*kind.image, *words(6)], [*words(3, 1), *kind.image, *words(7, 2)]) | {"pixel_values": pixels(2)}
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    growing = model.generate(**inputs, **options)
    static = model.generate(**inputs, **options, cache_implementation="static", disable_compile=True)
    assert type(static.past_key_values).__name__ == "StaticCache"
    assert torch.equal(static.sequences, growing.sequences)
    assert same(torch.stack(static.logits), torch.stack(growing.logits), 1e-3)


@both_kinds
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "bloom", "opt", "gpt-neox", "cohere", "gemma3"])
def test_head_is_tied_where_the_language_model_ties_it(kind, name, tmp_path):
    model, _ = pair(kind, name)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (head.weight is embeddings.weight) == LANGUAGE_MODELS[name].tie_word_embeddings
    model.save_pretrained(tmp_path)
    loaded = kind.model_class.from_pretrained(tmp_path)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == LANGUAGE_MODELS[name].tie_word_embeddings
    inputs = batch([*kind.image, *words(6)]) | {"pixel_values": pixels(1)}
    assert same(loaded(**inputs).logits, model(**inputs).logits)
    model.resize_token_embeddings(400)
    assert model.get_output_embeddings().weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 400
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_conversations_cannot_share_a_row_without_position_ids():
    model, _ = pair(KINDS["gvt"], "bloom")
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"BloomModel takes no position_ids.*conversations_per_row=1"):
        model(torch.tensor([words(4)]), attention_mask=mask, position_ids=torch.arange(4).unsqueeze(0))


ENCODER_DECODERS = {
    "t5": tiny_t5_config(),
    "flan-t5": tiny_t5_config(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
every_encoder_decoder = pytest.mark.parametrize("name", ENCODER_DECODERS)


def encoder_decoder_pair(name):
    model = tiny_gvt(text_config=ENCODER_DECODERS[name])
    alone = T5ForConditionalGeneration(ENCODER_DECODERS[name]).eval()
    alone.load_state_dict(model.model.language_model.state_dict())
    alone.generation_config = copy.deepcopy(model.model.language_model.generation_config)
    return model, alone


def merged(model, row, images):
    """Embeddings of a row in which the placeholders hold the visual tokens of the images."""
    embeddings = model.get_input_embeddings()(torch.tensor([row]))
    embeddings[torch.tensor([row]) == IMAGE_TOKEN_ID] = model.get_image_features(images).last_hidden_state.flatten(
        0, 1
    )
    return embeddings


T5_ROWS = [[*IMAGE, *words(6)], [*words(2, 1), *IMAGE, *words(1, 5), *IMAGE, *words(4, 2)]]
ANSWERS = torch.tensor([[*words(4, 3), 1], [*words(2, 4), 1, -100, -100]])


@every_encoder_decoder
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_an_encoder_decoder_is_that_over_merged_embeddings(name, side):
    model, alone = encoder_decoder_pair(name)
    images = pixels(3)
    output = model(**batch(*T5_ROWS, side=side), pixel_values=images, labels=ANSWERS)
    logits = []
    for row, chosen, answer in zip(T5_ROWS, (images[:1], images[1:]), ANSWERS):
        logits.append(alone(inputs_embeds=merged(model, row, chosen), labels=answer.unsqueeze(0)).logits[0])
    supervised = ANSWERS != -100
    assert same(output.logits[supervised], torch.stack(logits)[supervised], 1e-4)
    expected = torch.nn.functional.cross_entropy(torch.stack(logits).flatten(0, 1), ANSWERS.flatten())
    assert same(output.loss, expected, 1e-4)
    output.loss.backward()
    assert model.model.resampler.latents.grad.abs().max() > 0


@every_encoder_decoder
def test_loss_of_an_encoder_decoder_divides_by_the_count_that_the_trainer_gives(name):
    model, _ = encoder_decoder_pair(name)
    inputs = batch(*T5_ROWS) | {"pixel_values": pixels(3), "labels": ANSWERS}
    num_answer_tokens = int((ANSWERS != -100).sum())
    per_token = model(**inputs).loss
    divided = model(**inputs, num_items_in_batch=torch.tensor(4 * num_answer_tokens)).loss
    assert same(divided, per_token / 4)


@every_encoder_decoder
@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoder_decoder_generates_what_it_does_from_merged_embeddings(name, options, side):
    model, alone = encoder_decoder_pair(name)
    images = pixels(3)
    options = {"max_new_tokens": 5, "do_sample": False, **options}
    generated = model.generate(**batch(*T5_ROWS, side=side), pixel_values=images, **options)
    expected = [
        alone.generate(inputs_embeds=merged(model, row, chosen), **options)
        for row, chosen in zip(T5_ROWS, (images[:1], images[1:]))
    ]
    assert torch.equal(generated, torch.cat(expected))


@every_encoder_decoder
def test_encoder_decoder_reads_text_alone_and_sends_no_loss_without_labels(name):
    model, alone = encoder_decoder_pair(name)
    inputs = batch(words(7), words(4, 1))
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=4, do_sample=False),
        alone.generate(**inputs, max_new_tokens=4, do_sample=False),
    )
    output = model(**inputs, decoder_input_ids=torch.tensor([[2, 7], [2, 9]]))
    assert output.loss is None
    assert same(output.logits, alone(**inputs, decoder_input_ids=torch.tensor([[2, 7], [2, 9]])).logits)
    assert output.encoder_last_hidden_state.shape == (2, 7, 48)


@every_encoder_decoder
def test_encoder_decoder_returns_the_logits_that_are_asked_for(name):
    model, _ = encoder_decoder_pair(name)
    inputs = batch(*T5_ROWS) | {"pixel_values": pixels(3), "labels": ANSWERS}
    expected = model(**inputs)
    assert same(model(**inputs, logits_to_keep=2).logits, expected.logits[:, -2:])
    positions = torch.tensor([0, 3])
    assert same(model(**inputs, logits_to_keep=positions).logits, expected.logits[:, positions])
    without = model(**inputs, skip_logits=True)
    assert without.logits is None
    assert same(without.loss, expected.loss)


@every_encoder_decoder
def test_encoder_decoder_returns_the_states_and_maps_of_both_halves(name):
    model, alone = encoder_decoder_pair(name)
    model.model.language_model.set_attn_implementation("eager")
    alone.set_attn_implementation("eager")
    options = {"labels": ANSWERS[:1], "output_attentions": True, "output_hidden_states": True}
    output = model.model(**batch(T5_ROWS[0]), pixel_values=pixels(1), **options)
    expected = alone(inputs_embeds=merged(model, T5_ROWS[0], pixels(1)), **options)
    decoder = {"hidden_states": "decoder_hidden_states", "attentions": "decoder_attentions"}
    for name in ("encoder_hidden_states", "encoder_attentions", "cross_attentions", *decoder):
        found, wanted = output[name], expected[decoder.get(name, name)]
        assert len(found) == len(wanted) == (3 if "states" in name else 2)
        assert all(same(one, other, 1e-4) for one, other in zip(found, wanted))
    assert same(output.last_hidden_state, expected.decoder_hidden_states[-1], 1e-4)


@every_encoder_decoder
def test_generation_config_of_an_encoder_decoder_counts_and_is_not_changed(name, monkeypatch):
    model, _ = encoder_decoder_pair(name)
    inputs = batch(*T5_ROWS) | {"pixel_values": pixels(3)}
    expected = model.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False)
    model.generation_config.num_beams = 3
    warnings = []
    monkeypatch.setattr(generation_utils.logger, "warning_once", lambda message, *args: warnings.append(message))
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    assert not [message for message in warnings if "deprecated" in message]
    assert model.generation_config.max_new_tokens is None
    given = GenerationConfig(max_new_tokens=4, num_beams=3, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(**inputs, generation_config=given), expected)


@every_encoder_decoder
def test_encoder_decoder_comes_back_from_disk(name, tmp_path):
    model, _ = encoder_decoder_pair(name)
    model.save_pretrained(tmp_path)
    loaded = GVTForConditionalGeneration.from_pretrained(tmp_path)
    inputs = batch(*T5_ROWS) | {"pixel_values": pixels(3), "labels": ANSWERS}
    assert same(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.is_encoder_decoder
    embeddings, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert embeddings.weight is head.weight


def test_livelier_models_attend_unevenly():
    model = livelier(tiny_gvt())
    model.set_attn_implementation("eager")
    attention = model(**batch(words(8)), output_attentions=True).attentions[0]
    assert attention[0, :, -1].max() > 1.5 / 8
