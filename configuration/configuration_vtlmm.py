"""Configuration of VT-LMM."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .multimodal_config import check_feature_layer, check_image_token, complete_tower, feature_width, with_fields

CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}


@strict
class VTLMMConfig(PreTrainedConfig):
    r"""
    Configuration of [`VTLMMModel`] and [`VTLMMForCausalLM`]: a vision tower, an adapter, a decoder with its
    multi-modal modelling head, and a visual modelling head (Figure 3 of "Multi-modal Auto-regressive Modeling via
    Visual Words"). With the defaults it is LLaVA-1.5-7B with a visual modelling head.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to CLIP ViT-L/14 at 336 pixels):
            Configuration of the vision tower: any vision transformer of transformers, that of EVA-CLIP, or a
            convolutional network that returns feature maps, such as ConvNeXt.
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to Llama with eight rows more):
            Configuration of the language model: any causal model of transformers.
        adapter_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `MLPAdapterConfig()`):
            Configuration of the adapter. Its widths follow the tower and the language model; its `num_tokens` is by
            default the number of patches of an image of the tower's `image_size`, unknown of a convolutional network.
        image_token_id (`int`, *optional*, defaults to 32000):
            Id of the placeholder that visual tokens take the place of, one of the language model's `vocab_size`.
        vision_feature_layer (`int` or `"final"`, *optional*, defaults to -2):
            Index into the tower's `hidden_states` (the embeddings are 0, the last layer is -1), which have passed no
            final norm; or `"final"`, the features after that norm.
        vision_feature_select_strategy (`"default"` or `"full"`, *optional*, defaults to `"default"`):
            `"default"` drops [CLS] and register tokens, `"full"` keeps them beside the patches.
        pseudo_image_features (`bool`, *optional*, defaults to `False`):
            Whether the language model reads, in place of the adapter's output, the mean of its own embeddings under
            the visual-token distributions (Eq. 8).
        vm_head_rank (`int`, *optional*):
            Makes the visual modelling head the product of two matrices of this rank. By default it is one matrix, as
            in the paper.
        vm_head_trained (`bool`, *optional*):
            Whether the visual modelling head has learned anything: `False` of one that was drawn at random, `True`
            from the first training step with Eq. 9 on. `None` where nobody knows. Models warn of words read with a
            head that has not.
        base_models (`dict[str, str]`, *optional*):
            Checkpoints (`{"vision": …, "text": …}`: names, folders or Hub ids) which complete a folder that holds only
            the trained weights; `./name` lies in that folder. `None` for a folder that holds all weights.
        lora_config (`dict`, *optional*):
            The `peft.LoraConfig`, as a dictionary, of the adapters among the trained weights of such a folder.

    Raises:
        ValueError: if the language model is an encoder-decoder, the tower lacks the layer or a width, or the rank is
            below 1.

    Example:

    ```python
    >>> from transformers import CLIPVisionConfig, LlamaConfig
    >>> from vistok import VTLMMConfig, VTLMMForCausalLM

    >>> config = VTLMMConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig(vocab_size=32001))
    >>> model = VTLMMForCausalLM(config)
    ```"""

    model_type = "vtlmm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="clip_vision_model", init_kwargs=CLIP_L_336
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32008}),
        "adapter_config": SubConfigSpec(config_class=AutoConfig, model_type="mlp_adapter_vistok"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    adapter_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    vision_feature_layer: int | Literal["final"] = -2
    vision_feature_select_strategy: Literal["full", "default"] = "default"
    pseudo_image_features: bool = False
    vm_head_rank: int | None = None
    vm_head_trained: bool | None = None
    base_models: dict[str, str] | None = None
    lora_config: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # AutoConfig resolves the default adapter by its model type, which registering makes known.
        if isinstance(self.adapter_config, dict):
            self.adapter_config = {"model_type": "mlp_adapter_vistok", **self.adapter_config}
        super().__post_init__(**kwargs)
        self.vision_config = complete_tower(self.vision_config)
        vision_config: Any = self.vision_config
        text_config: Any = self.text_config
        if text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config is that of {text_config.model_type}, an encoder-decoder model, which predicts no image "
                "positions: VT-LMM needs a causal language model, such as Llama, Mistral, Qwen or SmolLM."
            )
        if self.vm_head_rank is not None and self.vm_head_rank < 1:
            raise ValueError(f"vm_head_rank is {self.vm_head_rank}: give 1 or more, or None for a full matrix.")
        check_feature_layer(self)
        patch_hidden_size = feature_width(vision_config, self.vision_feature_layer)
        widths: dict[str, Any] = {"patch_hidden_size": patch_hidden_size, "output_size": _embedding_width(text_config)}
        if getattr(self.adapter_config, "intermediate_size", 0) is None:
            widths["intermediate_size"] = widths["output_size"]
        if getattr(self.adapter_config, "num_tokens", 0) is None:
            widths["num_tokens"] = _num_patches(vision_config)
        self.adapter_config = with_fields(self.adapter_config, **widths)
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    def check_image_token(self) -> None:
        """
        Makes sure that the placeholder is a token of the language model. Models ask when they are built, by when
        composing has found the id and given it a row.

        Raises:
            ValueError: if it is none; names its id and the size of the vocabulary.
        """
        check_image_token(self)


def _embedding_width(text_config: Any) -> int:
    """The width of embeddings, which in OPT-350m is not that of the states."""
    return getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size


def _num_patches(vision_config: Any) -> int | None:
    if getattr(vision_config, "hidden_sizes", None):  # its stages differ
        return None
    sizes = (getattr(vision_config, name, None) for name in ("image_size", "patch_size"))
    pairs = [tuple(size) if isinstance(size, (list, tuple)) else (size, size) for size in sizes]
    (height, width), (patch_height, patch_width) = pairs
    if None in (height, width, patch_height, patch_width):
        return None
    return (height // patch_height) * (width // patch_width)


__all__ = ["VTLMMConfig"]
