"""Batches: labels on answers only, images in order, and shared rows that cost less and teach the same."""

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, MistralConfig, OPTConfig

from tests.tiny import (
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    assistant,
    example,
    image_bytes,
    same,
    tiny_gvt,
    tiny_image,
    tiny_llama_config,
    tiny_processor,
    tiny_t5_config,
    tiny_tokenizer,
    user,
)
from vistok import VisualLanguageCollator
from vistok.processing.collator import pack_conversations, tokenize_conversation
from vistok.processing.images import BadSampleError, image_key

IGNORED = -100


def answers_of(processor, labels):
    """The runs of labels of a row, as text."""
    runs, previous = [], IGNORED
    for label in labels.tolist():
        if label != IGNORED:
            runs = [*runs, []] if previous == IGNORED else runs
            runs[-1].append(label)
        previous = label
    return [processor.tokenizer.decode(run) for run in runs]


TALK = [user("<image>", "is there a dog?"), assistant("yes"), user("<image>", "and here?"), assistant("no dog")]


def test_a_batch_of_rows_with_two_images_one_and_none():
    processor = tiny_processor()
    data = [
        example(TALK, [image_bytes(0), image_bytes(1)]),
        example([user("<image>", "how many?"), assistant("three cats")], [image_bytes(2)]),
        example([user("how many?"), assistant("two")]),
    ]
    batch = VisualLanguageCollator(processor)(data)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    expected = [[" yes</s>", " no dog</s>"], [" three cats</s>"], [" two</s>"]]
    assert [answers_of(processor, labels) for labels in batch["labels"]] == expected
    for ids, mask, labels, one in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], data):
        length = int(mask.sum())
        assert ids[:length].tolist() == tokenize_conversation(processor, one["messages"]).input_ids
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert (ids[length:] == processor.tokenizer.pad_token_id).all()
        assert (labels[length:] == IGNORED).all()
        assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    images = [tiny_image(seed) for seed in range(3)]
    assert torch.equal(batch["pixel_values"], processor.image_processor(images, return_tensors="pt")["pixel_values"])


def test_padding_is_never_a_label_even_where_it_is_the_end_token():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    data = [example([user("how many cats are there?"), assistant("two")]), example([user("a"), assistant("b")])]
    batch = VisualLanguageCollator(tiny_processor(tokenizer))(data)
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(1)
    assert ends.tolist() == [1, 1]
    tokenizer.pad_token = None
    padded = VisualLanguageCollator(tiny_processor(tokenizer))(data)
    assert torch.equal(padded["input_ids"], batch["input_ids"])


def test_a_batch_goes_into_the_model_as_it_is():
    data = [example(TALK, [image_bytes(0), image_bytes(1)]), example([user("how many?"), assistant("two")])]
    loss = tiny_gvt()(**VisualLanguageCollator(tiny_processor())(data)).loss
    assert torch.isfinite(loss)


def test_images_are_transformed_each_before_they_are_prepared():
    processor = tiny_processor()
    seen = []

    def upside_down(image):
        seen.append(image.size)
        return image.rotate(180)

    batch = VisualLanguageCollator(processor, image_transform=upside_down)([example(TALK, 2)])
    turned = [tiny_image(seed).rotate(180) for seed in range(2)]
    assert len(seen) == 2
    assert torch.equal(batch["pixel_values"], processor.image_processor(turned, return_tensors="pt")["pixel_values"])


# Conversations that share a row


def question(text, answer, *before):
    return [*before, user("<image>", text), assistant(answer)]


SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
# Rows of conversations about the same images.
GROUPS = {
    "one image": [
        ([0], [question("is there a dog?", "yes"), question("is there a cat?", "no cat at all"), question("a", "b")]),
        ([1], [question("how many?", "three")]),
        ([2], [question("how many?", "three"), question("how many?", "three")]),
    ],
    "several turns": [
        (
            [0],
            [
                [*question("is there a dog?", "yes"), user("and a cat?"), assistant("no")],
                [*question("is there a dog?", "yes"), user("how many?"), assistant("one dog")],
            ],
        ),
        ([], [[user("how many?"), assistant("two")]]),
    ],
    "an image behind different answers": [
        (
            [0, 1],
            [
                [*question("is there a dog?", "yes"), *question("and here?", "no")],
                [*question("is there a cat?", "no cat"), *question("and here?", "yes, here")],
            ],
        ),
        ([2], [question("how many?", "three"), question("a", "b")]),
    ],
    "an image behind different words": [
        ([0], [question("is there a dog?", "yes", SYSTEM), question("is there a dog?", "yes")]),
    ],
    "no image": [([], [[user("how many?"), assistant("two")], [user("how much?"), assistant("a lot")]])],
}


def shared_and_separate(name, template="question-answer", **options):
    """The batch of shared rows, and batches of a row for each conversation."""
    processor = tiny_processor(chat_template=template)
    collator = VisualLanguageCollator(processor, **options)
    rows = [
        {
            "images": [image_bytes(seed) for seed in seeds],
            "conversations": conversations,
            "source": "planted",
            "row": 0,
        }
        for seeds, conversations in GROUPS[name]
    ]
    separate = [
        collator([example(messages, [image_bytes(seed) for seed in seeds])])
        for seeds, conversations in GROUPS[name]
        for messages in conversations
    ]
    return collator(rows), separate


def loss_and_gradients(model, batches):
    """Summed loss in nats over all labels of batches, in float64 where the model's own is not, and its gradients."""
    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        labels = batch["labels"][:, 1:]
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
        of_batch = -logits[labels != IGNORED].log_softmax(-1).gather(1, labels[labels != IGNORED].unsqueeze(1)).sum()
        assert same(model(**batch, num_items_in_batch=1, skip_logits=True).loss.double(), of_batch, 1e-4)
        loss = loss + of_batch
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def double(batch):
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


POSITIONED = {
    "llama": tiny_llama_config(),
    "gpt2": GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=256, vocab_size=VOCAB_SIZE),
    "gemma2": tiny_llama_config(Gemma2Config, head_dim=12, sliding_window=256),
    "opt": OPTConfig(
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
        **{"vocab_size": VOCAB_SIZE, "max_position_embeddings": 256, "word_embed_proj_dim": 48, "dropout": 0.0},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("template", ["question-answer", "chatml", "vicuna"])
def test_shared_rows_give_the_loss_and_gradients_of_separate_rows(name, template):
    # GPT-2 computes everything in the precision of its weights; Llama's norms and rotations are in float32.
    check_shared_rows(tiny_gvt(text_config=POSITIONED["gpt2"]).double(), *shared_and_separate(name, template))


@pytest.mark.parametrize(
    "language_model, implementation",
    [*((name, "eager") for name in POSITIONED), *((name, "sdpa") for name in POSITIONED if name != "gemma2")],
)
def test_shared_rows_are_exact_in_other_language_models_and_backends(language_model, implementation):
    model = tiny_gvt(text_config=POSITIONED[language_model], attn_implementation={"text_config": implementation})
    check_shared_rows(model.double(), *shared_and_separate("one image"), tolerance=1e-6)


def check_shared_rows(model, shared, separate, tolerance=1e-9):
    loss, gradients = loss_and_gradients(model, [double(shared)])
    expected, wanted = loss_and_gradients(model, [double(batch) for batch in separate])
    assert expected > 1
    assert abs(loss - expected) <= tolerance * expected
    assert set(gradients) == set(wanted)
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).abs().max() <= tolerance * max(1, gradient.abs().max()), name


def test_shared_rows_with_cached_features_are_exact_too():
    model = tiny_gvt()
    features = {}
    for seed in range(3):
        pixel_values = tiny_processor().image_processor(tiny_image(seed), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = model.model.get_vision_features(pixel_values).patch_features[0]
        features[image_key(image_bytes(seed))] = found
    for name in GROUPS:
        if name != "no image":
            shared, separate = shared_and_separate(name, features=features)
            assert "pixel_values" not in shared
            check_shared_rows(model.double(), shared, separate, tolerance=1e-6)


def test_images_of_a_shared_row_are_computed_once():
    shared, separate = shared_and_separate("one image")
    assert len(shared["pixel_values"]) == 3
    assert sum(len(batch["pixel_values"]) for batch in separate) == 6
    assert (shared["input_ids"] == IMAGE_TOKEN_ID).sum() == 9
    written = shared["attention_mask"].sum(-1) > 1  # padding sees nothing but itself
    assert written.sum() < 0.7 * sum(batch["input_ids"].numel() for batch in separate)


def test_mask_lets_a_token_see_its_own_conversation_and_what_all_share():
    processor = tiny_processor()
    talks = [tokenize_conversation(processor, [user("a b"), assistant(text)]) for text in ("one two", "three")]
    packed = pack_conversations(talks)
    prefix = sum(len(talk.input_ids) for talk in talks) - len(packed["input_ids"])
    assert prefix > 3
    own = [len(talk.input_ids) - prefix for talk in talks]
    owner = [None] * prefix + [0] * own[0] + [1] * own[1]
    for query in range(len(owner)):
        for key in range(len(owner)):
            allowed = key <= query and (owner[key] is None or owner[key] == owner[query])
            assert packed["mask"][query, key].item() == allowed
    assert packed["position_ids"] == [*range(prefix), *range(prefix, prefix + own[0]), *range(prefix, prefix + own[1])]
    assert talks[0].supervised[prefix] is False, "the token that predicts an answer is each conversation's own"


def test_a_language_model_that_cannot_tell_conversations_apart_is_refused():
    shared, _ = shared_and_separate("one image")
    windowed = tiny_gvt(text_config=tiny_llama_config(MistralConfig, sliding_window=10))
    with pytest.raises(
        ValueError, match=r"MistralModel attends within a window of 10 tokens.*conversations_per_row=1"
    ):
        windowed(**shared)
    flash = tiny_gvt()
    flash.model.language_model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2, which takes no mask.*conversations_per_row=1"):
        flash(**shared)


def test_encoder_decoders_share_no_rows():
    collator = VisualLanguageCollator(tiny_processor(tiny_tokenizer(add_eos=True)), is_encoder_decoder=True)
    with pytest.raises(ValueError, match="cannot share a row"):
        collator([{"images": [], "conversations": [[user("a"), assistant("b")], [user("a"), assistant("c")]]}])


def test_an_encoder_decoder_learns_the_last_answer_from_all_before_it():
    processor = tiny_processor(tiny_tokenizer(add_eos=True))
    data = [example(TALK, 2), example([user("<image>", "how many?"), assistant("three")], 1)]
    batch = VisualLanguageCollator(processor, is_encoder_decoder=True)(data)
    assert answers_of(processor, batch["labels"][0]) == [" no dog</s>"]
    assert answers_of(processor, batch["labels"][1]) == [" three</s>"]
    prompt = processor.tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert "Answer: yes</s>" in prompt
    assert "no dog" not in prompt
    assert len(batch["pixel_values"]) == 3
    loss = tiny_gvt(text_config=tiny_t5_config())(**batch).loss
    assert torch.isfinite(loss)


# Samples that cannot be used


def test_too_few_or_too_many_placeholders_name_both_counts_and_the_row():
    collator = VisualLanguageCollator(tiny_processor())
    for images, found in ((1, 6), (3, 6), (0, 6)):
        bad = example(TALK, images, row=17)
        with pytest.raises(
            BadSampleError, match=rf"{images} images need {images * 3} .*the text has {found}"
        ) as caught:
            collator([example(TALK, 2), bad])
        assert (caught.value.row, caught.value.source) == (17, "planted")
        assert "row 17" in str(caught.value)


def test_an_image_that_is_missing_or_damaged_names_file_and_row(tmp_path):
    collator = VisualLanguageCollator(tiny_processor())
    talk = [user("<image>", "how many?"), assistant("two")]
    (tmp_path / "cut.png").write_bytes(image_bytes()["bytes"][:80])
    for name in ("gone.png", "cut.png"):
        bad = example(talk, [{"path": str(tmp_path / name), "bytes": None}], row=5)
        with pytest.raises(BadSampleError, match=name) as caught:
            collator([example(talk, 1), bad])
        assert (caught.value.row, caught.value.source) == (5, "planted")


def test_a_conversation_without_an_answer_is_refused():
    with pytest.raises(BadSampleError, match="no answer is left to learn from"):
        VisualLanguageCollator(tiny_processor())([example([user("how many?")], row=2)])


def test_an_error_in_a_shared_row_names_the_conversation_at_fault():
    image = {"path": "shard.tar/7.png", "bytes": image_bytes()["bytes"]}
    shared = example([], [image], row=3)
    shared["conversations"] = [[user("<image>", "a?"), assistant("b")], [user("<image>", "never answered?")]]
    with pytest.raises(BadSampleError, match="no answer is left") as caught:
        VisualLanguageCollator(tiny_processor())([shared | {"rows": [3, 8], "sources": ["planted", "other"]}])
    assert (caught.value.row, caught.value.source, caught.value.file) == (8, "other", "shard.tar/7.png")


def test_long_rows_are_cut_at_the_end():
    processor = tiny_processor()
    talk = [user("how many?"), assistant("one two three four five six seven")]
    whole = VisualLanguageCollator(processor)([example(talk)])
    length = whole["input_ids"].shape[1] - 3
    cut = VisualLanguageCollator(processor, max_length=length)([example(talk)])
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(cut[name], whole[name][:, :length])


def test_a_cut_that_leaves_no_answer_or_half_an_image_is_refused():
    processor = tiny_processor()
    talk = [user("<image>", "how many?"), assistant("two")]
    start = tokenize_conversation(processor, talk).supervised.index(True)
    with pytest.raises(BadSampleError, match=rf"no answer is left .*max_length is {start}"):
        VisualLanguageCollator(processor, max_length=start)([example(talk, 1)])
    with pytest.raises(BadSampleError, match=r"the text has 1 \(max_length is 5\)"):
        VisualLanguageCollator(processor, max_length=5)([example(talk, 1)])


def test_placeholders_typed_as_words_are_counted_as_images():
    talk = [user("<image>", "what does <image> mean?"), assistant("nothing")]
    with pytest.raises(BadSampleError, match="1 images need 3 placeholder tokens, the text has 6"):
        VisualLanguageCollator(tiny_processor())([example(talk, 1)])


def test_labels_are_the_same_in_any_company():
    collator = VisualLanguageCollator(tiny_processor())
    short, long = example([user("a"), assistant("b")]), example([user("how many cats?"), assistant("three cats")])
    alone = collator([short])["labels"][0]
    assert same(collator([short, long])["labels"][0, : len(alone)].double(), alone.double())
