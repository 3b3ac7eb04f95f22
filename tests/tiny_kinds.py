"""The kinds of composed models, for tests of what holds for all of them: how to make one, and its parts by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.tiny import (
    IMAGE_TOKEN_ID,
    NUM_LATENTS,
    NUM_PATCHES,
    PATCH_SIZE,
    livelier,
    tiny_dinov2_config,
    tiny_gvt,
    tiny_image_processor,
    tiny_llama_config,
    tiny_processor,
    tiny_tokenizer,
    words,
)
from tests.tiny_setokim import END, START, tiny_setok_config, tiny_setokim, tiny_setokim_processor
from vistok import (
    GVTForConditionalGeneration,
    GVTModel,
    MLPAdapter,
    SetokimForConditionalGeneration,
    SetokimModel,
    VTLMMConfig,
    VTLMMForCausalLM,
    VTLMMModel,
    VTLMMProcessor,
)

NUM_CLUSTERS = 3


def tiny_vtlmm_config(vision_config=None, text_config=None, adapter_config=None, **kwargs) -> VTLMMConfig:
    return VTLMMConfig(
        vision_config=vision_config or tiny_dinov2_config(),
        text_config=text_config or tiny_llama_config(),
        adapter_config=adapter_config or {"intermediate_size": 40},
        **{"image_token_id": IMAGE_TOKEN_ID, **kwargs},
    )


def tiny_vtlmm(*args, attn_implementation=None, **kwargs) -> VTLMMForCausalLM:
    """A random VT-LMM in evaluation mode, whose visual-token distributions are neither flat nor certain."""
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = livelier(VTLMMForCausalLM._from_config(tiny_vtlmm_config(*args, **kwargs), **extra)).eval()
    with torch.no_grad():
        if isinstance(model.model.adapter, MLPAdapter):
            model.model.adapter.linear_2.weight.mul_(2)
        head = model.model.vm_head
        (head if model.config.vm_head_rank is None else head.up).weight.mul_(4)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 2
    model.generation_config.suppress_tokens = [IMAGE_TOKEN_ID]  # as composing does
    return model


def tiny_pseudo_vtlmm(*args, **kwargs) -> VTLMMForCausalLM:
    return tiny_vtlmm(*args, pseudo_image_features=True, **kwargs)


def tiny_vtlmm_processor(tokenizer=None, **kwargs) -> VTLMMProcessor:
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    return VTLMMProcessor(tiny_image_processor(), tokenizer, **{"num_image_tokens": NUM_PATCHES, **kwargs})


def adapter_by_hand(model, images: torch.Tensor) -> torch.Tensor:
    """X_image: two linear layers with a GELU between them on the patches of a layer, without [CLS]."""
    core = model.model
    states = core.vision_tower(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    weights = dict(core.adapter.named_parameters())
    hidden = states[:, 1:] @ weights["linear_1.weight"].t() + weights["linear_1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ weights["linear_2.weight"].t() + weights["linear_2.bias"]


def pseudo_by_hand(model, images: torch.Tensor) -> torch.Tensor:
    """X_p (Eq. 8), from the formula."""
    logits = adapter_by_hand(model, images) @ model.model.vm_head.weight.t()
    return torch.softmax(logits, -1) @ model.get_input_embeddings().weight


def resampled_by_hand(model, images: torch.Tensor) -> torch.Tensor:
    core = model.model
    states = core.vision_tower(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    return core.projector(core.resampler(states).tokens)


def tiny_fixed_setokim(vision_config=None, text_config=None, **kwargs):
    """A Setokim whose images all have as many tokens, and which writes text alone."""
    fixed = {"min_tokens": NUM_CLUSTERS, "max_tokens": NUM_CLUSTERS}
    if "vision_feature_layer" in kwargs:
        fixed["vision_feature_layer"] = kwargs.pop("vision_feature_layer")
    model = tiny_setokim(setok_config=tiny_setok_config(vision_config, **fixed), text_config=text_config, **kwargs)
    model.generation_config.suppress_tokens = [IMAGE_TOKEN_ID, START, END]
    return model


def tiny_fixed_setokim_processor(tokenizer=None, **kwargs):
    return tiny_setokim_processor(tokenizer, num_image_tokens=NUM_CLUSTERS, **kwargs)


def clusters_by_hand(model, images: torch.Tensor) -> torch.Tensor:
    core = model.model
    states = core.vision_tower(images, output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
    side = images.shape[-1] // PATCH_SIZE
    return core.input_projection(core.visual_tokenizer(states[:, 1:], (side, side)).tokens)


@dataclass(frozen=True)
class Kind:
    """
    A kind of composed model.

    Args:
        make (`Callable`): a tiny random model, from configs of its tower and language model and fields of its own.
        processor (`Callable`): a tiny processor that fits it.
        tokens (`Callable`): from the model and images, what its placeholders become, computed otherwise.
        num_tokens (`int`): placeholders of an image.
        model_class, core_class (`type`): with and without the head.
        parts (`tuple[str, ...]`): names of its parts in a device map.
        image_text (`str`): what its processor writes for an image.
    """

    make: Callable[..., Any]
    processor: Callable[..., Any]
    tokens: Callable[..., torch.Tensor]
    num_tokens: int
    model_class: type
    core_class: type
    parts: tuple[str, ...]
    image_text: str

    @property
    def image(self) -> list[int]:
        """Token ids of an image."""
        return [IMAGE_TOKEN_ID] * self.num_tokens

    @property
    def rows(self) -> list[list[int]]:
        """One image, two images, none."""
        two_images = [*words(2, 1), *self.image, *words(1, 2), *self.image, *words(4, 3)]
        return [[*self.image, *words(6)], two_images, words(5, 4)]


GVT_PARTS = ("model.vision_tower", "model.resampler", "model.projector", "model.language_model", "lm_head")
VTLMM_PARTS = ("model.vision_tower", "model.adapter", "model.language_model", "model.vm_head", "lm_head")
VTLMM = (VTLMMForCausalLM, VTLMMModel, VTLMM_PARTS, "<image>" * NUM_PATCHES)
SETOKIM_PARTS = ("model.setok", "model.input_projection", "model.language_model", "output_projection", "lm_head")
KINDS = {
    "gvt": Kind(
        *(tiny_gvt, tiny_processor, resampled_by_hand, NUM_LATENTS),
        *(GVTForConditionalGeneration, GVTModel, GVT_PARTS, f"<Img> {'<image>' * NUM_LATENTS}</Img>"),
    ),
    "vtlmm": Kind(tiny_vtlmm, tiny_vtlmm_processor, adapter_by_hand, NUM_PATCHES, *VTLMM),
    "setokim": Kind(
        *(tiny_fixed_setokim, tiny_fixed_setokim_processor, clusters_by_hand, NUM_CLUSTERS),
        *(SetokimForConditionalGeneration, SetokimModel, SETOKIM_PARTS),
        f"[Img]{'<image>' * NUM_CLUSTERS}[/Img]",
    ),
    "vtlmm-pseudo": Kind(tiny_pseudo_vtlmm, tiny_vtlmm_processor, pseudo_by_hand, NUM_PATCHES, *VTLMM),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
