"""What the models of Setokim return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import ModelOutput

from .multimodal_outputs import ImageFeatures, MultimodalOutputMixin


@dataclass
class SetokimImageFeatures(ImageFeatures):
    """
    Output of `get_image_features` of Setokim: [`ImageFeatures`], whose `tokens` are what the model regresses where it
    writes an image, and what they were made of:

    Args:
        patch_features (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`, *optional*):
            Patches of the images, in row-major order, which masks are decoded from. Only where no image was given as
            its tokens.
        assignment (`torch.LongTensor` of shape `(num_images, num_patches)`, *optional*):
            The token that each patch went to. As `patch_features`.
        cluster_masks (`torch.FloatTensor` of shape `(num_images, num_tokens, num_patches)`, *optional*):
            Membership of patches in tokens. As `patch_features`.
    """

    patch_features: torch.Tensor | None = None
    assignment: torch.Tensor | None = None
    cluster_masks: torch.Tensor | None = None


@dataclass
class SetokimOutput(MultimodalOutputMixin, ModelOutput):
    """
    Output of [`SetokimModel`] and [`SetokimForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Sum of `loss_lm` and the weighted others.
        loss_lm (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy of the text, `[Img]` and `[/Img]` among it, in nats per labelled token.
        loss_visual (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Mean squared error of the visual tokens that are written, per token and channel, without its weight.
        loss_length (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy of "one more visual token", in nats per visual token that is written, without its weight.
        loss_choice (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels` by a model with a bank):
            Cross-entropy of the visual tokens that are written among those of the bank and of their rows, in nats per
            token, without its weight.
        logits (`torch.FloatTensor` of shape `(batch, sequence_length, vocab_size)`, *optional*):
            Scores of the vocabulary at the given positions; absent with `skip_logits=True`.
        visual_positions (`torch.BoolTensor` of shape `(batch, sequence_length)`, *optional*, returned with `labels`):
            True at visual tokens that are regressed.
        visual_predictions (`torch.FloatTensor` of shape `(num_predicted, token_size)`, *optional*):
            With `labels`: the token predicted for each of the `visual_positions`, in their order, with a graph. With
            `predict_visual_tokens`: that of the last position, `(batch, token_size)`.
        choice_losses (`torch.FloatTensor` of shape `(num_predicted,)`, *optional*):
            What `loss_choice` is the mean of.
        token_queries (`torch.FloatTensor` of shape `(batch, token_size)`, *optional*):
            With `predict_visual_tokens`, by a model with a bank: what the last position looks for in it.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence_length, hidden_size)`, *optional*):
            Last states of the language model, from [`SetokimModel`].
        past_key_values (`Cache`, *optional*): key-value cache of the language model.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*): all states of the language model.
        attentions (`tuple[torch.FloatTensor]`, *optional*): attention maps of the language model.
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`, *optional*):
            Projected visual tokens.
    """

    loss: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    loss_visual: torch.FloatTensor | None = None
    loss_length: torch.FloatTensor | None = None
    loss_choice: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    visual_positions: torch.BoolTensor | None = None
    visual_predictions: torch.FloatTensor | None = None
    choice_losses: torch.FloatTensor | None = None
    token_queries: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class SetokimGenerateOutput(GenerateDecoderOnlyOutput):
    """
    What `generate` of Setokim returns with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(num_sequences, sequence_length)`):
            Prompt and text, in which `[Img]`, a placeholder for each visual token, and `[/Img]` stand for an image.
        visual_tokens (`list[list[torch.FloatTensor]]`):
            For each sequence the images that it wrote, each `(num_tokens, token_size)`; `max_new_tokens` may have cut
            the last one off, which then lacks its `[/Img]`.
    """

    visual_tokens: list[list[torch.Tensor]] | None = None


@dataclass
class SetokimImages(ModelOutput):
    """
    Images that Setokim wrote.

    Args:
        images (`torch.FloatTensor` of shape `(batch, 3, height, width)`): pixels, 0 to 1.
        tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): what they were decoded from.
        mask (`torch.BoolTensor` of shape `(batch, num_tokens)`): True at real tokens.
    """

    images: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass
class SetokimMasks(ModelOutput):
    """
    Masks that Setokim wrote for expressions.

    Args:
        masks (`list[torch.BoolTensor]`): for each expression, `(height, width)`, True inside.
        mask_logits (`list[torch.FloatTensor]`): for each expression, `(height, width)`, before the sigmoid.
        tokens (`torch.FloatTensor` of shape `(batch, 1, token_size)`): what they were decoded from.
    """

    masks: list[torch.Tensor] | None = None
    mask_logits: list[torch.Tensor] | None = None
    tokens: torch.Tensor | None = None


__all__ = [
    "SetokimGenerateOutput",
    "SetokimImageFeatures",
    "SetokimImages",
    "SetokimMasks",
    "SetokimOutput",
]
