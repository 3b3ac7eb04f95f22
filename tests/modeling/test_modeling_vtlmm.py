"""VT-LMM's losses in the forward pass: which positions count, what is divided by what, and who gets a gradient."""

import pytest
import torch
from transformers import Gemma2Config

from tests.modeling.test_visual_tokenizer import BrightPatchesConfig
from tests.tiny import IMAGE_TOKEN_ID, batch, calls, pixels, same, tiny_clip_config, tiny_llama_config, words
from tests.tiny_kinds import KINDS, adapter_by_hand, pseudo_by_hand, tiny_vtlmm
from vistok import VTLMMForCausalLM, VTLMMModel
from vistok.processing.collator import TokenizedConversation, pack_conversations

IMAGE = KINDS["vtlmm"].image
# An image at the very beginning, whose first token has no prediction; two images; two that touch; none.
TOUCHING = [*words(1, 5), *IMAGE, *IMAGE, *words(3, 6)]
ROWS = [*KINDS["vtlmm"].rows[:2], TOUCHING, words(5, 4)]
IMAGES_OF_ROWS = [[0], [1, 2], [3, 4], []]
NUM_PREDICTED = [8, 18, 18, 0]
VISUAL_LOSSES = ("visual_modeling", "visual_tokens")
every_visual_loss = pytest.mark.parametrize("visual_loss", VISUAL_LOSSES)
both_inputs = pytest.mark.parametrize("pseudo", [False, True], ids=["image features", "pseudo image features"])


def divergences(model, visual_loss, row, images):
    """
    KL at each predicted position of one row alone, by the formula (Eq. 6 or 9) and with its graph: the target is a
    constant.
    """
    input_ids = torch.tensor([row])
    embeddings = model.get_input_embeddings()(input_ids)
    image_features = adapter_by_hand(model, images).flatten(0, 1)
    read = (
        pseudo_by_hand(model, images).flatten(0, 1).detach() if model.config.pseudo_image_features else image_features
    )
    embeddings = embeddings.masked_scatter((input_ids == IMAGE_TOKEN_ID).unsqueeze(-1), read.to(embeddings.dtype))
    states = model.model.language_model(inputs_embeds=embeddings).last_hidden_state[0]
    found, image_position = [], -1
    for position, token in enumerate(row):
        if token != IMAGE_TOKEN_ID:
            continue
        image_position += 1
        if position == 0:
            continue
        log_q = torch.log_softmax(model.lm_head.weight @ states[position - 1], 0)
        log_p = torch.log_softmax(model.model.vm_head.weight @ image_features[image_position], 0)
        target, prediction = (log_p, log_q) if visual_loss == "visual_modeling" else (log_q, log_p)
        found.append((target.exp().detach() * (target.detach() - prediction)).sum())
    return found


def all_divergences(model, visual_loss, images):
    return [
        divergence
        for row, chosen in zip(ROWS, IMAGES_OF_ROWS)
        if chosen
        for divergence in divergences(model, visual_loss, row, images[chosen])
    ]


@every_visual_loss
@both_inputs
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"skip_logits": True}, {"loss_implementation": "fused"}], ids=str)
def test_visual_loss_is_the_mean_divergence_over_the_predicted_positions(visual_loss, pseudo, side, options):
    model = tiny_vtlmm(pseudo_image_features=pseudo).double()
    images = pixels(5).double()
    output = model(**batch(*ROWS, side=side), pixel_values=images, visual_loss=visual_loss, **options)
    expected = torch.stack(all_divergences(model, visual_loss, images))
    assert len(expected) == sum(NUM_PREDICTED)
    assert output.visual_positions.sum(1).tolist() == NUM_PREDICTED
    assert expected.mean() > 0.1
    assert same(output.loss_vm, expected.mean(), 1e-9)
    assert output.loss == output.loss_vm
    assert output.loss_lm is None


@both_inputs
@pytest.mark.parametrize("skip_logits", [False, True])
def test_gradients_of_visual_modelling_are_those_of_the_formula_in_every_parameter(pseudo, skip_logits):
    model = tiny_vtlmm(pseudo_image_features=pseudo).double()
    images = pixels(5).double()
    torch.stack(all_divergences(model, "visual_modeling", images)).mean().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    # What the language model reads reaches the adapter here, in training of both: the formula above holds it constant.
    if pseudo:
        model.model.adapter.requires_grad_(False)
        model.model.vision_tower.requires_grad_(False)
    model(**batch(*ROWS), pixel_values=images, visual_loss="visual_modeling", skip_logits=skip_logits).loss.backward()
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wanted = torch.zeros_like(parameter) if expected[name] is None else expected[name]
        assert same(found, wanted, 1e-9), name
    assert model.model.vm_head.weight.grad is None
    assert model.lm_head.weight.grad.abs().max() > 1e-3


@both_inputs
@pytest.mark.parametrize("skip_logits", [False, True])
def test_learning_visual_tokens_reaches_the_visual_modelling_head_alone(pseudo, skip_logits):
    model = tiny_vtlmm(pseudo_image_features=pseudo).double()
    images = pixels(5).double()
    torch.stack(all_divergences(model, "visual_tokens", images)).mean().backward()
    expected = model.model.vm_head.weight.grad
    model.zero_grad()
    inputs = batch(*ROWS) | {"pixel_values": images, "labels": batch(*ROWS)["input_ids"]}
    model(**inputs, visual_loss="visual_tokens", skip_logits=skip_logits).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"model.vm_head.weight"}
    assert expected.abs().max() > 1e-3
    assert same(model.model.vm_head.weight.grad, expected, 1e-9)


def test_both_losses_together_reach_all_but_the_visual_modelling_head():
    model = tiny_vtlmm()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    model(**inputs, visual_loss="visual_modeling", skip_logits=True).loss.backward()
    read = "model.vision_tower.layernorm", "model.vision_tower.layers.1", "model.vision_tower.embeddings.mask_token"
    for name, parameter in model.named_parameters():
        behind_the_layer = name.startswith(read) or "encoder.layer.1" in name
        assert (parameter.grad is None) == (name == "model.vm_head.weight" or behind_the_layer), name


@every_visual_loss
def test_loss_is_the_sum_of_its_parts_each_divided_by_its_own_count(visual_loss):
    model = tiny_vtlmm()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5)}
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 340), -100)
    num_labels = int((labels[:, 1:] != -100).sum())
    plain = model(**inputs, labels=labels, visual_loss=visual_loss)
    assert same(plain.loss, plain.loss_lm + plain.loss_vm)
    assert same(plain.loss_lm, model(**inputs, labels=labels).loss)
    assert same(model(**inputs, visual_loss=visual_loss).loss, plain.loss_vm)
    counts = {"num_items_in_batch": torch.tensor(3 * num_labels), "num_visual_items": 2 * sum(NUM_PREDICTED)}
    for skip_logits in (False, True):
        divided = model(
            **inputs, labels=labels, visual_loss=visual_loss, visual_loss_weight=0.5, skip_logits=skip_logits, **counts
        )
        assert same(divided.loss_lm, plain.loss_lm / 3)
        assert same(divided.loss_vm, plain.loss_vm / 2)
        assert same(divided.loss, plain.loss_lm / 3 + plain.loss_vm / 4)


def packed_inputs(shared, tails):
    """Conversations with the same first tokens in one row, as the collator writes them."""
    talks = [TokenizedConversation(shared + tail, [False] * len(shared) + [True] * len(tail)) for tail in tails]
    packed = pack_conversations(talks, prefix=len(shared))
    row, position_ids = (torch.tensor([packed[name]]) for name in ("input_ids", "position_ids"))
    return {"input_ids": row, "attention_mask": packed["mask"][None, None]}, position_ids


@every_visual_loss
def test_an_image_that_conversations_share_counts_once(visual_loss):
    model, images = tiny_vtlmm(), pixels(1)
    shared = [*words(2), *IMAGE, *words(2, 1)]
    inputs, position_ids = packed_inputs(shared, [words(4, 2), words(6, 3)])
    expected = torch.stack(divergences(model, visual_loss, shared, images)).mean()
    for given in (position_ids, None):
        output = model(**inputs, position_ids=given, pixel_values=images, visual_loss=visual_loss)
        assert output.visual_positions.sum() == 9
        assert same(output.loss_vm, expected, 1e-4)


@every_visual_loss
def test_images_of_conversations_that_share_a_row_have_the_losses_that_they_have_apart(visual_loss):
    model, images = tiny_vtlmm(), pixels(2)
    tails = [[*IMAGE, *words(4, 2)], [*words(1), *IMAGE, *words(3)]]
    for shared, num_predicted in ((words(3), 18), ([], 17)):
        inputs, position_ids = packed_inputs(shared, tails)
        apart = [divergences(model, visual_loss, shared + tail, images[i : i + 1]) for i, tail in enumerate(tails)]
        for given in (position_ids, None):
            output = model(**inputs, position_ids=given, pixel_values=images, visual_loss=visual_loss)
            assert output.visual_positions.sum() == num_predicted
            assert same(output.loss_vm, torch.stack(apart[0] + apart[1]).mean(), 1e-4)


@every_visual_loss
def test_an_image_that_begins_a_conversation_is_not_predicted_by_the_one_before_it_in_the_row(visual_loss):
    model, images = tiny_vtlmm(), pixels(2)
    inputs, position_ids = packed_inputs([], [words(5), [*IMAGE, *words(2)]])
    expected = torch.stack(divergences(model, visual_loss, [*IMAGE, *words(2)], images[:1])).mean()
    for given in (position_ids, None):
        output = model(**inputs, position_ids=given, pixel_values=images[:1], visual_loss=visual_loss)
        assert output.visual_positions.nonzero()[:, 1].tolist() == list(range(6, 14))
        assert same(output.loss_vm, expected, 1e-4)


@every_visual_loss
@pytest.mark.parametrize("skip_logits", [False, True])
def test_a_batch_without_images_has_a_visual_loss_of_zero_with_a_graph(visual_loss, skip_logits):
    model = tiny_vtlmm()
    output = model(
        **batch(words(5), words(3, 1)), visual_loss=visual_loss, skip_logits=skip_logits, num_visual_items=7
    )
    assert output.loss_vm == 0
    assert not output.visual_positions.any()
    output.loss.backward()
    reached = model.lm_head.weight if visual_loss == "visual_modeling" else model.model.vm_head.weight
    assert reached.grad is not None
    assert not reached.grad.any()


@every_visual_loss
def test_only_an_image_at_the_beginning_leaves_nothing_but_its_first_token_unpredicted(visual_loss):
    model = tiny_vtlmm()
    output = model(**batch(IMAGE, [0, *IMAGE]), pixel_values=pixels(2), visual_loss=visual_loss)
    assert output.visual_positions.tolist() == [[False, False, *[True] * 8], [False, *[True] * 9]]


@pytest.mark.parametrize("visual_loss", [None, *VISUAL_LOSSES])
def test_without_logits_the_heads_are_never_run_on_all_positions(visual_loss, monkeypatch):
    model = tiny_vtlmm()
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("MM head"))
    model.model.vm_head.register_forward_hook(lambda *_: ran.append("VM head"))
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    linear = calls(monkeypatch, torch.nn.functional, "linear")
    output = model(**inputs, visual_loss=visual_loss, skip_logits=True)
    assert output.logits is None
    assert ran == []
    assert max(kwargs.get("weight", args[1]).shape[0] for args, kwargs in linear) < 384, "products with a vocabulary"


def test_in_training_there_are_logits_only_for_who_asks():
    model = tiny_vtlmm()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5)}
    losses = ({"labels": inputs["input_ids"]}, {"visual_loss": "visual_modeling"})
    expected = [model(**inputs, **asked) for asked in losses]
    assert all(output.logits is not None for output in expected)
    model.train()
    for asked, output in zip(losses, expected):
        trained = model(**inputs, **asked)
        assert trained.logits is None
        assert same(trained.loss, output.loss)
        assert model(**inputs, **asked, skip_logits=False).logits.shape == output.logits.shape
        assert model(**inputs, **asked, logits_to_keep=2).logits.shape[1] == 2
    assert model(**inputs).logits is not None


def test_adapter_and_tower_run_without_a_graph_while_visual_tokens_are_learnt():
    model = tiny_vtlmm()
    for visual_loss, expected in {"visual_tokens": False, "visual_modeling": True}.items():
        output = model(**batch(*ROWS), pixel_values=pixels(5), visual_loss=visual_loss)
        assert output.image_hidden_states.requires_grad is expected
        assert output.loss.requires_grad


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@every_visual_loss
@pytest.mark.parametrize("skip_logits", [False, True])
def test_losses_in_half_precision_stay_close(dtype, tolerance, visual_loss, skip_logits):
    model = tiny_vtlmm()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    expected = model(**inputs, visual_loss=visual_loss)
    found = model.to(dtype)(**inputs, visual_loss=visual_loss, skip_logits=skip_logits)
    assert found.loss_vm.dtype == torch.float32
    for name in ("loss_lm", "loss_vm"):
        assert abs(found[name] - expected[name]) < tolerance * expected[name], name
    found.loss.backward()


@every_visual_loss
def test_logits_behind_a_soft_cap_are_those_that_the_loss_compares(visual_loss):
    config = tiny_llama_config(Gemma2Config, head_dim=12, final_logit_softcapping=3.0)
    model = tiny_vtlmm(text_config=config)
    inputs = batch(ROWS[1]) | {"pixel_values": pixels(2), "visual_loss": visual_loss}
    output = model(**inputs)
    predicted = output.visual_positions[0].nonzero().flatten()
    q = torch.log_softmax(output.logits[0, predicted - 1], -1)
    p = torch.log_softmax(output.image_hidden_states.flatten(0, 1) @ model.model.vm_head.weight.t(), -1)
    target, prediction = (p, q) if visual_loss == "visual_modeling" else (q, p)
    expected = (target.exp() * (target - prediction)).sum(-1).mean()
    assert same(output.loss_vm, expected, 1e-4)
    assert same(model(**inputs, skip_logits=True).loss, expected, 1e-4)


@every_visual_loss
def test_gradient_checkpointing_changes_no_gradient(visual_loss):
    plain, checkpointed = tiny_vtlmm().train(), tiny_vtlmm().train()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.gradient_checkpointing_enable()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    for model in (plain, checkpointed):
        model(**inputs, visual_loss=visual_loss, skip_logits=True).loss.backward()
    for (name, parameter), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or same(parameter.grad, other.grad), name


@every_visual_loss
def test_low_rank_head_gives_the_losses_of_the_product_of_its_matrices(visual_loss):
    low_rank, full = tiny_vtlmm(vm_head_rank=5), tiny_vtlmm()
    head = low_rank.model.vm_head
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "down.weight": (5, 48),
        "up.weight": (384, 5),
    }
    weights = low_rank.state_dict()
    weights["model.vm_head.weight"] = weights.pop("model.vm_head.up.weight") @ weights.pop("model.vm_head.down.weight")
    full.load_state_dict(weights)
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "visual_loss": visual_loss}
    for skip_logits in (True, False):
        assert same(low_rank(**inputs, skip_logits=skip_logits).loss, full(**inputs).loss, 1e-4)
    low_rank(**inputs, skip_logits=True).loss.backward()
    for name, parameter in head.named_parameters():
        assert (parameter.grad is not None) == (visual_loss == "visual_tokens"), name
    for model in (low_rank, full):
        model.config.pseudo_image_features = True
    images = [model.get_image_features(pixels(2)).embeddings for model in (low_rank, full)]
    assert same(*images, 1e-4)


def test_tokens_that_a_shorter_image_leaves_unused_neither_count_nor_predict():
    config = tiny_llama_config(hidden_size=32)
    model = tiny_vtlmm(None, config, BrightPatchesConfig(max_tokens=5), vision_feature_select_strategy="full")
    for seed in range(200):
        images = pixels(2, seed)
        lengths = [len(tokens) for tokens in model.get_image_features(images).pooler_output]
        if max(lengths) < 5:
            break
    slots = [IMAGE_TOKEN_ID] * 5
    output = model(**batch([*words(1), *slots, *slots, *words(3)]), pixel_values=images, visual_loss="visual_modeling")
    predicted = [False, *(index < lengths[0] for index in range(5)), *(0 < index < lengths[1] for index in range(5))]
    assert output.visual_positions[0].tolist() == [*predicted, False, False, False]
    assert torch.isfinite(output.loss)


def test_what_is_asked_wrongly_is_refused():
    model = tiny_vtlmm(pseudo_image_features=True)
    inputs = batch(*ROWS[:1])
    with pytest.raises(ValueError, match=r"visual_loss is 'kl': choose visual_modeling, visual_tokens or None"):
        model(**inputs, pixel_values=pixels(1), visual_loss="kl")
    features = model.get_image_features(pixels(1))
    lists = {"image": type(features)(pooler_output=features.pooler_output)}
    assert same(model(**inputs, mm_encoder_outputs=lists).logits, model(**inputs, pixel_values=pixels(1)).logits)
    with pytest.raises(ValueError, match=r"hold pseudo image features alone.*output of get_image_features"):
        model(**inputs, mm_encoder_outputs=lists, visual_loss="visual_modeling")
    model.config.pseudo_image_features = False
    lists = {"image": type(features)(pooler_output=list(model.get_image_features(pixels(1)).last_hidden_state))}
    given = [
        model(**inputs, **images, visual_loss="visual_modeling").loss_vm
        for images in ({"mm_encoder_outputs": lists}, {"pixel_values": pixels(1)})
    ]
    assert same(*given)


def test_an_adapter_of_another_width_is_refused_with_both():
    with pytest.raises(ValueError, match=r"BrightPatches makes visual tokens of width 32.*embeddings are 48 wide"):
        tiny_vtlmm(None, None, BrightPatchesConfig())


def test_vocabulary_grows_in_both_heads_and_the_visual_one_is_never_tied():
    model = tiny_vtlmm(text_config=tiny_llama_config(tie_word_embeddings=True))
    before = model.model.vm_head.weight.detach().clone()
    assert not any("vm_head" in name for name in (model._tied_weights_keys or {}))
    model.resize_token_embeddings(400)
    after = model.model.vm_head.weight
    assert after.shape == (400, 48)
    assert torch.equal(after[:384], before)
    assert 0.005 < after[384:].std() < 0.05
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    assert torch.isfinite(model(**inputs, visual_loss="visual_modeling").loss)
    model.resize_token_embeddings(360)
    assert torch.equal(model.model.vm_head.weight, before[:360])
    assert isinstance(model, VTLMMForCausalLM)


def test_the_vocabulary_of_a_model_without_a_head_grows_too(tmp_path):
    core = tiny_vtlmm().model
    core.resize_token_embeddings(400)
    assert core.vm_head.weight.shape == (400, 48)
    core.save_pretrained(tmp_path)
    assert VTLMMModel.from_pretrained(tmp_path).vm_head.weight.shape == (400, 48)


def test_a_config_may_ask_for_tuples():
    model = tiny_vtlmm()
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    inputs |= {"visual_loss": "visual_modeling"}
    expected = model(**inputs)
    model.config.return_dict = False
    loss, loss_lm, loss_vm, logits, visual_positions, *_ = model(**inputs)
    assert same(loss, loss_lm + loss_vm)
    assert same(logits, expected.logits)
    assert torch.equal(visual_positions, expected.visual_positions)


def test_a_training_step_can_be_compiled():
    one_layer = {"num_hidden_layers": 1}
    model = tiny_vtlmm(tiny_clip_config(**one_layer), tiny_llama_config(**one_layer), pseudo_image_features=True)
    inputs = batch(*ROWS) | {"pixel_values": pixels(5), "labels": batch(*ROWS)["input_ids"]}
    inputs |= {"visual_loss": "visual_modeling", "skip_logits": True}
    expected = model(**inputs).loss
    expected.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    found = torch.compile(model, backend="eager")(**inputs).loss
    found.backward()
    assert same(found, expected, 1e-4)
    assert same(model.lm_head.weight.grad, gradient, 1e-4)


def test_labels_of_another_shape_are_refused():
    inputs = batch(*ROWS) | {"pixel_values": pixels(5)}
    with pytest.raises(ValueError, match=r"labels have the shape \(4, 3\), expected that of the input ids, \(4, "):
        tiny_vtlmm()(**inputs, labels=inputs["input_ids"][:, :3], skip_logits=True)
