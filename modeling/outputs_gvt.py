"""What the models of GVT return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from .multimodal_outputs import ImageFeatures, MultimodalOutputMixin


@dataclass
class GVTImageFeatures(ImageFeatures):
    """Output of `get_image_features` of GVT: [`ImageFeatures`], with the attention maps of the resampler."""


@dataclass
class GVTOutput(MultimodalOutputMixin, ModelOutput):
    """
    Output of [`GVTModel`] and [`GVTForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` are given):
            Language modelling loss in nats per answer token.
        logits (`torch.FloatTensor` of shape `(batch, sequence_length, vocab_size)`, *optional*):
            Scores of the language model; absent with `skip_logits=True`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence_length, hidden_size)`, *optional*):
            Last states of the language model, from [`GVTModel`]. Those of an encoder-decoder model, which keeps its
            head, come with `output_hidden_states=True` only.
        past_key_values (`Cache`, *optional*): key-value cache of the language model.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): all states of the language model or its decoder.
        attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of the language model or its decoder.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`, *optional*):
            Projected visual tokens.
        image_attentions (`tuple[torch.FloatTensor]`, *optional*, returned with `output_attentions=True`):
            Attention maps of the visual tokenizer, a layer each, `(num_images, num_heads, num_tokens, num_keys)`.
        encoder_last_hidden_state (`torch.FloatTensor`, *optional*): of an encoder-decoder language model.
        encoder_hidden_states (`tuple[torch.FloatTensor]`, *optional*): all states of its encoder.
        encoder_attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of its encoder.
        cross_attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of its decoder over the encoder.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["GVTImageFeatures", "GVTOutput"]
