"""Which words are probable everywhere: the mean of visual-token distributions, a reference for those of one patch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.vm_head import last_layer, warn_of_untrained_vm_head
from ..modeling.vocabulary_distributions import distribution_statistics
from ..processing.images import ImageSource
from .content_features import check_reads_words, content_features


@dataclass(frozen=True)
class WordReference:
    """
    The mean P̄ of visual-token distributions P' (VT-LMM, Eq. 5), against which the distinctive words of a patch are
    found: those with the largest P' log(P'/P̄), see [`DistinctiveTokens`].

    Args:
        distribution (`torch.DoubleTensor` of shape `(vocab_size,)`): P̄.
        num_patches (`int`): of how many patches it is the mean.
        images (`str`): of which images, in words, such as `"this image"`.
    """

    distribution: torch.Tensor
    num_patches: int
    images: str

    @property
    def description(self) -> str:
        """What it is the mean of, in words."""
        return f"mean over the {self.num_patches:,} patches of {self.images}"


@torch.no_grad()
def mean_distribution(
    model: Any, processor: Any, images: Sequence[ImageSource], *, batch_size: int = 8, described: str | None = None
) -> WordReference:
    """
    Adds up the visual-token distributions of images, read one after the other with a progress bar. Patches of nothing
    but the border with which an image is padded to a square are left out.

    Relative to the mean of an image's own patches, its words are those by which a patch differs from the rest of the
    image, and what all of it shows is in none of them; relative to many images, the words are those of the image.

    Args:
        model ([`VTLMMForCausalLM`]): has a visual modelling head.
        processor ([`VTLMMProcessor`]): the processor that belongs to it.
        images (`list`): paths, bytes or PIL images, as in [`load_image`].
        batch_size (`int`, *optional*, defaults to 8): images that go through the vision tower at once.
        described (`str`, *optional*): which images these are, in words; by default how many.

    Returns:
        [`WordReference`].

    Raises:
        BadSampleError: if an image is missing or unreadable.
        ValueError: if there is no image, the model has no visual modelling head, its visual tokens are no patches, or
            its distributions are not finite.
    """
    if not images:
        raise ValueError("There is no mean of no image: give at least one.")
    check_reads_words(model)
    warn_of_untrained_vm_head(model.config)
    total, num_patches = torch.zeros(0), 0
    for of_image in content_features(model, processor, images, batch_size):
        features, weight = last_layer(model.model.vm_head, of_image)
        if not num_patches:
            total = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        distribution_statistics(features.to(weight.device), weight, add_to=total)
        num_patches += len(features)
    if not num_patches or not torch.isfinite(total).all():
        raise ValueError(
            f"The distributions of {num_patches} patches have no mean: the weights of the model may be damaged, or "
            "overflow in its dtype."
        )
    counted = "one image" if len(images) == 1 else f"{len(images):,} images"
    return WordReference(total / total.sum(), num_patches, described or counted)


__all__ = ["WordReference", "mean_distribution"]
