"""The visual modelling head of VT-LMM: from visual tokens to distributions over the vocabulary (Eq. 5)."""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .divided_weights import whole_weights
from .plain_matrix import matrix_of
from .visual_tokenizer import computing_dtype

logger = logging.get_logger(__name__)


class LowRankVMHead(nn.Module):
    """
    A visual modelling head that is the product of two matrices.

    Args:
        in_features (`int`): width of a visual token.
        out_features (`int`): size of the vocabulary.
        rank (`int`): width between the two.
    """

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> logits, (..., out_features)."""
        return self.up(self.down(image_features))


def build_vm_head(in_features: int, out_features: int, rank: int | None = None) -> nn.Linear | LowRankVMHead:
    """
    Makes a visual modelling head: an unbiased linear layer, as in the paper (Section 3.1), or one of low rank.

    Args:
        in_features (`int`): width of a visual token.
        out_features (`int`): size of the vocabulary.
        rank (`int`, *optional*): of the product of two matrices; by default it is one.
    """
    if rank is None:
        return nn.Linear(in_features, out_features, bias=False)
    return LowRankVMHead(in_features, out_features, rank)


def last_layer(vm_head: nn.Module, image_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A head as one matrix product: logits are `features · weightᵀ`.

    Args:
        vm_head (`nn.Module`): of [`build_vm_head`].
        image_features (`torch.FloatTensor` of shape `(..., in_features)`): visual tokens.

    Returns:
        `tuple`: the features, `(..., in_features or rank)`, and the weight, `(vocab_size, in_features or rank)`.
    """
    if isinstance(vm_head, LowRankVMHead):
        # The head may be trained in float32 behind an adapter that is frozen in bfloat16.
        image_features, vm_head = vm_head.down(image_features.to(computing_dtype(vm_head.down))), vm_head.up
    weight, _ = matrix_of(vm_head, image_features.shape[-1], image_features)
    return image_features, weight


def warn_of_untrained_vm_head(config: Any) -> None:
    """
    Warns, once, of distributions that mean nothing.

    Args:
        config ([`VTLMMConfig`]): of the model whose visual modelling head is read.
    """
    if config.vm_head_trained is False:
        logger.warning_once(
            "The visual modelling head of this model is random (vm_head_trained is False in its config): the words it "
            'gives to images mean nothing. Train it, with the stage visual_tokens or visual_loss="visual_tokens"; if '
            "you gave it weights in another way, set config.vm_head_trained to True."
        )


def resize_vm_head(vm_head: nn.Linear | LowRankVMHead, vocab_size: int, std: float) -> None:
    """
    Gives a head as many rows as the vocabulary has tokens, in place; new ones are drawn like the first ones.

    Args:
        vm_head (`nn.Module`): of [`build_vm_head`].
        vocab_size (`int`): number of rows.
        std (`float`): standard deviation of new rows.
    """
    layer = vm_head.up if isinstance(vm_head, LowRankVMHead) else vm_head
    before, num_before = layer.weight, layer.out_features  # of a weight that ZeRO stage 3 divides, none is here
    if num_before == vocab_size:
        return
    with whole_weights([before]):
        shape = (vocab_size, layer.in_features)
        weight = torch.empty(shape, dtype=before.dtype, device=before.device).normal_(0.0, std)
        kept = min(num_before, vocab_size)
        weight[:kept] = before.data[:kept]
    layer.weight = nn.Parameter(weight, requires_grad=before.requires_grad)
    layer.out_features = vocab_size


__all__ = ["LowRankVMHead", "build_vm_head", "last_layer", "resize_vm_head", "warn_of_untrained_vm_head"]
