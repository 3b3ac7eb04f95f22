"""
Losses with their heads, forward and backward: ours, which hold no matrix of all logits, against their peers.

    python -m benchmarks.visual_modeling

"kl" is KL(P' ‖ Q) of VT-LMM's visual modelling with two heads of width 1024, "ce" the cross-entropy of text with one.

- formula: Σ P' (log P' − log Q) of float32 probabilities, as the paper has it; for "ce" the mean of −log Q(label).
- log_softmax: `kl_div` of two log_softmax, or `cross_entropy`; for "kl" this is our implementation "plain".
- compiled: the same under `torch.compile` (inductor, which needs a C++ compiler).
- Liger (`pip install --no-deps liger-kernel`): its `chunked_loss.LigerFusedLinearJSDLoss` with beta 0 and no weight on
  labels, which is KL(P' ‖ Q), in chunks of 1024 positions, its default, not compiled. Its probabilities have the type
  of the weights, and it computes the gradients of states and head whether needed or not. Its cross-entropy is in
  Triton: none on a CPU.
- vistok: our implementation "fused".

Time is CPU time of one thread; ratios of times are the other ÷ this one, medians over rounds that take turns. Memory
is the peak above the final gradients, which are not there before the step; its ratio is this one ÷ formula. "off" is
the distance of each gradient, states and head, from the same in float64, relative to its norm.
"""

import statistics
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from vistok import language_modeling_loss, visual_modeling_loss

WIDTH = 1024
TRAINED = {"states and head": (True, True), "states": (True, False), "head": (False, True)}
# Loss, vocabulary, positions, what is trained. The last takes 9 GiB.
CASES = [
    *(("kl", 32_000, 576, trained) for trained in TRAINED),
    ("ce", 32_000, 576, "states and head"),
    ("kl", 32_000, 2048, "states and head"),
    ("kl", 128_000, 576, "states and head"),
    ("kl", 128_000, 2048, "states and head"),
]
TINY = [("kl", 500, 40, "states and head"), ("kl", 500, 40, "head"), ("ce", 500, 40, "states")]


class Inputs:
    """Random states and heads, with the entropy of a trained model's predictions rather than of noise."""

    def __init__(self, vocab_size: int, num_positions: int, trained: str, dtype: torch.dtype, width: int):
        torch.manual_seed(0)
        self.states, self.features = torch.randn(2, num_positions, width).to(dtype)
        self.head, self.target_head = ((torch.randn(vocab_size, width) * (3 / width**0.5)).to(dtype) for _ in range(2))
        self.labels = torch.randint(vocab_size, (num_positions,))
        self.parts = [part for part, is_trained in zip((self.states, self.head), TRAINED[trained]) if is_trained]
        for part in self.parts:
            part.requires_grad_()

    def gradient_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


def logits(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(features, weight).float()


def kl_formula(states, head, features, target_head):
    q = torch.softmax(logits(states, head), -1)
    with torch.no_grad():
        p = torch.softmax(logits(features, target_head), -1)
    return (p * (p.log() - q.log())).sum(-1).mean()


def ce_formula(states, head, labels):
    q = torch.softmax(logits(states, head), -1)
    return -q.gather(1, labels[:, None]).log().mean()


def kl_log_softmax(states, head, features, target_head):
    return visual_modeling_loss(states, head, features, target_head, implementation="plain")


def ce_log_softmax(states, head, labels):
    return nn.functional.cross_entropy(logits(states, head), labels)


def liger_loss() -> Callable | None:
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError:
        return None
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    return lambda states, head, features, target_head: loss(
        states, head, features, target_head, torch.zeros(len(states), dtype=torch.long)
    )


def contenders(loss: str) -> dict[str, Callable | None]:
    """What is compared, by name; None where it cannot be had here."""
    torch.compiler.reset()
    if loss == "ce":
        functions = (ce_formula, ce_log_softmax, torch.compile(ce_log_softmax), language_modeling_loss)
        return dict(zip(("formula", "log_softmax", "compiled", "vistok"), functions))
    functions = (kl_formula, kl_log_softmax, torch.compile(kl_log_softmax), liger_loss(), visual_modeling_loss)
    return dict(zip(("formula", "log_softmax", "compiled", "Liger", "vistok"), functions))


class Step:
    """Forward and backward of a loss, as the step of an optimizer needs them."""

    def __init__(self, function: Callable, loss: str, inputs: Inputs):
        self.function, self.inputs = function, inputs
        self.arguments = (
            (inputs.states, inputs.head, inputs.labels)
            if loss == "ce"
            else (inputs.states, inputs.head, inputs.features, inputs.target_head)
        )

    def __call__(self) -> None:
        for part in self.inputs.parts:
            part.grad = None
        self.function(*self.arguments).backward()

    def extra_bytes(self) -> int:
        self.inputs.states.grad = self.inputs.head.grad = None
        return peak_bytes(self) - self.inputs.gradient_bytes()

    def distances_to(self, exact: list[torch.Tensor]) -> str:
        self()
        found = [part.grad.double() for part in self.inputs.parts]
        return ", ".join(f"{(g - e).norm() / e.norm():.1e}" for g, e in zip(found, exact, strict=True))


def exact_gradients(loss: str, inputs: Inputs) -> list[torch.Tensor]:
    """By their formula in float64, a few positions at a time."""
    head, target_head = inputs.head.detach().double(), inputs.target_head.double()
    of_states, of_head = torch.zeros(inputs.states.shape).double(), torch.zeros_like(head)
    for start in range(0, len(inputs.states), 64):
        rows = slice(start, start + 64)
        states = inputs.states[rows].detach().double()
        difference = torch.softmax(states @ head.t(), -1)
        if loss == "ce":
            difference -= nn.functional.one_hot(inputs.labels[rows], len(head))
        else:
            difference -= torch.softmax(inputs.features[rows].double() @ target_head.t(), -1)
        if inputs.states.requires_grad:
            of_states[rows] = difference @ head / len(inputs.states)
        if inputs.head.requires_grad:
            of_head.addmm_(difference.t(), states, alpha=1 / len(inputs.states))
    return [of_states if part is inputs.states else of_head for part in inputs.parts]


def prepare(loss: str, inputs: Inputs) -> tuple[dict[str, Step], dict[str, str]]:
    """A step of each contender, compiled where it is to be, and why there is none of the others."""
    steps: dict[str, Step] = {}
    missing: dict[str, str] = {}
    for name, function in contenders(loss).items():
        if function is None:
            missing[name] = "not installed"
            continue
        step = Step(function, loss, inputs)
        try:
            step()
            steps[name] = step
        except TorchDynamoException as error:
            missing[name] = f"does not compile here: {type(error).__name__}"
    return steps, missing


def compare(
    loss: str, vocab_size: int, num_positions: int, trained: str, dtype: torch.dtype, rounds: int, width: int
) -> list[dict]:
    inputs = Inputs(vocab_size, num_positions, trained, dtype, width)
    steps, missing = prepare(loss, inputs)
    seconds = interleaved_seconds(steps, rounds, warm_up=0)
    memory = {name: step.extra_bytes() for name, step in steps.items()}
    # The largest case takes minutes in float64.
    exact = exact_gradients(loss, inputs) if vocab_size * num_positions < 2**27 else None
    case = {
        "loss": loss,
        "dtype": str(dtype).removeprefix("torch."),
        "vocabulary": vocab_size,
        "positions": num_positions,
        "trained": trained,
    }
    rows = [
        {
            **case,
            "implementation": name,
            "ms": 1e3 * statistics.median(seconds[name]),
            **{
                f"{other} ÷": median_ratio(seconds[other], seconds[name]) if other in seconds else "–"
                for other in ("formula", "log_softmax", "compiled")
            },
            "MiB": memory[name] / 2**20,
            "memory ratio": f"{memory[name] / memory['formula']:.3f}",
            "off": step.distances_to(exact) if exact else "–",
        }
        for name, step in steps.items()
    ]
    unmeasured = dict.fromkeys(list(rows[0])[6:], "–")
    return rows + [{**case, **unmeasured, "implementation": f"{name}: {why}"} for name, why in missing.items()]


def main() -> None:
    options = parse_arguments(__doc__, rounds=3)
    warnings.filterwarnings("ignore", module="torch._inductor")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for loss, vocab_size, num_positions, trained in TINY if options.quick else CASES:
            share = vocab_size * num_positions / (32_000 * 576)  # a step of the largest takes half a minute
            rounds = 1 if options.quick else max(1, round(options.rounds / share**0.75))
            width = 16 if options.quick else WIDTH
            rows += compare(loss, vocab_size, num_positions, trained, dtype, rounds, width)
    report(rows, options.csv)


if __name__ == "__main__":
    main()
