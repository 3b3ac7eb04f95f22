"""The language model reads real visual tokens alone: length, cache, positions and losses follow their number."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.generation import utils as generation_utils

from tests.modeling.test_visual_tokenizer import (
    MAX_TOKENS,
    ROWS,
    SLOTS,
    compact_embeddings,
    compact_logits,
    greedy,
    three_images,
    variable_gvt,
    written_out,
)
from tests.tiny import IMAGE_TOKEN_ID, batch, pixels, same, tiny_gvt, tiny_llama_config, tiny_t5_config, words
from tests.tiny_kinds import tiny_vtlmm
from vistok.modeling.compact_sequences import CompactSequences


@pytest.fixture
def read_lengths(monkeypatch):
    """Lengths of the rows that a model's decoder reads, call by call."""

    def watch(model):
        lengths = []
        model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        return lengths

    return watch


def real_length(row, lengths):
    return sum(lengths[part] if isinstance(part, int) else len(part) for part in row)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_decoder_reads_as_many_positions_as_there_are_real_tokens(read_lengths, side):
    model = variable_gvt()
    images, lengths = three_images(model)
    read = read_lengths(model)
    inputs = batch(*written_out(ROWS), side=side)
    logits = model(**inputs, pixel_values=images).logits
    assert read == [max(real_length(row, lengths) for row in ROWS)]
    assert logits.shape[1] == inputs["input_ids"].shape[1] > read[0]


def test_a_tokenizer_of_a_fixed_number_is_never_asked_for_its_mask(monkeypatch):
    model = tiny_gvt()
    monkeypatch.setattr(CompactSequences, "of", lambda *args: pytest.fail("a fixed number pays"))
    row = [*[IMAGE_TOKEN_ID] * 3, *words(3)]
    assert model(**batch(row), pixel_values=pixels(1)).logits.shape[1] == 6
    model.generate(**batch(row), pixel_values=pixels(1), max_new_tokens=1)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generation_reads_the_real_prompt_and_returns_the_given_one(read_lengths, options):
    model = variable_gvt(tiny_llama_config(LlamaConfig))
    images, lengths = three_images(model)
    read = read_lengths(model)
    inputs = batch(*written_out(ROWS))
    found = model.generate(
        **inputs, pixel_values=images, max_new_tokens=4, do_sample=False, disable_compile=True, **options
    )
    real = max(real_length(row, lengths) for row in ROWS)
    assert read == ([real, real + 1, real + 2, real + 3] if options.get("use_cache") is False else [real, 1, 1, 1])
    assert torch.equal(found[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert found.shape[1] == inputs["input_ids"].shape[1] + 4
    if "num_beams" not in options:
        for index, row in enumerate(ROWS):
            expected = greedy(model, compact_embeddings(model, row, images), 4)
            assert found[index, inputs["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.skipif(
    not hasattr(generation_utils, "_slice_mm_encoder_output"),
    reason="this version of transformers loses the images of a prompt that it reads in chunks",
)
def test_a_prompt_read_in_chunks_generates_the_same():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS)) | {"pixel_values": images, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**inputs, prefill_chunk_size=4), model.generate(**inputs))


def test_lengths_that_count_the_prompt_count_it_as_it_was_given():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    length = inputs["input_ids"].shape[1] + 3
    assert model.generate(**inputs, pixel_values=images, max_length=length).shape[1] == length
    config = model.generation_config.__class__(max_length=length, pad_token_id=2)
    assert model.generate(**inputs, pixel_values=images, generation_config=config).shape[1] == length
    assert config.max_length == length


def test_rows_are_padded_with_the_id_of_padding():
    model = variable_gvt()
    images, _ = three_images(model)
    seen = []

    def watch(input_ids, scores):
        seen.append(input_ids)
        return scores

    inputs = batch(*written_out(ROWS))
    model.generate(**inputs, pixel_values=images, max_new_tokens=1, logits_processor=[watch])
    short = seen[0][2]
    assert short[: -len(ROWS[2][0])].eq(2).all() and short[-len(ROWS[2][0]) :].tolist() == ROWS[2][0]


def test_several_samples_of_a_prompt_begin_with_it():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    options = {"max_new_tokens": 2, "do_sample": True, "num_return_sequences": 2}
    found = model.generate(**inputs, pixel_values=images, **options, return_dict_in_generate=True).sequences
    assert torch.equal(found[:, :-2], inputs["input_ids"].repeat_interleave(2, dim=0))


def test_embeddings_may_take_the_place_of_ids():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS))
    options = {"pixel_values": images, "max_new_tokens": 3, "do_sample": False}
    expected = model.generate(**inputs, **options)[:, -3:]
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    assert torch.equal(model.generate(inputs_embeds=embeddings, attention_mask=mask, **options), expected)
    logits = model(inputs_embeds=embeddings, attention_mask=mask, pixel_values=images).logits
    assert same(logits, model(**inputs, pixel_values=images).logits)


def test_a_conversation_goes_on_from_the_cache_of_the_last_turn(read_lengths):
    model = variable_gvt()
    images, _ = three_images(model)
    first = batch(*written_out(ROWS))
    options = {"max_new_tokens": 3, "do_sample": False}
    turn = model.generate(**first, pixel_values=images, return_dict_in_generate=True, **options)
    for turn_number in range(2):
        new = torch.tensor([words(3, 8 + turn_number)] * 3)
        longer = torch.cat([turn.sequences, new], dim=1)
        mask = torch.cat(
            [first["attention_mask"], torch.ones(3, longer.shape[1] - first["input_ids"].shape[1], dtype=torch.long)],
            dim=1,
        )
        expected = model.generate(longer, attention_mask=mask, pixel_values=images, **options)
        read = read_lengths(model)
        turn = model.generate(
            longer, attention_mask=mask, past_key_values=turn.past_key_values, return_dict_in_generate=True, **options
        )
        assert torch.equal(turn.sequences, expected)
        assert read == [4, 1, 1], "the last token of the turn before, and the new ones"


def test_a_cache_filled_by_hand_goes_on_from_the_compact_prompt():
    model = variable_gvt()
    images, _ = three_images(model)
    inputs, new = batch(*written_out(ROWS)), torch.tensor([words(2, 9)] * 3)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 2, dtype=torch.long)], dim=1)
    expected = model(torch.cat([inputs["input_ids"], new], 1), attention_mask=mask, pixel_values=images).logits[:, -2:]
    encoded = {"image": model.get_image_features(images)}
    ids, short_mask, encoded = model.model.compact_prompt(**inputs, mm_encoder_outputs=encoded)
    cache = DynamicCache(config=model.config.text_config)
    model(ids, attention_mask=short_mask, mm_encoder_outputs=encoded, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == ids.shape[1] < inputs["input_ids"].shape[1]
    short_mask = torch.cat([short_mask, torch.ones(3, 2, dtype=torch.long)], dim=1)
    assert same(model(new, attention_mask=short_mask, past_key_values=cache).logits, expected, 1e-4)
    cache = model(**inputs, pixel_values=images, use_cache=True).past_key_values
    with pytest.raises(
        ValueError, match=r"mask has \d+ columns for \d+ tokens in the cache and 2 new.*compact_prompt"
    ):
        model(new, attention_mask=mask, past_key_values=cache)


def test_an_image_that_comes_later_in_a_conversation_is_compact_too():
    model = variable_gvt()
    images, lengths = three_images(model)
    row = [words(4), 0, words(3, 1)]
    expected = compact_logits(model, compact_embeddings(model, row, images))
    cache = model(torch.tensor([words(4)]), use_cache=True).past_key_values
    later = torch.tensor([[*SLOTS, *words(3, 1)]])
    found = model(later, pixel_values=images[:1], past_key_values=cache, use_cache=True)
    assert same(found.logits[0, -3:], expected[-3:], 1e-4)
    assert cache.get_seq_length() == 4 + lengths[0] + 3


def losses_alone(model, rows, images):
    """Sum and number of the cross-entropies of all words that something stands before, row by row, without padding."""
    total, count = 0.0, 0
    for row in rows:
        logits = compact_logits(model, compact_embeddings(model, row, images)).log_softmax(-1)
        targets = []
        for part in row:
            alone = compact_embeddings(model, [part], images).shape[1] if isinstance(part, int) else None
            targets += [None] * alone if alone else part
        for position, target in enumerate(targets):
            if target is not None and position:
                total, count = total - logits[position - 1, target], count + 1
    return total, count


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("num_items", [None, 7])
def test_the_loss_is_that_of_each_row_alone(side, skip_logits, num_items):
    model = variable_gvt()
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS), side=side)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 340), -100)
    labels[torch.arange(3), inputs["attention_mask"].argmax(1)] = -100  # nothing stands before them
    loss = model(
        **inputs, pixel_values=images, labels=labels, skip_logits=skip_logits, num_items_in_batch=num_items
    ).loss
    total, count = losses_alone(model, ROWS, images)
    assert same(loss, total / (num_items or count), 1e-4)
    model.zero_grad()
    loss.backward()
    found = model.model.projector.weight.grad.clone()
    model.zero_grad()
    (total / (num_items or count)).backward()
    assert same(found, model.model.projector.weight.grad, 1e-4)


def test_labels_of_unused_placeholders_count_nowhere():
    model = variable_gvt()
    images, lengths = three_images(model)
    ids = torch.tensor([written_out(ROWS)[0]])
    labels = ids.clone()
    for skip_logits in (True, False):
        found = model(ids, pixel_values=images[:1], labels=labels, skip_logits=skip_logits).loss
        logits = compact_logits(model, compact_embeddings(model, ROWS[0], images)).log_softmax(-1)
        targets = [*ROWS[0][0], *[IMAGE_TOKEN_ID] * lengths[0], *ROWS[0][2]]
        expected = -logits[:-1][torch.arange(len(targets) - 1), torch.tensor(targets[1:])].mean()
        assert same(found, expected, 1e-4)


def test_positions_that_were_given_count_no_unused_placeholder():
    model = variable_gvt()
    images, lengths = three_images(model)
    rows = written_out(ROWS[:2])
    two = [*rows[0], *rows[1]]
    positions = [*range(len(rows[0])), *range(len(rows[1]))]
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    model(torch.tensor([two]), pixel_values=images, position_ids=torch.tensor([positions]))
    assert seen == [[*range(real_length(ROWS[0], lengths)), *range(real_length(ROWS[1], lengths))]]


def test_states_and_attention_maps_come_back_at_the_given_positions():
    model = variable_gvt()
    model.set_attn_implementation({"text_config": "eager"})
    images, lengths = three_images(model)
    inputs = batch(*written_out(ROWS))
    output = model.model(**inputs, pixel_values=images, output_attentions=True, output_hidden_states=True)
    length = inputs["input_ids"].shape[1]
    assert {state.shape[:2] for state in output.hidden_states} == {(3, length)}
    assert same(output.hidden_states[-1], output.last_hidden_state)
    row = output.attentions[0][0, :, -1]
    start = length - len(written_out(ROWS)[0])
    unused = slice(start + 2 + lengths[0], start + 2 + MAX_TOKENS)
    assert row.shape[-1] == length and not row[:, unused].any() and not row[:, :start].any()
    assert same(row.sum(-1), torch.ones(4))
    states = output.last_hidden_state[0]
    assert torch.equal(states[start + 1 + MAX_TOKENS], states[start + 1 + lengths[0]]), "it predicts what follows"


@pytest.mark.parametrize("generates", [True, False])
def test_encoders_read_real_tokens_alone_too(generates):
    """T5 knows distances, not positions: an unused placeholder that is merely masked would stretch them."""
    model = variable_gvt(tiny_t5_config())
    images, _ = three_images(model)
    inputs = batch(*written_out(ROWS), side="right")
    labels = torch.tensor([words(4, 6)] * 3)
    for index, row in enumerate(ROWS):
        alone = {"inputs_embeds": compact_embeddings(model, row, images)}
        if generates:
            expected = model.model.language_model.generate(**alone, max_new_tokens=4, do_sample=False)
            found = model.generate(**inputs, pixel_values=images, max_new_tokens=4, do_sample=False)
            assert torch.equal(found[index], expected[0])
        else:
            expected = model.model.language_model(**alone, labels=labels[:1]).logits[0]
            found = model(**inputs, pixel_values=images, labels=labels)
            assert same(found.logits[index], expected, 1e-4)
            assert found.encoder_last_hidden_state.shape[1] == inputs["input_ids"].shape[1]


def test_visual_modeling_compares_real_positions_alone():
    from tests.modeling.test_visual_tokenizer import BrightPatchesConfig

    model = tiny_vtlmm(
        None, tiny_llama_config(hidden_size=32, num_attention_heads=4), BrightPatchesConfig(patch_hidden_size=32)
    )
    images = pixels(2)
    lengths = [len(tokens) for tokens in model.get_image_features(images).pooler_output]
    assert len(set(lengths)) == 2
    rows = [[*words(2), *SLOTS, *words(2, 1)], [*words(3, 2), *SLOTS, *words(4, 3)]]
    together = model(**batch(*rows), pixel_values=images, visual_loss="visual_modeling")
    assert together.visual_positions.sum(1).tolist() == lengths
    alone = [
        model(torch.tensor([row]), pixel_values=image[None], visual_loss="visual_modeling").loss_vm * length
        for row, image, length in zip(rows, images, lengths)
    ]
    assert same(together.loss_vm, sum(alone) / sum(lengths), 1e-4)


def test_a_mask_of_which_no_column_can_be_taken_is_refused():
    model = variable_gvt()
    images, _ = three_images(model)
    ids = torch.tensor([[*SLOTS, *words(2)]])
    mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
    with pytest.raises(ValueError, match=r"attention mask of shape \(batch, sequence_length\)"):
        model(ids, pixel_values=images[:1], attention_mask=mask)
