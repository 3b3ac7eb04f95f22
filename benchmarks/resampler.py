"""
Perceiver resampler, forward and backward: the absorbed formulation against the plain one.

    python -m benchmarks.resampler

Sizes are GVT's: 257 patch features of 1024 → 32 tokens, 16 heads of 96, depth 6, and depth 1. As in GVT's training the
features come from a frozen tower and all weights are trained. The plain formulation uses scaled_dot_product_attention.
Time is CPU time of forward and backward on one thread, memory the peak above weights and gradients, which are there
before the step. Ratios are plain over the other: above 1 the other is better. Those of times are medians over rounds
that take turns. "Checkpointed" is gradient checkpointing, which keeps nothing of a layer but its input.
"""

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from vistok import PerceiverResampler, PerceiverResamplerConfig

NUM_PATCHES = 257
TINY = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_latents": 4, "intermediate_size": 128}


class Step:
    """Forward and backward of a resampler with random weights, as the step of an optimizer needs them."""

    def __init__(self, formulation: str, depth: int, batch_size: int, dtype: torch.dtype, **sizes):
        torch.manual_seed(0)
        config = PerceiverResamplerConfig(num_hidden_layers=depth, attention_formulation=formulation, **sizes)
        self.model = PerceiverResampler(config).to(dtype).train()
        self.features = torch.randn(batch_size, NUM_PATCHES, config.hidden_size).to(dtype)
        # Of a plain sum the last layer norm leaves no gradient.
        self.direction = torch.randn(batch_size, config.num_latents, config.hidden_size).to(dtype)

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.accumulate()

    def accumulate(self) -> None:
        (self.model(self.features).tokens * self.direction).sum().backward()

    def flops(self) -> int:
        """Floating-point operations of matrix products."""
        self.model.set_attn_implementation("eager")  # so that torch counts attention in both formulations alike
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def compare(depth: int, dtype: torch.dtype, batch_size: int, rounds: int, **sizes) -> list[dict]:
    steps = {
        name: Step(formulation, depth, batch_size, dtype, **sizes)
        for name, formulation in {
            "plain": "plain",
            "absorbed": "absorbed",
            "absorbed, checkpointed": "absorbed",
        }.items()
    }
    steps["absorbed, checkpointed"].model.gradient_checkpointing_enable()
    seconds = interleaved_seconds(steps, rounds)
    memory = {name: peak_bytes(step.accumulate) / 2**20 for name, step in steps.items()}
    flops = {name: step.flops() / batch_size / 1e9 for name, step in steps.items()}
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "depth": depth,
            "formulation": name,
            "ms per image": 1e3 * statistics.median(seconds[name]) / batch_size,
            "time ratio": median_ratio(seconds["plain"], seconds[name]),
            "GFLOP per image": flops[name],
            "FLOP ratio": flops["plain"] / flops[name],
            "MiB": memory[name],
            "memory ratio": memory["plain"] / memory[name],
        }
        for name in steps
    ]


def main() -> None:
    options = parse_arguments(__doc__, rounds=7, batch_size={"type": int, "default": 8, "help": "images per step"})
    sizes, batch_size = ({}, options.batch_size) if not options.quick else (TINY, 1)
    rows = [
        row
        for dtype in (torch.float32, torch.bfloat16)
        for depth in (6, 1)
        for row in compare(depth, dtype, batch_size, 1 if options.quick else options.rounds, **sizes)
    ]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
