"""What composed models return: images as visual tokens, and the states of the language model that read them."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from .compact_sequences import CompactSequences


@dataclass
class ImageFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_image_features` of a composed model.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`):
            Projected visual tokens; padding is zero.
        pooler_output (`list[torch.FloatTensor]`):
            For each image the embeddings that its placeholders become, `(num_tokens_i, hidden_size)`, without padding.
        token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`):
            True at real tokens.
        assignment (`torch.LongTensor` of shape `(num_images, num_patches)`, *optional*):
            The token that each patch went to, -1 for dropped patches, of a visual tokenizer that has such a map.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Attention maps of the visual tokenizer, a layer each, `(num_images, num_heads, num_tokens, num_keys)`.
        grid_size (`tuple[int, int]`, *optional*): height and width of the images in patches.
        num_prefix_tokens (`int`, *optional*):
            How many of the keys precede the first patch; unknown of cached features with [CLS] or registers.
        tokens (`torch.FloatTensor` of shape `(num_images, num_tokens, token_size)`, *optional*):
            Visual tokens of the tokenizer, which `last_hidden_state` was projected from; padding is zero.
    """

    token_mask: torch.Tensor | None = None
    assignment: torch.Tensor | None = None
    grid_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None
    tokens: torch.Tensor | None = None

    @property
    def embeddings(self) -> torch.Tensor | None:
        """What the placeholders become, padded, `(num_images, num_tokens, hidden_size)`; unknown of mere lists."""
        return self.last_hidden_state

    def per_placeholder(self) -> torch.Tensor:
        """An embedding for each placeholder of the text, `(num_placeholders, hidden_size)`."""
        if self.embeddings is not None:
            return self.embeddings.flatten(0, 1)
        return torch.cat(list(self.pooler_output))  # what transformers repeats for beams and cuts for chunks

    def per_image(self) -> list[torch.Tensor]:
        """An embedding for each placeholder of each image, `(num_placeholders, hidden_size)`."""
        return list(self.pooler_output if self.embeddings is None else self.embeddings)

    def real_tokens(self) -> list[torch.Tensor]:
        """The embeddings of each image without padding, `(num_tokens_i, hidden_size)`."""
        if self.embeddings is None or self.token_mask is None:
            return self.per_image()
        return [image[kept] for image, kept in zip(self.embeddings, self.token_mask)]


class MultimodalOutputMixin:
    """
    How an output of a composed model comes about, for dataclasses of what the model returns.

    Attributes:
        compact ([`CompactSequences`], *optional*): which columns the language model read, where it was not all. No
            field: an output turned into a tuple or sent to another process lacks it.
    """

    compact: CompactSequences | None = None

    @classmethod
    def of_language_model(cls, outputs: ModelOutput, image_features: ImageFeatures | None) -> Any:
        """
        Joins what a language model returned with what its images became.

        Args:
            outputs (`ModelOutput`): of a causal language model without its head, or of an encoder-decoder one with it.
            image_features ([`ImageFeatures`], *optional*): of the images, if there were any.
        """
        fields = set(cls.__dataclass_fields__)  # type: ignore[attr-defined]
        values = {name: outputs[name] for name in fields & set(outputs)}
        if (states := outputs.get("decoder_hidden_states")) is not None:
            values |= {"hidden_states": states, "last_hidden_state": states[-1]}
        if (attentions := outputs.get("decoder_attentions")) is not None:
            values["attentions"] = attentions
        if image_features is not None:
            values["image_hidden_states"] = image_features.last_hidden_state
            if "image_attentions" in fields:
                values["image_attentions"] = image_features.attentions
        return cls(**values)

    def with_head(self, loss: torch.Tensor | None, logits: torch.Tensor | None, **values: Any) -> Any:
        """
        The output of a model with a head: a new one, because a field of an output that is set later comes last in its
        tuple, and one that is set to `None` stays there.

        Args:
            loss, logits (`torch.FloatTensor`, *optional*): what the head made of the states.
            values: further fields.
        """
        old = dict(self.items())  # type: ignore[attr-defined]
        return type(self)(**{**old, "loss": loss, "logits": logits, "last_hidden_state": None, **values})


__all__ = ["ImageFeatures", "MultimodalOutputMixin"]
