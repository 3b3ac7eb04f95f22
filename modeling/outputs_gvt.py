"""What the models of GVT return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput


@dataclass
class GVTImageFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_image_features`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`):
            Projected visual tokens; padding is zero.
        pooler_output (`list[torch.FloatTensor]`):
            For each image its projected visual tokens, `(num_tokens_i, hidden_size)`, without padding.
        token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`):
            True at real tokens.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attention maps of the visual tokenizer, a layer each, `(num_images, num_heads, num_tokens, num_keys)`.
        grid_size (`tuple[int, int]`, *optional*): height and width of the images in patches.
        num_prefix_tokens (`int`, *optional*):
            How many of the keys precede the first patch; unknown of cached features with [CLS] or registers.
    """

    token_mask: torch.Tensor | None = None
    grid_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None

    def per_placeholder(self) -> torch.Tensor:
        """A token for each placeholder of the text, `(num_placeholders, hidden_size)`."""
        if self.last_hidden_state is not None:
            return self.last_hidden_state.flatten(0, 1)
        return torch.cat(list(self.pooler_output))  # what transformers repeats for beams and cuts for chunks


@dataclass
class GVTOutput(ModelOutput):
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

    @classmethod
    def of_language_model(cls, outputs: ModelOutput, image_features: GVTImageFeatures | None) -> "GVTOutput":
        """
        Joins what a language model returned with what its images became.

        Args:
            outputs (`ModelOutput`): of a causal language model without its head, or of an encoder-decoder one with it.
            image_features ([`GVTImageFeatures`], *optional*): of the images, if there were any.
        """
        same_names = set(cls.__dataclass_fields__) & set(outputs)
        values = {name: outputs[name] for name in same_names}
        if (states := outputs.get("decoder_hidden_states")) is not None:
            values |= {"hidden_states": states, "last_hidden_state": states[-1]}
        if (attentions := outputs.get("decoder_attentions")) is not None:
            values["attentions"] = attentions
        if image_features is not None:
            values["image_hidden_states"] = image_features.last_hidden_state
            values["image_attentions"] = image_features.attentions
        return cls(**values)

    def with_head(self, loss: torch.Tensor | None, logits: torch.Tensor | None) -> "GVTOutput":
        """
        The output of a model with a head: a new one, because a field of an output that is set later comes last in its
        tuple, and one that is set to `None` stays there.
        """
        return type(self)(**{**dict(self.items()), "loss": loss, "logits": logits, "last_hidden_state": None})


__all__ = ["GVTImageFeatures", "GVTOutput"]
