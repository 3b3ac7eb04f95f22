"""The losses are Equations 4, 6 and 9, written out here number by number, and have their minima where they should."""

import math

import pytest
import torch
from torch import nn

from tests.modeling.head_inputs import LOSSES, VOCAB_SIZE, each_loss, inputs, value_and_gradients
from vistok import language_modeling_loss, visual_modeling_loss, visual_token_loss

each_implementation = pytest.mark.parametrize("implementation", ["fused", "plain"])


def distributions(features, weight, bias=None):
    """Softmax of a head with plain Python numbers."""
    rows = []
    for x in features:
        logits = [sum(a * b for a, b in zip(w, x, strict=True)) for w in weight]
        logits = [z + b for z, b in zip(logits, bias or [0.0] * len(logits), strict=True)]
        total = sum(math.exp(z) for z in logits)
        rows.append([math.exp(z) / total for z in logits])
    return rows


def mean_divergence(targets, predictions):
    rows = zip(targets, predictions, strict=True)
    return sum(sum(p * math.log(p / q) for p, q in zip(*row, strict=True)) for row in rows) / len(targets)


def numbers(arguments):
    return {name: part.tolist() for name, part in arguments.items()}


@each_implementation
class TestEquations:
    def test_visual_modeling_is_equation_6(self, implementation):
        arguments = inputs(visual_modeling_loss, num_positions=5)
        found = visual_modeling_loss(**arguments, implementation=implementation)
        n = numbers(arguments)
        q = distributions(n["hidden_states"], n["lm_head_weight"])
        p = distributions(n["image_features"], n["vm_head_weight"])
        assert found.shape == () and found.dtype == torch.float64
        assert found.item() == pytest.approx(mean_divergence(p, q), rel=1e-12)

    def test_visual_tokens_are_equation_9(self, implementation):
        arguments = inputs(visual_token_loss, num_positions=5)
        found = visual_token_loss(**arguments, implementation=implementation)
        n = numbers(arguments)
        q = distributions(n["hidden_states"], n["lm_head_weight"])
        p = distributions(n["image_features"], n["vm_head_weight"])
        assert found.item() == pytest.approx(mean_divergence(q, p), rel=1e-12)

    def test_language_modeling_is_equation_4_over_the_labelled_rows(self, implementation):
        arguments = inputs(language_modeling_loss, num_positions=5)
        found = language_modeling_loss(**arguments, implementation=implementation)
        n = numbers(arguments)
        q = distributions(n["hidden_states"], n["lm_head_weight"])
        losses = [-math.log(row[label]) for row, label in zip(q, n["labels"], strict=True) if label != -100]
        assert len(losses) == 4
        assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-12)

    def test_the_language_models_bias_takes_part(self, implementation):
        bias = torch.randn(VOCAB_SIZE, dtype=torch.float64)
        arguments = inputs(visual_modeling_loss, num_positions=3)
        n = numbers(arguments)
        q = distributions(n["hidden_states"], n["lm_head_weight"], bias.tolist())
        p = distributions(n["image_features"], n["vm_head_weight"])
        for loss, expected in ((visual_modeling_loss, (p, q)), (visual_token_loss, (q, p))):
            found = loss(**arguments, lm_head_bias=bias, implementation=implementation)
            assert found.item() == pytest.approx(mean_divergence(*expected), rel=1e-12)

    def test_what_a_model_does_to_its_logits_takes_part(self, implementation):
        arguments = inputs(visual_token_loss, num_positions=3)
        doubled = arguments | {"lm_head_weight": 2 * arguments["lm_head_weight"]}
        for loss in (visual_modeling_loss, visual_token_loss):
            found = loss(**arguments, transform_logits=lambda z: 2 * z, implementation=implementation)
            assert found.item() == pytest.approx(loss(**doubled).item(), rel=1e-12)

    @each_loss
    def test_num_items_divides_the_sum_instead_of_the_number_of_rows(self, loss, implementation):
        arguments = inputs(loss)
        rows = int((arguments["labels"] != -100).sum()) if "labels" in arguments else 11
        mean, gradients = value_and_gradients(loss, arguments, implementation=implementation)
        for num_items in (40, torch.tensor(40), torch.tensor([40.0])):
            options = {"num_items": num_items, "implementation": implementation}
            value, others = value_and_gradients(loss, arguments, **options)
            assert value.shape == () and value.item() == pytest.approx(mean.item() * rows / 40, rel=1e-12)
            for name in LOSSES[loss][0]:
                assert torch.allclose(others[name], gradients[name] * rows / 40, rtol=1e-12)

    @each_loss
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_a_count_of_no_items_makes_loss_and_gradients_zero(self, loss, dtype, implementation):
        arguments = inputs(loss, dtype=dtype)
        for num_items in (0, 0.0, torch.tensor(0), torch.tensor([0.0])):
            options = {"num_items": num_items, "implementation": implementation}
            value, gradients = value_and_gradients(loss, arguments, **options)
            assert value == 0
            assert all((gradients[name] == 0).all() for name in LOSSES[loss][0])

    @each_loss
    def test_the_target_gets_no_gradient(self, loss, implementation):
        _, gradients = value_and_gradients(loss, inputs(loss), implementation=implementation)
        trained, target = LOSSES[loss]
        assert all(gradients[name].abs().sum() > 0 for name in trained)
        assert all(gradients.get(name) is None for name in target)

    @each_loss
    def test_without_positions_it_is_zero_with_a_graph(self, loss, implementation):
        arguments = inputs(loss, num_positions=0)
        for num_items in (None, 7, torch.tensor(0)):
            options = {"num_items": num_items, "implementation": implementation}
            value, gradients = value_and_gradients(loss, arguments, **options)
            assert value == 0
            assert all(gradients[n].shape == arguments[n].shape and (gradients[n] == 0).all() for n in LOSSES[loss][0])

    def test_rows_that_are_all_ignored_are_no_positions(self, implementation):
        arguments = inputs(language_modeling_loss) | {"labels": torch.full((11,), -100)}
        value, gradients = value_and_gradients(language_modeling_loss, arguments, implementation=implementation)
        assert value == 0 and all((gradient == 0).all() for gradient in gradients.values())


@each_implementation
class TestNumerics:
    @pytest.mark.parametrize("loss", [visual_modeling_loss, visual_token_loss])
    def test_equal_distributions_have_no_divergence(self, loss, implementation):
        x, weight = torch.randn(50, 8) * 5, torch.randn(400, 8)
        assert loss(x, weight, x, weight, implementation=implementation) == 0
        # The same up to what softmax does not see.
        shifted = torch.cat([weight, torch.ones(400, 1)], dim=1)
        features = torch.cat([x, torch.full((50, 1), 1000.0)], dim=1)
        found = loss(x, weight, features, shifted, implementation=implementation)
        assert abs(found) < 1e-4  # logits around 1000 have three digits behind the point

    def test_nearly_equal_distributions_have_a_divergence_that_is_not_negative(self, implementation):
        x, weight = torch.randn(50, 8), torch.randn(400, 8)
        for difference in (1e-6, 1e-5, 1e-4):
            near = x + difference * torch.randn_like(x)
            assert visual_modeling_loss(near, weight, x, weight, implementation=implementation) > -1e-6

    @each_loss
    def test_large_logits_do_not_overflow(self, loss, implementation):
        arguments = inputs(loss, dtype=torch.float32, scale=1e4)
        exact = {n: p.double() if p.is_floating_point() else p for n, p in arguments.items()}
        value, gradients = value_and_gradients(loss, arguments, implementation=implementation)
        assert value > 1e3 and value.item() == pytest.approx(loss(**exact).item(), rel=1e-5)
        assert all(gradients[name].isfinite().all() for name in LOSSES[loss][0])

    @each_loss
    def test_what_is_not_a_number_is_not_hidden(self, loss, implementation):
        for name in {n for names in LOSSES[loss] for n in names} - {"labels"}:
            arguments = {n: p.detach().clone() for n, p in inputs(loss).items()}
            arguments[name][1, 0] = math.nan
            arguments = {n: p.requires_grad_(p.is_floating_point()) for n, p in arguments.items()}
            value, gradients = value_and_gradients(loss, arguments, implementation=implementation)
            assert value.isnan() and all(gradients[trained].isnan().any() for trained in LOSSES[loss][0])


class TestGradients:
    def test_of_equation_6_it_is_q_minus_p_at_the_logits(self):
        # With a head that is the identity, hidden states are the logits.
        logits, features = torch.randn(2, 7, 9, dtype=torch.float64)
        logits.requires_grad_()
        head, vm_head = torch.eye(9, dtype=torch.float64), torch.randn(9, 9, dtype=torch.float64)
        visual_modeling_loss(logits, head, features, vm_head).backward()
        expected = torch.softmax(logits, -1) - torch.softmax(features @ vm_head.t(), -1)
        assert torch.allclose(logits.grad, expected / 7, rtol=1e-12)

    def test_of_equation_9_it_is_p_minus_q_at_the_logits(self):
        logits, states = torch.randn(2, 7, 9, dtype=torch.float64)
        logits.requires_grad_()
        vm_head, head = torch.eye(9, dtype=torch.float64), torch.randn(9, 9, dtype=torch.float64)
        visual_token_loss(states, head, logits, vm_head).backward()
        expected = torch.softmax(logits, -1) - torch.softmax(states @ head.t(), -1)
        assert torch.allclose(logits.grad, expected / 7, rtol=1e-12)

    @each_implementation
    @each_loss
    def test_they_are_those_of_the_value(self, loss, implementation):
        arguments = inputs(loss, num_positions=5)
        trained = LOSSES[loss][0]
        bias = torch.randn(VOCAB_SIZE, dtype=torch.float64).requires_grad_(loss is not visual_token_loss)

        def value(*parts):
            options = {"implementation": implementation, "transform_logits": lambda z: 2 * torch.tanh(z / 2)}
            return loss(**arguments | dict(zip(trained, parts)), lm_head_bias=parts[-1], **options)

        assert torch.autograd.gradcheck(value, (*(arguments[name] for name in trained), bias))


@each_implementation
class TestTwoTokenWorld:
    """Patches are one-hot; the language model believes something of two tokens that a head can express exactly."""

    BELIEFS = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])

    def test_stage_three_drives_the_divergence_to_zero(self, implementation):
        patches, states, lm_head = torch.eye(3), torch.eye(3), self.BELIEFS.log().t().contiguous()
        vm_head = nn.Parameter(torch.randn(2, 3))
        optimizer = torch.optim.SGD([vm_head], lr=5.0)
        losses = []
        for _ in range(300):
            loss = visual_token_loss(states, lm_head, patches, vm_head, implementation=implementation)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses.append(loss.item())
        assert losses[0] > 0.1 and abs(losses[-1]) < 1e-6
        assert torch.allclose(torch.softmax(vm_head.t(), -1), self.BELIEFS, atol=1e-3)

    def test_stage_four_makes_the_language_model_predict_the_patches(self, implementation):
        patches, states, vm_head = torch.eye(3), torch.eye(3), self.BELIEFS.log().t().contiguous()
        lm_head = nn.Parameter(torch.randn(2, 3))
        for _ in range(300):
            loss = visual_modeling_loss(states, lm_head, patches, vm_head, implementation=implementation)
            (gradient,) = torch.autograd.grad(loss, lm_head)
            lm_head.data -= 5.0 * gradient
        assert abs(loss.item()) < 1e-6
        assert torch.allclose(torch.softmax(lm_head.t(), -1), self.BELIEFS, atol=1e-3)

    def test_states_that_cannot_tell_patches_apart_learn_their_mean(self, implementation):
        # The optimum of KL(P' ‖ Q) over one Q for all is the mean of P'.
        states, vm_head = torch.ones(3, 1), self.BELIEFS.log().t().contiguous()
        lm_head = nn.Parameter(torch.zeros(2, 1))
        for _ in range(300):
            loss = visual_modeling_loss(states, lm_head, torch.eye(3), vm_head, implementation=implementation)
            (gradient,) = torch.autograd.grad(loss, lm_head)
            lm_head.data -= gradient
        mean = self.BELIEFS.mean(0)
        assert torch.allclose(torch.softmax(lm_head[:, 0], -1), mean, atol=1e-3)
        assert loss.item() == pytest.approx(
            (self.BELIEFS * (self.BELIEFS / mean).log()).sum(-1).mean().item(), abs=1e-5
        )


class TestMistakes:
    def test_what_does_not_fit_together_is_named(self):
        h, w, x, u = torch.randn(4, 3), torch.randn(9, 3), torch.randn(4, 2), torch.randn(9, 2)
        for loss in (visual_modeling_loss, visual_token_loss):
            with pytest.raises(ValueError, match=r"hidden_states has the shape \(4, 2\) and lm_head_weight \(9, 3\)"):
                loss(h[:, :2], w, x, u)
            with pytest.raises(ValueError, match=r"image_features has the shape \(1, 4, 2\)"):
                loss(h, w, x[None], u)
            with pytest.raises(ValueError, match="hidden_states has 3 rows and image_features 4"):
                loss(h[:3], w, x, u)
            with pytest.raises(ValueError, match="lm_head_weight has 9 tokens and vm_head_weight 8"):
                loss(h, w, x, u[:8])
            with pytest.raises(ValueError, match=r"bias of lm_head_weight has the shape \(8,\), expected \(9,\)"):
                loss(h, w, x, u, lm_head_bias=torch.zeros(8))
            with pytest.raises(TypeError, match=r"image_features is of type torch.int64"):
                loss(h, w, x.long(), u)
            with pytest.raises(ValueError, match="vm_head_weight on meta"):
                loss(h, w, x, u.to("meta"))
            with pytest.raises(ValueError, match=r"vm_head_weight has the shape \(0,\).*ZeRO 3"):
                loss(h, w, x, torch.empty(0))

    def test_labels_that_no_token_has_are_named(self):
        h, w = torch.randn(4, 3), torch.randn(9, 3)
        with pytest.raises(ValueError, match="labels lie between 1 and 9, expected ids below the vocabulary's 9"):
            language_modeling_loss(h, w, torch.tensor([1, 9, -100, 2]))
        with pytest.raises(ValueError, match="labels lie between -1 and 2"):
            language_modeling_loss(h, w, torch.tensor([1, -1, -100, 2]))
        with pytest.raises(ValueError, match=r"labels has the shape \(3,\) and hidden_states \(4, 3\)"):
            language_modeling_loss(h, w, torch.tensor([1, 1, 2]))
        with pytest.raises(TypeError, match=r"labels is of type torch.float32"):
            language_modeling_loss(h, w, torch.ones(4))

    @each_loss
    def test_unknown_options_are_named(self, loss):
        arguments = inputs(loss)
        with pytest.raises(ValueError, match="implementation is 'liger', expected one of 'fused', 'plain'"):
            loss(**arguments, implementation="liger")
        for wrong in (-3, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"num_items is {wrong}"):
                loss(**arguments, num_items=wrong)
        with pytest.raises(ValueError, match=r"num_items has the shape \(2,\)"):
            loss(**arguments, num_items=torch.tensor([3, 4]))
