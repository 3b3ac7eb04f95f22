"""Language statistics of the visual tokens of a folder of images, read one after the other."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..modeling.vm_head import last_layer, warn_of_untrained_vm_head
from ..modeling.vocabulary_distributions import distribution_statistics
from ..processing.token_labels import TokenLabels
from .content_features import check_reads_words, content_features
from .token_statistics import TokenStatistics

logger = logging.get_logger(__name__)


def measure_token_statistics(
    model: Any,
    processor: Any,
    files: Sequence[str | os.PathLike],
    *,
    batch_size: int = 8,
    num_resamples: int = 200,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """
    Counts the words of the visual tokens of images, with a progress bar. Of an image that was counted one number is
    kept, and distributions over the vocabulary are held for a few patches at a time. Patches of nothing but the border
    with which an image is padded to a square are left out, as are the visual tokens of [CLS] and registers where a
    model has them: they are no part of the image.

    Args:
        model ([`VTLMMForCausalLM`]): has a visual modelling head.
        processor ([`VTLMMProcessor`]): the processor that belongs to it.
        files (`list[str]`): images, from [`find_images`].
        batch_size (`int`, *optional*, defaults to 8): images that go through the vision tower at once.
        num_resamples, seed: see [`TokenStatistics`].
        skip_unreadable (`bool`, *optional*, defaults to `False`): leave out images that cannot be read, and name them.

    Returns:
        `dict`: see [`TokenStatistics.results`]; and `unreadable`, names of files that were left out.

    Raises:
        BadSampleError: if an image is missing or unreadable, unless these are left out.
        ValueError: if the model has no visual modelling head, its visual tokens are no patches, there is no image, or
            `batch_size` is less than 1.
    """
    check_reads_words(model)
    warn_of_untrained_vm_head(model.config)
    vocab_size = len(model.get_input_embeddings().weight)
    statistics = TokenStatistics(vocab_size, num_resamples, seed)
    unreadable: list[str] = []
    for features in content_features(model, processor, files, batch_size, unreadable if skip_unreadable else None):
        statistics.add(*word_counts(features, model.model.vm_head))
    if unreadable:
        logger.warning(f"{len(unreadable)} images that cannot be read were left out, the first one {unreadable[0]}.")
    labels = TokenLabels(processor.tokenizer)
    return {
        **statistics.results([labels[number] for number in range(vocab_size)]),
        "unreadable": unreadable,
    }


@torch.no_grad()
def word_counts(image_features: torch.Tensor, vm_head: torch.nn.Module) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    What [`TokenStatistics`] counts of an image.

    Args:
        image_features (`torch.FloatTensor` of shape `(num_patches, hidden_size)`): the adapter's output X_image.
        vm_head (`nn.Module`): see [`build_vm_head`].

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: the most probable token of each patch; the sum of the patches'
        distributions P' (Eq. 5), over the vocabulary, in float64; and the entropy of each, in nats.
    """
    features, weight = last_layer(vm_head, image_features)
    expected_counts = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    found = distribution_statistics(features.to(weight.device), weight, add_to=expected_counts)
    top_tokens, expected, entropy = (
        value.cpu().numpy() for value in (found.top_token, expected_counts, found.entropy)
    )
    return top_tokens, expected, entropy


__all__ = ["measure_token_statistics", "word_counts"]
