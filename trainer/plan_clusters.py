"""Clusters of a number that is given: for plans, because how many an image has depends on what it shows."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..modeling.cluster_kernels import (
    gaussian_kernel,
    iterative_masks,
    squared_distances_to_centers,
    threshold_masks,
)
from ..modeling.density_peaks import distances_and_densities
from ..modeling.patch_clusters import PatchClusters, squared_scale_of_images
from ..modeling.setok_tokenizer import SeTokTokenizer

Part = Callable[[str], contextlib.AbstractContextManager]
"""What a step says of the operations that follow: which part of it they are."""
CLUSTERS = (
    "How many tokens an image has depends on what it shows: planned with {}, of patches in equal numbers "
    "(--image-tokens; by default the most)."
)
"""A note on what a plan with clusters assumes."""


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """
    Among fake tensors: within, new ones have content, and shapes may follow from it. What fake ones take part in stays
    fake.
    """
    with unset_fake_temporarily():
        yield


@contextlib.contextmanager
def named_parts(part: Part, modules: Sequence[tuple[str, torch.nn.Module]]) -> Iterator[None]:
    """
    Within, what modules compute forward is counted as parts of their own.

    Args:
        part (`Callable`): of the step.
        modules (`list[tuple[str, nn.Module]]`): what the part of each is called.
    """
    running: list[contextlib.AbstractContextManager] = []
    hooks = []
    for name, module in modules:

        def enter(*_: Any, name: str = name) -> None:
            running.append(part(name))
            running[-1].__enter__()

        def leave(*_: Any) -> None:
            running.pop().__exit__(None, None, None)

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def fixed_clusters(tokenizer: Any, count: int | None, part: Part) -> Iterator[None]:
    """
    Within, which has [`real_tensors`], a SeTok makes so many clusters of each image, of patches in equal numbers,
    whatever it shows. Looking for seeds and sorting, which are no products, is left out.

    Args:
        tokenizer ([`SeTokTokenizer`]): of fake tensors.
        count (`int`, *optional*): of clusters; `None`, or more than it makes at most: as many as that.
        part (`Callable`): of the step, in which clustering has its own.
    """

    def cluster(patches: torch.Tensor, grid_size: tuple[int, int]) -> PatchClusters:
        with part("clustering"):
            return _clusters(tokenizer, patches, grid_size, num_clusters(tokenizer, count, patches.shape[1]))

    tokenizer.cluster = cluster  # of this instance
    try:
        with real_tensors():
            yield
    finally:
        del tokenizer.cluster


def num_clusters(tokenizer: SeTokTokenizer, count: int | None, num_patches: int) -> int:
    """How many clusters of an image a plan counts with."""
    return min(count or num_patches, tokenizer.max_num_tokens, num_patches)


def equal_clusters(batch_size: int, num_patches: int, count: int) -> PatchClusters:
    """
    Hard clusters of as many patches each, but for one.

    Args:
        batch_size, num_patches (`int`): of the images.
        count (`int`): of clusters of each.
    """
    slots = torch.arange(count)
    assignment = (torch.arange(num_patches) * count // num_patches).expand(batch_size, -1)
    return PatchClusters(
        cluster_masks=(assignment.unsqueeze(1) == slots.unsqueeze(1)).float(),
        assignment=assignment,
        mask=torch.ones(batch_size, count, dtype=torch.bool),
        centers=((slots * num_patches + count - 1) // count).expand(batch_size, -1),
        scores=torch.zeros(batch_size, num_patches),
    )


def _clusters(tokenizer: SeTokTokenizer, patches: torch.Tensor, grid_size: tuple[int, int], count: int):
    """What [`cluster_patches`] computes of these clusters, and their gradient."""
    config = tokenizer.config
    features = tokenizer.cluster_features(patches, grid_size)
    *_, squared = distances_and_densities(features, config.num_neighbors)
    found = equal_clusters(len(patches), patches.shape[1], count)
    straight_through = tokenizer.is_straight_through(features)
    if config.method != "iterative" and config.assignment == "hard" and not straight_through:
        return found
    scale = squared_scale_of_images(
        tokenizer.kernel_scale(features), config.relative_kernel_scale, squared, features.shape[-1]
    )
    if config.method == "iterative":
        distances = squared_distances_to_centers(features, squared, found.centers[:, :-1])
        soft = iterative_masks(gaussian_kernel(distances, scale), torch.full((len(patches),), count - 1))
    else:
        soft = threshold_masks(squared_distances_to_centers(features, squared, found.centers), scale, found.mask)
    found.soft_masks = soft * found.mask.unsqueeze(-1)
    if config.assignment == "soft":
        found.cluster_masks = found.soft_masks
    elif straight_through:
        found.cluster_masks = found.cluster_masks + (found.soft_masks - found.soft_masks.detach())
    return found


__all__ = ["CLUSTERS", "Part", "equal_clusters", "fixed_clusters", "named_parts", "num_clusters", "real_tensors"]
