"""The fused losses agree with the plain ones wherever they are used, and hold and compute no more than they need."""

import itertools

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._measure import peak_bytes
from tests.modeling.head_inputs import (
    IMAGE_WIDTH,
    LOSSES,
    VOCAB_SIZE,
    WIDTH,
    chunk_size,  # noqa: F401 (a fixture)
    compute_in_chunks,
    each_loss,
    inputs,
    relative_distance,
    value_and_gradients,
)
from tests.modeling.two_processes_losses import TwoLosses, rows
from tests.processes import run_in_two_processes
from vistok import language_modeling_loss, visual_modeling_loss, visual_token_loss
from vistok.modeling.vocabulary_chunks import OutputHead, chunks, positions_per_chunk

FLOAT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def assert_agree(found: tuple, expected: tuple, tolerance: float) -> None:
    assert found[0].item() == pytest.approx(expected[0].item(), rel=tolerance)
    assert found[0].dtype == expected[0].dtype
    assert {n for n, g in found[1].items() if g is not None} == {n for n, g in expected[1].items() if g is not None}
    for name, gradient in found[1].items():
        if gradient is not None:
            assert gradient.dtype == expected[1][name].dtype
            assert relative_distance(gradient, expected[1][name]) < tolerance


@pytest.mark.usefixtures("chunk_size")
class TestAgreement:
    @each_loss
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("num_positions", [1, 11])
    def test_values_and_gradients_are_those_of_the_plain_losses(self, loss, dtype, num_positions):
        arguments = inputs(loss, num_positions, dtype)
        plain = value_and_gradients(loss, arguments, implementation="plain")
        assert_agree(value_and_gradients(loss, arguments), plain, FLOAT_TOLERANCE[dtype])

    @each_loss
    def test_whatever_is_trained_gets_the_same_gradient_and_nothing_else_gets_any(self, loss):
        arguments = inputs(loss)
        bias = torch.randn(VOCAB_SIZE, dtype=torch.float64)
        arguments["lm_head_bias"] = bias
        floating = [name for name in arguments if name != "labels"]
        _, expected = value_and_gradients(
            loss, {n: p.requires_grad_() if n in floating else p for n, p in arguments.items()}
        )
        for chosen in itertools.product([True, False], repeat=len(floating)):
            for name, trains in zip(floating, chosen, strict=True):
                arguments[name].requires_grad_(trains)
            if not any(chosen):
                assert not loss(**arguments).requires_grad
                continue
            reaches = {n for n in floating if arguments[n].requires_grad and expected[n] is not None}
            value = loss(**arguments)
            assert value.requires_grad == bool(reaches)
            if reaches:
                _, found = value_and_gradients(loss, arguments)
                assert {name for name, gradient in found.items() if gradient is not None} == reaches
                assert all(torch.allclose(found[name], expected[name], rtol=1e-12) for name in reaches)

    @each_loss
    @pytest.mark.parametrize(
        "transform",
        [lambda z: z, lambda z: 5 * torch.tanh(z / 5), lambda z: z / 3],
        ids=["unchanged", "capped", "scaled"],
    )
    def test_what_a_model_does_to_its_logits_is_differentiated(self, loss, transform):
        arguments = inputs(loss, scale=3.0) | {"lm_head_bias": torch.randn(VOCAB_SIZE).double().requires_grad_()}
        plain = value_and_gradients(loss, arguments, transform_logits=transform, implementation="plain")
        assert_agree(value_and_gradients(loss, arguments, transform_logits=transform), plain, 1e-12)

    @each_loss
    def test_types_may_differ(self, loss):
        arguments = inputs(loss)
        names = [name for name in arguments if name != "labels"]
        for dtypes in itertools.product([torch.float32, torch.bfloat16], repeat=len(names)):
            for name, dtype in zip(names, dtypes, strict=True):
                arguments[name] = arguments[name].detach().to(dtype).requires_grad_()
            plain = value_and_gradients(loss, arguments, implementation="plain")
            assert_agree(value_and_gradients(loss, arguments), plain, 0.02)

    @each_loss
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_computes_products_in_its_type_and_keeps_that_of_gradients(self, loss, dtype):
        arguments = inputs(loss, dtype=torch.float32)
        exact = value_and_gradients(loss, arguments)
        with torch.autocast("cpu", dtype):
            plain = value_and_gradients(loss, arguments, implementation="plain")
            fused = value_and_gradients(loss, arguments)
        assert_agree(fused, plain, 0.01)
        for name in LOSSES[loss][0]:
            assert fused[1][name].dtype == torch.float32 and not torch.equal(fused[1][name], exact[1][name])

    @pytest.mark.parametrize("loss", [visual_modeling_loss, visual_token_loss])
    def test_both_sides_may_share_a_head(self, loss):
        arguments = inputs(loss)
        weight, features = arguments["lm_head_weight"], torch.randn(11, WIDTH, dtype=torch.float64)
        arguments |= {"image_features": features.requires_grad_(), "vm_head_weight": weight}
        plain = value_and_gradients(loss, arguments, implementation="plain")
        assert_agree(value_and_gradients(loss, arguments), plain, 1e-12)


class TestHalfPrecision:
    @each_loss
    @pytest.mark.parametrize("accumulate_in_fp32", [False, True])
    def test_gradients_are_no_further_from_float64_than_the_plain_ones(self, loss, accumulate_in_fp32, monkeypatch):
        # Eleven chunks, as 2,048 positions are computed in.
        compute_in_chunks(monkeypatch, 20)
        ratios: dict[str, list[float]] = {}
        for seed in range(8):
            torch.manual_seed(seed)
            arguments = inputs(loss, num_positions=220, dtype=torch.bfloat16)
            wide = {n: p.detach().double().requires_grad_() if n != "labels" else p for n, p in arguments.items()}
            exact = value_and_gradients(loss, wide, implementation="plain")
            plain = value_and_gradients(loss, arguments, implementation="plain")
            fused = value_and_gradients(loss, arguments, accumulate_in_fp32=accumulate_in_fp32)
            for name in LOSSES[loss][0]:
                distances = [relative_distance(x[1][name], exact[1][name]) for x in (fused, plain)]
                ratios.setdefault(name, []).append(distances[0] / distances[1])
            assert fused[0].item() == pytest.approx(plain[0].item(), rel=1e-5)
        states, head = (sum(values) / len(values) for values in ratios.values())
        assert states < 1.001
        # What is added up in bfloat16 is rounded once for each chunk, which shows where heads are as narrow as here.
        assert head < (1.001 if accumulate_in_fp32 else 2)

    def test_small_probabilities_survive_a_gradient_scaler_in_float16(self):
        # A probability of 1e-6, divided by 2,048 positions, is below the smallest number of float16.
        states = torch.zeros(2048, 1, dtype=torch.float16, requires_grad=True)
        weight = torch.tensor([[0.0], [-1.0]], dtype=torch.float16)
        bias = torch.tensor([0.0, -10.0], dtype=torch.float16)
        loss = visual_modeling_loss(
            states, weight, torch.ones(2048, 1), torch.tensor([[0.0], [-9.0]]), lm_head_bias=bias
        )
        (gradient,) = torch.autograd.grad(65536 * loss, states)
        expected = torch.sigmoid(torch.tensor([-10.0])) - torch.sigmoid(torch.tensor([-9.0]))
        assert gradient[0].item() == pytest.approx(-expected.item() * 65536 / 2048, rel=0.01)

    @each_loss
    @pytest.mark.parametrize("accumulate_in_fp32", [False, True])
    @pytest.mark.parametrize("with_autocast", [False, True])
    @pytest.mark.parametrize("size", [0.02, 8.0])
    def test_sums_over_many_positions_do_not_overflow_in_float16(self, loss, size, with_autocast, accumulate_in_fp32):
        # 1,500 positions with features of 200 and one token for all: their sum is beyond float16, their mean is not.
        arguments = inputs(loss, num_positions=1500, dtype=torch.float32)
        features, head = LOSSES[loss][0]
        with torch.no_grad():
            arguments[features].abs_().mul_(size * 25).clamp_(max=200)
            arguments[head].mul_(0.05)
            for name in LOSSES[loss][1]:
                if name == "labels":
                    arguments[name].fill_(3)
                elif name == head.replace("lm_head", "vm_head") or name == head.replace("vm_head", "lm_head"):
                    arguments[name].mul_(0.05)[3] = 2.0
        rounded = {n: p.detach().half() if p.is_floating_point() else p for n, p in arguments.items()}
        exact = value_and_gradients(
            loss, {n: p.double().requires_grad_() if n != "labels" else p for n, p in rounded.items()},
            implementation="plain",
        )  # fmt: skip
        given = {n: p.float() if with_autocast and n != "labels" else p for n, p in rounded.items()}
        given = {n: p.requires_grad_() if n != "labels" else p for n, p in given.items()}
        with torch.autocast("cpu", torch.float16, enabled=with_autocast):
            value = 256 * loss(**given, accumulate_in_fp32=accumulate_in_fp32)
        found = torch.autograd.grad(value, [given[features], given[head]])
        assert value.item() == pytest.approx(256 * exact[0].item(), rel=2e-3)
        for gradient, name in zip(found, (features, head), strict=True):
            assert gradient.isfinite().all()
            assert relative_distance(gradient / 256, exact[1][name]) < 4e-3


class TestAutograd:
    @each_loss
    def test_gradients_are_multiplied_by_what_arrives(self, loss):
        arguments = inputs(loss)
        trained = [arguments[name] for name in LOSSES[loss][0]]
        once = torch.autograd.grad(loss(**arguments), trained)
        thrice = torch.autograd.grad(3 * loss(**arguments), trained)
        assert all(torch.allclose(3 * g, h, rtol=1e-12) for g, h in zip(once, thrice, strict=True))

    @each_loss
    def test_a_retained_graph_gives_the_same_again(self, loss):
        arguments = inputs(loss)
        trained = [arguments[name] for name in LOSSES[loss][0]]
        value = 2 * loss(**arguments)
        first = torch.autograd.grad(value, trained, retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(value, trained)
        assert all(torch.equal(g, h) and torch.equal(g, k) for g, h, k in zip(first, second, kept, strict=True))

    def test_a_head_in_two_losses_gets_the_sum(self):
        image, text = inputs(visual_modeling_loss), inputs(language_modeling_loss)
        text["lm_head_weight"] = weight = image["lm_head_weight"]

        def gradient(implementation):
            options = {"implementation": implementation}
            total = visual_modeling_loss(**image, **options) + 0.5 * language_modeling_loss(**text, **options)
            return torch.autograd.grad(total, weight)[0]

        assert torch.allclose(gradient("fused"), gradient("plain"), rtol=1e-12)

    def test_gradients_add_up_over_micro_batches_with_a_global_count(self):
        whole = inputs(visual_modeling_loss, num_positions=10)
        _, expected = value_and_gradients(visual_modeling_loss, whole)
        weight = whole["lm_head_weight"]
        for part in (slice(0, 7), slice(7, 10)):
            states, features = whole["hidden_states"][part].detach(), whole["image_features"][part]
            visual_modeling_loss(states, weight, features, whole["vm_head_weight"], num_items=10).backward()
        assert torch.allclose(weight.grad, expected["lm_head_weight"], rtol=1e-12)

    def test_a_second_derivative_is_refused(self):
        arguments = inputs(visual_modeling_loss)
        states = arguments["hidden_states"]
        factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(factor * visual_modeling_loss(**arguments), states, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()

    @each_loss
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradient_checkpointing_around_it_changes_nothing(self, loss, reentrant):
        arguments = inputs(loss)
        trained = [arguments[name] for name in LOSSES[loss][0]]
        rest = {n: p.detach() for n, p in arguments.items() if n not in LOSSES[loss][0]}

        def block(features, weight):
            return 2 * loss(**dict(zip(LOSSES[loss][0], (torch.tanh(features), weight))), **rest)

        expected = torch.autograd.grad(block(*trained), trained)
        checkpoint(block, *trained, use_reentrant=reentrant).backward()
        assert all(torch.allclose(part.grad, g, rtol=1e-12) for part, g in zip(trained, expected, strict=True))

    def test_without_gradients_only_the_value_is_computed(self):
        arguments = inputs(visual_modeling_loss)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            value = visual_modeling_loss(**arguments)
        assert counter.get_total_flops() == 2 * 11 * VOCAB_SIZE * (WIDTH + IMAGE_WIDTH)
        assert not value.requires_grad and value == visual_modeling_loss(**arguments).detach()

    @each_loss
    def test_torch_compile_runs_it_as_it_is(self, loss):
        arguments = inputs(loss, dtype=torch.float32)

        def step(**arguments):
            states = {n: torch.tanh(p) if n == "hidden_states" else p for n, p in arguments.items()}
            return 2 * loss(**states)

        traced = []

        def backend(graph, example_inputs):
            traced.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        expected = value_and_gradients(step, arguments)
        torch.compiler.reset()
        assert_agree(value_and_gradients(torch.compile(step, backend=backend), arguments), expected, 1e-6)
        # Its loops over chunks are not unrolled into a graph, which would take minutes to compile.
        assert any("mul" in target for target in traced) and not any("softmax" in target for target in traced)


class TestCost:
    """What is not needed is neither computed nor held."""

    @pytest.mark.parametrize("frozen", [None, "lm_head_weight", "hidden_states"])
    def test_a_product_is_computed_for_what_is_trained_only(self, frozen):
        arguments = inputs(visual_modeling_loss)
        if frozen:
            arguments[frozen] = arguments[frozen].detach()
        with FlopCounterMode(display=False) as counter:
            visual_modeling_loss(**arguments).backward()
        products = WIDTH + IMAGE_WIDTH + (WIDTH if frozen else 2 * WIDTH)
        assert counter.get_total_flops() == 2 * 11 * VOCAB_SIZE * products

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_memory_does_not_grow_with_the_number_of_positions(self, dtype):
        weight, other = (torch.randn(32_000, 4).to(dtype) for _ in range(2))

        def extra_bytes(num_positions):
            features = torch.randn(num_positions, 4).to(dtype).requires_grad_()
            return peak_bytes(lambda: visual_modeling_loss(features, weight, features, other).backward())

        extra = {num_positions: extra_bytes(num_positions) for num_positions in (2048, 4096)}
        # Two matrices of the logits of a chunk, and a little of each position.
        chunk = positions_per_chunk(2048, 32_000, dtype, dtype) * 32_000 * dtype.itemsize
        assert extra[4096] < 1.03 * extra[2048] < 1.25 * 2 * chunk
        assert extra[2048] < 0.04 * 4.5 * 2048 * 32_000 * 4

    def test_few_positions_take_an_eighth_of_the_memory_of_the_plain_loss(self):
        weight, states = torch.randn(32_000, 256, requires_grad=True), torch.randn(576, 256, requires_grad=True)
        labels = torch.randint(32_000, (576,))

        def extra_bytes(implementation):
            weight.grad = states.grad = None
            held = peak_bytes(
                lambda: language_modeling_loss(states, weight, labels, implementation=implementation).backward()
            )
            return held - 4 * (weight.numel() + states.numel())

        assert extra_bytes("fused") < 0.13 * extra_bytes("plain")

    def test_gradients_are_handed_over_without_a_copy(self):
        # The weight is much larger than anything else: what is held at once is its gradient, once.
        weight = torch.randn(32_000, 256, requires_grad=True)
        states, labels = torch.randn(8, 256), torch.randint(32_000, (8,))
        held = peak_bytes(lambda: (3 * language_modeling_loss(states, weight, labels)).backward())
        assert held < 1.2 * weight.numel() * 4

    def test_chunks_cover_everything_once(self):
        for total, size in ((0, 4), (1, 4), (8, 4), (9, 4), (576, 116)):
            parts = list(chunks(total, size))
            assert [i for part in parts for i in range(total)[part]] == list(range(total))
            assert all(part.stop - part.start <= size for part in parts)
        assert positions_per_chunk(576, 32_000, torch.float32, torch.bfloat16) == 116  # five equal ones
        assert positions_per_chunk(10, 32_000, torch.float32, torch.float32) == 10
        assert positions_per_chunk(2048, 500, torch.bfloat16) == 2048


def test_a_head_computes_in_the_wider_type_unless_autocast_says_otherwise():
    narrow, wide = torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(3, 2)
    assert OutputHead.of(narrow, wide).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert OutputHead.of(wide, wide).dtype == torch.bfloat16
        assert OutputHead.of(wide.double(), wide).dtype == torch.float64


def test_two_processes_get_the_gradients_of_one_with_the_rows_of_both(tmp_path):
    run_in_two_processes("tests.modeling.two_processes_losses", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model = TwoLosses()
    both = [torch.cat(parts) for parts in zip(rows(0), rows(1), strict=True)]
    model(*both, None, None).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(first[name], parameter.grad, rtol=1e-12) and torch.equal(first[name], second[name])
