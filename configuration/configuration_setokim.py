"""Configuration of Setokim."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .multimodal_config import check_image_token


@strict
class SetokimConfig(PreTrainedConfig):
    r"""
    Configuration of [`SetokimModel`] and [`SetokimForConditionalGeneration`]: SeTok with its decoders, and a language
    model that reads and writes visual tokens ("Towards Semantic Equivalence of Tokenization in Multimodal LLM",
    Section 2.2).

    Args:
        setok_config ([`SeTokConfig`] or `dict`, *optional*, defaults to `SeTokConfig()`):
            The tokenizer with its mask decoder and detokenizer, those that it has.
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to Llama with eight rows more):
            Configuration of the language model: any causal model of transformers.
        image_token_id (`int`, *optional*, defaults to 32000):
            Id of the placeholder that visual tokens take the place of. Inside of an image that the model writes, it
            stands for one more visual token.
        image_start_token_id (`int`, *optional*, defaults to 32001): id of `[Img]`, which begins an image.
        image_end_token_id (`int`, *optional*, defaults to 32002): id of `[/Img]`, which ends it.
        visual_loss_weight (`float`, *optional*, defaults to 1.0):
            Factor λ of the regression of visual tokens in the loss.
        length_loss_weight (`float`, *optional*, defaults to 1.0):
            Factor of the cross-entropy of "one more visual token", from which the model learns how many tokens an
            image has. At 0 the loss is the paper's, and the length of images that are written is not learned.
        token_bank_size (`int`, *optional*, defaults to 0):
            Tokens of real images among which the model chooses when it writes images, see [`TokenBank`]; 0 for the
            regression alone, as the paper has it. A training fills the bank (`token_bank_size` of
            [`SetokimTrainingConfig`]).
        choice_loss_weight (`float`, *optional*, defaults to 0.3): factor of the cross-entropy of these choices.
        trained_token_rows (`bool`, *optional*, defaults to `False`):
            Whether the rows of placeholder, `[Img]` and `[/Img]` are weights of their own, apart from embeddings and
            head of the language model: they were trained where these were not.
        base_models (`dict[str, str]`, *optional*):
            Checkpoints (`{"vision": …, "text": …}`: names, folders or Hub ids) which complete a folder that holds only
            the trained weights; `./name` lies in that folder. `None` for a folder that holds all weights. The first
            is a vision tower, or a folder of SeTok.
        lora_config (`dict`, *optional*):
            The `peft.LoraConfig`, as a dictionary, of the adapters among the trained weights of such a folder.

    Raises:
        ValueError: if the language model is an encoder-decoder, a weight or size is negative, or the ids of
            placeholder, `[Img]` and `[/Img]` are not three.

    Example:

    ```python
    >>> from transformers import Dinov2Config, LlamaConfig
    >>> from vistok import SetokimConfig, SetokimForConditionalGeneration

    >>> setok = {"vision_config": {"vision_config": Dinov2Config()}}
    >>> config = SetokimConfig(setok_config=setok, text_config=LlamaConfig(vocab_size=32008))
    >>> model = SetokimForConditionalGeneration(config)
    ```"""

    model_type = "setokim"
    sub_configs_defaults = {
        "setok_config": SubConfigSpec(config_class=AutoConfig, model_type="setok"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"vocab_size": 32008}),
    }

    setok_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    image_start_token_id: int = 32001
    image_end_token_id: int = 32002
    visual_loss_weight: float | int = 1.0
    length_loss_weight: float | int = 1.0
    token_bank_size: int = 0
    choice_loss_weight: float | int = 0.3
    trained_token_rows: bool = False
    base_models: dict[str, str] | None = None
    lora_config: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.setok_config, dict):
            self.setok_config = {"model_type": "setok", **self.setok_config}
        super().__post_init__(**kwargs)
        text_config: Any = self.text_config
        if text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config is that of {text_config.model_type}, an encoder-decoder model, which writes no images: "
                "Setokim needs a causal language model, such as Llama, Mistral, Qwen or SmolLM."
            )
        if self.token_bank_size < 0:
            raise ValueError(f"token_bank_size is {self.token_bank_size}: give a number of tokens, or 0 for none.")
        for name in ("visual_loss_weight", "length_loss_weight", "choice_loss_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give the factor of a loss, 0 or more.")
        ids = [self.image_token_id, self.image_start_token_id, self.image_end_token_id]
        if len(set(ids)) < 3:
            raise ValueError(
                f"image_token_id, image_start_token_id and image_end_token_id are {ids}: give three different ids."
            )
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    @property
    def tokenizer_config(self) -> Any:
        """Configuration of the tokenizer with its tower, a [`SeTokVisionConfig`]."""
        setok_config: Any = self.setok_config
        return setok_config.vision_config

    @property
    def vision_config(self) -> Any:
        """Configuration of the vision tower."""
        return self.tokenizer_config.vision_config

    @property
    def vision_feature_layer(self) -> Any:
        return self.tokenizer_config.vision_feature_layer

    @property
    def vision_feature_select_strategy(self) -> str:
        return "default"  # clusters are made of patches alone

    def check_image_token(self) -> None:
        """
        Makes sure that placeholder, `[Img]` and `[/Img]` are tokens of the language model. Models ask when they are
        built, by when composing has found the ids and given them rows.

        Raises:
            ValueError: if one is none; names its id and the size of the vocabulary.
        """
        for name in ("image_token_id", "image_start_token_id", "image_end_token_id"):
            check_image_token(self, name)


__all__ = ["SetokimConfig"]
