"""An image as words: for each patch the most probable tokens of its visual-token distribution (VT-LMM, Figure 4)."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from ..modeling.vocabulary_distributions import DistinctiveTokens
from ..processing.images import ImageSource, load_image
from ..processing.square_images import content_patches
from ..processing.token_labels import TokenLabels
from .attention_maps import finely_seen_image
from .content_features import check_reads_words, patch_tokens
from .word_reference import WordReference

Measure = Literal["probability", "cosine similarity"]
MEASURES: tuple[Measure, ...] = ("probability", "cosine similarity")
FINE_SIDE = 1600
"""The longer side of the image beneath the words, in pixels, at least, where the file has that many."""


@dataclass(frozen=True)
class DistinctiveWords:
    """
    The words by which the patches of an image stand out against a reference distribution P̄.

    Args:
        words (`np.ndarray` of shape `(grid_height, grid_width, k)`): labels of tokens, the first one first.
        scores (`np.ndarray` of the same shape): pointwise KL divergence P' log(P'/P̄), in nats, falling along the last
            axis.
        probabilities (`np.ndarray` of the same shape): P' of each word.
        divergence (`np.ndarray` of shape `(grid_height, grid_width)`): KL(P' ‖ P̄), which all words have together, in
            nats.
        reference (`str`): what P̄ is, in words.

    Raises:
        ValueError: if the shapes do not fit together, or a number is not finite.
    """

    words: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    divergence: np.ndarray
    reference: str
    measure: ClassVar[str] = "pointwise KL divergence"

    def __post_init__(self):
        shapes = self.scores.shape, self.probabilities.shape, (*self.divergence.shape, self.words.shape[-1])
        if set(shapes) != {self.words.shape}:
            raise ValueError(
                f"Distinctive words have the shape {self.words.shape}, their scores and probabilities "
                f"{self.scores.shape} and {self.probabilities.shape}, divergences {self.divergence.shape}: expected "
                "(grid height, grid width, k), and of divergences the grid."
            )
        if not all(np.isfinite(numbers).all() for numbers in (self.scores, self.probabilities, self.divergence)):
            raise ValueError(f"A {self.measure} is not finite: the weights of the model may be damaged.")


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
        distinctive ([`DistinctiveWords`], *optional*): what stands out of these words, and is shown in their place.

    Raises:
        ValueError: if the shapes do not fit together, a score is not finite, or the measure is unknown.
    """

    image: Image.Image
    words: np.ndarray
    scores: np.ndarray
    entropy: np.ndarray | None = None
    measure: Measure = "probability"
    name: str = ""
    distinctive: DistinctiveWords | None = None

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
        if self.distinctive is not None and self.distinctive.divergence.shape != self.grid_size:
            raise ValueError(
                f"Distinctive words are of a grid of {self.distinctive.divergence.shape} patches, expected "
                f"{self.grid_size}."
            )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.words.shape[0], self.words.shape[1]

    @property
    def shown(self) -> "WordMap | DistinctiveWords":
        """What has the `words` that are written on the image, their `scores` and the `measure` that these are."""
        return self if self.distinctive is None else self.distinctive


def read_word_map(
    model: Any,
    processor: Any,
    image: ImageSource,
    top_k: int = 5,
    nearest: bool = False,
    labels: TokenLabels | None = None,
    reference: WordReference | None = None,
) -> WordMap:
    """
    Reads an image as words. Rows and columns of patches that show nothing but the border with which it is padded to a
    square are left out.

    Args:
        model ([`VTLMMForCausalLM`]): has a visual modelling head.
        processor ([`VTLMMProcessor`]): the processor that belongs to it.
        image: path, bytes or PIL image, as in [`load_image`].
        top_k (`int`, *optional*, defaults to 5): how many words for each patch.
        nearest (`bool`, *optional*, defaults to `False`): the words whose embeddings are nearest to the visual token
            (Eq. 3) in place of the most probable ones (Eq. 5).
        labels ([`TokenLabels`], *optional*): of the processor's tokenizer; made anew by default.
        reference ([`WordReference`], *optional*): from [`mean_distribution`]; the map then has `distinctive` words.

    Returns:
        [`WordMap`]

    Raises:
        BadSampleError: if the image is missing or unreadable.
        ValueError: if the model has no visual modelling head, its visual tokens are no patches, its vocabulary has no
            `top_k` tokens or is not that of the reference, or `nearest` words are asked for relative to one.
    """
    check_reads_words(model)
    if nearest and reference is not None:
        raise ValueError("The nearest words are of no distribution: leave out nearest or reference.")
    opened = load_image(image)
    pixel_values = processor.image_processor(images=[opened], return_tensors="pt")["pixel_values"]
    pixel_values = pixel_values.to(model.device, model.dtype)
    read = _nearest_words(model, pixel_values, top_k) if nearest else _words(model, pixel_values, top_k, reference)
    scores, token_ids, entropy, found, grid_size = read
    layout = _Layout.of_image(processor, opened.size, tuple(grid_size))
    labels = TokenLabels(processor.tokenizer) if labels is None else labels
    distinctive = None
    if reference is not None:
        distinctive = DistinctiveWords(
            words=labels.texts(layout.lay_out(found.token_ids)),
            scores=layout.lay_out(found.terms),
            probabilities=layout.lay_out(found.probabilities),
            divergence=layout.lay_out(found.divergence),
            reference=reference.description,
        )
    return WordMap(
        image=layout.cut(finely_seen_image(model, processor, opened, FINE_SIDE)),
        words=labels.texts(layout.lay_out(token_ids)),
        scores=layout.lay_out(scores),
        entropy=None if entropy is None else layout.lay_out(entropy),
        measure="cosine similarity" if nearest else "probability",
        name=_name_of(image),
        distinctive=distinctive,
    )


def _words(model: Any, pixel_values: torch.Tensor, top_k: int, reference: WordReference | None):
    """Of the patches of one image scores and ids of tokens, entropies, distinctive tokens; and the grid."""
    distribution = None if reference is None else reference.distribution
    found = model.get_visual_tokens(pixel_values, top_k=top_k, reference=distribution)
    patches = patch_tokens(found.entropy.shape[1], found.grid_size, found.num_prefix_tokens)
    distinctive = found.distinctive
    if distinctive is not None:
        distinctive = DistinctiveTokens(*(part[0, patches] for part in distinctive))
    parts = (part[0, patches] for part in (found.probabilities, found.token_ids, found.entropy))
    return *parts, distinctive, found.grid_size


@torch.no_grad()
def _nearest_words(model: Any, pixel_values: torch.Tensor, top_k: int):
    """As [`_words`], with similarities as scores, and without what only distributions have."""
    features = model.model.get_adapter_features(pixel_values)
    tokens = features.last_hidden_state[0]
    patches = patch_tokens(len(tokens), features.grid_size, features.num_prefix_tokens)
    return *model.nearest_text_tokens(tokens[patches], top_k), None, None, features.grid_size


@dataclass(frozen=True)
class _Layout:
    """The grid of an image's patches, and which of its rows and columns show more than a border."""

    grid_size: tuple[int, int]
    rows: slice
    columns: slice

    @classmethod
    def of_image(cls, processor: Any, size: tuple[int, int], grid_size: tuple[int, int]) -> "_Layout":
        content = content_patches(processor, size, grid_size).view(grid_size).numpy()
        sides = [content.any(axis).nonzero()[0].tolist() for axis in (1, 0)]
        extents = [slice(side[0], side[-1] + 1) if side else slice(0, count) for side, count in zip(sides, grid_size)]
        return cls(grid_size, *extents)

    def lay_out(self, values: torch.Tensor) -> np.ndarray:
        """(num_patches, …) -> (height, width, …)."""
        values = values.cpu() if values.dtype == torch.long else values.double().cpu()
        return values.unflatten(0, self.grid_size)[self.rows, self.columns].numpy()

    def cut(self, image: Image.Image) -> Image.Image:
        """What lies under these rows and columns of an image that covers the grid."""
        height, width = image.height // self.grid_size[0], image.width // self.grid_size[1]
        return image.crop(
            (self.columns.start * width, self.rows.start * height, self.columns.stop * width, self.rows.stop * height)
        )


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


__all__ = ["MEASURES", "DistinctiveWords", "WordMap", "map_files", "read_word_map"]
