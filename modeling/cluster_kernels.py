"""Soft masks of clusters around given centres, differentiable in the features and in the scale of the kernel."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class _DistancesToCenters(torch.autograd.Function):
    """
    Rows of the matrix of squared distances, which clustering has computed anyway, with their gradient: by the
    distances' own formula, so that nothing but the features is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, squared: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, centers)
        return squared[torch.arange(len(centers), device=centers.device).unsqueeze(1), centers]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        features, centers = ctx.saved_tensors
        index = centers.unsqueeze(-1).expand(-1, -1, features.shape[-1])
        center_features = features.gather(1, index)
        of_centers = gradient.sum(2, keepdim=True) * center_features
        of_centers.baddbmm_(gradient, features, alpha=-1)
        of_patches = gradient.sum(1).unsqueeze(-1) * features
        of_patches.baddbmm_(gradient.transpose(1, 2), center_features, alpha=-1)
        return of_patches.scatter_add_(1, index, of_centers).mul_(2), None, None


def squared_distances_to_centers(features: torch.Tensor, squared: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """
    d_cj² = ‖x_c - x_j‖² / D of every centre c to every patch j.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): get the gradient.
        squared (`torch.FloatTensor` of shape `(batch, num_patches, num_patches)`): ‖x_i - x_j‖², without gradient.
        centers (`torch.LongTensor` of shape `(batch, num_centers)`): patch indices.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_centers, num_patches)`.
    """
    rows = _DistancesToCenters.apply(features.to(squared.dtype), squared, centers)
    return rows / features.shape[-1]


def gaussian_kernel(squared_distances: torch.Tensor, squared_scale: torch.Tensor | float) -> torch.Tensor:
    """K(d) = exp(-d²/σ²): 1 at distance 0, falling to 0 (Appendix C)."""
    return torch.exp(-squared_distances / squared_scale)


def iterative_masks(kernels: torch.Tensor, num_seeds: torch.Tensor) -> torch.Tensor:
    """
    The masks of Algorithm 1 in closed form: m_i = α_i Π_{j<i} (1 - α_j), and behind those of an image's seeds the
    scope that is left, Π_j (1 - α_j). They sum to 1 at every patch.

    Args:
        kernels (`torch.FloatTensor` of shape `(batch, max_num_seeds, num_patches)`): α of each seed to all patches, 0
            where an image has no such seed.
        num_seeds (`torch.LongTensor` of shape `(batch,)`): seeds of each image.

    Returns:
        `torch.FloatTensor` of shape `(batch, max_num_seeds + 1, num_patches)`.
    """
    scopes = nn.functional.pad(1 - kernels, (0, 0, 1, 0), value=1.0).cumprod(dim=1)
    masks = nn.functional.pad(kernels * scopes[:, :-1], (0, 0, 0, 1))
    slots = torch.arange(masks.shape[1], device=masks.device)
    takes_the_rest = (slots == num_seeds.unsqueeze(1)).unsqueeze(-1)
    return torch.where(takes_the_rest, scopes[:, -1:], masks)


def threshold_masks(squared_distances: torch.Tensor, squared_scale: Any, is_center: torch.Tensor) -> torch.Tensor:
    """
    Soft clusters around centres that were chosen at once: the kernels of all centres, normalised to sum to 1 at every
    patch. The smaller σ, the nearer to the hard clusters of the nearest centres.

    Args:
        squared_distances (`torch.FloatTensor` of shape `(batch, max_num_centers, num_patches)`): to each centre.
        squared_scale (`torch.FloatTensor` or `float`): σ².
        is_center (`torch.BoolTensor` of shape `(batch, max_num_centers)`): `False` where an image has fewer centres.

    Returns:
        `torch.FloatTensor` of the shape of the distances.
    """
    logits = (-squared_distances / squared_scale).masked_fill(~is_center.unsqueeze(-1), -torch.inf)
    kernels = torch.exp(logits - logits.detach().amax(dim=1, keepdim=True))
    # A softmax by hand: torch's rounds differently with other images or more padding beside.
    return kernels / kernels.cumsum(dim=1)[:, -1:]


__all__ = ["gaussian_kernel", "iterative_masks", "squared_distances_to_centers", "threshold_masks"]
