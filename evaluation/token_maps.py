"""Images with their visual tokens: which patches each has, where it lies, how large it is."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..modeling.atomic_folder import write_text_atomically
from ..processing.images import ImageSource, load_image
from .attention_maps import finely_seen_image, pixel_values_of, prepared_image
from .token_sources import TokenSource
from .token_variants import PER_OBJECT, ImageClusters, TokenVariant, cluster_image, variant_config

TABLE_SUFFIXES = (".csv", ".json")
FINE_SIDE = 960
"""The longer side of the image beneath the tokens, in pixels, at least, where the file has that many."""


@dataclass(frozen=True)
class TokenMap:
    """
    The tokens of an image that one variant makes.

    Args:
        image (`PIL.Image.Image`): the part of the image that patches cover, of any resolution.
        assignment (`np.ndarray` of shape `(grid_height, grid_width)` and dtype int): token of each patch, from 0.
        scores (`np.ndarray` of shape `(grid_height, grid_width)`, *optional*): of density peaks.
        centers (`np.ndarray` of shape `(num_tokens,)`, *optional*): the patch each token formed around.
        label (`str`): of the variant.
        name (`str`): of the image.
        threshold (`float`, *optional*): score above which patches are centres.
        weights (`np.ndarray` of shape `(num_tokens, grid_height, grid_width)`, *optional*): of a soft assignment, in
            which every patch is a part of all tokens: `assignment` is then the token of the largest weight, and some
            tokens may have no such patch.

    Raises:
        ValueError: if the shapes do not fit together, or tokens are not numbered from 0 without gaps.
    """

    image: Image.Image
    assignment: np.ndarray
    scores: np.ndarray | None = None
    centers: np.ndarray | None = None
    label: str = ""
    name: str = ""
    threshold: float | None = None
    weights: np.ndarray | None = None

    def __post_init__(self):
        if self.assignment.ndim != 2 or not self.assignment.size:
            raise ValueError(f"assignment is of shape {self.assignment.shape}, expected that of a grid of patches.")
        if self.scores is not None and self.scores.shape != self.assignment.shape:
            raise ValueError(f"scores are of shape {self.scores.shape}, expected the grid, {self.assignment.shape}.")
        if self.weights is not None:
            if self.weights.ndim != 3 or self.weights.shape[1:] != self.assignment.shape:
                raise ValueError(f"weights are of shape {self.weights.shape}, expected (tokens, *{self.grid_size}).")
            largest = np.take_along_axis(self.weights, self.assignment[None], axis=0)[0]
            if not np.array_equal(largest, self.weights.max(0)):
                raise ValueError("weights are largest for other tokens than those of the assignment.")
        elif not np.array_equal(np.unique(self.assignment), np.arange(self.num_tokens)):
            raise ValueError("Tokens are not numbered from 0 without gaps.")
        if self.centers is not None and len(self.centers) != self.num_tokens:
            raise ValueError(f"{len(self.centers)} centres for {self.num_tokens} tokens: expected one for each.")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width in patches."""
        return self.assignment.shape[0], self.assignment.shape[1]

    @property
    def num_tokens(self) -> int:
        """How many tokens the image has."""
        return int(self.assignment.max()) + 1 if self.weights is None else len(self.weights)

    @property
    def sizes(self) -> np.ndarray:
        """Patches of each token, `(num_tokens,)`; of a soft assignment the sums of their weights."""
        if self.weights is not None:
            return self.weights.sum((1, 2))
        return np.bincount(self.assignment.ravel(), minlength=self.num_tokens)

    @property
    def mean_largest_weight(self) -> float | None:
        """Of a soft assignment, how much of a patch its largest token has, on average: 1 would be hard."""
        return None if self.weights is None else float(self.weights.max(0).mean())


def read_token_maps(
    image: ImageSource,
    variants: Sequence[TokenVariant],
    sources: Mapping[tuple[str, Any], TokenSource],
    seed: int = 0,
) -> list[TokenMap]:
    """
    Makes tokens of an image in every way.

    Args:
        image: path, bytes or PIL image, as in [`load_image`].
        variants (`list[TokenVariant]`): k-means and a grid without a number take that of the first one.
        sources (`dict`): a [`TokenSource`] for each model and layer of the variants.
        seed (`int`, *optional*, defaults to 0): of k-means.

    Returns:
        `list[TokenMap]`: one for each variant.

    Raises:
        BadSampleError: if the image is missing or unreadable.
        ValueError: if a variant cannot be made, such as as many tokens as there are objects.
    """
    opened = load_image(image)
    name = Path(image).name if isinstance(image, (str, os.PathLike)) else ""
    features = {key: source.patch_features([opened])[0] for key, source in sources.items()}
    maps: list[TokenMap] = []
    for variant in variants:
        key = variant.model, variant.layer
        if variant.tokens == PER_OBJECT:
            raise ValueError(f"How many objects {name or 'the image'} has is not known: give a number of tokens.")
        tokens = maps[0].num_tokens if variant.is_baseline and maps else None
        if variant.tokens is not None:
            tokens = int(variant.tokens)
        clusters = cluster_image(variant, sources[key], features[key], tokens, seed)
        maps.append(_token_map(opened, name, variant, sources[key], clusters))
    return maps


def _token_map(
    image: Image.Image, name: str, variant: TokenVariant, source: TokenSource, clusters: ImageClusters
) -> TokenMap:
    def on_grid(values: torch.Tensor) -> np.ndarray:
        return values.cpu().numpy().reshape(source.grid_size)

    threshold = None
    if not variant.is_baseline:
        config = variant_config(variant, source)
        threshold = config.score_threshold if config.method == "threshold" and variant.tokens is None else None
    return TokenMap(
        image=framed_image(source, image),
        assignment=on_grid(clusters.assignment),
        scores=None if clusters.scores is None else on_grid(clusters.scores),
        centers=None if clusters.centers is None else clusters.centers.numpy(),
        label=variant.label,
        name=name,
        threshold=threshold,
        weights=None if clusters.weights is None else clusters.weights.numpy().reshape(-1, *source.grid_size),
    )


@torch.no_grad()
def model_token_map(model: Any, processor: Any, image: ImageSource) -> TokenMap | None:
    """
    The tokens that a composed model makes of an image, as its language model reads them.

    Args:
        model (`PreTrainedModel`): a composed model, such as [`SetokimForConditionalGeneration`].
        processor (`ProcessorMixin`): the processor that belongs to it.
        image: path, bytes or PIL image, as in [`load_image`].

    Returns:
        [`TokenMap`], `None` of a model whose tokens are no groups of patches.

    Raises:
        BadSampleError: if the image is missing or unreadable.
    """
    pixel_values = pixel_values_of(processor.image_processor, image).to(model.device, model.dtype)
    if getattr(model.model.visual_tokenizer.config, "assignment", "hard") == "soft":
        return _soft_token_map(model, processor, image, pixel_values)
    features = model.get_image_features(pixel_values=pixel_values)
    if features.assignment is None or features.grid_size is None:
        return None
    # Without the tokens that stand for no patch, such as that of [CLS].
    _, assignment = np.unique(features.assignment[0].cpu().numpy(), return_inverse=True)
    return TokenMap(
        image=finely_seen_image(model, processor, image, FINE_SIDE), assignment=assignment.reshape(features.grid_size)
    )


def _soft_token_map(model: Any, processor: Any, image: ImageSource, pixel_values: torch.Tensor) -> TokenMap:
    features = model.model.get_vision_features(pixel_values)
    output = model.model.tokenize(features)
    weights = output.cluster_masks[0][output.mask[0]].float().cpu().numpy().reshape(-1, *features.grid_size)
    return TokenMap(
        image=finely_seen_image(model, processor, image, FINE_SIDE), assignment=weights.argmax(0), weights=weights
    )


def framed_image(source: TokenSource, image: Image.Image) -> Image.Image:
    """
    The part of an image that patches cover, at the resolution of its file rather than of the model. An image that was
    only resized has its own proportions.

    Args:
        source ([`TokenSource`]): whose patches they are.
        image (`PIL.Image.Image`): RGB.
    """
    processor = source.image_processor
    if not getattr(processor, "do_center_crop", False) and not getattr(processor, "do_pad", False):
        size = dict(getattr(processor, "size", None) or {})
        if size.get("height") and size.get("width"):
            return image
    seen = prepared_image(processor, image)
    wanted = min(FINE_SIDE, max(image.size)) / max(seen.size)
    return prepared_image(processor, image, scale=int(np.ceil(wanted))) if wanted > 1 else seen


def token_rows(token_map: TokenMap) -> list[dict[str, Any]]:
    """
    The tokens of an image as rows of a table, from the largest to the smallest.

    Args:
        token_map ([`TokenMap`]): of the image.

    Returns:
        `list[dict]`: `image`, `variant`, `token` (its number, from 1, as in the picture), `patches`, `share` of the
        image, `row` and `column` of its centre of mass and `top`, `left`, `bottom`, `right` of its box, in patches
        from the upper left corner of the image, and `peak_row`, `peak_column`, `peak_score` of the patch that it
        formed around, `None` where there are no scores. Of a soft assignment patches count with their weights, and the
        box is of those that have their largest weight here, `None` where there are none.
    """
    height, width = token_map.grid_size
    axes = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    rows = []
    for token in np.argsort(-token_map.sizes, kind="stable").tolist():
        is_here = token_map.assignment == token
        weights = is_here if token_map.weights is None else token_map.weights[token]
        places = np.argwhere(is_here)
        peak = None if token_map.centers is None else divmod(int(token_map.centers[token]), width)
        score = None if peak is None or token_map.scores is None else float(token_map.scores[peak])
        box = [None] * 4 if not len(places) else [*places.min(0).tolist(), *(places.max(0) + 1).tolist()]
        size = weights.sum()
        row, column = (round(float((weights * axis).sum() / size), 3) for axis in axes)
        rows.append(
            {
                "image": token_map.name,
                "variant": token_map.label,
                "token": token + 1,
                "patches": len(places) if token_map.weights is None else round(float(size), 3),
                "share": round(float(size) / (height * width), 6),
                "row": row,
                "column": column,
                **dict(zip(("top", "left", "bottom", "right"), box)),
                "peak_row": None if peak is None else peak[0],
                "peak_column": None if peak is None else peak[1],
                "peak_score": None if score is None else round(score, 6),
            }
        )
    return rows


def score_spread(scores: np.ndarray) -> dict[str, float]:
    """
    How far the scores of an image lie apart (Appendix F, Figure 7b).

    Args:
        scores (`np.ndarray`): of its patches.

    Returns:
        `dict`: `mean`, `std`, `max`, `coefficient_of_variation` (std / mean) and `share_above_half_maximum`.
    """
    mean, highest = float(scores.mean()), float(scores.max())
    return {
        "mean": mean,
        "std": float(scores.std()),
        "max": highest,
        "coefficient_of_variation": float(scores.std()) / mean if mean > 0 else 0.0,
        "share_above_half_maximum": float((scores > highest / 2).mean()),
    }


def write_token_table(maps: Sequence[TokenMap], path: str | os.PathLike) -> None:
    """
    Writes the tokens of images as CSV, a row for each token, or as JSON, which holds the assignment of patches and the
    spread of scores too.

    Args:
        maps (`list[TokenMap]`): of the images.
        path (`str`): ends with `.csv` or `.json`. Its folder is made if need be.

    Raises:
        ValueError: if it ends with anything else.
    """
    path = Path(path)
    check_table_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        rows = [row for token_map in maps for row in token_rows(token_map)]
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(path, stream.getvalue())
        return
    documents = [
        {
            "image": token_map.name,
            "variant": token_map.label,
            "grid_size": list(token_map.grid_size),
            "num_tokens": token_map.num_tokens,
            "mean_largest_weight": token_map.mean_largest_weight,
            "spread_of_scores": None if token_map.scores is None else score_spread(token_map.scores),
            "tokens": [
                {name: value for name, value in row.items() if name not in ("image", "variant")}
                for row in token_rows(token_map)
            ],
            "assignment": (token_map.assignment + 1).tolist(),
        }
        for token_map in maps
    ]
    write_text_atomically(path, json.dumps(documents, ensure_ascii=False, indent=1) + "\n")


def check_table_file(path: str | os.PathLike) -> None:
    """
    Raises:
        ValueError: if a table cannot have this name.
    """
    if Path(path).suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"The table is {str(path)!r}: let it end with {' or '.join(TABLE_SUFFIXES)}.")


__all__ = [
    "TokenMap",
    "check_table_file",
    "framed_image",
    "model_token_map",
    "read_token_maps",
    "score_spread",
    "token_rows",
    "write_token_table",
]
