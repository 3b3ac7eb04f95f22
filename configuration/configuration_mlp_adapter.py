"""Configuration of the MLP adapter."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class MLPAdapterConfig(PreTrainedConfig):
    r"""
    Configuration of an [`MLPAdapter`]: a visual token for every patch. The defaults are the sizes of VT-LMM and
    LLaVA-1.5: CLIP ViT-L/14 at 336 pixels, Vicuna-7B.

    Args:
        patch_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the patch features.
        output_size (`int`, *optional*, defaults to 4096):
            Width of the visual tokens: that of the language model's embeddings.
        intermediate_size (`int`, *optional*):
            Width between the two layers. `None` is `output_size`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation between the two layers.
        num_tokens (`int`, *optional*):
            Patches, and so visual tokens, of an image of the size that the processor prepares. The adapter reads any
            number; this one is what is told to processors. [`VTLMMConfig`] sets it to the patches of an image of the
            tower's `image_size` by default: 576.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
    """

    model_type = "mlp_adapter_vistok"

    patch_hidden_size: int = 1024
    output_size: int = 4096
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    num_tokens: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("patch_hidden_size", "output_size", "intermediate_size", "num_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, an MLP adapter needs at least 1.")


__all__ = ["MLPAdapterConfig"]
