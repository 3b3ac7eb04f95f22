"""Architectures of well-known checkpoints, to plan with where neither they nor the Hub are at hand."""

import os
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig

from ..modeling.base_weights import PREFIX, is_fetched, resolve_checkpoint, shipped_checkpoint
from ..modeling.composition import grown_size
from ..modeling.diffusion_parts import read_diffusion_configs
from ..processing.square_images import prepared_side

_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
_CLIP_B = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 224,
}
_DINOV2 = {"patch_size": 14, "image_size": 518}
_DINOV2_S = {**_DINOV2, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
_DINOV2_B = {**_DINOV2, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_DINOV2_L = {**_DINOV2, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "dtype": "float16",
}
_LLAMA_13B = {
    **_LLAMA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
_MISTRAL_7B = {
    **_LLAMA_7B,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "dtype": "bfloat16",
}
_SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}

_EVA02_CLIP_L = {"use_final_norm": True}  # beside the defaults of EvaVisionConfig
_CLIP_L_336 = {**_CLIP_L, "image_size": 336}
_LLAVA_7B = {
    "vision_config": {"model_type": "clip_vision_model", **_CLIP_L_336},
    "text_config": {"model_type": "llama", **_LLAMA_7B, "vocab_size": 32064},
    "image_token_index": 32000,
}
_LLAVA_13B = {**_LLAVA_7B, "text_config": {"model_type": "llama", **_LLAMA_13B, "vocab_size": 32064}}

# What the config.json of each says, as far as shapes follow from it.
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "openai/clip-vit-base-patch16": ("clip_vision_model", _CLIP_B),
    "openai/clip-vit-large-patch14": ("clip_vision_model", _CLIP_L),
    "openai/clip-vit-large-patch14-336": ("clip_vision_model", _CLIP_L_336),
    "google/siglip-large-patch16-256": ("siglip_vision_model", {**_CLIP_L, "patch_size": 16, "image_size": 256}),
    "facebook/dinov2-small": ("dinov2", _DINOV2_S),
    "facebook/dinov2-base": ("dinov2", _DINOV2_B),
    "facebook/dinov2-large": ("dinov2", _DINOV2_L),
    "vistok:dinov2-small": ("dinov2", _DINOV2_S),
    "lmsys/vicuna-7b-v1.1": ("llama", {**_LLAMA_7B, "max_position_embeddings": 2048}),
    "lmsys/vicuna-7b-v1.5": ("llama", _LLAMA_7B),
    "lmsys/vicuna-13b-v1.5": ("llama", _LLAMA_13B),
    "meta-llama/Llama-2-7b-hf": ("llama", _LLAMA_7B),
    "meta-llama/Llama-2-13b-hf": ("llama", _LLAMA_13B),
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistral", _MISTRAL_7B),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", _SMOLLM2_135M),
    "vistok:smollm2-135m": ("llama", _SMOLLM2_135M),
    "llava-hf/llava-1.5-7b-hf": ("llava", _LLAVA_7B),
    "llava-hf/llava-1.5-13b-hf": ("llava", _LLAVA_13B),
    "checkpoints/eva02-clip-l14": ("eva_vision", _EVA02_CLIP_L),  # a folder that recipes/gvt/distill.yaml converts
}
KNOWN_DIFFUSION: dict[str, dict[str, Any]] = {"stable-diffusion-v1-5/stable-diffusion-v1-5": {}}
"""Of diffusion checkpoints: what is otherwise than in [`ImageDetokenizerConfig`], which has SD v1.5's by default."""
PREPARED_SIDE = {"dinov2": 224}
"""Pixels of what a tower's image processor makes, where that is not the size of its config."""


@dataclass(frozen=True)
class Architecture:
    """
    What a checkpoint is like, without its weights.

    Args:
        name (`str`): as a recipe names it.
        config (`PreTrainedConfig`): its configuration; of one with text and vision, all of it.
        path (`str`, *optional*): where its other files are; `None` if the configuration is one that vistok knows.
    """

    name: str
    config: PreTrainedConfig
    path: str | None

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Of its vision tower."""
        return getattr(self.config, "vision_config", self.config)

    @property
    def image_size(self) -> int | None:
        """Side of the images that its processor makes, in pixels; `None` where it makes no squares of one size."""
        if self.path is not None:
            try:
                return prepared_side(AutoImageProcessor.from_pretrained(self.path))
            except (OSError, ValueError):
                pass  # a folder of weights without a processor
        side = PREPARED_SIDE.get(self.vision_config.model_type, getattr(self.vision_config, "image_size", None))
        return side if isinstance(side, int) else None

    def with_tokens(self, add_tokens: Any) -> tuple[PreTrainedConfig, dict[str, int]]:
        """
        The configuration of a language model whose vocabulary has rows for special tokens of images.

        Args:
            add_tokens (`Callable`): adds them to a tokenizer and returns their ids by the names of a config.

        Returns:
            `tuple`: its configuration, and the ids.
        """
        config: Any = type(self.config).from_dict(self.config.to_dict())
        if self.path is None:
            ids = add_tokens(_NewTokens(config.vocab_size))
        else:
            ids = add_tokens(AutoTokenizer.from_pretrained(self.path))
        if (last := max(ids.values())) >= config.vocab_size:
            config.vocab_size = grown_size(last)
        return config, ids


class _NewTokens:
    """As much of a tokenizer as adding tokens takes: they come behind those of the language model."""

    def __init__(self, vocab_size: int):
        self._next, self._ids = vocab_size, dict[str, int]()

    def _set_model_specific_special_tokens(self, tokens: dict[str, str]) -> None:
        for name, text in tokens.items():
            setattr(self, name, text)

    def add_special_tokens(self, tokens: dict[str, str]) -> None:
        for text in tokens.values():
            self._ids.setdefault(text, self._next + len(self._ids))

    def convert_tokens_to_ids(self, text: str) -> int:
        return self._ids[text]


def architecture(name: str) -> Architecture:
    """
    Finds out what a checkpoint is like: from its folder, the cache of the Hub, what vistok knows, or the Hub.

    Args:
        name (`str`): name of a base model of vistok, folder, or Hub id.

    Raises:
        FileNotFoundError: if none of these knows it.
    """
    name = str(name)
    here = shipped_checkpoint(name) or (name.startswith(PREFIX) and is_fetched(name))
    if here or os.path.isdir(name):
        path = resolve_checkpoint(name)
        return Architecture(name, AutoConfig.from_pretrained(path), path)
    try:
        if not name.startswith(PREFIX):
            return Architecture(name, AutoConfig.from_pretrained(name, local_files_only=True), name)
    except (OSError, ValueError):
        pass  # not in the cache
    if name in KNOWN:
        model_type, fields = KNOWN[name]
        return Architecture(name, AutoConfig.for_model(model_type, **fields), None)
    try:
        return Architecture(name, AutoConfig.from_pretrained(name), name)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"Nobody here knows what {name} is like: it is no folder, not in the cache of the Hub, which cannot be "
            f"asked, and none of those that vistok knows ({', '.join(KNOWN)}). Give the path of a folder with its "
            "config.json, or the name of one of its size."
        ) from error


def diffusion_configs(name: str) -> dict[str, Any]:
    """
    Finds out what a diffusion checkpoint is like, as [`architecture`] does of others.

    Args:
        name (`str`): folder in the format of diffusers, or Hub id.

    Returns:
        `dict`: fields of [`ImageDetokenizerConfig`].

    Raises:
        FileNotFoundError: if nobody knows it.
    """
    try:
        return read_diffusion_configs(name, local_files_only=True)
    except (OSError, ValueError):
        pass  # neither a folder nor in the cache
    if name in KNOWN_DIFFUSION:
        return dict(KNOWN_DIFFUSION[name])
    try:
        return read_diffusion_configs(name)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"Nobody here knows what {name} is like: it is no folder in the format of diffusers, not in the cache of "
            f"the Hub, which cannot be asked, and not {', '.join(KNOWN_DIFFUSION)}. Give the path of a folder with "
            "model_index.json and the config.json of each part."
        ) from error


__all__ = ["KNOWN", "KNOWN_DIFFUSION", "Architecture", "architecture", "diffusion_configs"]
