"""Configuration of GVT."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .multimodal_config import check_feature_layer, check_image_token, complete_tower, feature_width, with_fields


@strict
class GVTConfig(PreTrainedConfig):
    r"""
    Configuration of [`GVTModel`] and [`GVTForConditionalGeneration`]: a vision tower, a visual tokenizer (by default
    the Perceiver resampler) and a language model (Section 3.2 of "What Makes for Good Visual Tokenizer Supervision
    for Large Language Models?").

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `EvaVisionConfig()`):
            Configuration of the vision tower: any vision transformer of transformers, that of EVA-CLIP, or a
            convolutional network that returns feature maps, such as ConvNeXt.
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to Llama with eight rows more):
            Configuration of the language model: any causal or encoder-decoder model of transformers.
        resampler_config (`PreTrainedConfig` or `dict`, *optional*, defaults to `PerceiverResamplerConfig()`):
            Configuration of the visual tokenizer. Its `patch_hidden_size` follows the tower.
        image_token_id (`int`, *optional*, defaults to 32000):
            Id of the placeholder that visual tokens take the place of, one of the language model's `vocab_size`.
        vision_feature_layer (`int` or `"final"`, *optional*, defaults to -1):
            Index into the tower's `hidden_states` (the embeddings are 0, the last layer is -1), which have passed no
            final norm; or `"final"`, the features after that norm, which feature distillation trains by default.
        vision_feature_select_strategy (`"full"` or `"default"`, *optional*, defaults to `"full"`):
            `"full"` keeps [CLS] and register tokens beside the patches, `"default"` drops them.
        base_models (`dict[str, str]`, *optional*):
            Checkpoints (`{"vision": …, "text": …}`: names, folders or Hub ids) which complete a folder that holds only
            the trained weights; `./name` lies in that folder. `None` for a folder that holds all weights.
        lora_config (`dict`, *optional*):
            The `peft.LoraConfig`, as a dictionary, of the adapters among the trained weights of such a folder.

    Example:

    ```python
    >>> from transformers import Dinov2Config, LlamaConfig
    >>> from vistok import GVTConfig, GVTForConditionalGeneration

    >>> config = GVTConfig(vision_config=Dinov2Config(), text_config=LlamaConfig(vocab_size=32001))
    >>> model = GVTForConditionalGeneration(config)
    ```"""

    model_type = "gvt"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="eva_vision"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32008}),
        "resampler_config": SubConfigSpec(config_class=AutoConfig, model_type="perceiver_resampler_vistok"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    resampler_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    vision_feature_layer: int | Literal["final"] = -1
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    base_models: dict[str, str] | None = None
    lora_config: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # AutoConfig resolves the default tokenizer by its model type, which registering makes known.
        if isinstance(self.resampler_config, dict):
            self.resampler_config = {"model_type": "perceiver_resampler_vistok", **self.resampler_config}
        super().__post_init__(**kwargs)
        self.vision_config = complete_tower(self.vision_config)
        vision_config: Any = self.vision_config
        text_config: Any = self.text_config
        check_feature_layer(self)
        patch_hidden_size = feature_width(vision_config, self.vision_feature_layer)
        self.resampler_config = with_fields(self.resampler_config, patch_hidden_size=patch_hidden_size)
        self.is_encoder_decoder = bool(text_config.is_encoder_decoder)
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    def check_image_token(self) -> None:
        """
        Makes sure that the placeholder is a token of the language model. Models ask when they are built, by when
        composing has found the id and given it a row.

        Raises:
            ValueError: if it is none; names its id and the size of the vocabulary.
        """
        check_image_token(self)


__all__ = ["GVTConfig"]
