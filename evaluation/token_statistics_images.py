"""Language statistics of the visual tokens of a folder of images, read one after the other."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..modeling.vm_head import last_layer
from ..processing.images import BadSampleError, load_image
from ..processing.token_labels import TokenLabels
from .token_statistics import TokenStatistics
from .word_map import check_reads_words

logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LOGITS_AT_ONCE = 2**24


def find_images(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """
    Image files by name: files as they are, and of folders all images below them, sorted.

    Args:
        paths (`list[str]`): files and folders.

    Returns:
        `list[Path]`: no file twice.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not files:
                raise FileNotFoundError(f"The folder {str(path)!r} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
            found.update(dict.fromkeys(files))
        elif path.is_file():
            found[path] = None
        else:
            raise FileNotFoundError(f"There is no image file or folder {str(path)!r}.")
    return list(found)


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
    Counts the words of the visual tokens of images, with a progress bar. What is held in memory does not depend on how
    many images there are, and distributions over the vocabulary are held for a chunk of patches at a time. Patches of
    nothing but the border with which an image is padded to a square are left out: they are no part of it.

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
        ValueError: if the model has no visual modelling head, there is no image, or `batch_size` is less than 1.
    """
    check_reads_words(model)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
    vocab_size = len(model.get_input_embeddings().weight)
    statistics = TokenStatistics(vocab_size, num_resamples, seed)
    unreadable: list[str] = []
    shown_of = functools.lru_cache(maxsize=1024)(functools.partial(content_patches, processor))
    with logging.tqdm(total=len(files), desc="Reading images as words", unit=" images") as progress:
        for images in _batches(files, batch_size, unreadable if skip_unreadable else None, progress):
            pixel_values = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                features = model.model.get_adapter_features(pixel_values.to(model.device, model.dtype))
            for image, image_features in zip(images, features.last_hidden_state):
                shown = shown_of(image.size, tuple(features.grid_size))
                statistics.add(*word_counts(image_features[shown.to(image_features.device)], model.model.vm_head))
    if unreadable:
        logger.warning(f"{len(unreadable)} images that cannot be read were left out, the first one {unreadable[0]}.")
    labels = TokenLabels(processor.tokenizer)
    return {
        **statistics.results([labels[number] for number in range(vocab_size)]),
        "unreadable": unreadable,
    }


def _batches(
    files: Sequence[str | os.PathLike], batch_size: int, unreadable: list[str] | None, progress: Any
) -> Iterator[list]:
    images = []
    for file in files:
        try:
            images.append(load_image(file))
        except BadSampleError:
            if unreadable is None:
                raise
            unreadable.append(os.fspath(file))
        progress.update()
        if len(images) == batch_size:
            yield images
            images = []
    if images:
        yield images


def content_patches(processor: Any, size: tuple[int, int], grid_size: tuple[int, int]) -> torch.Tensor:
    """
    Which patches show a part of the image, and not only the border with which it is padded: what a white and a black
    image of its size differ in.

    Args:
        processor ([`VTLMMProcessor`]): whose image processor pads.
        size (`tuple[int, int]`): width and height of the image in pixels, as in `PIL.Image.size`.
        grid_size (`tuple[int, int]`): height and width of an image in patches.

    Returns:
        `torch.BoolTensor` of shape `(num_patches,)`, row by row.
    """
    images = [Image.new("RGB", size, colour) for colour in ("white", "black")]
    white, black = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    differs = (white != black).any(0)
    height, width = (side // patches for side, patches in zip(differs.shape, grid_size))
    patches = differs[: grid_size[0] * height, : grid_size[1] * width]
    return patches.reshape(grid_size[0], height, grid_size[1], width).any(3).any(1).flatten()


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
    dtype = torch.promote_types(weight.dtype, torch.float32)
    expected_counts = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    top_tokens, entropies = [], []
    for rows in features.to(weight).split(max(1, LOGITS_AT_ONCE // len(weight))):
        logarithms = torch.log_softmax(rows @ weight.t(), dim=-1, dtype=dtype)
        probabilities = logarithms.exp()
        expected_counts += probabilities.sum(0, dtype=torch.float64)
        top_tokens.append(logarithms.argmax(-1))
        # A probability that is 0 in this precision has a logarithm that may be minus infinity, and adds nothing.
        entropies.append(torch.special.entr(probabilities).sum(-1, dtype=torch.float64))
    return torch.cat(top_tokens).cpu().numpy(), expected_counts.cpu().numpy(), torch.cat(entropies).cpu().numpy()


__all__ = ["IMAGE_SUFFIXES", "content_patches", "find_images", "measure_token_statistics", "word_counts"]
