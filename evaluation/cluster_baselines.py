"""Clusters of patches to compare with: k-means, a plain grid, one cluster, and the objects themselves."""

import warnings

import torch

from ..configuration.optional import require

RESTARTS = 4


def kmeans_clusters(features: torch.Tensor, num_clusters: int, seed: int = 0) -> torch.Tensor:
    """
    K-means of the patch features of one image: k-means++ and Lloyd's algorithm of scikit-learn, the best of four
    starts.

    Args:
        features (`torch.Tensor` of shape `(num_patches, hidden_size)`): of patches.
        num_clusters (`int`): at most; equal features cannot be divided.
        seed (`int`, *optional*, defaults to 0): of the starts. The same image has the same clusters in any company.

    Returns:
        `torch.LongTensor` of shape `(num_patches,)`.

    Raises:
        ImportError: if scikit-learn is not installed; names the extra.
        ValueError: if there are no `num_clusters` patches, or features are not finite.
    """
    check_num_clusters(num_clusters, len(features))
    if not torch.isfinite(features).all():
        raise ValueError("Patch features are not finite: the weights may be damaged, or overflow in their dtype.")
    cluster = require("sklearn.cluster", "evaluation")
    kmeans = cluster.KMeans(num_clusters, init="k-means++", n_init=RESTARTS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", require("sklearn.exceptions", "evaluation").ConvergenceWarning)
        found = kmeans.fit_predict(features.double().cpu().numpy())
    return torch.from_numpy(found).long()


def grid_clusters(grid_size: tuple[int, int], num_clusters: int) -> torch.Tensor:
    """
    A plain grid: bands over the whole width, each divided into cells, all of nearly the same area.

    Args:
        grid_size (`tuple[int, int]`): height and width of the image in patches.
        num_clusters (`int`): cells; exactly so many.

    Returns:
        `torch.LongTensor` of shape `(num_patches,)`: in raster order.

    Raises:
        ValueError: if there are no `num_clusters` patches.
    """
    height, width = grid_size
    check_num_clusters(num_clusters, height * width)
    wanted = round((num_clusters * height / width) ** 0.5)
    num_bands = min(max(wanted, -(-num_clusters // width), 1), height, num_clusters)
    in_band = torch.tensor([num_clusters // num_bands + (n < num_clusters % num_bands) for n in range(num_bands)])
    band = _divided(height, in_band)
    before = torch.cat([torch.zeros(1, dtype=torch.long), in_band.cumsum(0)])
    rows = [before[number] + _divided(width, torch.ones(int(in_band[number]))) for number in band.tolist()]
    return torch.stack(rows).flatten()


def _divided(length: int, weights: torch.Tensor) -> torch.Tensor:
    """The part that each place of a line belongs to; parts are as long as their weights, and none is empty."""
    ends = (weights.cumsum(0) / weights.sum() * length).round().long().tolist()
    starts = [0]
    for number, end in enumerate(ends[:-1], start=1):
        starts.append(min(max(end, starts[-1] + 1), length - (len(ends) - number)))
    return torch.bucketize(torch.arange(length), torch.tensor(starts), right=True) - 1


def single_cluster(num_patches: int) -> torch.Tensor:
    """One cluster of all patches, `(num_patches,)`."""
    return torch.zeros(num_patches, dtype=torch.long)


def oracle_clusters(labels: torch.Tensor) -> torch.Tensor:
    """
    The objects and the background as clusters: the best that whole patches can do, each given to what most of it is.

    Args:
        labels (`torch.LongTensor` of shape `(num_patches,)`): from [`patch_labels`].

    Returns:
        `torch.LongTensor` of shape `(num_patches,)`: numbered without gaps; ignored patches are background.
    """
    return labels.clamp_min(0).unique(return_inverse=True)[1]


def check_num_clusters(num_clusters: int, num_patches: int) -> None:
    """
    Raises:
        ValueError: if so many patches cannot make so many clusters.
    """
    if not 1 <= num_clusters <= num_patches:
        raise ValueError(f"{num_patches} patches cannot make {num_clusters} clusters: expected 1 to {num_patches}.")


__all__ = ["check_num_clusters", "grid_clusters", "kmeans_clusters", "oracle_clusters", "single_cluster"]
