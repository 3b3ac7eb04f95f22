"""Setokim writes text and images in one generation, images for prompts, and masks for expressions."""

import pytest
import torch
from torch import nn

from tests.modeling.test_modeling_setokim import ROWS, alone_from, read_by_hand, tokens_by_hand, written_out
from tests.tiny import IMAGE_TOKEN_ID, batch, pixels, same, words
from tests.tiny_setokim import DRAWN_SIZE, END, MAX_TOKENS, SLOTS, START, images_of_lengths, tiny_setokim

BUDGET = 4
STEPS = 24


def eager_model(**kwargs):
    """A model that likes to begin images, and to end them before the budget is spent now and then."""
    model = tiny_setokim(**kwargs)
    with torch.no_grad():
        head = model.lm_head.weight
        own = torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0))
        head[START] = 3.5 * head[[IMAGE_TOKEN_ID, END]].mean(0) + 0.5 * own * head.std()
    return model


def written_by_hand(model, row, images, steps, budget=BUDGET):
    """Greedy writing of one row without a cache, in which every step reads everything anew."""
    embeddings, ids, _ = read_by_hand(model, row, images)
    alone, written, tokens = alone_from(model), [], []
    count = 0 if ids[-1] == START else None
    for _ in range(steps):
        output = alone(inputs_embeds=embeddings, output_hidden_states=True)
        scores = output.logits[0, -1].clone()
        visual = model.output_projection(output.hidden_states[-1][0, -1])
        if count is None:
            scores[[IMAGE_TOKEN_ID, END]] = -torch.inf
            chosen = int(scores.argmax())
        elif count == 0 or (count < budget and scores[IMAGE_TOKEN_ID] >= scores[END]):
            chosen = IMAGE_TOKEN_ID
        else:
            chosen = END
        embedding = model.get_input_embeddings()(torch.tensor(chosen))
        if chosen == IMAGE_TOKEN_ID:
            embedding = model.model.input_projection(visual)
            tokens = tokens if count else [*tokens, []]
            tokens[-1].append(visual)
        count = {START: 0, END: None}.get(chosen, count + 1 if chosen == IMAGE_TOKEN_ID else count)
        written.append(chosen)
        embeddings = torch.cat([embeddings, embedding.view(1, 1, -1)], dim=1)
    return written, [torch.stack(image) for image in tokens]


OPEN_ROWS = [[*row[:-1], [*row[-1], START]] if index == 1 else row for index, row in enumerate(ROWS)]


def test_a_batch_writes_what_each_row_writes_step_by_step_without_a_cache():
    model = eager_model()
    images, _ = images_of_lengths(model)
    inputs = batch(*written_out(OPEN_ROWS)) | {"pixel_values": images}
    output = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, max_image_tokens=BUDGET, return_dict_in_generate=True
    )
    lengths, modes = set(), []
    for row, ids, tokens in zip(OPEN_ROWS, output.sequences[:, inputs["input_ids"].shape[1] :], output.visual_tokens):
        expected_ids, expected_tokens = written_by_hand(model, row, images, STEPS)
        assert ids.tolist() == expected_ids
        assert len(tokens) == len(expected_tokens)
        for found, expected in zip(tokens, expected_tokens):
            assert same(found, expected, 1e-3)
        lengths |= {len(image) for image in tokens}
        modes.append(ids == IMAGE_TOKEN_ID)
    assert len(lengths) > 1, "images of different lengths, some ended by the model"
    assert max(map(len, output.visual_tokens)) > 1, "several images within a text"
    together = torch.stack(modes)
    assert (together.any(0) & ~together.all(0)).any(), "rows write text and images at the same step"
    ids_alone = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, max_image_tokens=BUDGET)
    assert torch.equal(ids_alone, output.sequences)


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_images_are_written_with_other_caches_and_several_samples(options):
    model = eager_model()
    images, _ = images_of_lengths(model)
    inputs = batch(*written_out(OPEN_ROWS)) | {"pixel_values": images, "max_image_tokens": BUDGET}
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
    options = {"do_sample": False, **options}
    torch.manual_seed(3)
    found = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, **options)
    if options["do_sample"]:
        assert len(found.visual_tokens) == 6
        torch.manual_seed(3)
        again = model.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True, **options)
        assert torch.equal(found.sequences, again.sequences)
    else:
        assert torch.equal(found.sequences, expected.sequences)
    for row, ids in zip(found.visual_tokens, found.sequences[:, inputs["input_ids"].shape[1] :]):
        assert sum(len(image) for image in row) == int((ids == IMAGE_TOKEN_ID).sum())


def test_budgets_bound_tokens_and_images():
    model = eager_model()
    inputs = batch(words(4), words(6, 1)) | {"max_new_tokens": 30, "do_sample": False}
    output = model.generate(**inputs, max_image_tokens=2, return_dict_in_generate=True)
    assert max(len(image) for row in output.visual_tokens for image in row) == 2
    assert max(map(len, output.visual_tokens)) > 2
    output = model.generate(**inputs, max_image_tokens=2, max_images=2, return_dict_in_generate=True)
    assert max(map(len, output.visual_tokens)) == 2
    for name in ("max_image_tokens", "max_images"):
        with pytest.raises(ValueError, match=f"{name} is 0: give 1 or more, or write_images=False"):
            model.generate(**inputs, **{name: 0})


@pytest.mark.parametrize(
    "options, obstacle", [({"num_beams": 2}, "num_beams is 2"), ({"use_cache": False}, "use_cache is False")]
)
def test_beams_and_generations_without_a_cache_write_text_alone(options, obstacle):
    model = eager_model()
    inputs = batch(words(4)) | {"max_new_tokens": 8, "do_sample": False} | options
    assert not torch.isin(model.generate(**inputs)[:, 4:], torch.tensor([START, END, IMAGE_TOKEN_ID])).any()
    with pytest.raises(ValueError, match=f"one token at a time with a key-value cache, and {obstacle}"):
        model.generate(**inputs, write_images=True)
    assert START in model.generate(**batch(words(4)), max_new_tokens=8, do_sample=False)
    assert START not in model.generate(**batch(words(4)), max_new_tokens=8, do_sample=False, write_images=False)


def test_what_was_written_can_be_read_again():
    """The images of one answer, given as their tokens, are the images of the next prompt."""
    model = eager_model()
    prompt = words(4)
    output = model.generate(
        torch.tensor([[*prompt, START]]), max_new_tokens=6, max_images=1, do_sample=False, return_dict_in_generate=True
    )
    ids, tokens = output.sequences[0].tolist(), output.visual_tokens[0]
    end = ids.index(END)
    again = [*prompt, *SLOTS, *ids[end + 1 :]]
    logits = model(torch.tensor([again]), visual_tokens=tokens[:1]).logits[0]
    expected = model.generate(
        torch.tensor([[*prompt, START]]), max_new_tokens=6, max_images=1, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    ).logits  # fmt: skip
    assert same(logits[len(prompt) + len(SLOTS) - 1], expected[end - len(prompt)][0], 1e-3)


def test_images_are_drawn_from_the_tokens_that_were_written():
    model = eager_model(draws=True)
    inputs = batch([*words(4), START], [*words(7, 1), START])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    output = model.generate_images(**inputs, generator=generators, max_image_tokens=3)
    assert output.images.shape == (2, 3, DRAWN_SIZE, DRAWN_SIZE) and output.mask.sum(1).max() <= 3
    tokens, mask = model.write_image(**inputs, max_image_tokens=3)
    assert same(tokens, output.tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert same(output.images, model.model.setok.reconstruct(tokens, mask, generator=generators))
    alone = model.generate_images(
        torch.tensor([[*words(7, 1)]]), generator=[torch.Generator().manual_seed(2)], max_image_tokens=3
    )
    assert same(alone.images[0], output.images[1], 1e-4), "alone as in the batch, [Img] written or not"
    guided = model.generate_images(
        **inputs,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        max_image_tokens=3,
        guidance_scale=9.0,
    )
    assert not same(guided.images, output.images)


def test_edits_read_their_source():
    model = eager_model(draws=True)
    row = [*SLOTS, *words(4)]
    images = [
        model.edit_images(torch.tensor([row]), pixels(1, seed), generator=torch.Generator().manual_seed(0)).tokens
        for seed in (1, 1, 2)
    ]
    assert same(images[0], images[1]) and not same(images[0][:, 0], images[2][:, 0])
    with pytest.raises(ValueError, match="no source image to edit"):
        model.edit_images(torch.tensor([words(4)]))


def test_an_expression_becomes_the_mask_of_one_visual_token():
    model = eager_model()
    images, _ = images_of_lengths(model, 2)
    rows = [[0, words(3)], [1, words(5, 1)]]
    inputs = batch(*([*SLOTS, *words(3)], [*SLOTS, *words(5, 1)]))
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    output = model.segment(**inputs, pixel_values=images, sizes=[(30, 20), (24, 24)])
    assert len(read) == 1, "the prompt alone is read"
    assert [mask.shape for mask in output.masks] == [(30, 20), (24, 24)]
    for index, row in enumerate(rows):
        embeddings, _, _ = read_by_hand(model, [*row[:-1], [*row[-1], START]], images)
        state = model.model.language_model(inputs_embeds=embeddings).last_hidden_state[:, -1:]
        token = model.output_projection(state)
        assert same(output.tokens[index], token[0], 1e-4)
        features = model.get_image_features(images[index : index + 1])
        logits = model.model.setok.decode_masks(token, None, features.patch_features, features.grid_size)
        expected = nn.functional.interpolate(logits, size=output.masks[index].shape, mode="bilinear")[0, 0]
        assert same(output.mask_logits[index], expected, 1e-3)
        assert torch.equal(output.masks[index], output.mask_logits[index] >= 0)
    low = model.segment(**inputs, pixel_values=images, threshold=0.01)
    assert sum(mask.sum() for mask in low.masks) > sum(mask.sum() for mask in output.masks) * 0.9
    assert low.masks[0].shape == (24, 24), "of the pixels that were given"


def test_what_cannot_be_written_is_refused():
    model = eager_model()
    ids = torch.tensor([[*SLOTS, *words(3)]] * 2)
    with pytest.raises(ValueError, match="2 expressions and 0 images with patches"):
        model.segment(torch.tensor([words(3)] * 2))
    with pytest.raises(ValueError, match="2 expressions and 1 images"):
        model.segment(ids, pixels(1))
    two_and_none = batch([*SLOTS, *SLOTS, *words(3)], words(3))
    with pytest.raises(ValueError, match=r"the prompts have \[12, 0\] placeholders"):
        model.segment(**two_and_none, pixel_values=pixels(2))
    with pytest.raises(ValueError, match="1 sizes for 2 expressions"):
        model.segment(ids, pixels(2), sizes=[(3, 3)])
    with pytest.raises(ValueError, match="threshold is 1"):
        model.segment(ids, pixels(2), threshold=1)
    with pytest.raises(ValueError, match="its SeTok has no detokenizer"):
        model.generate_images(torch.tensor([words(3)]))
    with pytest.raises(ValueError, match="max_image_tokens is 0"):
        model.write_image(torch.tensor([words(3)]), max_image_tokens=0)
    with pytest.raises(ValueError, match="padded on the right"):
        model.write_image(**batch(words(3), words(5), side="right"))
    with pytest.raises(ValueError, match=r"Some prompts end in \[Img\] and some do not"):
        model.write_image(**batch([*words(3), START], words(5)))
    tokens = tokens_by_hand(model, pixels(1)[0])
    with pytest.raises(ValueError, match="images with patches"):
        model.segment(ids[:1], visual_tokens=[tokens])
    assert len(tokens) <= MAX_TOKENS


def test_placeholders_of_no_known_image_are_refused():
    model = eager_model()
    with pytest.raises(ValueError, match="6 placeholders of visual tokens that are not known: give its images"):
        model.generate(torch.tensor([[*SLOTS, *words(3)]]), max_new_tokens=2)
    cut = model.generate(torch.tensor([[*words(3), START]]), max_new_tokens=1, return_dict_in_generate=True)
    assert cut.sequences[0, -1] == IMAGE_TOKEN_ID
    for cache in (None, cut.past_key_values):
        with pytest.raises(ValueError, match="1 placeholders of visual tokens that are not known"):
            model.generate(cut.sequences, past_key_values=cache, max_new_tokens=2)


def test_visual_tokens_that_are_not_finite_are_refused():
    model = eager_model()
    with torch.no_grad():
        model.output_projection.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="visual tokens that the model wrote are not finite"):
        model.segment(torch.tensor([[*SLOTS, *words(3)]]), pixels(1))


def test_a_model_learns_which_tokens_an_image_has_and_how_many():
    """Two prompts, two images of different lengths, learned by heart and written again."""
    model = tiny_setokim()
    images, lengths = images_of_lengths(model, 2)
    prompts = [words(3), words(3, 1)]
    inputs = batch(*[[*prompt, *SLOTS] for prompt in prompts])
    labels = inputs["input_ids"].clone()
    labels[:, :3] = -100
    targets = [tokens_by_hand(model, image).detach() for image in images]
    trained = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    trained += [*model.model.input_projection.parameters(), *model.output_projection.parameters()]
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    for _ in range(250):
        optimizer.zero_grad()
        output = model(**inputs, visual_tokens=targets, labels=labels, skip_logits=True)
        output.loss.backward()
        optimizer.step()
    assert output.loss_visual < 0.02 * torch.cat(targets).var()
    tokens, mask = model.write_image(**batch(*prompts))
    assert mask.sum(1).tolist() == lengths
    for written, target in zip(tokens, targets):
        assert (written[: len(target)] - target).square().mean() < 0.1 * target.var()
