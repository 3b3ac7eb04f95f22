"""
What a language model pays for an image: GVT's 32 visual tokens against the 576 of transformers' own LLaVA.

    python -m benchmarks.visual_tokens

Both models share one language model and one vision tower, objects and all, with random weights: the shape of
SmolLM2-135M and of CLIP ViT-L/14 at 336 pixels, 24 × 24 patches. Both answer the same 64 text tokens about one image
through `generate`, greedily. Prefill is the time to the first token, decoding that of the tokens after it, both CPU
time on one thread; ratios are LLaVA over GVT, medians over rounds that take turns. The same measurement is made three
times, with ever more of the image's way counted into the prefill:

- language model: the visual tokens are there already (`mm_encoder_outputs`);
- with connector: the tower's features are there; GVT runs its resampler (the paper's, 88 M parameters) and projection,
  LLaVA its two linear layers;
- with tower: from pixels.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from benchmarks._measure import GenerationSeconds, median_ratio, parse_arguments, report
from vistok import GVTConfig, GVTForConditionalGeneration

NUM_TEXT_TOKENS = 64
NUM_NEW_TOKENS = 33
IMAGE_TOKEN_ID = 5
SMOLLM2_135M = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
CLIP_L_336 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}
TINY_TEXT = {**SMOLLM2_135M, "hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 128}
TINY_VISION = {
    **CLIP_L_336,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TINY_RESAMPLER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}


class Contender:
    """A model, a prompt of `num_visual_tokens` placeholders and the text, and what `generate` cost."""

    def __init__(self, model: Any, num_visual_tokens: int, connect: Callable[[torch.Tensor], ModelOutput]):
        self.model, self.connect = model, connect
        text = torch.arange(10, 10 + NUM_TEXT_TOKENS)
        placeholders = torch.full((num_visual_tokens,), IMAGE_TOKEN_ID)
        self.input_ids = torch.cat([text[:1], placeholders, text[1:]])[None]
        self.seconds = GenerationSeconds()

    @torch.no_grad()
    def answer(self, features: torch.Tensor | None, pixel_values: torch.Tensor | None = None) -> None:
        """Generates from the tower's features, from pixels, or, with neither, from the visual tokens of last time."""
        with self.seconds.run() as criteria:
            if features is not None:
                self.image_features = self.connect(features)
            image: dict[str, Any] = {"pixel_values": pixel_values}
            if pixel_values is None:
                image = {"mm_encoder_outputs": {"image": self.image_features}}
            self.model.generate(
                input_ids=self.input_ids,
                attention_mask=torch.ones_like(self.input_ids),
                max_new_tokens=NUM_NEW_TOKENS,
                min_new_tokens=NUM_NEW_TOKENS,
                pad_token_id=0,
                stopping_criteria=criteria,
                **image,
            )

    @torch.no_grad()
    def cache_bytes(self) -> int:
        """Keys and values of all layers behind the prompt."""
        cache: Any = DynamicCache()
        self.model.model.language_model(input_ids=self.input_ids, past_key_values=cache)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def build(dtype: torch.dtype, quick: bool) -> tuple[Contender, Contender]:
    """LLaVA and GVT around one language model and one tower."""
    torch.manual_seed(0)
    text_config = LlamaConfig(**(TINY_TEXT if quick else SMOLLM2_135M))
    vision_config = CLIPVisionConfig(**(TINY_VISION if quick else CLIP_L_336))
    llava_config = LlavaConfig(vision_config=vision_config, text_config=text_config, image_token_id=IMAGE_TOKEN_ID)
    llava = LlavaForConditionalGeneration(llava_config).to(dtype).eval()
    gvt_config = GVTConfig(
        vision_config=CLIPVisionConfig(**{**vision_config.to_dict(), "num_hidden_layers": 1}),
        text_config=LlamaConfig(**{**text_config.to_dict(), "num_hidden_layers": 1}),
        resampler_config=TINY_RESAMPLER if quick else {},
        image_token_id=IMAGE_TOKEN_ID,
        vision_feature_select_strategy="default",
    )
    gvt = GVTForConditionalGeneration(gvt_config).to(dtype).eval()
    gvt.model.vision_tower, gvt.model.language_model = llava.model.vision_tower, llava.model.language_model
    gvt.lm_head = llava.lm_head
    gvt.config.vision_config, gvt.config.text_config = vision_config, text_config

    def connect_gvt(features: torch.Tensor) -> ModelOutput:
        return gvt.get_image_features(vision_features=features)

    def connect_llava(features: torch.Tensor) -> ModelOutput:
        return BaseModelOutputWithPooling(pooler_output=list(llava.model.multi_modal_projector(features)))

    num_patches = (vision_config.image_size // vision_config.patch_size) ** 2
    return (
        Contender(llava, num_patches, connect_llava),
        Contender(gvt, gvt.model.resampler.max_num_tokens, connect_gvt),
    )


def compare(dtype: torch.dtype, rounds: int, quick: bool) -> list[dict]:
    contenders = llava, gvt = build(dtype, quick)
    vision_config = llava.model.config.vision_config
    num_patches = (vision_config.image_size // vision_config.patch_size) ** 2
    features = torch.randn(1, num_patches, vision_config.hidden_size).to(dtype)
    pixel_values = torch.randn(1, 3, vision_config.image_size, vision_config.image_size).to(dtype)
    scenarios: dict[str, Callable[[Contender], None]] = {
        "language model": lambda contender: contender.answer(None),
        "with connector": lambda contender: contender.answer(features),
        "with tower": lambda contender: contender.answer(None, pixel_values),
    }
    kv_bytes = [contender.cache_bytes() for contender in contenders]
    for contender in contenders:
        contender.answer(features)  # leaves the visual tokens
    rows = []
    for scenario, answer in scenarios.items():
        for contender in contenders:
            answer(contender)  # a warm-up
            contender.seconds.forget()
        for _ in range(rounds):
            for contender in contenders:
                answer(contender)
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "prefill": scenario,
                "LLaVA prefill, ms": 1e3 * statistics.median(llava.seconds.prefill),
                "GVT prefill, ms": 1e3 * statistics.median(gvt.seconds.prefill),
                "prefill ratio": median_ratio(llava.seconds.prefill, gvt.seconds.prefill),
                "LLaVA tokens/s": 1 / statistics.median(llava.seconds.decode),
                "GVT tokens/s": 1 / statistics.median(gvt.seconds.decode),
                "decode ratio": median_ratio(llava.seconds.decode, gvt.seconds.decode),
                "LLaVA KV, KiB": kv_bytes[0] / 1024,
                "GVT KV, KiB": kv_bytes[1] / 1024,
                "KV ratio": kv_bytes[0] / kv_bytes[1],
            }
        )
    return rows


def main() -> None:
    options = parse_arguments(__doc__, rounds=5)
    rounds = 1 if options.quick else options.rounds
    dtypes = (torch.float32, torch.bfloat16)
    report([row for dtype in dtypes for row in compare(dtype, rounds, options.quick)], options.csv)


if __name__ == "__main__":
    main()
