"""The interface of visual tokenizers: what stands between a vision tower and a language model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput


@dataclass
class VisualTokenizerOutput(ModelOutput):
    """
    Output of a visual tokenizer. Here and below N is the number of patches and M the number of visual tokens, the
    largest of the batch where it differs between images.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch, num_tokens, output_size)`):
            Visual tokens; padding is zero.
        mask (`torch.BoolTensor` of shape `(batch, num_tokens)`):
            True at real tokens. Padding, if any, is at the end.
        assignment (`torch.LongTensor` of shape `(batch, num_patches)`, *optional*):
            The token that each patch went to, -1 for dropped patches.
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
            Membership of patches in tokens; sums to 1 over tokens at every kept patch.
        weights (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
            `cluster_masks` normalised over patches. For a linear tokenizer `tokens = weights @ patch_features`.
        scores (`torch.FloatTensor` of shape `(batch, num_patches)`, *optional*):
            How strongly each patch asked to be a token.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            For each layer, attention of the tokens, `(batch, num_heads, num_tokens, num_keys)`; the first keys are the
            patch features.
        auxiliary_losses (`dict[str, torch.FloatTensor]`, *optional*):
            Named scalars that training may add to its loss.
    """

    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    assignment: torch.Tensor | None = None
    cluster_masks: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    auxiliary_losses: dict[str, torch.Tensor] | None = None


@dataclass
class VisionFeatures:
    """
    What a vision tower gives to a visual tokenizer.

    Args:
        patch_features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`):
            Features of the chosen layer: patches in row-major order, behind the prefix tokens if those were kept.
        grid_size (`tuple[int, int]`, *optional*):
            Height and width of the image, in patches; unknown of cached features.
        num_prefix_tokens (`int`, *optional*):
            How many of the `patch_features` come before the first patch ([CLS], registers); 0 if they were dropped,
            `None` where it is unknown: of cached features that may have them.
        cls_features (`torch.FloatTensor` of shape `(batch, hidden_size)`, *optional*):
            Feature of [CLS], for tokenizers that require `"cls_features"`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            All layers of the tower, for tokenizers that require `"hidden_states"`.
        cls_attentions (`torch.FloatTensor` of shape `(batch, num_heads, num_patches)`, *optional*):
            Attention of [CLS] to the patches in the chosen layer, for tokenizers that require `"cls_attentions"`.
    """

    patch_features: torch.Tensor
    grid_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = 0
    cls_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cls_attentions: torch.Tensor | None = None


def computing_dtype(*modules: nn.Module) -> torch.dtype:
    """
    The dtype that modules compute in: that of their first floating-point parameter. Weights of quantised layers are
    integers, or numbers of eight bits that nothing computes in.

    Args:
        modules (`nn.Module`): in the order in which they are asked; a visual tokenizer may have no parameters.
    """
    parameters = (parameter for module in modules for parameter in module.parameters())
    dtypes = (parameter.dtype for parameter in parameters if parameter.is_floating_point())
    return next((dtype for dtype in dtypes if dtype.itemsize > 1), torch.get_default_dtype())


class VisualTokenizer(PreTrainedModel):
    """
    Base class of visual tokenizers. A tokenizer is a model of its own: it has a config and is registered with
    `AutoModel`, and composite models build it from their config by its `model_type`, whichever it is. As in every
    `PreTrainedModel`, parameters that belong to no layer of PyTorch get their first values in `_init_weights`.

    Class attributes:
        required_inputs (`tuple[str, ...]`): fields of [`VisionFeatures`] it needs beside `patch_features`. The
            composite model asks the tower for them. Every tokenizer is told `grid_size` and `num_prefix_tokens`; one
            that reads them names them here, or it may be given cached features, of which they are not known.
        variable_num_tokens (`bool`): whether the number of tokens follows the image. If so the processor still writes
            `max_num_tokens` placeholders, and the composite model takes unused ones out before its decoder.
        one_token_per_patch (`bool`): whether every patch becomes a token. All images of a processor have one size, so
            it writes as many placeholders as they have patches; `max_num_tokens` is what it is told to expect.
    """

    required_inputs: ClassVar[tuple[str, ...]] = ()
    variable_num_tokens: ClassVar[bool] = False
    one_token_per_patch: ClassVar[bool] = False
    input_modalities = ("image",)
    main_input_name = "patch_features"
    # A composite model asks all its parts for one attention backend; a tokenizer without attention has no objection.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def output_size(self) -> int:
        """Width of a visual token."""
        raise NotImplementedError(f"{type(self).__name__} does not say how wide its tokens are.")

    @property
    def max_num_tokens(self) -> int:
        """The largest number of visual tokens of an image; the processor writes as many placeholders."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many tokens it makes.")

    def forward(
        self,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int | None = 0,
        **kwargs,
    ) -> VisualTokenizerOutput:
        """
        Turns the fields of [`VisionFeatures`] into a [`VisualTokenizerOutput`]. The fields named in `required_inputs`
        come as keyword arguments, and so does `output_attentions`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward.")


__all__ = ["VisionFeatures", "VisualTokenizer", "VisualTokenizerOutput", "computing_dtype"]
