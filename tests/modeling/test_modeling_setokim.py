"""Setokim reads real visual tokens alone, and learns text, visual tokens and how many of them an image has."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, LlamaForCausalLM

from tests.tiny import IMAGE_TOKEN_ID, batch, pixels, same, tiny_clip_config, tiny_llama_config, tiny_t5_config, words
from tests.tiny_setokim import (
    END,
    MAX_TOKENS,
    SLOTS,
    START,
    images_of_lengths,
    tiny_setok_config,
    tiny_setokim,
    tiny_setokim_config,
)
from vistok import SetokimConfig, SetokimForConditionalGeneration, SetokimModel
from vistok.modeling.vision_features import extract_vision_features
from vistok.modeling.visual_regression import visual_regression_loss

# An int is an image: what a row is made of, and which of its parts are learned.
ROWS = [[words(2), 0, words(4, 1)], [words(1, 2), 1, words(2, 3), 2, words(3, 4)], [words(7, 5)]]
LEARNED = [[False, True, True], [False, False, True, True, True], [True]]


def written_out(rows):
    return [[token for part in row for token in (SLOTS if isinstance(part, int) else part)] for row in rows]


def labels_of(rows, learned, length, side):
    labels = []
    for row, which in zip(rows, learned):
        own = [
            token if learns else -100
            for part, learns in zip(row, which)
            for token in (SLOTS if isinstance(part, int) else part)
        ]
        own[0] = -100  # nothing stands before it
        filler = [-100] * (length - len(own))
        labels.append(filler + own if side == "left" else own + filler)
    return torch.tensor(labels)


def alone_from(model):
    """The language model's own class, with the weights of the composed model."""
    alone = LlamaForCausalLM(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    return alone


def tokens_by_hand(model, image):
    core = model.model
    features = extract_vision_features(core.vision_tower, image[None], select_strategy="default")
    output = core.visual_tokenizer(features.patch_features, features.grid_size)
    return output.tokens[0][output.mask[0]]


def read_by_hand(model, row, images):
    """Embeddings, ids and visual tokens of a row in which an image takes as many positions as it has tokens."""
    embeddings, ids, tokens = [], [], []
    for part in row:
        visual = tokens_by_hand(model, images[part]) if isinstance(part, int) else None
        own = part if visual is None else [START, *[IMAGE_TOKEN_ID] * len(visual), END]
        embedded = model.get_input_embeddings()(torch.tensor(own))
        if visual is not None:
            embedded = torch.cat([embedded[:1], model.model.input_projection(visual), embedded[-1:]])
        embeddings.append(embedded)
        ids += own
        tokens += [None] * len(own) if visual is None else [None, *visual, None]
    return torch.cat(embeddings)[None], ids, tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch_equal_those_of_each_row_alone(side):
    model = tiny_setokim()
    images, lengths = images_of_lengths(model)
    inputs = batch(*written_out(ROWS), side=side)
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    logits = model(**inputs, pixel_values=images).logits
    assert read == [10 + sum(lengths[1:])], "the second row: six words, four brackets, and its visual tokens"
    for index, row in enumerate(ROWS):
        expected = alone_from(model)(inputs_embeds=read_by_hand(model, row, images)[0]).logits[0]
        end = int(inputs["attention_mask"][index].nonzero().max()) + 1
        last = min(len(row[-1]) + 1, len(expected))  # [/Img] too, where there is one
        assert same(logits[index, end - last : end], expected[-last:], 1e-4)


def losses_by_hand(model, rows, learned, images):
    """Sums and numbers of the three losses, row by row."""
    sums, counts = {"lm": 0.0, "visual": 0.0, "length": 0.0}, {"lm": 0, "visual": 0}
    for row, which in zip(rows, learned):
        embeddings, ids, tokens = read_by_hand(model, row, images)
        output = alone_from(model)(inputs_embeds=embeddings, output_hidden_states=True)
        log_probabilities, states = output.logits[0].double().log_softmax(-1), output.hidden_states[-1][0]
        learns = [
            learned_part
            for part, learned_part in zip(row, which)
            for _ in range(len(part) if not isinstance(part, int) else len(tokens_by_hand(model, images[part])) + 2)
        ]
        for place in range(1, len(ids)):
            if not learns[place]:
                continue
            surprise = -log_probabilities[place - 1, ids[place]].item()
            if tokens[place] is None:
                sums["lm"], counts["lm"] = sums["lm"] + surprise, counts["lm"] + 1
            else:
                error = (model.output_projection(states[place - 1]) - tokens[place]).square().mean().item()
                sums["visual"], counts["visual"] = sums["visual"] + error, counts["visual"] + 1
                sums["length"] += surprise
    return sums, counts


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("skip_logits, items", [(True, None), (False, (5, 9))])
def test_losses_are_those_of_each_row_alone(side, skip_logits, items):
    model = tiny_setokim(visual_loss_weight=0.7, length_loss_weight=0.3)
    images, lengths = images_of_lengths(model)
    inputs = batch(*written_out(ROWS), side=side)
    labels = labels_of(ROWS, LEARNED, inputs["input_ids"].shape[1], side)
    num_items, num_visual_items = items or (None, None)
    output = model(
        **inputs, pixel_values=images, labels=labels, skip_logits=skip_logits,
        num_items_in_batch=num_items, num_visual_items=num_visual_items,
    )  # fmt: skip
    sums, counts = losses_by_hand(model, ROWS, LEARNED, images)
    assert counts["visual"] == lengths[0] + lengths[2] == len(output.visual_predictions)
    texts, tokens = items or (counts["lm"], counts["visual"])
    assert abs(output.loss_lm.item() - sums["lm"] / texts) < 1e-3
    assert abs(output.loss_visual.item() - sums["visual"] / tokens) < 1e-3
    assert abs(output.loss_length.item() - sums["length"] / tokens) < 1e-3
    total = output.loss_lm + 0.7 * output.loss_visual + 0.3 * output.loss_length
    assert same(output.loss, total)
    assert output.visual_positions.sum(1).tolist() == [lengths[0], lengths[2], 0]
    assert (output.logits is None) is skip_logits


def test_packed_rows_predict_no_token_from_another_conversation():
    """A row of two conversations by positions: the image that begins the second has no prediction for its first."""
    model = tiny_setokim()
    images, lengths = images_of_lengths(model, 2)
    first, second = [*words(2), *SLOTS], [*[IMAGE_TOKEN_ID] * MAX_TOKENS, *words(3)]
    ids = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    labels = ids.masked_fill(ids != IMAGE_TOKEN_ID, -100)
    output = model(ids, pixel_values=images, position_ids=positions, labels=labels)
    assert int(output.visual_positions.sum()) == lengths[0] + lengths[1] - 1


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        for name, parameter in model.named_parameters()
    }


def test_gradients_reach_what_each_loss_is_about_and_never_the_target():
    model = tiny_setokim()
    images, _ = images_of_lengths(model)
    token = tokens_by_hand(model, images[0]).detach()
    row = [*words(3), START, *[IMAGE_TOKEN_ID] * MAX_TOKENS]
    labels = torch.tensor([[-100] * 4 + [IMAGE_TOKEN_ID] * MAX_TOKENS])
    # An image of one token: what predicts it has not read it, so nothing may reach what made it.
    target = token[:1].requires_grad_(True)
    output = model(torch.tensor([row]), visual_tokens=[target], labels=labels)
    reached = gradients(model, output.loss_visual)
    assert target.grad is None or not target.grad.any()
    assert reached["output_projection.weight"]
    assert reached["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert not reached["lm_head.weight"] and not reached["model.input_projection.weight"]
    reached = gradients(model, output.loss_length)
    assert reached["lm_head.weight"] and not reached["output_projection.weight"]
    # An image that is read before words are written.
    inputs = batch(*written_out(ROWS[:1])) | {"pixel_values": images[:1]}
    output = model(**inputs, labels=labels_of(ROWS[:1], [[False, False, True]], len(inputs["input_ids"][0]), "left"))
    reached = gradients(model, output.loss)
    assert reached["model.input_projection.weight"]
    assert any(reached[name] for name in reached if ".tokenizer.merger." in name)
    assert not any(reached[name] for name in reached if "mask_decoder" in name or name.startswith("output_proj"))
    assert output.loss_visual == output.loss_length == 0


def test_images_may_be_given_as_their_visual_tokens():
    model = tiny_setokim()
    images, _ = images_of_lengths(model)
    inputs = batch(*written_out(ROWS))
    expected = model(**inputs, pixel_values=images).logits
    tokens = [tokens_by_hand(model, image) for image in images]
    for kept in ([0], [1, 2], []):
        given = [None if index in kept else image for index, image in enumerate(tokens)]
        encoded = {"pixel_values": images[kept]} if kept else {}
        assert same(model(**inputs, **encoded, visual_tokens=given).logits, expected)
    with pytest.raises(ValueError, match="leaves 1 of 3 images to pixel_values or vision_features, and these have 3"):
        model(**inputs, pixel_values=images, visual_tokens=[None, *tokens[1:]])
    for wrong, message in [
        (tokens[0][:, :3], r"\(\d, 3\), expected \(num_tokens, 20\)"),
        (tokens[0][:0], r"\(0, 20\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**inputs, visual_tokens=[wrong, *tokens[1:]])


def test_cached_features_take_the_place_of_pixels():
    model = tiny_setokim()
    images, _ = images_of_lengths(model)
    inputs = batch(*written_out(ROWS))
    features = model.model.get_vision_features(images).patch_features
    assert same(model(**inputs, vision_features=features).logits, model(**inputs, pixel_values=images).logits)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids, labels: labels[:, :-1], "labels have the shape"),
        (lambda ids, labels: labels.masked_fill(ids == IMAGE_TOKEN_ID, 7), "a placeholder with the label of a word"),
        (lambda ids, labels: labels.masked_fill(ids == END, IMAGE_TOKEN_ID), "word with that of a placeholder"),
    ],
)
def test_labels_that_mean_nothing_are_refused(change, message):
    model = tiny_setokim()
    ids = torch.tensor([[*words(2), *SLOTS]])
    with pytest.raises(ValueError, match=message):
        model(ids, pixel_values=pixels(1), labels=change(ids, ids.clone()))


@pytest.mark.parametrize("times", [0, 2])
def test_wrong_number_of_placeholders_names_both_numbers(times):
    model = tiny_setokim()
    row = [*words(2), *SLOTS * times]
    with pytest.raises(ValueError, match=rf"{times * MAX_TOKENS} image placeholders, the 1 images have {MAX_TOKENS}"):
        model(torch.tensor([row]), pixel_values=pixels(1))


def test_saved_and_loaded_by_every_auto_class(tmp_path):
    model = tiny_setokim(draws=True)
    model.save_pretrained(tmp_path)
    inputs = batch(*written_out(ROWS)) | {"pixel_values": images_of_lengths(model)[0]}
    labels = labels_of(ROWS, LEARNED, inputs["input_ids"].shape[1], "left")
    expected = model(**inputs, labels=labels)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is SetokimForConditionalGeneration
    found = loaded(**inputs, labels=labels)
    assert same(found.loss, expected.loss) and same(found.logits, expected.logits)
    core = AutoModel.from_pretrained(tmp_path)
    assert type(core) is SetokimModel
    assert same(core(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


def test_projections_may_be_more_precise_than_the_language_model():
    """As in training: what is trained is in float32, a frozen language model in bfloat16."""
    model = tiny_setokim()
    images, _ = images_of_lengths(model)
    ids = torch.tensor([[*words(2), *SLOTS, *words(4)]] * 3)
    expected = model(ids, pixel_values=images, labels=ids)
    for part in (model.model.language_model, model.lm_head):
        part.bfloat16()
    found = model(ids, pixel_values=images, labels=ids)
    assert found.visual_predictions.dtype == torch.float32
    for name in ("loss", "loss_lm", "loss_visual", "loss_length"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05)
    model.model.visual_tokenizer.bfloat16()
    output = model.generate(
        torch.tensor([[*words(2), *SLOTS, *words(4), START]] * 3), pixel_values=images, max_new_tokens=3,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert all(tokens[0].dtype == torch.float32 for tokens in output.visual_tokens)


def test_embeddings_may_be_tied():
    model = tiny_setokim(text_config=tiny_llama_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.resize_token_embeddings(400)
    assert model(torch.tensor([words(3)])).logits.shape[-1] == 400


def test_parts_are_found_by_the_names_that_recipes_use():
    model = tiny_setokim(draws=True)
    prefixes = [
        prefix for parts in model.trainable_parts.values() for prefix in ([parts] if isinstance(parts, str) else parts)
    ]
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


def test_configs_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match="give three different ids"):
        tiny_setokim_config(image_end_token_id=START)
    with pytest.raises(ValueError, match="t5, an encoder-decoder model, which writes no images"):
        SetokimConfig(setok_config=tiny_setok_config(), text_config=tiny_t5_config())
    with pytest.raises(ValueError, match="visual_loss_weight is -1"):
        tiny_setokim_config(visual_loss_weight=-1)
    with pytest.raises(ValueError, match=r"image_end_token_id is 384.*vocab_size=384"):
        tiny_setokim(image_end_token_id=384)
    assert tiny_setokim_config(tiny_clip_config()).vision_config.model_type == "clip_vision_model"


def test_the_regression_is_the_mean_over_channels_and_tokens():
    predictions, targets = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    loss = visual_regression_loss(predictions, targets)
    assert same(loss, nn.functional.mse_loss(predictions, targets))
    assert same(visual_regression_loss(predictions, targets, num_items=8), loss / 2)
    loss.backward()
    assert targets.grad is None
    nothing = visual_regression_loss(predictions[:0], targets[:0])
    assert nothing == 0 and nothing.requires_grad
    with pytest.raises(ValueError, match=r"\(4, 3\) and targets \(2, 3\)"):
        visual_regression_loss(predictions, targets[:2])
    with pytest.raises(ValueError, match="num_items is 0"):
        visual_regression_loss(predictions, targets, num_items=0)
