"""Configuration of SeTok's feature mapper."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FeatureMapperConfig(PreTrainedConfig):
    r"""
    Configuration of a [`FeatureMapper`]: a Q-Former of the size of BERT-base, whose learned queries attend to the
    visual tokens in four of its twelve layers (SeTok, Section 2.2, stage I, and Appendix D).

    Args:
        token_size (`int`, *optional*, defaults to 1024):
            Width of the visual tokens. In a [`SeTokConfig`] it follows the tokenizer.
        condition_size (`int`, *optional*, defaults to 768):
            Width of the condition. In an [`ImageDetokenizerConfig`] it follows the U-Net's `cross_attention_dim`.
        num_queries (`int`, *optional*, defaults to 77):
            Number of learned queries, and so the length of the condition; SD v1.5 reads 77 text tokens.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the queries.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of heads of each layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward layers.
        cross_attention_frequency (`int`, *optional*, defaults to 3):
            Every how many layers the queries attend to the tokens, from the first on.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers.
        dropout (`float`, *optional*, defaults to 0.0):
            Dropout of hidden states and attention.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of every layer norm.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights. Queries are drawn from N(0, 1): a layer norm follows them.
        query_grid (`bool`, *optional*, defaults to `False`):
            Whether queries stand for the squares of a grid over the image, row by row: they start as its sine
            positions, there have to be 4, 9, 16, … of them, and in an [`ImageDetokenizer`] each learns what is in
            its square. Not in the paper; for a mapper and a U-Net that both start from random weights.
    """

    model_type = "setok_feature_mapper"

    token_size: int = 1024
    condition_size: int = 768
    num_queries: int = 77
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    cross_attention_frequency: int = 3
    hidden_act: str = "gelu"
    dropout: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    query_grid: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = ("token_size", "condition_size", "num_queries", "hidden_size", "num_hidden_layers")
        for name in (*sizes, "num_attention_heads", "intermediate_size", "cross_attention_frequency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, a feature mapper needs at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.query_grid and math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise ValueError(
                f"num_queries is {self.num_queries}, but with query_grid the queries are those of a square grid: "
                "choose 16, 64, 256, …"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected a probability below 1.")

    @property
    def num_cross_attention_layers(self) -> int:
        """In how many layers the queries attend to the tokens."""
        return -(-self.num_hidden_layers // self.cross_attention_frequency)


__all__ = ["FeatureMapperConfig"]
