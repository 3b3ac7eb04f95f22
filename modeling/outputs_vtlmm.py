"""What the models of VT-LMM return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from .multimodal_outputs import ImageFeatures, MultimodalOutputMixin


@dataclass
class VTLMMImageFeatures(ImageFeatures):
    """
    Output of `get_image_features` of VT-LMM: [`ImageFeatures`] whose `last_hidden_state` is the adapter's output
    X_image, and:

    Args:
        pseudo_features (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`, *optional*):
            What takes its place in the language model's input, X_p (Eq. 8), of a model with pseudo image features.
    """

    pseudo_features: torch.Tensor | None = None

    @property
    def embeddings(self) -> torch.Tensor | None:
        return self.last_hidden_state if self.pseudo_features is None else self.pseudo_features

    def with_pseudo_features(self, pseudo_features: torch.Tensor) -> "VTLMMImageFeatures":
        """The same images, of which the language model reads the pseudo features."""
        kept = pseudo_features if self.token_mask is None else pseudo_features * self.token_mask.unsqueeze(-1)
        per_image = [image[: len(own)] for image, own in zip(kept, self.pooler_output)]  # padding is at the end
        return VTLMMImageFeatures(**{**dict(self.items()), "pooler_output": per_image, "pseudo_features": kept})


@dataclass
class VTLMMOutput(MultimodalOutputMixin, ModelOutput):
    """
    Output of [`VTLMMModel`] and [`VTLMMForCausalLM`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` or `visual_loss`):
            Sum of `loss_lm` and the weighted `loss_vm` (Eq. 7), of those that were asked for.
        loss_lm (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Language modelling loss in nats per answer token (Eq. 4).
        loss_vm (`torch.FloatTensor` of shape `()`, *optional*, returned with `visual_loss`):
            Visual loss in nats per predicted image position (Eq. 6 or 9), without its weight.
        logits (`torch.FloatTensor` of shape `(batch, sequence_length, vocab_size)`, *optional*):
            Scores of the language model; absent with `skip_logits=True`, and where a loss is trained unless they are
            asked for.
        visual_positions (`torch.BoolTensor` of shape `(batch, sequence_length)`, *optional*):
            True at image positions that have a prediction, S_VM; all `False` without images. From
            [`VTLMMForCausalLM`].
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence_length, hidden_size)`, *optional*):
            Last states of the language model, from [`VTLMMModel`].
        past_key_values (`Cache`, *optional*): key-value cache of the language model.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): all states of the language model.
        attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of the language model.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`, *optional*):
            The adapter's output X_image.
    """

    loss: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    loss_vm: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    visual_positions: torch.BoolTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


__all__ = ["VTLMMImageFeatures", "VTLMMOutput"]
