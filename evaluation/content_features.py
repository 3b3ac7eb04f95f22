"""Visual tokens of images patch by patch, without [CLS], registers, and the border of images padded to squares."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.utils import logging

from ..processing.images import BadSampleError, ImageSource, load_image
from ..processing.square_images import content_patches


def check_reads_words(model: Any) -> None:
    """
    Raises:
        ValueError: if a model has no visual modelling head.
    """
    if not hasattr(model, "get_visual_tokens"):
        raise ValueError(
            f"{type(model).__name__} ({model.config.model_type}) has no visual modelling head, which reads images as "
            "words: give a VT-LMM, as `vistok train` leaves one behind stage visual_tokens or visual_modeling."
        )


def patch_tokens(num_tokens: int, grid_size: tuple[int, int] | None, num_prefix_tokens: int | None) -> slice:
    """
    The visual tokens of an image that are patches: all of them, or those behind [CLS] and registers.

    Args:
        num_tokens (`int`): how many visual tokens an image has.
        grid_size (`tuple[int, int]`, *optional*): height and width of the image in patches.
        num_prefix_tokens (`int`, *optional*): how many visual tokens come before the patches.

    Raises:
        ValueError: if there is not one for each patch.
    """
    first = num_prefix_tokens or 0
    if grid_size is None or grid_size[0] * grid_size[1] != num_tokens - first:
        raise ValueError(
            f"The model makes {num_tokens} visual tokens, {first} of them beside the patches, of a grid of "
            f"{grid_size} patches: words of an image need one for each patch."
        )
    return slice(first, None)


@torch.no_grad()
def content_features(
    model: Any,
    processor: Any,
    images: Sequence[ImageSource],
    batch_size: int = 8,
    unreadable: list[str] | None = None,
) -> Iterator[torch.Tensor]:
    """
    Encodes images one after the other, with a progress bar, and holds no more than a batch of them.

    Args:
        model ([`VTLMMForCausalLM`]): has a visual modelling head.
        processor ([`VTLMMProcessor`]): the processor that belongs to it.
        images (`list`): paths, bytes or PIL images, as in [`load_image`].
        batch_size (`int`, *optional*, defaults to 8): images that go through the vision tower at once.
        unreadable (`list[str]`, *optional*): leave out images that cannot be read, and put their names here.

    Returns:
        `Iterator[torch.FloatTensor]`: for each image the adapter's output X_image of its patches, those of nothing but
        a border left out, `(num_patches, hidden_size)`.

    Raises:
        BadSampleError: if an image is missing or unreadable, unless these are left out.
        ValueError: if the model has no visual modelling head, its visual tokens are no patches, or `batch_size` is
            less than 1.
    """
    check_reads_words(model)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    shown_of = functools.lru_cache(maxsize=1024)(functools.partial(content_patches, processor))
    with logging.tqdm(total=len(images), desc="Reading images as words", unit=" images") as progress:
        for batch in _batches(images, batch_size, unreadable, progress):
            pixel_values = processor.image_processor(images=batch, return_tensors="pt")["pixel_values"]
            features = model.model.get_adapter_features(pixel_values.to(model.device, model.dtype))
            tokens = features.last_hidden_state
            patches = patch_tokens(tokens.shape[1], features.grid_size, features.num_prefix_tokens)
            for image, image_features in zip(batch, tokens[:, patches]):
                shown = shown_of(image.size, tuple(features.grid_size))
                yield image_features[shown.to(image_features.device)]


def _batches(
    images: Sequence[ImageSource], batch_size: int, unreadable: list[str] | None, progress: Any
) -> Iterator[list]:
    batch = []
    for image in images:
        try:
            batch.append(load_image(image))
        except BadSampleError:
            if unreadable is None:
                raise
            unreadable.append(os.fspath(image) if isinstance(image, (str, os.PathLike)) else repr(image))
        progress.update()
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


__all__ = ["check_reads_words", "content_features", "patch_tokens"]
