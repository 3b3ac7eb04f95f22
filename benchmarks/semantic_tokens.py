"""
What a language model pays for an image of about 30 semantic tokens, of the 576 that it has placeholders for.

    python -m benchmarks.semantic_tokens

One Setokim with random weights, whose language model has the shape of SmolLM2-135M, answers the same 64 text tokens
about one image through `generate`, greedily, with 576 placeholders in the prompt:

- all: the image has 576 visual tokens, one for each patch at 336 pixels;
- masked: it has 30, and unused placeholders are masked out of attention, as a fixed prompt length makes one do;
- compact: it has 30, and unused placeholders never reach the language model.

Prefill is the time to the first token, from visual tokens that are there already, decoding that of the tokens after
it, both CPU time on one thread; ratios are those of "all" over each, medians over rounds that take turns. A batch of
four images of 20 to 40 tokens stands beside the same batch of 576 each.
"""

import statistics
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks._measure import GenerationSeconds, median_ratio, parse_arguments, report
from benchmarks.visual_tokens import NUM_TEXT_TOKENS, SMOLLM2_135M, TINY_TEXT
from vistok import SeTokConfig, SetokimConfig, SetokimForConditionalGeneration

NUM_PATCHES = 576
NUM_NEW_TOKENS = 9
IMAGE, START, END = 5, 6, 7
ALONE, TOGETHER = [30], [20, 28, 33, 40]


def build(dtype: torch.dtype, quick: bool) -> SetokimForConditionalGeneration:
    """A Setokim whose tower and merger are as small as can be: they do not run here."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    vision = {"vision_config": tower, "max_tokens": NUM_PATCHES, "output_size": 1024, "vision_feature_layer": -1}
    decoder = {"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 16, "num_hidden_layers": 1}
    config = SetokimConfig(
        setok_config=SeTokConfig(vision_config=vision, mask_decoder_config=decoder),
        text_config=LlamaConfig(**(TINY_TEXT if quick else SMOLLM2_135M)),
        image_token_id=IMAGE,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    return SetokimForConditionalGeneration(config).to(dtype).eval()


class Contender:
    """A way to read images of some numbers of visual tokens, and what `generate` cost."""

    def __init__(self, model: SetokimForConditionalGeneration, name: str, counts: list[int]):
        self.model, self.name = model, name
        size = model.model.visual_tokenizer.output_size
        text = torch.arange(10, 10 + NUM_TEXT_TOKENS)
        row = torch.cat(
            [text[:1], torch.tensor([START]), torch.full((NUM_PATCHES,), IMAGE), torch.tensor([END]), text[1:]]
        )
        self.inputs: dict[str, Any] = {"input_ids": row.repeat(len(counts), 1)}
        self.inputs["attention_mask"] = torch.ones_like(self.inputs["input_ids"])
        real = [NUM_PATCHES] * len(counts) if name == "all" else counts
        generator = torch.Generator().manual_seed(0)
        tokens = [torch.randn(count, size, generator=generator) for count in real]
        features = model.get_image_features(visual_tokens=tokens)
        if name == "masked":
            for row_mask, count in zip(self.inputs["attention_mask"], counts):
                row_mask[2 + count : 2 + NUM_PATCHES] = 0
            features = type(features)(pooler_output=list(features.last_hidden_state))
        self.inputs["mm_encoder_outputs"] = {"image": features}
        self.seconds = GenerationSeconds()
        self.kv_bytes = 0

    @torch.no_grad()
    def answer(self) -> None:
        with self.seconds.run() as criteria:
            output = self.model.generate(
                **self.inputs,
                max_new_tokens=NUM_NEW_TOKENS,
                min_new_tokens=NUM_NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
                write_images=False,
                return_dict_in_generate=True,
                stopping_criteria=criteria,
            )
        self.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)


def compare(model: SetokimForConditionalGeneration, counts: list[int], rounds: int) -> list[dict]:
    contenders = [Contender(model, name, counts) for name in ("all", "masked", "compact")]
    for number in range(1 + rounds):
        for contender in contenders:
            contender.answer()
        if number == 0:  # a warm-up
            for contender in contenders:
                contender.seconds.forget()
    baseline = contenders[0]
    return [
        {
            "dtype": str(model.dtype).removeprefix("torch."),
            "visual tokens": ", ".join(map(str, counts)),
            "read": contender.name,
            "prefill, ms": 1e3 * statistics.median(contender.seconds.prefill),
            "prefill ratio": median_ratio(baseline.seconds.prefill, contender.seconds.prefill),
            "ms per token": 1e3 * statistics.median(contender.seconds.decode),
            "decode ratio": median_ratio(baseline.seconds.decode, contender.seconds.decode),
            "KV, KiB": contender.kv_bytes / 1024,
            "KV ratio": baseline.kv_bytes / contender.kv_bytes,
        }
        for contender in contenders
    ]


def main() -> None:
    options = parse_arguments(__doc__, rounds=5)
    rounds = 1 if options.quick else options.rounds
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(dtype, options.quick)
        rows += [row for counts in (ALONE, TOGETHER) for row in compare(model, counts, rounds)]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
