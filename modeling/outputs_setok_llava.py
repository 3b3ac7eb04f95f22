"""What LLaVA with SeTok behind its projector returns."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from .multimodal_outputs import ImageFeatures, MultimodalOutputMixin


@dataclass
class SeTokLlavaImageFeatures(ImageFeatures):
    """Output of `get_image_features`: [`ImageFeatures`], whose `assignment` says which patch went to which token."""


@dataclass
class SeTokLlavaOutput(MultimodalOutputMixin, ModelOutput):
    """
    Output of [`SeTokLlavaModel`] and [`SeTokLlavaForConditionalGeneration`], with the names that LLaVA's has.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` are given):
            Language modelling loss in nats per answer token.
        logits (`torch.FloatTensor` of shape `(batch, sequence_length, vocab_size)`, *optional*):
            Scores of the language model at the given positions; absent with `skip_logits=True`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence_length, hidden_size)`, *optional*):
            Last states of the language model, from [`SeTokLlavaModel`].
        past_key_values (`Cache`, *optional*): key-value cache of the language model, of real tokens alone.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): all states of the language model.
        attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of the language model.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_placeholders, hidden_size)`, *optional*):
            Visual tokens; unused placeholders are zero.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


__all__ = ["SeTokLlavaImageFeatures", "SeTokLlavaOutput"]
