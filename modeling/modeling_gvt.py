"""GVT: vision tower → visual tokenizer → projector → language model."""

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_gvt import GVTConfig
from .multimodal_generation import MultimodalForGeneration
from .multimodal_model import MultimodalModel, MultimodalPreTrainedModel, build_language_model, embedding_width
from .outputs_gvt import GVTImageFeatures, GVTOutput
from .vision_features import build_vision_tower
from .visual_tokenizer import VisualTokenizer, computing_dtype


class GVTPreTrainedModel(MultimodalPreTrainedModel):
    config: GVTConfig
    config_class = GVTConfig
    _no_split_modules = ["PerceiverResamplerLayer"]
    trainable_parts = {
        "vision": "model.vision_tower",
        "resampler": ("model.resampler", "model.projector"),
        "llm": ("model.language_model", "lm_head"),
    }


class GVTModel(GVTPreTrainedModel, MultimodalModel):
    """
    Vision tower, visual tokenizer, projector and language model, without a head (GVT, Figure 2). Its `forward` is that
    of [`MultimodalModel`], and returns a [`GVTOutput`].

    Args:
        config ([`GVTConfig`]): the visual tokenizer is built from `config.resampler_config` by its `model_type`.

    Raises:
        ValueError: if the image placeholder is no token of the language model; names both numbers.
    """

    image_features_class = GVTImageFeatures
    output_class = GVTOutput

    def __init__(self, config: GVTConfig):
        super().__init__(config)
        config.check_image_token()
        self.vision_tower = build_vision_tower(config.vision_config)
        self.resampler = AutoModel.from_config(config.resampler_config)
        language_model = build_language_model(config)
        self.projector = nn.Linear(self.resampler.output_size, embedding_width(language_model))
        self._set_language_model(language_model)
        self.post_init()

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        return self.resampler

    @property
    def projection(self) -> nn.Module:
        return self.projector

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.projector(tokens)

    def _tokenizer_dtype(self) -> torch.dtype:
        return computing_dtype(self.resampler, self.projector)


class GVTForConditionalGeneration(GVTPreTrainedModel, MultimodalForGeneration):
    """
    GVT with a language modelling head: answers in text to prompts with any number of images.

    Args:
        config ([`GVTConfig`]): see there.
    """

    def __init__(self, config: GVTConfig):
        super().__init__(config)
        self.model = GVTModel(config)
        self._build_head()
        self.post_init()

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
        mm_encoder_outputs: dict[str, GVTImageFeatures] | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs,
    ) -> GVTOutput:
        """
        Takes the arguments of [`MultimodalModel.forward`] and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Token ids, -100 where no loss is wanted. Of an encoder-decoder model: the target sequence.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions (0: all), or the positions, to compute logits for.
            skip_logits (`bool`, *optional*, defaults to `False`):
                With `labels`: run the head on supervised positions only and return no logits. The loss is the same.
                An encoder-decoder model runs its own head on all positions, whatever is returned.

        Returns:
            [`GVTOutput`].
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "vision_features": vision_features,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "mm_encoder_outputs": mm_encoder_outputs,
            "return_dict": True,  # whatever the config says: here it is read by name
        }
        num_items = kwargs.pop("num_items_in_batch", None)
        if not self.config.is_encoder_decoder:
            return self._read_out(self.model(**inputs, **kwargs), labels, logits_to_keep, skip_logits, num_items)
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        outputs = self.model(**inputs, labels=labels, **kwargs)
        loss, logits = outputs.loss, outputs.logits[:, positions]
        if labels is not None and num_items is not None:
            # Its own loss is the mean over this batch, which may be one of several that a step accumulates.
            loss = loss * (labels != -100).sum() / num_items
        return outputs.with_head(loss, None if labels is not None and skip_logits else logits)


__all__ = [
    "GVTForConditionalGeneration",
    "GVTImageFeatures",
    "GVTModel",
    "GVTOutput",
    "GVTPreTrainedModel",
]
