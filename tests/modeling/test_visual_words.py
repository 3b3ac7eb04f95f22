"""Visual tokens read as words: distributions of the visual modelling head, and nearest text embeddings (Eq. 3)."""

import pytest
import torch

from benchmarks._measure import peak_bytes
from tests.tiny import IMAGE_TOKEN_ID, VOCAB_SIZE, pixels, same
from tests.tiny_kinds import adapter_by_hand, tiny_pseudo_vtlmm, tiny_vtlmm
from vistok.modeling import visual_words
from vistok.modeling.visual_words import nearest_tokens


@pytest.mark.parametrize("make", [tiny_vtlmm, tiny_pseudo_vtlmm, lambda: tiny_vtlmm(vm_head_rank=6)])
def test_distributions_are_the_softmax_of_the_head_on_the_adapters_output(make):
    model = make()
    expected = torch.softmax(model.model.vm_head(adapter_by_hand(model, pixels(2))), -1)
    found = model.get_visual_tokens(pixels(2), top_k=4, return_distribution=True)
    assert found.distribution.shape == (2, 9, VOCAB_SIZE)
    assert same(found.distribution, expected)
    probabilities, token_ids = expected.topk(4)
    assert same(found.probabilities, probabilities)
    assert torch.equal(found.token_ids, token_ids)
    assert same(found.entropy, -(expected * expected.log()).sum(-1), 1e-4)
    assert found.grid_size == (3, 3)
    assert not found.probabilities.requires_grad


def test_whole_distributions_are_returned_on_request_only():
    found = tiny_vtlmm().get_visual_tokens(pixels(1))
    assert found.distribution is None
    assert found.probabilities.shape == found.token_ids.shape == (1, 9, 5)


def test_distinctive_words_are_those_of_the_largest_terms_of_the_divergence_from_a_reference():
    model = tiny_vtlmm()
    p = torch.softmax(model.model.vm_head(adapter_by_hand(model, pixels(2))), -1)
    reference = p.flatten(0, 1).mean(0)
    found = model.get_visual_tokens(pixels(2), top_k=4, reference=reference)
    terms = p * (p / reference).log()
    assert same(found.distinctive.terms, terms.topk(4).values)
    assert same(found.distinctive.divergence, terms.sum(-1), 1e-4)
    assert torch.equal(found.token_ids, p.topk(4).indices)
    assert model.get_visual_tokens(pixels(1)).distinctive is None


def test_cached_features_are_read_as_images_are():
    model = tiny_vtlmm()
    features = model.model.get_vision_features(pixels(2)).patch_features
    found, expected = model.get_visual_tokens(vision_features=features), model.get_visual_tokens(pixels(2))
    assert torch.equal(found.token_ids, expected.token_ids)
    assert found.grid_size == (3, 3)
    assert model.get_visual_tokens(vision_features=features[:, :7]).grid_size is None
    assert model.get_visual_tokens(torch.randn(1, 3, 24, 40)).grid_size == (3, 5)


def test_words_of_half_precision_are_given_in_float32():
    found = tiny_vtlmm().to(torch.bfloat16).get_visual_tokens(pixels(1), return_distribution=True)
    assert {found.probabilities.dtype, found.entropy.dtype, found.distribution.dtype} == {torch.float32}
    assert same(found.distribution.sum(-1), torch.ones(1, 9), 1e-3)


def test_more_words_than_there_are_are_refused():
    model = tiny_vtlmm()
    for top_k in (0, VOCAB_SIZE + 1):
        with pytest.raises(ValueError, match=f"top_k is {top_k}"):
            model.get_visual_tokens(pixels(1), top_k=top_k)
        with pytest.raises(ValueError, match=f"top_k is {top_k}, .*383 words"):
            model.nearest_text_tokens(torch.randn(2, 48), top_k=top_k)
    with pytest.raises(ValueError, match="exactly one"):
        model.get_visual_tokens()


def cosines(features, table):
    return torch.nn.functional.cosine_similarity(features.unsqueeze(-2), table, dim=-1)


@pytest.mark.parametrize("similarities", [1, 1000, 2**24])
@pytest.mark.parametrize("top_k", [1, 3])
def test_nearest_tokens_are_those_of_the_highest_cosine(similarities, top_k, monkeypatch):
    monkeypatch.setattr(visual_words, "SIMILARITIES", similarities)
    features, table = torch.randn(2, 5, 8), torch.randn(61, 8) * torch.rand(61, 1)
    expected, expected_ids = cosines(features, table).topk(top_k)
    found, token_ids = nearest_tokens(features, table, top_k)
    assert same(found, expected)
    assert torch.equal(token_ids, expected_ids)
    assert nearest_tokens(features[:0], table, top_k)[0].shape == (0, 5, top_k)


def test_nearest_text_tokens_of_planted_embeddings_are_found_whatever_their_length():
    model = tiny_vtlmm()
    planted = torch.tensor([[7, 300], [5, 42]])
    features = model.get_input_embeddings().weight[planted] * 37
    similarities, token_ids = model.nearest_text_tokens(features)
    assert torch.equal(token_ids[..., 0], planted)
    assert same(similarities, torch.ones(2, 2, 1))


def test_placeholder_and_rows_that_equal_its_are_no_words():
    model = tiny_vtlmm()
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[350:] = weight[IMAGE_TOKEN_ID]
    _, token_ids = model.nearest_text_tokens(weight[IMAGE_TOKEN_ID].expand(1, 48), top_k=5)
    assert not set(token_ids.flatten().tolist()) & {IMAGE_TOKEN_ID, *range(350, VOCAB_SIZE)}


def test_features_of_another_width_have_no_nearest_words():
    with pytest.raises(ValueError, match=r"shape \(3, 7\), expected \(..., 48\)"):
        tiny_vtlmm().nearest_text_tokens(torch.randn(3, 7))


def test_nearest_tokens_of_half_precision():
    model = tiny_vtlmm().to(torch.bfloat16)
    features = model.get_image_features(pixels(1)).last_hidden_state
    similarities, token_ids = model.nearest_text_tokens(features)
    expected = cosines(features.float(), model.get_input_embeddings().weight.float())
    expected[..., IMAGE_TOKEN_ID] = -1
    assert similarities.dtype == torch.float32
    assert torch.equal(token_ids[..., 0], expected.argmax(-1))


def test_nearest_tokens_copy_no_table_of_embeddings(monkeypatch):
    monkeypatch.setattr(visual_words, "SIMILARITIES", 2**18)
    features, table = torch.randn(1, 256), torch.randn(32_000, 256)
    peak = peak_bytes(lambda: nearest_tokens(features, table, no_word=table[0]))
    assert peak < 0.15 * table.numel() * 4
