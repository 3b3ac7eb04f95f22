"""
How images of different numbers of semantic tokens are best read together: padded, in two buckets of length, or packed.

    python -m benchmarks.token_batches    # after `vistok fetch --data`

Each sample is an image and 64 text tokens. The numbers of visual tokens are real ones: of held-out scenes, photographs
and plain backgrounds in turn, whose patches (DINOv2-small, layer -3, 336 pixels: 576 of them) are clustered without
training by the iterative method. Ten layers of the shape of SmolLM2-135M, with random weights, read the same samples:

- alone: one after the other;
- padded: all in one batch, padded to the longest, which is what vistok's models do with a batch;
- two buckets: the shorter half and the longer half, each padded to its longest;
- packed: in one row, with a dense mask that keeps samples apart, and positions that start anew in each.

Forward is until the scores of each sample's next token, the step forward and backward of all weights: CPU time on one
thread, medians over rounds that take turns, and ratios of "packed" over each. Scores that differ from those of a
sample alone are an error.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, report
from benchmarks.visual_tokens import NUM_TEXT_TOKENS, SMOLLM2_135M, TINY_TEXT
from vistok.modeling.attention_masks import additive_mask

WAYS = ("alone", "padded", "two buckets", "packed")
NUM_SAMPLES = 8
QUICK_COUNTS = [3, 9, 5, 4]
KERNEL_SCALE = 0.6


def counted_tokens(num_images: int) -> list[int]:
    """Semantic tokens of held-out scenes, half of them over photographs and half on plain backgrounds."""
    from vistok import load_data_source
    from vistok.evaluation.token_sources import load_token_source
    from vistok.evaluation.token_variants import TokenVariant, cluster_image
    from vistok.processing.images import load_example_images

    source = load_token_source("vistok:dinov2-small")
    settings = {"kernel_scale": KERNEL_SCALE, "max_tokens": 64}
    variant = TokenVariant("vistok:dinov2-small", method="iterative", settings=settings)
    counts = []
    for plain in (False, True):
        options = {"num_scenes": num_images // 2, "size": 336, "plain_backgrounds": plain}
        for example in load_data_source({"format": "scene-masks", "split": "test", "options": options}):
            features = source.patch_features(load_example_images(example)[:1])[0]
            counts.append(cluster_image(variant, source, features).num_tokens)
    return counts


def build(dtype: torch.dtype, quick: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**(TINY_TEXT if quick else {**SMOLLM2_135M, "num_hidden_layers": 10}))
    return LlamaForCausalLM(config).to(dtype).eval()


def padded_batch(samples: Sequence[torch.Tensor]) -> dict[str, Any]:
    """On the left, so that the last column is the last of every sample."""
    length = max(len(sample) for sample in samples)
    rows = [torch.nn.functional.pad(sample, (0, 0, length - len(sample), 0)) for sample in samples]
    mask = torch.stack([torch.arange(length) >= length - len(sample) for sample in samples]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    embeddings = torch.stack(rows)
    return {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}


def packed_batch(samples: Sequence[torch.Tensor]) -> dict[str, Any]:
    lengths = torch.tensor([len(sample) for sample in samples])
    owners = torch.arange(len(samples)).repeat_interleave(lengths)
    mask = (owners[:, None] == owners) & torch.ones(len(owners), len(owners), dtype=torch.bool).tril()
    return {
        "inputs_embeds": torch.cat(list(samples))[None],
        "attention_mask": additive_mask(mask[None, None], samples[0].dtype),
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        "logits_to_keep": lengths.cumsum(0) - 1,
    }


def batches_of(way: str, samples: Sequence[torch.Tensor]) -> list[tuple[list[int], dict[str, Any]]]:
    """The batches of a way to read samples, each with the numbers of its samples."""
    everyone = list(range(len(samples)))
    if way == "packed":
        return [(everyone, packed_batch(samples))]
    by_length = sorted(everyone, key=lambda number: len(samples[number]))
    half = len(samples) // 2
    groups = {
        "alone": [[number] for number in everyone],
        "padded": [everyone],
        "two buckets": [by_length[:half], by_length[half:]],
    }
    return [(group, padded_batch([samples[number] for number in group])) for group in groups[way]]


def read(model: LlamaForCausalLM, batches: Sequence[tuple[list[int], dict[str, Any]]]) -> torch.Tensor:
    """Scores of the next token of each sample, in the order of samples."""
    found: dict[int, torch.Tensor] = {}
    for numbers, batch in batches:
        logits = model(**batch, use_cache=False).logits.flatten(0, 1)
        found |= dict(zip(numbers, logits))
    return torch.stack([found[number] for number in sorted(found)])


def step(model: LlamaForCausalLM, batches: Sequence[tuple[list[int], dict[str, Any]]]) -> None:
    for numbers, batch in batches:
        logits = model(**batch, use_cache=False).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits.float(), torch.tensor(numbers)).backward()
    model.zero_grad(set_to_none=True)


def compare(model: LlamaForCausalLM, counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    samples = [torch.randn(count + NUM_TEXT_TOKENS, width, generator=generator).to(model.dtype) for count in counts]
    batches = {way: batches_of(way, samples) for way in WAYS}
    with torch.no_grad():
        scores = {way: read(model, batches[way]).float() for way in WAYS}
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    for way in WAYS[1:]:
        difference = (scores[way] - scores["alone"]).abs().max() / scores["alone"].abs().max()
        if difference > tolerance:
            raise RuntimeError(f"Read {way}, scores differ from those of samples alone by {difference:.2g}.")

    def forward(way: str) -> Callable[[], Any]:
        return torch.no_grad()(lambda: read(model, batches[way]))

    seconds = {
        "forward": interleaved_seconds({way: forward(way) for way in WAYS}, rounds),
        "step": interleaved_seconds({way: lambda way=way: step(model, batches[way]) for way in WAYS}, rounds),
    }
    real = sum(len(sample) for sample in samples)
    rows = []
    for way in WAYS:
        columns = sum(batch["inputs_embeds"].shape[:2].numel() for _, batch in batches[way])
        row: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "visual tokens": ", ".join(map(str, counts)),
            "read": way,
            "padding, %": 100 * (1 - real / columns),
        }
        for what, of_ways in seconds.items():
            row[f"{what}, ms"] = 1e3 * statistics.median(of_ways[way])
            row[f"{what} ratio"] = median_ratio(of_ways["packed"], of_ways[way])
        rows.append(row)
    return rows


def main() -> None:
    options = parse_arguments(__doc__, rounds=3)
    rounds = 1 if options.quick else options.rounds
    counts = QUICK_COUNTS if options.quick else counted_tokens(NUM_SAMPLES)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        rows += compare(build(dtype, options.quick), counts, rounds)
    report(rows, options.csv)


if __name__ == "__main__":
    main()
