"""
What SeTok behind the projector saves transformers' own LLaVA: 576 patches against 144, 64 and 30 semantic tokens.

    python -m benchmarks.plug_in

One LLaVA with random weights, a language model of the shape of SmolLM2-135M and the width of CLIP ViT-L/14 at 336
pixels before its projector, reads 64 text tokens and one image, whose features the tower has computed before. The
models beside it are that one with SeTok plugged in, objects and all: the same weights, prompt and placeholders, and
clusters of the threshold method, bounded to so many. With 576, every patch is a token.

Prefill is the time until the cache is filled and the next token scored, from visual tokens that are there already
("language model") or from the tower's features ("whole": projector, clusters and their means as well): CPU time on one
thread, medians over rounds that take turns, and ratios of LLaVA over each. FLOPs are those of matrix products.
"""

import statistics
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, report
from benchmarks.visual_tokens import NUM_TEXT_TOKENS, SMOLLM2_135M, TINY_TEXT
from vistok import plug_setok
from vistok.evaluation.compute_costs import count_flops

NUM_PATCHES = 576
COUNTS = (576, 144, 64, 30)
IMAGE = 5
WHERE = ("language model", "whole")


def build(dtype: torch.dtype, quick: bool) -> LlavaForConditionalGeneration:
    """A LLaVA whose tower is as small as can be but for its width: it does not run here."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64 if quick else 1024, "intermediate_size": 64, "num_hidden_layers": 2}
    tower = CLIPVisionConfig(**sizes, num_attention_heads=1, image_size=336, patch_size=14)
    text = LlamaConfig(**(TINY_TEXT if quick else SMOLLM2_135M))
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, image_seq_length=NUM_PATCHES)
    return LlavaForConditionalGeneration(config).to(dtype).eval()


class Contender:
    """LLaVA, or LLaVA with SeTok, and how it reads one prompt."""

    def __init__(self, llava: LlavaForConditionalGeneration, count: int | None):
        self.name = "LLaVA" if count is None else f"{count} tokens"
        bounds = {"method": "threshold", "min_tokens": count, "max_tokens": count}
        self.model: Any = llava if count is None else plug_setok(llava, bounds)
        text = torch.arange(10, 10 + NUM_TEXT_TOKENS)[None]
        self.inputs = {"input_ids": torch.cat([text[:, :1], torch.full((1, NUM_PATCHES), IMAGE), text[:, 1:]], 1)}
        self.inputs["attention_mask"] = torch.ones_like(self.inputs["input_ids"])
        generator = torch.Generator().manual_seed(0)
        width = llava.config.vision_config.hidden_size
        self.features = torch.randn(1, NUM_PATCHES, width, generator=generator).to(llava.dtype)
        self.tokens = self.encode()
        self.kv_bytes = 0

    @torch.no_grad()
    def encode(self) -> Any:
        """What the language model reads of the image."""
        if isinstance(self.model, LlavaForConditionalGeneration):
            projected = self.model.model.multi_modal_projector(self.features)
            return BaseModelOutputWithPooling(pooler_output=list(projected))
        return self.model.get_image_features(vision_features=self.features)

    @torch.no_grad()
    def prefill(self, where: str) -> None:
        tokens = self.encode() if where == "whole" else self.tokens
        output = self.model(**self.inputs, mm_encoder_outputs={"image": tokens}, use_cache=True, logits_to_keep=1)
        self.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)


def main() -> None:
    options = parse_arguments(__doc__, rounds=5)
    rounds = 1 if options.quick else options.rounds
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        llava = build(dtype, options.quick)
        contenders = [Contender(llava, count) for count in (None, *COUNTS)]
        for where in WHERE:
            runs = {one.name: lambda one=one, where=where: one.prefill(where) for one in contenders}
            seconds = interleaved_seconds(runs, rounds)
            flops = {name: count_flops(run) for name, run in runs.items()}
            rows += [
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "measured": where,
                    "reads": one.name,
                    "prefill, ms": 1e3 * statistics.median(seconds[one.name]),
                    "prefill ratio": median_ratio(seconds["LLaVA"], seconds[one.name]),
                    "GFLOP": flops[one.name] / 1e9,
                    "FLOP ratio": flops["LLaVA"] / flops[one.name],
                    "KV, KiB": one.kv_bytes / 1024,
                    "KV ratio": contenders[0].kv_bytes / one.kv_bytes,
                }
                for one in contenders
            ]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
