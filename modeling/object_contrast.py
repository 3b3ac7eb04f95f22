"""A loss on pairs of patches, which teaches clusters directly; not of the paper, and off unless asked for."""

import torch


def patch_objects(coverage: torch.Tensor, present: torch.Tensor, least: float = 0.5) -> torch.Tensor:
    """
    What each patch belongs to, where that is clear.

    Args:
        coverage (`torch.FloatTensor` of shape `(batch, num_objects, num_patches)`): share of the patches that objects
            cover, 0 to 1.
        present (`torch.BoolTensor` of shape `(batch, num_objects)`): False at padding.
        least (`float`, *optional*, defaults to 0.5): share of a patch from which on it belongs to something.

    Returns:
        `torch.LongTensor` of shape `(batch, num_patches)`: the object, from 1; 0 for background; -1 for patches of
        which nothing covers as much as that.
    """
    if not coverage.shape[1]:
        return torch.zeros_like(coverage[:, :0].sum(1), dtype=torch.long)
    coverage = coverage * present.unsqueeze(-1)
    most, nearest = coverage.max(1)
    background = 1 - coverage.sum(1).clamp(max=1)
    labels = torch.where(most >= least, nearest + 1, -1)
    return torch.where(background >= least, 0, labels)


def patch_weights_by_coverage(coverage: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """
    How much patches count so that objects, and the background, weigh the same however many patches they have: the sum
    of the shares that a patch has of each. At the edge of an object a patch counts as much on one side as on the
    other. If patches of the background counted little there too, clusters of objects would grow over the edge.

    Args:
        coverage (`torch.FloatTensor` of shape `(batch, num_objects, num_patches)`): share of the patches that objects
            cover, 0 to 1.
        present (`torch.BoolTensor` of shape `(batch, num_objects)`): False at padding.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_patches)`.
    """
    objects = coverage * present.unsqueeze(-1)
    shares = torch.cat([1 - objects.sum(1, keepdim=True).clamp(max=1), objects], dim=1)
    return (shares / shares.sum(-1, keepdim=True).clamp(min=1)).sum(1)


def object_contrast_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    squared_scale: torch.Tensor,
    weights: torch.Tensor | None = None,
    margin: float = 1e-4,
) -> torch.Tensor:
    """
    How badly the kernel of Algorithm 1, α = exp(-d²/σ²), says of two patches that they belong together: binary
    cross-entropy over all pairs of patches of an image. -log α = d²/σ² pulls patches of one object, and those of the
    background, together; -log(1 - α) pushes others apart. Pairs that belong together weigh as much as the others.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): that distances are taken of.
        labels (`torch.LongTensor` of shape `(batch, num_patches)`): see [`patch_objects`]; -1 is left out.
        squared_scale (`torch.FloatTensor`, broadcastable to `(batch, 1, 1)`): σ², in the unit of ‖x_i - x_j‖² / D.
        weights (`torch.FloatTensor` of shape `(batch, num_patches)`, *optional*): how much a patch counts, see
            [`patch_weights_by_coverage`]; by default objects, and the background, weigh the same, and their patches
            among them.
        margin (`float`, *optional*, defaults to 1e-4): least 1 - α, so that equal features give a finite loss.

    Returns:
        `torch.FloatTensor` of shape `()`: mean over the images that have an object; 0, with a gradient of 0, where
        none has.

    Raises:
        ValueError: if there is not one label for each patch.
    """
    if labels.shape != features.shape[:2]:
        raise ValueError(
            f"There are labels of shape {tuple(labels.shape)} for features of shape {tuple(features.shape)}: expected "
            "one for each patch, (batch, num_patches)."
        )
    squared = _squared_distances(features) / features.shape[-1]
    exponents = squared / squared_scale
    one_hot = torch.nn.functional.one_hot(labels + 1)[..., 1:].to(squared.dtype)
    if weights is None:
        weights = (one_hot / one_hot.sum(1, keepdim=True).clamp(min=1)).sum(-1)
    weights = weights * one_hot.sum(-1)
    pairs = weights.unsqueeze(2) * weights.unsqueeze(1)
    same = torch.bmm(one_hot, one_hot.transpose(1, 2))
    apart = -torch.log(-torch.expm1(-exponents) + margin)
    means = [_mean(term, pairs * chosen) for term, chosen in ((exponents, same), (apart, 1 - same))]
    has_object = (labels > 0).any(1)
    return ((means[0] + means[1]) / 2 * has_object).sum() / has_object.sum().clamp(min=1)


def squared_kernel_scale(
    features: torch.Tensor, kernel_scale: torch.Tensor | float, is_relative: bool
) -> torch.Tensor:
    """
    σ² as [`cluster_patches`] takes it.

    Args:
        features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): that distances are taken of.
        kernel_scale (`torch.FloatTensor` of one element, or `float`): σ.
        is_relative (`bool`): whether σ counts in mean distances between the image's patches, which take no gradient.

    Returns:
        `torch.FloatTensor` of shape `(batch, 1, 1)`, or `(1, 1, 1)` where σ is the same for all images.
    """
    squared = torch.as_tensor(kernel_scale, dtype=torch.float32, device=features.device).square().reshape(1, 1, 1)
    if is_relative:
        with torch.no_grad():
            distances = _squared_distances(features).sqrt().mean((1, 2), keepdim=True)
        squared = squared * distances.square() / features.shape[-1]
    return squared.clamp(min=torch.finfo(torch.float32).tiny ** 0.5)


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted means over the pairs of each image."""
    return (values * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-12)


def _squared_distances(features: torch.Tensor) -> torch.Tensor:
    """In float32, and of features around their mean: far from it a matrix product leaves no difference of them."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        features = features - features.detach().mean(1, keepdim=True)
        norms = features.square().sum(-1)
        products = torch.bmm(features, features.transpose(1, 2))
        return (norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * products).clamp(min=0)


__all__ = ["object_contrast_loss", "patch_objects", "patch_weights_by_coverage", "squared_kernel_scale"]
