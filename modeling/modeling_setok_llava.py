"""SeTok behind the projector of LLaVA: its patches are clustered, and the language model reads a token per cluster."""

import copy
import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_setok_llava import SeTokLlavaConfig
from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from .base_checkpoints import lasting_name, load_vision_tower, naming_entry
from .completed_model import without_path
from .multimodal_generation import MultimodalForGeneration
from .multimodal_model import MultimodalModel, MultimodalPreTrainedModel, build_language_model
from .outputs_setok_llava import SeTokLlavaImageFeatures, SeTokLlavaOutput
from .quantized_weights import prepare_quantized_layers, require_quantizer, with_skipped
from .setok_tokenizer import SeTokTokenizer, SeTokTokenizerOutput
from .trained_weights import one_checkpoint_error
from .vision_features import build_vision_tower, extract_vision_features, patch_grid
from .visual_tokenizer import VisionFeatures, VisualTokenizer, computing_dtype


class SeTokLlavaPreTrainedModel(MultimodalPreTrainedModel):
    config: SeTokLlavaConfig
    config_class = SeTokLlavaConfig
    _no_split_modules = ["SegmentLayer"]
    _can_compile_fullgraph = False  # rows are as long as their images have tokens
    trainable_parts = {
        "vision": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "setok": "model.setok",
        "llm": ("model.language_model", "lm_head"),
    }

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str, *, image_size: int | None = None, **kwargs):
        """
        Composes a LLaVA with SeTok from a vision and a language checkpoint; the projector is new and random.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            text (`str`): causal language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            image_size (`int`, *optional*):
                Side of the images in pixels, as told to the processor: the config notes how many patches one has.
            kwargs: as in [`ComposedPreTrainedModel.from_vision_text_pretrained`]: `dtype`, `attn_implementation`, …,
                and fields of [`SeTokLlavaConfig`] or [`SeTokTokenizerConfig`] (`max_tokens=32`).

        Returns:
            The model, in evaluation mode.
        """
        model = super().from_vision_text_pretrained(vision, text, **kwargs)
        side = image_size or getattr(model.config.vision_config, "image_size", None)
        if isinstance(side, int):
            height, width = patch_grid(model.config.vision_config, (side, side))
            model.config.image_seq_length = height * width
        return model

    @classmethod
    def _load_vision(cls, vision, **kwargs):
        return load_vision_tower(vision, **kwargs)  # clusters are of what the projector makes, which is new

    @classmethod
    def _completing_weights(cls, config, name, expected):
        if "llava" not in config.base_models:
            return super()._completing_weights(config, name, expected)
        with naming_entry(config.base_models, "llava", name), one_checkpoint_error(config.base_models["llava"]):
            llava = LlavaForConditionalGeneration.from_pretrained(config.base_models["llava"], dtype="auto")
        return {key: tensor for key, tensor in llava.state_dict().items() if key in expected}, llava.dtype


class SeTokLlavaModel(SeTokLlavaPreTrainedModel, MultimodalModel):
    """
    LLaVA's vision tower, projector and language model, without a head, and SeTok behind the projector (SeTok, Table
    9): what the language model reads of an image is a token for each cluster of its projected patches. Parts and
    weights have the names that they have in `transformers.LlavaModel`. Its `forward` is that of [`MultimodalModel`],
    and returns a [`SeTokLlavaOutput`].

    The text has a placeholder for each patch, as LLaVA's own processor writes it; those that are not used leave the
    sequence before the language model.

    Args:
        config ([`SeTokLlavaConfig`]): see there.

    Raises:
        ValueError: if the image placeholder is no token of the language model; names both numbers.
    """

    image_features_class = SeTokLlavaImageFeatures
    output_class = SeTokLlavaOutput

    def __init__(self, config: SeTokLlavaConfig):
        super().__init__(config)
        config.check_image_token()
        vision_config: Any = config.vision_config
        self.vision_tower = build_vision_tower(vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.setok: SeTokTokenizer = AutoModel.from_config(config.setok_config)
        self._set_language_model(build_language_model(config))
        self.post_init()

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        return self.setok

    def _tokenizer_dtype(self) -> torch.dtype:
        return computing_dtype(self.multi_modal_projector)

    def get_vision_features(self, pixel_values: torch.Tensor) -> VisionFeatures:
        """The features of the tower that the projector reads: of one layer, or of several side by side."""
        layers = self.config.vision_feature_layer
        if isinstance(layers, int):
            return super().get_vision_features(pixel_values)
        features = extract_vision_features(
            self.vision_tower,
            pixel_values,
            feature_layer=layers[0],
            select_strategy=self.config.vision_feature_select_strategy,
            required_inputs=("hidden_states",),
        )
        kept = features.patch_features.shape[1]  # prefix tokens come first
        states: Any = features.hidden_states
        side_by_side = torch.cat([states[layer][:, -kept:] for layer in layers], dim=-1)
        return replace(features, patch_features=side_by_side, hidden_states=None)

    def tokenize(self, features: VisionFeatures, output_attentions: bool | None = None) -> SeTokTokenizerOutput:
        """
        Projects patches as LLaVA does, and merges each cluster of them into a token. A LLaVA that reads [CLS]
        (`vision_feature_select_strategy="full"`) reads it before the clusters.

        Args:
            features ([`VisionFeatures`]): of the tower.
            output_attentions (`bool`, *optional*): not used: SeTok has assignments in place of attention maps.
        """
        embeddings = self.multi_modal_projector(features.patch_features.to(self._tokenizer_dtype()))
        output: Any = super().tokenize(replace(features, patch_features=embeddings), output_attentions)
        num_prefix_tokens = features.num_prefix_tokens or 0
        return _behind(embeddings[:, :num_prefix_tokens], output) if num_prefix_tokens else output

    def num_placeholders(self, features: VisionFeatures) -> int | None:
        """One for each feature of the tower, as LLaVA's processor writes them."""
        return features.patch_features.shape[1]


def _behind(prefix: torch.Tensor, output: SeTokTokenizerOutput) -> SeTokTokenizerOutput:
    """Tokens of clusters behind those of no cluster."""
    count = prefix.shape[1]
    values: dict[str, Any] = dict(output)
    values["tokens"] = torch.cat([prefix, values["tokens"]], dim=1)
    values["mask"] = nn.functional.pad(values["mask"], (count, 0), value=True)
    values["assignment"] = values["assignment"] + count
    values["centers"] = nn.functional.pad(values["centers"], (count, 0), value=-1)
    for name in ("cluster_masks", "weights", "soft_masks"):
        if values.get(name) is not None:
            values[name] = nn.functional.pad(values[name], (0, 0, count, 0))
    return SeTokTokenizerOutput(**values)


class SeTokLlavaForConditionalGeneration(SeTokLlavaPreTrainedModel, MultimodalForGeneration):
    """
    LLaVA that reads semantic tokens in place of patches. Any `transformers.LlavaForConditionalGeneration` becomes one,
    without training: see [`plug_setok`].

    Args:
        config ([`SeTokLlavaConfig`]): see there.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> from vistok import SeTokLlavaForConditionalGeneration

    >>> name = "llava-hf/llava-1.5-7b-hf"
    >>> model = SeTokLlavaForConditionalGeneration.from_llava_pretrained(name, {"max_tokens": 64}, dtype="bfloat16")
    >>> inputs = AutoProcessor.from_pretrained(name)(images=image, text=prompt, return_tensors="pt")
    >>> model.generate(**inputs, max_new_tokens=32)
    ```"""

    model: SeTokLlavaModel

    def __init__(self, config: SeTokLlavaConfig):
        super().__init__(config)
        self.model = SeTokLlavaModel(config)
        self._build_head()
        self.post_init()

    @classmethod
    def from_llava_pretrained(
        cls, llava: str, setok_config: PreTrainedConfig | Mapping[str, Any] | None = None, **kwargs
    ) -> "SeTokLlavaForConditionalGeneration":
        """
        Loads a LLaVA and puts SeTok behind its projector. A folder of what is trained of it then holds that alone.

        Args:
            llava (`str`): folder or Hub id of a LLaVA in transformers' format.
            setok_config ([`SeTokTokenizerConfig`] or `dict`, *optional*): see [`SeTokLlavaConfig`].
            kwargs: for `LlavaForConditionalGeneration.from_pretrained`: `dtype`, `attn_implementation`,
                `quantization_config` (see [`QuantizablePreTrainedModel`]), …

        Returns:
            The model, in evaluation mode.

        Raises:
            ImportError: if what quantises is not installed.
            OSError: if there is no such checkpoint.
            ValueError: as [`plug_setok`].
        """
        if (quantization := kwargs.get("quantization_config")) is not None:
            require_quantizer(quantization)
            kwargs["quantization_config"] = with_skipped(quantization, cls.high_precision_modules())
        loaded = LlavaForConditionalGeneration.from_pretrained(llava, **kwargs)
        prepare_quantized_layers(loaded)
        model = plug_setok(loaded, setok_config)
        model.config.base_models = {"llava": lasting_name(llava)}
        model.added_weights = {name for name, _ in model.named_parameters() if name.startswith("model.setok.")}
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, SeTokLlavaImageFeatures] | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs,
    ) -> SeTokLlavaOutput:
        """
        Takes the arguments of [`MultimodalModel.forward`] and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Token ids, -100 where no loss is wanted.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions (0: all), or the positions, to compute logits for.
            skip_logits (`bool`, *optional*, defaults to `False`):
                With `labels`: run the head on supervised positions only and return no logits. The loss is the same.

        Returns:
            [`SeTokLlavaOutput`].
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            vision_features=vision_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **{**kwargs, "return_dict": True},  # whatever the config says: here it is read by name
        )
        return self._read_out(outputs, labels, logits_to_keep, skip_logits, num_items_in_batch)


def plug_setok(
    model: LlavaForConditionalGeneration, setok_config: PreTrainedConfig | Mapping[str, Any] | None = None
) -> SeTokLlavaForConditionalGeneration:
    """
    Puts SeTok behind the projector of a LLaVA (SeTok, Table 9). By default each token is the mean of the projected
    patches of a cluster, which adds no weights and needs no training.

    Args:
        model (`LlavaForConditionalGeneration`): stays as it is. The two models share their modules: what trains one
            trains the other.
        setok_config ([`SeTokTokenizerConfig`] or `dict`, *optional*): how patches are clustered and merged; see
            [`SeTokLlavaConfig`]. `{"method": "threshold", "min_tokens": N, "max_tokens": N}` with the number N of
            patches makes every patch a token: LLaVA as it was.

    Returns:
        [`SeTokLlavaForConditionalGeneration`], in the mode, and on the device, of the given model.

    Raises:
        TypeError: if the model is no LLaVA.
        ValueError: if it has adapters, SeTok does not fit it, or `setok_config` has an unknown field; names it.
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise TypeError(f"plug_setok was given a {type(model).__name__}, expected a LlavaForConditionalGeneration.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("The model has adapters: merge them, or add them once SeTok is plugged in.")
    config = plugged_config(model.config, setok_config)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        plugged = SeTokLlavaForConditionalGeneration(config)
    projector = next(model.model.multi_modal_projector.parameters())
    setok = AutoModel.from_config(config.setok_config)
    parts = {name: getattr(model.model, name) for name in ("vision_tower", "multi_modal_projector", "language_model")}
    for name, part in {**parts, "setok": setok.to(projector.device, computing_dtype(*parts.values()))}.items():
        setattr(plugged.model, name, part)
    plugged.lm_head = model.lm_head
    for name in _OF_QUANTIZATION:
        if hasattr(model, name):
            setattr(plugged, name, getattr(model, name))
    plugged.generation_config = copy.deepcopy(model.generation_config)
    return plugged.train(model.training)


def plugged_config(
    llava_config: PreTrainedConfig, setok_config: PreTrainedConfig | Mapping[str, Any] | None = None
) -> SeTokLlavaConfig:
    """
    The configuration of a LLaVA with SeTok behind its projector.

    Args:
        llava_config (`LlavaConfig`): of the LLaVA.
        setok_config: as in [`plug_setok`].

    Raises:
        ValueError: as [`plug_setok`].
    """
    given = dict(setok_config) if isinstance(setok_config, Mapping) else setok_config
    fields = SeTokTokenizerConfig().to_dict()
    if unknown := [name for name in (given if isinstance(given, dict) else ()) if name not in fields]:
        close = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see SeTokTokenizerConfig."
        raise ValueError(f"setok_config has {unknown[0]!r}, which is no field of a SeTok: {hint}")
    values = {key: value for key, value in without_path(llava_config).items() if key not in _FOLLOWS}
    return SeTokLlavaConfig(**{**values, "setok_config": given})


# What transformers notes of a model that it has quantised.
_OF_QUANTIZATION = (
    *("is_quantized", "quantization_method", "hf_quantizer", "hf_device_map"),
    *("is_loaded_in_4bit", "is_loaded_in_8bit"),
)
_FOLLOWS = ("model_type", "architectures", "transformers_version", "auto_map")

__all__ = [
    "SeTokLlavaForConditionalGeneration",
    "SeTokLlavaModel",
    "SeTokLlavaPreTrainedModel",
    "plug_setok",
    "plugged_config",
]
