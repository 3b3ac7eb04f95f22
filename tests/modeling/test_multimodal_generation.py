"""Generation from prompts with images equals that of the language model's own class from merged embeddings."""

import pytest
import torch
from transformers import LlamaForCausalLM, pipeline
from transformers.generation import utils as generation_utils

from tests.tiny import (
    IMAGE_TOKEN_ID,
    PATCH_SIZE,
    assistant,
    batch,
    pixels,
    same,
    tiny_gvt,
    tiny_image,
    tiny_t5_config,
    user,
    words,
)
from tests.tiny_kinds import KINDS, every_kind, tiny_vtlmm

STEPS = 6


def alone_from(model):
    """The language model's own class, with the weights and the generation config of the composed model."""
    alone = LlamaForCausalLM(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    alone.generation_config = model.generation_config
    return alone


def merged(kind, model, inputs, images):
    """Embeddings of a batch, with visual tokens at the placeholders."""
    core = model.model
    embeddings = core.get_input_embeddings()(inputs["input_ids"]).clone()
    embeddings[inputs["input_ids"] == IMAGE_TOKEN_ID] = kind.tokens(model, images).flatten(0, 1)
    return {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}


def new_tokens(generated, inputs):
    return generated[:, inputs["input_ids"].shape[1] :]


STRATEGIES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 50},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
}


@every_kind
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("give", ["pixel_values", "vision_features", "mm_encoder_outputs"])
def test_generation_equals_that_of_the_language_model_on_merged_embeddings(kind, strategy, give):
    model = kind.make()
    inputs, images = batch(*kind.rows), pixels(3)
    options = {"max_new_tokens": STEPS, "do_sample": False} | STRATEGIES[strategy]
    alone, embeddings = alone_from(model), merged(kind, model, inputs, images)
    torch.manual_seed(5)
    expected = alone.generate(**embeddings, **options)
    given = {
        "pixel_values": images,
        "vision_features": model.model.get_vision_features(images).patch_features,
        "mm_encoder_outputs": {"image": model.get_image_features(images)},
    }[give]
    torch.manual_seed(5)
    generated = model.generate(**inputs, **{give: given}, **options)
    assert torch.equal(new_tokens(generated, inputs), expected)
    if strategy == "greedy":
        assert len(set(expected.flatten().tolist())) > 3
    other = model.generate(**inputs, pixel_values=pixels(3, seed=7), **options)
    assert not torch.equal(new_tokens(other, inputs)[0], expected[0]), "the image changes nothing"


@every_kind
@pytest.mark.parametrize("strategy", ["greedy", "beams", "several samples"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_images_are_encoded_once_for_a_whole_generation(kind, strategy, use_cache):
    model = kind.make()
    encoded = []
    model.model.vision_tower.register_forward_hook(lambda *_: encoded.append("tower"))
    model.model.visual_tokenizer.register_forward_hook(lambda *_: encoded.append("tokenizer"))
    model.generate(
        **batch(*kind.rows), pixel_values=pixels(3), max_new_tokens=4, use_cache=use_cache, **STRATEGIES[strategy]
    )
    assert encoded == ["tower", "tokenizer"]


@every_kind
def test_encoded_images_are_not_changed_by_generating_from_them(kind):
    model = kind.make()
    features = model.get_image_features(pixels(3))
    before = features.last_hidden_state.clone()
    given = {"image": features}
    for _ in range(2):
        model.generate(**batch(*kind.rows), mm_encoder_outputs=given, num_beams=3, max_new_tokens=2)
    assert given["image"] is features
    assert len(features.pooler_output) == 3
    assert torch.equal(features.last_hidden_state, before)


@every_kind
@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}])
def test_rows_of_a_batch_generate_what_they_do_alone(kind, options):
    model = kind.make()
    images, inputs = pixels(3), batch(*kind.rows)
    options = {"max_new_tokens": STEPS, "do_sample": False} | options
    together = new_tokens(model.generate(**inputs, pixel_values=images, **options), inputs)
    for row, (ids, chosen) in enumerate(zip(kind.rows, (images[:1], images[1:], None))):
        alone = batch(ids)
        assert torch.equal(
            new_tokens(model.generate(**alone, pixel_values=chosen, **options), alone)[0], together[row]
        )


@every_kind
def test_cache_and_no_cache_agree(kind):
    model = kind.make()
    options = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    cached, repeated = model.generate(**inputs, **options), model.generate(**inputs, use_cache=False, **options)
    assert torch.equal(cached.sequences, repeated.sequences)
    assert same(torch.stack(cached.logits), torch.stack(repeated.logits), 1e-4)


@every_kind
@pytest.mark.parametrize("cache", [{"cache_implementation": "static"}, {"cache_implementation": "dynamic"}])
def test_kinds_of_cache_agree(kind, cache):
    model = kind.make()
    options = {"max_new_tokens": STEPS, "do_sample": False}
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, **cache, disable_compile=True), expected)


@every_kind
@pytest.mark.skipif(
    not hasattr(generation_utils, "_slice_mm_encoder_output"),
    reason="this version of transformers loses the images of a prompt that it reads in chunks",
)
def test_a_prompt_read_in_chunks_generates_the_same(kind):
    model = kind.make()
    options = {"max_new_tokens": STEPS, "do_sample": False}
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, prefill_chunk_size=4), expected)


@every_kind
@pytest.mark.parametrize("with_images", [True, False])
def test_embeddings_may_take_the_place_of_ids(kind, with_images):
    model = kind.make()
    rows, images = (kind.rows, {"pixel_values": pixels(3)}) if with_images else (kind.rows[2:], {})
    inputs = batch(*rows)
    options = {"max_new_tokens": STEPS, "do_sample": False}
    expected = new_tokens(model.generate(**inputs, **images, **options), inputs)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    found = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **images, **options)
    assert torch.equal(found, expected)
    beams = {"num_beams": 2, **options}
    assert torch.equal(
        model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **images, **beams),
        new_tokens(model.generate(**inputs, **images, **beams), inputs),
    )


@every_kind
def test_the_mask_may_be_left_out_and_images_given_as_none(kind):
    model = kind.make()
    input_ids = torch.tensor([kind.rows[0]])
    options = {"max_new_tokens": STEPS, "do_sample": False}
    expected = model.generate(**batch(kind.rows[0]), pixel_values=pixels(1), **options)
    assert torch.equal(model.generate(input_ids, pixel_values=pixels(1), **options), expected)
    text = torch.tensor([kind.rows[2]])
    assert torch.equal(
        model.generate(text, pixel_values=None, **options), model.generate(text, vision_features=None, **options)
    )


@pytest.mark.parametrize(
    "model", [tiny_gvt(), tiny_gvt(text_config=tiny_t5_config()), tiny_vtlmm()], ids=["gvt", "gvt-t5", "vtlmm"]
)
def test_images_given_twice_are_refused(model):
    kind = KINDS[model.config.model_type]
    images = pixels(3)
    given = {"mm_encoder_outputs": {"image": model.get_image_features(images)}, "max_new_tokens": 1}
    features = model.model.get_vision_features(images).patch_features
    for name, value in {"pixel_values": images, "vision_features": features}.items():
        with pytest.raises(ValueError, match="given twice"):
            model.generate(**batch(*kind.rows), **given, **{name: value})


@every_kind
def test_a_conversation_goes_on_from_the_cache_of_the_last_turn(kind):
    model = kind.make()
    images, first = pixels(1), batch(kind.rows[0])
    options = {"max_new_tokens": 3, "do_sample": False}
    turn = model.generate(**first, pixel_values=images, return_dict_in_generate=True, **options)
    longer = torch.cat([turn.sequences, torch.tensor([words(3, 8)])], dim=1)
    expected = model.generate(longer, pixel_values=images, **options)
    assert torch.equal(model.generate(longer, past_key_values=turn.past_key_values, **options), expected)


@every_kind
def test_attention_maps_of_a_generation(kind):
    model = kind.make(attn_implementation={"text_config": "eager"})
    inputs = batch(*kind.rows) | {"pixel_values": pixels(3)}
    found = model.generate(**inputs, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    length = 7 + 2 * kind.num_tokens
    assert [step[0].shape[-1] for step in found.attentions] == [length, length + 1]


@pytest.fixture(scope="module", params=KINDS)
def saved_model(request, tmp_path_factory):
    folder, kind = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    model = kind.make()
    model.save_pretrained(folder)
    kind.processor(chat_template="question-answer").save_pretrained(folder)
    return folder, model, kind


def chat(*images):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "is there a dog?"}]}]


def answer_by_hand(kind, model, messages, images):
    """What greedy decoding answers, from the prompt written out by hand."""
    processor = kind.processor(chat_template="question-answer")
    question = messages[0]["content"][-1]["text"]
    prompt = f"{kind.image_text}\n" * len(images) + f"Question: {question} Answer:"
    input_ids = torch.tensor([processor.tokenizer(prompt)["input_ids"]])
    inputs = {"pixel_values": processor.image_processor(images, return_tensors="pt")["pixel_values"]} if images else {}
    generated = model.generate(input_ids, **inputs, max_new_tokens=STEPS, do_sample=False)
    return processor.tokenizer.decode(generated[0, input_ids.shape[1] :], skip_special_tokens=True)


def test_pipeline_answers_a_chat_with_images(saved_model):
    folder, model, kind = saved_model
    answer = pipeline("image-text-to-text", model=str(folder))
    for images in ([tiny_image(1)], [tiny_image(1), tiny_image(2, (31, 17))]):
        messages = chat(*images)
        found = answer(text=messages, max_new_tokens=STEPS, do_sample=False, return_full_text=False)
        assert found[0]["generated_text"] == answer_by_hand(kind, model, messages, images)


def test_pipeline_answers_a_batch_of_chats(saved_model):
    folder, model, kind = saved_model
    answer = pipeline("image-text-to-text", model=str(folder))
    chats = [chat(tiny_image(1)), chat(tiny_image(2), tiny_image(3)), chat(tiny_image(4))]
    images = [[tiny_image(1)], [tiny_image(2), tiny_image(3)], [tiny_image(4)]]
    expected = [answer_by_hand(kind, model, messages, chosen) for messages, chosen in zip(chats, images)]
    assert len(set(expected)) > 1
    for batch_size in (1, 3):
        found = answer(
            text=chats, batch_size=batch_size, max_new_tokens=STEPS, do_sample=False, return_full_text=False
        )
        assert [one[0]["generated_text"] for one in found] == expected


def test_pipeline_goes_on_with_a_conversation(saved_model):
    folder, _, _ = saved_model
    answer = pipeline("image-text-to-text", model=str(folder))
    messages = [*chat(tiny_image(1)), assistant("yes"), user("how many?")]
    found = answer(text=messages, max_new_tokens=3, do_sample=False)
    *before, last = found[0]["generated_text"]
    assert [message["role"] for message in before] == ["user", "assistant", "user"]
    assert last["role"] == "assistant"


@every_kind
def test_images_of_another_size_are_answered_too(kind):
    model = kind.make()
    images = pixels(1, size=PATCH_SIZE * 5)
    num_tokens = 25 if model.model.visual_tokenizer.one_token_per_patch else kind.num_tokens
    inputs = batch([*[IMAGE_TOKEN_ID] * num_tokens, *words(6)])
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = alone_from(model).generate(**merged(kind, model, inputs, images), **options)
    found = model.generate(**inputs, pixel_values=images, **options)
    assert torch.equal(new_tokens(found, inputs), expected)
