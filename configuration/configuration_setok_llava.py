"""Configuration of LLaVA with SeTok behind its projector."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .multimodal_config import check_feature_layer, check_image_token, complete_tower, with_fields

PLUG_IN = {
    "merger": "mean",
    "normalize_features": True,
    "kernel_scale": 0.5,
    "learn_kernel_scale": False,
    "straight_through": False,
}
"""What is otherwise than in [`SeTokTokenizerConfig`] where nothing is said: the plug-in adds no weights, and its
distances do not depend on the scale of the features that the projector happens to make. σ, the same for all images, is
what made about twelve tokens of 256 patches that a projector had learned beside SmolLM2-135M (0.7 times each image's
mean distance made as many, but the fewer the more objects there were)."""


@strict
class SeTokLlavaConfig(LlavaConfig):
    r"""
    Configuration of [`SeTokLlavaModel`] and [`SeTokLlavaForConditionalGeneration`]: that of LLaVA, and of the clusters
    that its projected patches are merged into ("Towards Semantic Equivalence of Tokenization in Multimodal LLM",
    Table 9: SeTok behind the input connector of an established model).

    Args:
        setok_config (`PreTrainedConfig` or `dict`, *optional*):
            Fields of [`SeTokTokenizerConfig`]. Of a dictionary, or of nothing, those that are not given are clusters
            of normalised features, merged by their mean: no weights. Its `patch_hidden_size` follows the language
            model. What decides on the number of tokens (`max_tokens`, `score_threshold`, `stop_threshold`, …) may be
            changed in the config of a loaded model.
        base_models (`dict[str, str]`, *optional*):
            Checkpoints (`{"llava": …}`, or `{"vision": …, "text": …}`) which complete a folder that holds only the
            trained weights; `./name` lies in that folder. `None` for a folder that holds all weights.
        lora_config (`dict`, *optional*):
            The `peft.LoraConfig`, as a dictionary, of the adapters among the trained weights of such a folder.
        kwargs: fields of `transformers.LlavaConfig`.

    Raises:
        ValueError: if SeTok's tokens are of another width than the language model's embeddings, the tower lacks a
            layer, or images have no fixed number of patches (Pixtral).

    Example:

    ```python
    >>> from vistok import SeTokLlavaConfig

    >>> config = SeTokLlavaConfig(setok_config={"max_tokens": 32})
    >>> config.setok_config.merger
    'mean'
    ```"""

    model_type = "setok_llava"
    sub_configs_defaults = {
        **LlavaConfig.sub_configs_defaults,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32064}),
        "setok_config": SubConfigSpec(config_class=AutoConfig, model_type="setok_tokenizer", init_kwargs=PLUG_IN),
    }

    vision_config: dict | PreTrainedConfig | None = None
    setok_config: dict | PreTrainedConfig | None = None
    base_models: dict[str, str] | None = None
    lora_config: dict | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.setok_config, dict):
            self.setok_config = {"model_type": "setok_tokenizer", **PLUG_IN, **self.setok_config}
        super().__post_init__(**kwargs)
        self.vision_config = complete_tower(self.vision_config)
        vision_config: Any = self.vision_config
        text_config: Any = self.text_config
        if vision_config.model_type == "pixtral":
            raise ValueError(
                "vision_config is that of Pixtral, whose images differ in their number of patches: SeTok is plugged "
                "into a LLaVA whose images are of one size, such as LLaVA-1.5."
            )
        check_feature_layer(self)
        width = text_config.hidden_size
        self.setok_config = with_fields(self.setok_config, patch_hidden_size=width)
        if (output_size := getattr(self.setok_config, "output_size", None)) not in (None, width):
            raise ValueError(
                f"setok_config.output_size is {output_size}, but the language model reads tokens of width {width}: "
                "leave it out."
            )

    def check_image_token(self) -> None:
        """
        Makes sure that the placeholder is a token of the language model. Models ask when they are built.

        Raises:
            ValueError: if it is none; names its id and the size of the vocabulary.
        """
        check_image_token(self)


__all__ = ["PLUG_IN", "SeTokLlavaConfig"]
