"""Configuration of the Perceiver resampler."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PerceiverResamplerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`PerceiverResampler`]. The defaults are those of GVT (Section 3.2 of "What Makes for Good
    Visual Tokenizer Supervision for Large Language Models?"): 32 queries, six layers, sixteen heads of 96.

    Args:
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the queries.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of cross-attention layers.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Number of heads of each layer.
        head_dim (`int`, *optional*, defaults to 96):
            Width of a head. `num_attention_heads * head_dim` need not equal `hidden_size`.
        num_latents (`int`, *optional*, defaults to 32):
            Number of learned queries, and so of visual tokens per image.
        intermediate_size (`int`, *optional*, defaults to 4096):
            Width of the feed-forward layers.
        patch_hidden_size (`int`, *optional*):
            Width of the patch features. Where it differs from `hidden_size` a linear layer comes first. Defaults to
            `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every layer norm.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights of linear layers. Queries are drawn from N(0, 1).
        attention_formulation (`"absorbed"` or `"plain"`, *optional*, defaults to `"absorbed"`):
            `"absorbed"` multiplies the key and value projections into the queries and the weighted sums, which costs
            less whenever there are fewer queries than `head_dim`; `"plain"` projects every patch, through any
            attention backend of transformers. Both compute the same function.
    """

    model_type = "perceiver_resampler_vistok"

    hidden_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    head_dim: int = 96
    num_latents: int = 32
    intermediate_size: int = 4096
    patch_hidden_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_formulation: Literal["absorbed", "plain"] = "absorbed"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "num_latents")
        for name in (*sizes, "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, a Perceiver resampler needs at least 1.")
        if self.patch_hidden_size is None:
            self.patch_hidden_size = self.hidden_size


__all__ = ["PerceiverResamplerConfig"]
