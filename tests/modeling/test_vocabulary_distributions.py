"""Statistics of distributions over the vocabulary are those of torch.distributions, without its matrices."""

import pytest
import torch

from benchmarks._measure import peak_bytes
from tests.modeling.head_inputs import VOCAB_SIZE, WIDTH, chunk_size  # noqa: F401 (a fixture)
from vistok.modeling.vocabulary_distributions import distribution_divergences, distribution_statistics


def features_and_weight(dtype=torch.float64):
    return torch.randn(2, 5, WIDTH, dtype=torch.float64).to(dtype), torch.randn(VOCAB_SIZE, WIDTH).to(dtype)


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
class TestExactness:
    def test_statistics_are_those_of_the_whole_distributions(self, dtype):
        features, weight = features_and_weight(dtype)
        found = distribution_statistics(features, weight)
        expected = torch.distributions.Categorical(logits=(features @ weight.t()).to(found.entropy.dtype))
        top_probability, top_token = expected.probs.max(-1)
        assert found.distribution is None
        assert found.entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(found.entropy, expected.entropy(), rtol=1e-5)
        assert torch.allclose(found.probabilities[..., 0], top_probability, rtol=1e-5)
        assert torch.equal(found.top_token, top_token) and found.top_token.shape == (2, 5)

    def test_top_tokens_are_those_of_the_whole_distributions(self, dtype):
        features, weight = features_and_weight(dtype)
        for k in (1, 3, VOCAB_SIZE):
            found = distribution_statistics(features, weight, top_k=k)
            probabilities = torch.softmax((features @ weight.t()).to(found.probabilities.dtype), -1)
            expected = probabilities.topk(k)
            assert torch.allclose(found.probabilities, expected.values, rtol=1e-5)
            assert torch.allclose(probabilities.gather(-1, found.token_ids), expected.values, rtol=1e-5)
            assert found.token_ids.shape == (2, 5, k) and found.token_ids.dtype == torch.long


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
class TestDivergences:
    def test_they_are_those_of_the_whole_distributions_at_each_position(self, dtype):
        (features, weight), width = features_and_weight(dtype), WIDTH + 3
        features = features.flatten(0, 1)
        predicting = torch.randn(len(features), width).to(dtype), torch.randn(VOCAB_SIZE, width).to(dtype)
        bias, cap = torch.randn(VOCAB_SIZE).to(dtype), lambda z: 3 * torch.tanh(z / 3)
        found = distribution_divergences(
            features, weight, *predicting, predicting_bias=bias, transform_predictions=cap
        )
        exact = found.entropy.dtype
        logits = cap(torch.addmm(bias, predicting[0], predicting[1].t()).to(exact))
        p = torch.distributions.Categorical(logits=(features @ weight.t()).to(exact))
        q = torch.distributions.Categorical(logits=logits)
        expected = (p.entropy(), torch.distributions.kl_divergence(p, q), torch.distributions.kl_divergence(q, p))
        for values, those in zip(found, expected):
            assert torch.allclose(values, those, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.top_token, p.probs.argmax(-1))

    def test_of_equal_distributions_they_are_zero(self, dtype):
        features, weight = features_and_weight(dtype)
        found = distribution_divergences(features[0], weight, features[0], weight)
        assert not found.forward.any() and not found.reverse.any() and found.entropy.all()

    def test_of_no_positions_there_are_none(self, dtype):
        features, weight = features_and_weight(dtype)
        assert [
            len(values) for values in distribution_divergences(features[0][:0], weight, features[0][:0], weight)
        ] == [0] * 4


def test_rows_and_vocabularies_that_do_not_fit_are_refused():
    features, weight = features_and_weight()
    with pytest.raises(ValueError, match="row t of one has to predict row t of the other"):
        distribution_divergences(features[0], weight, features[0][:3], weight)


def test_bias_and_transform_take_part():
    features, weight = features_and_weight()
    bias, cap = torch.randn(VOCAB_SIZE).double(), lambda z: 3 * torch.tanh(z / 3)
    expected = torch.distributions.Categorical(logits=cap(features @ weight.t() + bias))
    found = distribution_statistics(features, weight, bias=bias, transform_logits=cap)
    assert torch.allclose(found.entropy, expected.entropy())
    found = distribution_statistics(features, weight, top_k=2, bias=bias, transform_logits=cap)
    assert torch.allclose(found.probabilities, expected.probs.topk(2).values)


def test_planted_distributions_are_recovered():
    weight = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25] * 4, [1.0, 1e-30, 1e-30, 1e-30]]).log().t().contiguous()
    found = distribution_statistics(torch.eye(3), weight)
    bit = torch.log(torch.tensor(2.0))
    assert torch.allclose(found.entropy, torch.stack([1.75 * bit, 2 * bit, 0 * bit]))
    assert torch.allclose(found.probabilities[:, 0], torch.tensor([0.5, 0.25, 1.0])) and found.top_token[2] == 0


def test_no_graph_and_no_matrix_of_all_logits_is_made():
    features, weight = torch.randn(2000, 4, requires_grad=True), torch.randn(32_000, 4, requires_grad=True)
    matrix = 2000 * 32_000 * 4
    for top_k in (1, 5):
        found = distribution_statistics(features[:3], weight, top_k=top_k, return_distribution=True)
        assert not any(value.requires_grad for value in found)
        assert peak_bytes(lambda: distribution_statistics(features, weight, top_k=top_k)) < 0.12 * matrix  # noqa: B023


def test_all_that_is_asked_of_distributions_takes_one_product_with_the_head(monkeypatch):
    features, weight = features_and_weight()
    products = []
    monkeypatch.setattr(torch, "mm", lambda *args, mm=torch.mm, **kwargs: products.append(1) or mm(*args, **kwargs))
    distribution_statistics(features, weight, top_k=3, return_distribution=True)
    assert len(products) == 1


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_whole_distributions_are_what_the_rest_is_taken_from(dtype):
    features, weight = features_and_weight(dtype)
    found = distribution_statistics(features, weight, top_k=2, return_distribution=True)
    expected = torch.softmax((features @ weight.t()).to(found.distribution.dtype), -1)
    assert found.distribution.shape == (2, 5, VOCAB_SIZE)
    assert torch.allclose(found.distribution, expected, rtol=1e-5, atol=1e-9)
    assert torch.equal(found.distribution.gather(-1, found.token_ids), found.probabilities)


def test_no_positions_have_no_statistics():
    found = distribution_statistics(torch.empty(0, 4, 3), torch.randn(7, 3))
    assert found.entropy.shape == found.top_token.shape == (0, 4)
    assert distribution_statistics(torch.empty(0, 3), torch.randn(7, 3), top_k=2).token_ids.shape == (0, 2)


def test_what_does_not_fit_together_is_named():
    with pytest.raises(ValueError, match=r"features have the shape \(2, 3\) and weight \(7, 4\)"):
        distribution_statistics(torch.zeros(2, 3), torch.zeros(7, 4))
    with pytest.raises(ValueError, match=r"bias has the shape \(6,\), expected \(7,\)"):
        distribution_statistics(torch.zeros(2, 3), torch.zeros(7, 3), bias=torch.zeros(6))
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"top_k is {k}, expected a number from 1 to the vocabulary's 7"):
            distribution_statistics(torch.zeros(2, 3), torch.zeros(7, 3), top_k=k)
