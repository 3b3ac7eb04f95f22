"""An image as words: for each patch the most probable tokens of its visual-token distribution (VT-LMM, Figure 4)."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ..processing.images import ImageSource, load_image
from ..processing.token_labels import TokenLabels
from .attention_maps import finely_seen_image

Measure = Literal["probability", "cosine similarity"]
MEASURES: tuple[Measure, ...] = ("probability", "cosine similarity")
FINE_SIDE = 1600
"""The longer side of the image beneath the words, in pixels, at least, where the file has that many."""


@dataclass(frozen=True)
class WordMap:
    """
    The words of an image, laid out like it.

    Args:
        image (`PIL.Image.Image`): the part of the image that the patches cover, of any resolution.
        words (`np.ndarray` of shape `(grid_height, grid_width, k)`): labels of tokens, the first one first.
        scores (`np.ndarray` of shape `(grid_height, grid_width, k)`): what each word is first by, falling along the
            last axis.
        entropy (`np.ndarray` of shape `(grid_height, grid_width)`, *optional*): of the whole distribution of each
            patch, in nats.
        measure (`str`, *optional*, defaults to `"probability"`): what the scores are: `"probability"` (Eq. 5) or
            `"cosine similarity"` to text embeddings (Eq. 3).
        name (`str`, *optional*): of the image.

    Raises:
        ValueError: if the shapes do not fit together, a score is not finite, or the measure is unknown.
    """

    image: Image.Image
    words: np.ndarray
    scores: np.ndarray
    entropy: np.ndarray | None = None
    measure: Measure = "probability"
    name: str = ""

    def __post_init__(self):
        if self.words.ndim != 3 or 0 in self.words.shape or self.scores.shape != self.words.shape:
            raise ValueError(
                f"words have the shape {self.words.shape} and scores {self.scores.shape}: expected (grid height, grid "
                "width, k) of both."
            )
        if self.entropy is not None and self.entropy.shape != self.grid_size:
            raise ValueError(f"entropy has the shape {self.entropy.shape}, expected the grid, {self.grid_size}.")
        finite = [self.scores, *([] if self.entropy is None else [self.entropy])]
        if not all(np.isfinite(numbers).all() for numbers in finite):
            raise ValueError(
                f"A {self.measure} of {self.name or 'the image'} is not finite: the weights of the model may be "
                "damaged, or overflow in its dtype."
            )
        if self.measure not in MEASURES:
            raise ValueError(f"measure is {self.measure!r}: choose {' or '.join(map(repr, MEASURES))}.")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.words.shape[0], self.words.shape[1]


def read_word_map(
    model: Any,
    processor: Any,
    image: ImageSource,
    top_k: int = 5,
    nearest: bool = False,
    labels: TokenLabels | None = None,
) -> WordMap:
    """
    Reads an image as words.

    Args:
        model ([`VTLMMForCausalLM`]): has a visual modelling head.
        processor ([`VTLMMProcessor`]): the processor that belongs to it.
        image: path, bytes or PIL image, as in [`load_image`].
        top_k (`int`, *optional*, defaults to 5): how many words for each patch.
        nearest (`bool`, *optional*, defaults to `False`): the words whose embeddings are nearest to the visual token
            (Eq. 3) in place of the most probable ones (Eq. 5).
        labels ([`TokenLabels`], *optional*): of the processor's tokenizer; made anew by default.

    Returns:
        [`WordMap`]

    Raises:
        BadSampleError: if the image is missing or unreadable.
        ValueError: if the model has no visual modelling head, its visual tokens are no patches, or its vocabulary has
            no `top_k` tokens.
    """
    check_reads_words(model)
    opened = load_image(image)
    pixel_values = processor.image_processor(images=[opened], return_tensors="pt")["pixel_values"]
    scores, token_ids, entropy, grid_size = _read(model, pixel_values.to(model.device, model.dtype), top_k, nearest)
    labels = TokenLabels(processor.tokenizer) if labels is None else labels
    shape = (*grid_size, top_k)
    return WordMap(
        image=finely_seen_image(model, processor, opened, FINE_SIDE),
        words=labels.texts(token_ids.cpu().numpy()).reshape(shape),
        scores=scores.double().cpu().numpy().reshape(shape),
        entropy=None if entropy is None else entropy.double().cpu().numpy().reshape(grid_size),
        measure="cosine similarity" if nearest else "probability",
        name=_name_of(image),
    )


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
def _read(model: Any, pixel_values: torch.Tensor, top_k: int, nearest: bool):
    """Of one image scores and token ids, `(num_patches, top_k)`, entropies and the grid."""
    if nearest:
        features = model.model.get_adapter_features(pixel_values)
        tokens = features.last_hidden_state[0]
        patches = patch_tokens(len(tokens), features.grid_size, features.num_prefix_tokens)
        return *model.nearest_text_tokens(tokens[patches], top_k), None, features.grid_size
    found = model.get_visual_tokens(pixel_values, top_k=top_k)
    patches = patch_tokens(found.entropy.shape[1], found.grid_size, found.num_prefix_tokens)
    return *(part[0, patches] for part in (found.probabilities, found.token_ids, found.entropy)), found.grid_size


def _name_of(image: ImageSource) -> str:
    file = image.get("path") if isinstance(image, dict) else image
    return Path(file).name if isinstance(file, (str, os.PathLike)) else ""


def map_files(output: str | os.PathLike, names: Sequence[str]) -> list[Path]:
    """
    Where the pictures of several images go: the file that was asked for, and for more than one image a file beside it
    for each, named after the image.

    Args:
        output (`str`): a file, such as `words.png`.
        names (`list[str]`): of the images, as file names.

    Returns:
        `list[Path]`: as many as names, all different: `words-photo.png`, and `words-photo-2.png` for a second photo.
    """
    path = Path(output)
    if len(names) == 1:
        return [path]
    files: dict[str, Path] = {}
    for name in names:
        stem = f"{path.stem}-{Path(name).stem}"
        numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        # Where capitals make no difference, two files may not differ by them alone.
        free = next(number for number in numbers if f"{stem}{number}".lower() not in files)
        files[f"{stem}{free}".lower()] = path.with_name(f"{stem}{free}{path.suffix}")
    return list(files.values())


__all__ = ["MEASURES", "WordMap", "check_reads_words", "map_files", "patch_tokens", "read_word_map"]
