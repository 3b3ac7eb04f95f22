"""Configuration of SeTok: a vision tower and the visual tokenizer that clusters its patches."""

import dataclasses
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_setok_tokenizer import SeTokTokenizerConfig
from .multimodal_config import check_feature_layer, complete_tower, feature_width

_CLIP_VIT_LARGE_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@strict
class SeTokVisionConfig(SeTokTokenizerConfig):
    r"""
    Configuration of [`SeTokVisionModel`], the tokenizer of "Towards Semantic Equivalence of Tokenization in Multimodal
    LLM" with its vision tower. It takes the arguments of [`SeTokTokenizerConfig`], except that `patch_hidden_size`
    follows the tower, and:

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to that of CLIP ViT-L/14 at 336 pixels):
            Configuration of the vision tower: any vision transformer of transformers, that of EVA-CLIP, or a
            convolutional network that returns feature maps (ConvNeXt, ConvNeXt V2, ResNet).
        vision_feature_layer (`int` or `"final"`, *optional*, defaults to -2):
            Index into the tower's `hidden_states` (the embeddings are 0, the last layer is -1), which have passed no
            final norm; or `"final"`, the features after that norm. The hidden states of a convolutional network are
            its stages, of different sizes: -1 is the deepest and coarsest.
        vision_feature_select_strategy (`"default"` or `"full"`, *optional*, defaults to `"default"`):
            Clusters are made of patches alone; [CLS] and registers are dropped either way.

    Example:

    ```python
    >>> from transformers import Dinov2Config
    >>> from vistok import SeTokVisionConfig, SeTokVisionModel

    >>> config = SeTokVisionConfig(vision_config=Dinov2Config(hidden_size=384, num_attention_heads=6))
    >>> model = SeTokVisionModel(config)  # random weights
    ```"""

    model_type = "setok_vision"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="clip_vision_model", init_kwargs=_CLIP_VIT_LARGE_336
        )
    }

    vision_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int | Literal["final"] = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"

    def __post_init__(self, **kwargs):
        PreTrainedConfig.__post_init__(self, **kwargs)
        self.vision_config = complete_tower(self.vision_config)
        check_feature_layer(self)
        self.patch_hidden_size = feature_width(self.vision_config, self.vision_feature_layer)
        super().__post_init__()

    @property
    def tokenizer_config(self) -> SeTokTokenizerConfig:
        """What of it concerns the tokenizer behind the tower, as a config of its own."""
        own = {field.name for field in dataclasses.fields(SeTokTokenizerConfig)}
        own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
        values: dict[str, Any] = {name: getattr(self, name) for name in own}
        return SeTokTokenizerConfig(**values, attn_implementation=self._attn_implementation)


__all__ = ["SeTokVisionConfig"]
