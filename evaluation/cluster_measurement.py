"""Cluster quality over a data set with masks of objects: every tower reads every image once."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..processing.feature_cache import FeatureCache, FeatureCacheBuilder, feature_settings
from ..processing.images import image_key
from ..processing.object_masks import MaskedImage, ObjectMasks, patch_coverage, patch_labels, seen_objects
from .cluster_baselines import grid_clusters, kmeans_clusters, oracle_clusters, single_cluster
from .cluster_quality import ImageQuality, image_quality, summarise_quality
from .token_sources import TokenSource
from .token_variants import PER_OBJECT, TokenVariant, cluster_image, clustered_features

FLOORS = {
    "kmeans": "k-means, as many tokens",
    "kmeans_clustered": "k-means on the clustered features, as many tokens",
    "grid": "plain grid, as many tokens",
    "single": "one token",
    "oracle": "the objects themselves",
}
"""Rows beside those asked for; the numbers of tokens are those of the first row."""


def measure_clusters(
    images: Sequence[MaskedImage],
    variants: Sequence[TokenVariant],
    sources: Mapping[tuple[str, Any], TokenSource],
    *,
    batch_size: int = 8,
    num_resamples: int = 2000,
    seed: int = 0,
    skip_empty: bool = False,
    by_background: bool = False,
    cache_folder: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """
    Compares the tokens of images with the objects that they show, with a progress bar. Masks are resized and cropped
    as the images are; a patch is what most of its pixels are.

    Args:
        images (`list[MaskedImage]`): see `mask_annotations`.
        variants (`list[TokenVariant]`): of which the first is what k-means and the grid are compared with.
        sources (`dict`): a [`TokenSource`] for each model and layer of the variants.
        batch_size (`int`, *optional*, defaults to 8): images that go through a tower at once.
        num_resamples (`int`, *optional*, defaults to 2000): of the bootstrap over images.
        seed (`int`, *optional*, defaults to 0): of the bootstrap and of k-means.
        skip_empty (`bool`, *optional*, defaults to `False`): leave out objects without a pixel, which are an error
            otherwise.
        by_background (`bool`, *optional*, defaults to `False`): resample the photographs behind scenes, each with all
            its images, in place of images.
        cache_folder (`str`, *optional*): where features are kept; by default vistok's cache.

    Returns:
        `dict`: `rows`, of each variant and of what it is compared with the `label` and [`summarise_quality`], whose
        rank correlation is that of tokens that a method found itself, and `None` where it was told their number;
        `num_images`, `num_objects`, `objects_out_of_sight`, which the crop of the images has cut away, and `images`,
        the [`ImageQuality`] of each image in each row.

    Raises:
        BadSampleError: if an image or a mask is missing, damaged or of another size.
        ValueError: if there are no images, or the photographs behind them are not known and are to be resampled.
    """
    if by_background and any(image.background is None for image in images):
        raise ValueError(
            f"The photograph behind {next(image.file.name for image in images if image.background is None)} is not "
            "known, only scenes have one: leave by_background out."
        )
    if not images:
        raise ValueError("There are no images to measure clusters on.")
    for image in logging.tqdm(images, desc="Checking images and masks", unit=" images"):
        image.image()  # before a tower begins
        image.objects(skip_empty)
    caches = {key: _features(source, images, batch_size, cache_folder) for key, source in sources.items()}
    qualities: dict[str, list[ImageQuality]] = {}
    out_of_sight = 0
    first_source = sources[variants[0].model, variants[0].layer]
    for image in logging.tqdm(images, desc="Comparing tokens with objects", unit=" images"):
        objects = image.objects(skip_empty)
        truths = {key: _truth(objects, source) for key, source in sources.items()}
        truth = truths[variants[0].model, variants[0].layer]
        out_of_sight += len(objects) - len(truth[1])
        counts: list[int] = []
        for variant in variants:
            key = variant.model, variant.layer
            features = caches[key][_key(image)]
            tokens = _tokens(variant, len(truths[key][1]), counts)
            clusters = cluster_image(
                variant, sources[key], features, None if tokens is None else min(tokens, len(features)), seed
            )
            counts.append(clusters.num_tokens)
            found = image_quality(image.file.name, clusters.assignment, *truths[key], image.background)
            # Soft tokens count where they have nowhere the largest weight, too.
            found = dataclasses.replace(found, num_tokens=clusters.num_tokens)
            qualities.setdefault(variant.label, []).append(found)
        features = caches[variants[0].model, variants[0].layer][_key(image)]
        clustered = clustered_features(variants[0], first_source, features)
        for name, assignment in _floors(
            features, clustered, first_source.grid_size, counts[0], truth[0], seed
        ).items():
            found = image_quality(image.file.name, assignment, *truth, image.background)
            qualities.setdefault(FLOORS[name], []).append(found)
    rows = [
        {"label": label, **summarise_quality(some, num_resamples, seed, by_background)}
        for label, some in qualities.items()
    ]
    own = {variant.label for variant in variants if variant.tokens is None and not variant.is_baseline}
    for row in rows:
        _leave_out_intervals(row)
        if row["label"] not in own:
            row["rank_correlation"] = None  # it was told how many tokens to make
    return {
        "num_images": len(images),
        "num_objects": rows[0]["num_objects"],
        "objects_out_of_sight": out_of_sight,
        "num_resamples": num_resamples,
        "num_backgrounds": len({image.background for image in images}) if by_background else None,
        "seed": seed,
        "rows": rows,
        "images": {label: [vars(quality) for quality in some] for label, some in qualities.items()},
    }


def _leave_out_intervals(row: dict[str, Any]) -> None:
    """What one token or the objects themselves have in every image, whatever it shows, is no estimate."""
    always = {FLOORS["single"]: ("ari", "ari_objects"), FLOORS["oracle"]: ("ari", "ari_objects", "iou")}
    for measure in always.get(row["label"], ()):
        if row[measure] is not None:
            row[measure]["interval"] = None


def _tokens(variant: TokenVariant, num_objects: int, counts: Sequence[int]) -> int | None:
    """How many tokens a variant is to make, if it does not find that itself; `counts` are those of variants before."""
    if variant.tokens == PER_OBJECT:
        return num_objects + 1
    if variant.tokens is not None:
        return int(variant.tokens)
    return counts[0] if variant.is_baseline and counts else None


def _floors(features, clustered, grid_size, tokens: int, labels, seed: int) -> dict[str, torch.Tensor]:
    return {
        "kmeans": kmeans_clusters(features, tokens, seed),
        "kmeans_clustered": kmeans_clusters(clustered, tokens, seed),
        "grid": grid_clusters(grid_size, tokens),
        "single": single_cluster(len(features)),
        "oracle": oracle_clusters(labels),
    }


def _truth(objects: ObjectMasks, source: TokenSource) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of patches and coverage by the objects that the source sees."""
    seen = seen_objects(objects, source.image_processor)
    is_seen = np.asarray(seen.masks.any((1, 2)))
    names = tuple(name for name, kept in zip(seen.names, is_seen) if kept)
    seen = ObjectMasks(seen.masks[is_seen], names, seen.ignored)
    labels = torch.from_numpy(patch_labels(seen, source.grid_size)).flatten()
    return labels, torch.from_numpy(patch_coverage(seen.masks, source.grid_size)).flatten(1)


def _key(image: MaskedImage) -> str:
    return image_key(str(image.file))


def _features(source: TokenSource, images: Sequence[MaskedImage], batch_size: int, folder) -> FeatureCache:
    settings = feature_settings(source.feature_layer, source.image_processor)
    examples = [{"images": [str(image.file)]} for image in images]
    return FeatureCacheBuilder(
        source.model.vision_tower,
        source.patch_features,
        settings,
        examples,
        source.model.vision_tower.dtype,
        folder,
        batch_size,
        load_options={"apply_exif_orientation": False},
    ).build()


__all__ = ["FLOORS", "measure_clusters"]
