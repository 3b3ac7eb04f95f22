"""Tiny composed models of every kind, from saved base models wide enough to be quantised, and inputs for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from tests.tiny import (
    IMAGE_TOKEN_ID,
    NUM_PATCHES,
    batch,
    livelier,
    pixels,
    save_base_models,
    tiny_dinov2_config,
    tiny_llama_config,
    words,
)
from vistok import (
    GVTForConditionalGeneration,
    SetokimForConditionalGeneration,
    SeTokLlavaForConditionalGeneration,
    VTLMMForCausalLM,
)

TOWER, LLM = "model.vision_tower.", "model.language_model."
WIDTH = 64  # bitsandbytes quantises blocks of 64 weights
LOADED = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


def quantization(kind: str, **fields: Any) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(**LOADED[kind], **fields)


@dataclass(frozen=True)
class AdaptedKind:
    """
    A kind of composed model, and what is trained in full beside its adapters.

    Args:
        model_class (`type`): with its head.
        fields (`dict`): of its configs.
        in_full (`tuple[str, ...]`): parts, by the names that recipes have for them.
        modules (`tuple[str, ...]`): the same as modules, by the names that peft is given.
        tower (`str`): prefix of the tower's weights.
    """

    model_class: Any
    fields: dict[str, Any]
    in_full: tuple[str, ...]
    modules: tuple[str, ...]
    tower: str = TOWER


RESAMPLER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 10}
RESAMPLER |= {"num_latents": 3, "intermediate_size": 40}
SETOK = {"min_tokens": 3, "max_tokens": 3, "merger_num_layers": 1, "num_neighbors": 2, "output_size": 20}
ADAPTED = {
    "gvt": AdaptedKind(GVTForConditionalGeneration, RESAMPLER, ("resampler",), ("model.resampler", "model.projector")),
    "vtlmm": AdaptedKind(
        VTLMMForCausalLM, {"intermediate_size": 40}, ("adapter", "vm_head"), ("model.adapter", "model.vm_head")
    ),
    "setok_llava": AdaptedKind(
        SeTokLlavaForConditionalGeneration,
        {"method": "threshold", "min_tokens": 3, "max_tokens": 3, "num_neighbors": 2},
        ("projector",),
        ("model.multi_modal_projector",),
    ),
    "setokim": AdaptedKind(
        SetokimForConditionalGeneration,
        SETOK,
        ("projections", "merger"),
        ("model.input_projection", "model.setok.vision_model.tokenizer.merger"),
        "model.setok.vision_model.vision_tower.",
    ),
}


def save_wide_base_models(folder: Path) -> tuple[str, str]:
    """Folders of a tower and a language model, always the same."""
    text_config = tiny_llama_config(
        vocab_size=340, hidden_size=WIDTH, num_attention_heads=2, num_key_value_heads=1, intermediate_size=2 * WIDTH
    )
    return save_base_models(folder, tiny_dinov2_config(hidden_size=WIDTH), text_config)


def compose_kind(kind: str, base_models: tuple[str, str], **options: Any) -> Any:
    """A model of these, always the same; what is new of it is lively."""
    torch.manual_seed(3)
    adapted = ADAPTED[kind]
    model = adapted.model_class.from_vision_text_pretrained(*base_models, **adapted.fields, **options)
    for name in adapted.modules:
        livelier(model.get_submodule(name))
    model.generation_config.eos_token_id = None
    return model.eval()


def adapted_inputs(model: Any) -> dict[str, torch.Tensor]:
    """A row with an image, and one with text before it."""
    kind = model.config.model_type
    count = NUM_PATCHES if kind in ("vtlmm", "setok_llava") else 3
    image = [model.config.image_token_id] * count
    assert model.config.image_token_id == IMAGE_TOKEN_ID
    return batch([*image, *words(5)], [*words(3, 1), *image, *words(4, 2)]) | {"pixel_values": pixels(2)}


def liven_adapters(model: Any) -> None:
    """Adapters begin as nothing: these do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
