"""Pseudo image features are the mean text embedding under each visual-token distribution (Eq. 8), chunk by chunk."""

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig

from tests.tiny import batch, pixels, same, tiny_llama_config, words
from tests.tiny_kinds import KINDS, adapter_by_hand, pseudo_by_hand, tiny_vtlmm
from vistok.modeling import pseudo_image_features as module
from vistok.modeling.pseudo_image_features import pseudo_image_features
from vistok.modeling.vm_head import LowRankVMHead


def parts(vocab_size=50, width=12, dtype=torch.float64):
    head, embeddings = nn.Linear(width, vocab_size, bias=False), nn.Embedding(vocab_size, width)
    return torch.randn(2, 7, width, dtype=dtype), head.to(dtype), embeddings.to(dtype)


def by_formula(image_features, weight, table):
    """Σ_i P'(i) e_i, word by word."""
    probabilities = torch.softmax(image_features @ weight.t(), dim=-1)
    return sum(probabilities[..., word, None] * table[word] for word in range(len(table)))


@pytest.mark.parametrize("positions", [1, 3, 1000])
def test_features_and_their_gradient_are_those_of_the_formula_in_chunks_of_any_size(positions, monkeypatch):
    monkeypatch.setattr(module, "PROBABILITIES", positions * 50)
    image_features, head, embeddings = parts()
    image_features.requires_grad_()
    expected = by_formula(image_features, head.weight.detach(), embeddings.weight.detach())
    assert same(pseudo_image_features(image_features, head, embeddings), expected, 1e-12)
    with torch.no_grad():
        assert same(pseudo_image_features(image_features, head, embeddings), expected, 1e-12)
    assert torch.autograd.gradcheck(lambda given: pseudo_image_features(given, head, embeddings), image_features)
    assert head.weight.grad is None
    assert embeddings.weight.grad is None


@pytest.mark.parametrize("with_gradient", [False, True])
def test_head_and_embeddings_are_constants(with_gradient):
    image_features, head, embeddings = parts()
    found = pseudo_image_features(image_features.requires_grad_(with_gradient), head, embeddings)
    assert found.requires_grad is with_gradient
    low_rank = LowRankVMHead(12, 50, 3).double()
    found = pseudo_image_features(image_features, low_rank, embeddings)
    assert found.requires_grad is with_gradient
    if with_gradient:
        found.sum().backward()
    assert all(parameter.grad is None for parameter in [*low_rank.parameters(), *embeddings.parameters()])


def test_gradient_passes_through_a_head_of_low_rank():
    image_features, _, embeddings = parts()
    head = LowRankVMHead(12, 50, 3).double()
    image_features.requires_grad_()
    expected = by_formula(image_features, (head.up.weight @ head.down.weight).detach(), embeddings.weight.detach())
    assert same(pseudo_image_features(image_features, head, embeddings), expected, 1e-12)
    assert torch.autograd.gradcheck(lambda given: pseudo_image_features(given, head, embeddings), image_features)


def test_no_more_distributions_are_held_than_a_chunk_has(monkeypatch):
    monkeypatch.setattr(module, "PROBABILITIES", 2 * 50)
    image_features, head, embeddings = parts()
    sizes = []

    def recording(logits, **options):
        sizes.append(logits.shape)
        return torch.softmax(logits, **options)

    monkeypatch.setattr(module.nn.functional, "softmax", recording)
    pseudo_image_features(image_features.requires_grad_(), head, embeddings).sum().backward()
    assert set(sizes) == {(2, 50)}
    assert len(sizes) == 14, "seven chunks, and again for the gradient"


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 5e-3)])
def test_half_precision_keeps_its_type_and_stays_close(dtype, tolerance):
    image_features, head, embeddings = parts(dtype=torch.float32)
    expected = pseudo_image_features(image_features, head, embeddings)
    found = pseudo_image_features(image_features.to(dtype), head.to(dtype), embeddings.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_autocast_is_followed():
    image_features, head, embeddings = parts(dtype=torch.float32)
    expected = pseudo_image_features(image_features, head, embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        found = pseudo_image_features(image_features.requires_grad_(), head, embeddings)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.03 * expected.abs().max()
    found.sum().backward()
    assert torch.isfinite(image_features.grad).all()


def test_embeddings_that_scale_what_they_look_up_are_mixed_as_text_enters_the_model():
    config = tiny_llama_config(Gemma3TextConfig, head_dim=12, sliding_window=6, layer_types=None)
    model = tiny_vtlmm(text_config=config, pseudo_image_features=True)
    embeddings = model.get_input_embeddings()
    table = embeddings(torch.arange(384))
    assert not same(table, embeddings.weight)
    probabilities = torch.softmax(adapter_by_hand(model, pixels(2)) @ model.model.vm_head.weight.t(), -1)
    assert same(model.get_image_features(pixels(2)).embeddings, probabilities @ table, 1e-4)


def test_switch_changes_what_the_decoder_reads_and_nothing_else():
    model = tiny_vtlmm()
    plain = model.get_image_features(pixels(2))
    model.config.pseudo_image_features = True
    pseudo = model.get_image_features(pixels(2))
    assert torch.equal(pseudo.last_hidden_state, plain.last_hidden_state)
    assert same(pseudo.embeddings, pseudo_by_hand(model, pixels(2)))
    assert torch.equal(torch.stack(pseudo.pooler_output), pseudo.embeddings)
    row = [*words(2), *KINDS["vtlmm"].image, *words(3)]
    output = model(**batch(row), pixel_values=pixels(1), visual_loss="visual_modeling")
    assert same(output.image_hidden_states, plain.last_hidden_state[:1])
    visual_tokens = model.get_visual_tokens(pixels(2))
    model.config.pseudo_image_features = False
    assert torch.equal(visual_tokens.probabilities, model.get_visual_tokens(pixels(2)).probabilities)


def test_training_the_adapter_through_pseudo_features_gives_it_a_gradient_and_the_head_none():
    model = tiny_vtlmm(pseudo_image_features=True)
    row = [*words(2), *KINDS["vtlmm"].image, *words(3)]
    model(**batch(row), pixel_values=pixels(1), labels=torch.tensor([row])).loss.backward()
    assert model.model.adapter.linear_1.weight.grad.abs().max() > 0
    assert model.model.vm_head.weight.grad is None
