"""
Perceiver resampler, forward and backward: the absorbed formulation against the plain one.

    python -m benchmarks.resampler

Sizes are GVT's: 257 patch features of 1024 → 32 tokens, 16 heads of 96, depth 6, and depth 1. As in GVT's training the
features come from a frozen tower and all weights are trained. The plain formulation uses scaled_dot_product_attention.
Time is CPU time of forward and backward on one thread, the ratio the median over rounds that take turns. Memory is the
peak above weights and gradients, which are there before the step.
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


def compare(depth: int, dtype: torch.dtype, batch_size: int, rounds: int, **sizes) -> dict:
    plain = Step("plain", depth, batch_size, dtype, **sizes)
    absorbed = Step("absorbed", depth, batch_size, dtype, **sizes)
    seconds = interleaved_seconds({"plain": plain, "absorbed": absorbed}, rounds)
    memory = {step: peak_bytes(step.accumulate) / 2**20 for step in (plain, absorbed)}
    flops = {step: step.flops() / batch_size / 1e9 for step in (plain, absorbed)}
    return {
        "depth": depth,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch_size,
        "plain, ms per image": 1e3 * statistics.median(seconds["plain"]) / batch_size,
        "absorbed, ms per image": 1e3 * statistics.median(seconds["absorbed"]) / batch_size,
        "time ratio": median_ratio(seconds["plain"], seconds["absorbed"]),
        "plain, GFLOP per image": flops[plain],
        "absorbed, GFLOP per image": flops[absorbed],
        "FLOP ratio": flops[plain] / flops[absorbed],
        "plain, MiB": memory[plain],
        "absorbed, MiB": memory[absorbed],
        "memory ratio": memory[plain] / memory[absorbed],
    }


def main() -> None:
    options = parse_arguments(__doc__, rounds=7, batch_size={"type": int, "default": 8, "help": "images per step"})
    sizes, batch_size = ({}, options.batch_size) if not options.quick else (TINY, 1)
    rows = [
        compare(depth, dtype, batch_size, 1 if options.quick else options.rounds, **sizes)
        for dtype in (torch.float32, torch.bfloat16)
        for depth in (6, 1)
    ]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
