"""Configuration of the EVA-02 vision transformer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class EvaVisionConfig(PreTrainedConfig):
    r"""
    Configuration of an [`EvaVisionModel`], the vision transformer of EVA-02 and EVA-CLIP. The defaults are those of
    GVT's tower: EVA-CLIP ViT-L/14 at 224 pixels, without a final norm (Section 3.2 of "What Makes for Good Visual
    Tokenizer Supervision for Large Language Models?"; sizes as in TencentARC/GVT, gvt/modules/modeling_gvt.py).

    Args:
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the tokens.
        intermediate_size (`int`, *optional*, defaults to 2730):
            Width of the gated feed-forward layers: 2.6667 times the hidden size.
        num_hidden_layers (`int`, *optional*, defaults to 24):
            Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 16):
            Number of heads of each layer; the width of a head has to be a multiple of four.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of an image.
        image_size (`int` or `tuple[int, int]`, *optional*, defaults to 224):
            Height and width of the images that the position embeddings were learned on, in pixels.
        patch_size (`int` or `tuple[int, int]`, *optional*, defaults to 14):
            Height and width of a patch, in pixels.
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the gate of the feed-forward layers.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of every layer norm.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Probability with which an attention weight is dropped in training.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Probability with which the last layer is skipped for an image in training; it rises linearly from 0 at the
            first layer (stochastic depth, Huang et al. 2016).
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary frequencies.
        rope_grid_size (`int`, *optional*, defaults to 16):
            Rotary positions of every image run from 0 to this number of patches, whatever its own grid is
            (`pt_hw_seq_len` with `intp_freq` in EVA-CLIP).
        use_attention_norm (`bool`, *optional*, defaults to `True`):
            Whether the heads' outputs are normalised before the output projection (`inner_attn_ln`).
        use_feed_forward_norm (`bool`, *optional*, defaults to `True`):
            Whether the gated activations are normalised before the last projection (`ffn_ln`).
        use_final_norm (`bool`, *optional*, defaults to `False`):
            Whether a layer norm follows the last layer. EVA-CLIP has one, the tower of GVT does without. It acts on
            `last_hidden_state`, not on `hidden_states`.
        use_mask_token (`bool`, *optional*, defaults to `False`):
            Whether there is a learned token that stands for masked patches.

    Raises:
        ValueError: if sizes do not fit each other or a probability is none.

    Example:

    ```python
    >>> from vistok import EvaVisionConfig, EvaVisionModel

    >>> model = EvaVisionModel(EvaVisionConfig(num_hidden_layers=2))  # random weights
    ```"""

    model_type = "eva_vision"

    hidden_size: int = 1024
    intermediate_size: int = 2730
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 14
    hidden_act: str = "silu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    rope_theta: float | int = 10000.0
    rope_grid_size: int = 16
    use_attention_norm: bool = True
    use_feed_forward_norm: bool = True
    use_final_norm: bool = False
    use_mask_token: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
        for name in (*sizes, "rope_grid_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, an EVA vision transformer needs at least 1.")
        head_size, rest = divmod(self.hidden_size, self.num_attention_heads)
        if rest or head_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} gives {self.num_attention_heads} heads a width of "
                f"{self.hidden_size / self.num_attention_heads:g}: 2-D rotary positions need a multiple of four."
            )
        for name in ("attention_dropout", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a probability from 0 to below 1 is needed.")
        if 0 in self.grid_size:
            raise ValueError(f"image_size={self.image_size} is smaller than patch_size={self.patch_size}.")

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width of the images that the position embeddings were learned on, in pixels."""
        return _height_width(self.image_size)

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return _height_width(self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of these images, in patches."""
        image, patch = self.image_height_width, self.patch_height_width
        return image[0] // patch[0], image[1] // patch[1]


def _height_width(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


__all__ = ["EvaVisionConfig"]
