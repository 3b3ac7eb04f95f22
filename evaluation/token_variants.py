"""Ways to cluster the patches of an image, as a user names them, and the clusters that each makes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..configuration.configuration_setok_tokenizer import SeTokTokenizerConfig
from ..modeling.density_peaks import computing_precision
from ..modeling.patch_clusters import cluster_patches
from ..modeling.vision_features import FINAL
from ..modeling.visual_tokenizer import computing_dtype
from .cluster_baselines import grid_clusters, kmeans_clusters, single_cluster
from .token_sources import TokenSource

PEAK_METHODS = ("iterative", "threshold")
BASELINES = ("kmeans", "grid", "single")
METHODS = (*PEAK_METHODS, *BASELINES)
PER_OBJECT = "objects+1"
"""As many tokens as an image has objects, and one for the background."""
SETTINGS: dict[str, type] = {
    "assignment": str,
    "num_neighbors": int,
    "score_threshold": float,
    "stop_threshold": float,
    "kernel_scale": float,
    "relative_kernel_scale": bool,
    "min_tokens": int,
    "max_tokens": int,
    "normalize_features": bool,
}
"""Fields of [`SeTokTokenizerConfig`] that can be chosen where it is not trained anew."""


@dataclass(frozen=True)
class TokenVariant:
    """
    One way to make tokens.

    Args:
        model (`str`): folder or name of a SeTok or a vision tower.
        layer (`int` or `"final"`, *optional*): of a bare tower.
        method (`str`, *optional*): `"iterative"`, `"threshold"`, `"kmeans"`, `"grid"` or `"single"`; by default the
            model's own.
        tokens (`int` or `"objects+1"`, *optional*): how many; by default as many as the method finds, and of baselines
            as many as the first variant has made.
        settings (`dict`, *optional*): of `SETTINGS`, in place of the model's own.
        label (`str`, *optional*): what pictures and tables call it.
    """

    model: str
    layer: int | str | None = None
    method: str | None = None
    tokens: int | str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self):
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, expected {', '.join(METHODS)}.")
        if unknown := sorted(set(self.settings) - set(SETTINGS)):
            raise ValueError(f"{', '.join(unknown)}: no setting of tokens; there are {', '.join(SETTINGS)}.")
        if isinstance(self.tokens, int) and self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}, expected at least 1, or {PER_OBJECT!r}.")

    @property
    def is_baseline(self) -> bool:
        """Whether it needs to be told how many tokens there are."""
        return self.method in BASELINES


def parse_variants(base: TokenVariant, texts: Sequence[str]) -> list[TokenVariant]:
    """
    Variants as they are written on a command line: what differs from a base, such as `threshold`, `tokens=5`,
    `method=iterative,kernel_scale=0.8`, `kmeans,tokens=8` or `model=vistok:dinov2-small,layer=-1`.

    Args:
        base ([`TokenVariant`]): what they are variants of.
        texts (`list[str]`): of each what differs.

    Returns:
        `list[TokenVariant]`: labelled by what differs; without texts the base alone.

    Raises:
        ValueError: if one cannot be understood, or two are the same; quotes it.
    """
    if not texts:
        return [dataclasses.replace(base, label=base.label or base.method or "")]
    variants = [_parse(base, text) for text in texts]
    labels = [variant.label for variant in variants]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{repeated[0]!r} is to be compared with itself: name each variant once.")
    return variants


def _parse(base: TokenVariant, text: str) -> TokenVariant:
    changes: dict[str, Any] = {}
    settings = dict(base.settings)
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            name, value = "method", name
        try:
            if name in ("method", "model"):
                changes[name] = value
            elif name == "layer":
                changes[name] = parse_layer(value)
            elif name == "tokens":
                changes[name] = parse_tokens(value)
            elif name in SETTINGS:
                settings[name] = _parse_value(value, SETTINGS[name])
            else:
                names = ("method", "model", "layer", "tokens", *SETTINGS)
                raise ValueError(f"{name!r} is none of {', '.join(names)}")
            if not value:
                raise ValueError(f"{name} has no value")
        except ValueError as error:
            raise ValueError(
                f"{text!r} cannot be compared: {error}. Write a method ({', '.join(METHODS)}), settings, or both, "
                "such as threshold,score_threshold=0.4."
            ) from error
    if "model" in changes and changes["model"] != base.model and "layer" not in changes:
        changes["layer"] = None  # of another tower
    try:
        return dataclasses.replace(base, **changes, settings=settings, label=text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be compared: {error}") from error


def parse_layer(text: str) -> int | str:
    """
    A layer as it is written on a command line: a number, or `final`.

    Raises:
        ValueError: if it is neither.
    """
    return FINAL if text == FINAL else _parse_value(text, int)


def parse_tokens(text: str) -> int | str:
    """
    A number of tokens as it is written on a command line: a number, or `objects+1`.

    Raises:
        ValueError: if it is neither.
    """
    return PER_OBJECT if text == PER_OBJECT else _parse_value(text, int)


def _parse_value(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is no {'whole ' * (kind is int)}number") from None


@dataclass(frozen=True)
class ImageClusters:
    """
    The clusters of one image.

    Args:
        assignment (`torch.LongTensor` of shape `(num_patches,)`): cluster of each patch; numbered in raster order of
            centres of mass.
        scores (`torch.Tensor` of shape `(num_patches,)`, *optional*): of density peaks.
        centers (`torch.LongTensor` of shape `(num_clusters,)`, *optional*): the patch each cluster formed around.
        weights (`torch.Tensor` of shape `(num_clusters, num_patches)`, *optional*): of soft clusters, of which
            `assignment` has the one of the largest weight. They sum to 1 at every patch.
    """

    assignment: torch.Tensor
    scores: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """How many clusters there are; of soft ones some may nowhere have the largest weight."""
        return len(self.assignment.unique()) if self.weights is None else len(self.weights)


@torch.no_grad()
def cluster_image(
    variant: TokenVariant, source: TokenSource, features: torch.Tensor, tokens: int | None = None, seed: int = 0
) -> ImageClusters:
    """
    Clusters the patches of one image.

    Args:
        variant ([`TokenVariant`]): how.
        source ([`TokenSource`]): whose features they are.
        features (`torch.Tensor` of shape `(num_patches, hidden_size)`): from [`TokenSource.patch_features`].
        tokens (`int`, *optional*): how many; a baseline needs it.
        seed (`int`, *optional*, defaults to 0): of k-means.

    Returns:
        [`ImageClusters`].

    Raises:
        ValueError: if a setting is out of its range, or a baseline is not told how many tokens.
    """
    tokenizer, grid_size = source.model.tokenizer, source.grid_size
    features = features.to(source.model.device, computing_precision(features))[None]
    if variant.method == "single":
        return ImageClusters(single_cluster(features.shape[1]))
    if variant.is_baseline:
        if tokens is None:
            raise ValueError(f"{variant.method} makes no number of tokens of its own: say {variant.method},tokens=8.")
        if variant.method == "grid":
            return ImageClusters(grid_clusters(grid_size, tokens))
        return ImageClusters(_in_raster_order(kmeans_clusters(features[0], tokens, seed), grid_size))
    config = variant_config(variant, source)
    inputs = _cluster_features(tokenizer, config, features.to(computing_dtype(tokenizer)), grid_size)
    kernel_scale: Any = config.kernel_scale
    if tokenizer.log_kernel_scale is not None and "kernel_scale" not in variant.settings:
        kernel_scale = tokenizer.log_kernel_scale.float().exp()
    bounds = (config.min_tokens, config.max_tokens) if tokens is None else (tokens, tokens)
    found = cluster_patches(
        inputs,
        method=config.method,
        assignment=config.assignment,
        num_neighbors=config.num_neighbors,
        score_threshold=config.score_threshold,
        stop_threshold=config.stop_threshold,
        kernel_scale=kernel_scale,
        relative_kernel_scale=config.relative_kernel_scale,
        min_tokens=bounds[0],
        max_tokens=bounds[1],
        grid_size=grid_size,
    )
    values: list[Any] = [found.assignment, found.scores, found.centers]
    if config.assignment == "soft":
        values.append(found.cluster_masks)
    return ImageClusters(*(value[0].cpu() for value in values))


@torch.no_grad()
def clustered_features(variant: TokenVariant, source: TokenSource, features: torch.Tensor) -> torch.Tensor:
    """
    What distances between the patches of an image are taken of: features with what a tokenizer learned, or the
    normalisation that a variant asks for. Of a baseline, what the source's own method clusters.

    Args:
        variant, source, features: as in [`cluster_image`].

    Returns:
        `torch.Tensor` of shape `(num_patches, size)`: on the CPU.
    """
    batch = features.to(source.model.device, computing_precision(features))[None]
    config = source.model.tokenizer.config if variant.is_baseline else variant_config(variant, source)
    return _cluster_features(source.model.tokenizer, config, batch, source.grid_size)[0].cpu()


def variant_config(variant: TokenVariant, source: TokenSource) -> SeTokTokenizerConfig:
    """
    The configuration of a tokenizer with what a variant changes.

    Args:
        variant ([`TokenVariant`]): of density peaks.
        source ([`TokenSource`]): its model.

    Raises:
        ValueError: if a setting is out of its range.
    """
    values = {name: getattr(source.model.tokenizer.config, name) for name in (*SETTINGS, "method")}
    values.update(variant.settings)
    if variant.method is not None:
        values["method"] = variant.method
    return SeTokTokenizerConfig(**values)


def _cluster_features(tokenizer, config, features, grid_size) -> torch.Tensor:
    """As the tokenizer's own, with the normalisation that was asked for."""
    trained = tokenizer.config.normalize_features
    tokenizer.config.normalize_features = config.normalize_features
    try:
        return tokenizer.cluster_features(features, grid_size)
    finally:
        tokenizer.config.normalize_features = trained


def _in_raster_order(assignment: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Clusters numbered by the rows, then the columns, of their centres of mass, without gaps."""
    assignment = assignment.unique(return_inverse=True)[1]
    rows, columns = (axis.flatten().double() for axis in torch.meshgrid(*map(torch.arange, grid_size), indexing="ij"))
    sizes = torch.bincount(assignment)
    centres = [(torch.bincount(assignment, axis) / sizes).tolist() for axis in (rows, columns)]
    order = sorted(range(len(sizes)), key=lambda number: (centres[0][number], centres[1][number]))
    rank = torch.empty(len(sizes), dtype=torch.long)
    rank[torch.tensor(order)] = torch.arange(len(sizes))
    return rank[assignment]


__all__ = [
    "BASELINES",
    "METHODS",
    "PER_OBJECT",
    "SETTINGS",
    "ImageClusters",
    "TokenVariant",
    "cluster_image",
    "clustered_features",
    "parse_layer",
    "parse_tokens",
    "parse_variants",
    "variant_config",
]
