"""The output head of a language model, outside of it: as its own class would compute the logits."""

import functools
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

LOGIT_FIELDS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def build_language_head(text_config: PreTrainedConfig) -> nn.Linear:
    """
    Makes the output embedding that belongs to a causal language model, with a bias where that model has one.

    Args:
        text_config (`PreTrainedConfig`): configuration of a causal language model.

    Returns:
        `nn.Linear` from `hidden_size` to `vocab_size`.
    """
    with torch.device("meta"):
        original = AutoModelForCausalLM.from_config(text_config).get_output_embeddings()
    return nn.Linear(original.in_features, original.out_features, bias=original.bias is not None)


def logit_transform(text_config: PreTrainedConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """
    What a language model does to its logits behind the head (see [`scale_logits`]); `None` of most, which do nothing.

    Args:
        text_config (`PreTrainedConfig`): configuration of the language model.
    """
    if all(getattr(text_config, name, None) is None for name in LOGIT_FIELDS):
        return None
    return functools.partial(scale_logits, text_config=text_config)


def scale_logits(logits: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """
    Applies what some language models do to their logits behind the head: a factor (Cohere), a divisor (Granite,
    MiniCPM) or a soft cap (Gemma 2).

    Args:
        logits (`torch.FloatTensor` of shape `(..., vocab_size)`): output of the head.
        text_config (`PreTrainedConfig`): configuration of the language model.
    """
    if (factor := getattr(text_config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


__all__ = ["build_language_head", "logit_transform", "scale_logits"]
