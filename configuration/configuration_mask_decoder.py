"""Configuration of SeTok's mask decoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MaskDecoderConfig(PreTrainedConfig):
    r"""
    Configuration of a [`MaskDecoder`], which predicts a mask for every visual token (SeTok, Section 2.2, stage I-b).

    Args:
        token_size (`int`, *optional*, defaults to 1024):
            Width of the visual tokens. In a [`SeTokConfig`] it follows the tokenizer.
        patch_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the patch features. In a [`SeTokConfig`] it follows the vision tower.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of tokens and patches in the decoder.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of layers in which the tokens attend to the patches.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Number of heads of each layer.
        intermediate_size (`int`, *optional*, defaults to 1024):
            Width of the feed-forward layers.
        num_upsamplings (`int`, *optional*, defaults to 2):
            How often the patch grid is doubled; 2 makes the masks four times as fine as the grid, on each side.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of all layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every norm.
    """

    model_type = "setok_mask_decoder"

    token_size: int = 1024
    patch_hidden_size: int = 1024
    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    num_upsamplings: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = ("token_size", "patch_hidden_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, a mask decoder needs at least 1.")
        if self.num_upsamplings < 0:
            raise ValueError(f"num_upsamplings is {self.num_upsamplings}, expected 0 (none) or more.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_attention_heads={self.num_attention_heads}."
            )
        # Sine position embeddings take a quarter of the channels each; every doubling of the grid halves the channels.
        divisor = max(4, 2**self.num_upsamplings)
        if self.hidden_size % divisor:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, expected a multiple of {divisor}: of 4 for the positions of "
                f"patches, and of 2^num_upsamplings (num_upsamplings={self.num_upsamplings}) for finer masks."
            )


__all__ = ["MaskDecoderConfig"]
