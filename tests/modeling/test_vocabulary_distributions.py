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
        assert not any(value.requires_grad for value in found[:4])
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


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
class TestDistinctiveTokens:
    def test_they_have_the_largest_terms_of_the_divergence_from_the_reference(self, dtype):
        features, weight = features_and_weight(dtype)
        reference = torch.softmax(torch.randn(VOCAB_SIZE, dtype=torch.float64), 0)
        found = distribution_statistics(features, weight, top_k=4, reference=reference)
        p = torch.softmax((features @ weight.t()).to(found.entropy.dtype), -1)
        terms = p * (p / reference.to(p.dtype)).log()
        tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
        expected = terms.topk(4)
        assert found.distinctive.terms.dtype == found.distinctive.divergence.dtype == p.dtype
        assert torch.allclose(found.distinctive.terms, expected.values, **tolerance)
        assert torch.allclose(terms.gather(-1, found.distinctive.token_ids), expected.values, **tolerance)
        assert torch.allclose(p.gather(-1, found.distinctive.token_ids), found.distinctive.probabilities, **tolerance)
        assert torch.allclose(found.distinctive.divergence, terms.sum(-1), **tolerance)
        assert found.distinctive.token_ids.shape == (2, 5, 4) and found.distinctive.divergence.shape == (2, 5)

    def test_all_else_is_as_without_a_reference(self, dtype):
        features, weight = features_and_weight(dtype)
        reference = torch.full((VOCAB_SIZE,), 1 / VOCAB_SIZE)
        options = {"top_k": 3, "return_distribution": True}
        with_reference = distribution_statistics(features, weight, reference=reference, **options)
        without = distribution_statistics(features, weight, **options)
        assert without.distinctive is None
        assert all(torch.equal(one, other) for one, other in zip(with_reference[:4], without[:4]))


def test_a_token_that_is_probable_everywhere_is_not_distinctive_and_one_of_a_single_position_is():
    # Token 0 has 60 % everywhere; tokens 1 to 3 have 30 % at one position each. Token 4 has the largest lift, 3 at
    # the first position, and next to no probability.
    p = torch.full((3, 6), 0.02, dtype=torch.float64)
    p[:, 0], p[:, 4] = 0.6, 1e-30
    p[0, 4] = 1e-6
    p[range(3), range(1, 4)] = 0.3
    p[:, 5] += 1 - p.sum(1)
    for reference in (p.mean(0), p.mean(0).float()):
        found = distribution_statistics(torch.eye(3).double(), p.log().t(), top_k=6, reference=reference)
        assert found.token_ids[:, 0].tolist() == [0, 0, 0]
        assert found.distinctive.token_ids[:, 0].tolist() == [1, 2, 3]
        first = 0.3 * torch.log(torch.tensor(0.3 / (0.34 / 3), dtype=torch.float64))
        assert torch.allclose(found.distinctive.terms[:, 0], first.expand(3), atol=1e-6)
        of_common = found.distinctive.terms[found.distinctive.token_ids == 0]
        assert torch.allclose(of_common, torch.zeros(3).double(), atol=1e-6)


def test_distinctive_tokens_take_no_matrix_of_all_logits_and_one_product():
    features, weight = torch.randn(2000, 4), torch.randn(32_000, 4)
    reference = torch.full((32_000,), 1 / 32_000)
    peak = peak_bytes(lambda: distribution_statistics(features, weight, top_k=5, reference=reference))
    assert peak < 0.12 * 2000 * 32_000 * 4


def test_what_a_reference_has_no_number_for_stays_finite():
    weight = torch.tensor([[0.0, 0.0, -200.0], [0.0, -300.0, 0.0]]).t().contiguous()
    found = distribution_statistics(torch.eye(2), weight, top_k=3, reference=torch.tensor([0.5, 0.5, 0.0]))
    assert all(torch.isfinite(values.float()).all() for values in found.distinctive)
    assert found.distinctive.token_ids[1, 0] == 2 and found.distinctive.terms[1, 0] > 40  # 0.5 log(0.5 / 1e-38)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.full((6,), 1 / 6), r"shape \(6,\), expected \(7,\)"),
        (torch.full((7,), 1.0), "sums to 7"),
        (torch.tensor([2.0, -1, 0, 0, 0, 0, 0]), "smallest number is -1"),
        (torch.full((7,), float("nan")), "sums to nan"),
    ],
)
def test_a_reference_that_is_no_distribution_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        distribution_statistics(torch.zeros(2, 3), torch.zeros(7, 3), reference=reference)
