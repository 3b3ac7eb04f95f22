"""Clusters of patches against the paper's algorithm, image by image, and what is guaranteed of them."""

import pytest
import torch

from tests.modeling.slow_clusters import (
    center_of_mass,
    hard_labels,
    raster_order,
    slow_density_peaks,
    slow_iterative,
    slow_threshold,
)
from vistok import cluster_patches

METHODS = ("iterative", "threshold")
COMBINATIONS = [(method, assignment) for method in METHODS for assignment in ("hard", "soft")]


def blobs(batch_size=3, num_patches=24, hidden_size=5, num_blobs=4, spread=0.3):
    """Patches around a few centres, in float64."""
    centers = 2 * torch.randn(batch_size, num_blobs, hidden_size, dtype=torch.float64)
    patches = centers.repeat(1, num_patches // num_blobs, 1)
    return patches + spread * torch.randn_like(patches)


def kept(labels, num_candidates):
    return [cluster for cluster in range(num_candidates) if cluster in labels]


@pytest.mark.parametrize("num_neighbors", [1, 2, 5])
@pytest.mark.parametrize(
    ("stop", "bounds"), [(0.05, (1, 64)), (0.2, (1, 64)), (0.05, (6, 6)), (0.9, (4, 9)), (0.0, (1, 3)), (0.1, (1, 1))]
)
def test_iterative_clusters_are_those_of_algorithm_1(num_neighbors, stop, bounds):
    features = blobs()
    options = {"method": "iterative", "num_neighbors": num_neighbors, "stop_threshold": stop, "kernel_scale": 0.8}
    options |= {"min_tokens": bounds[0], "max_tokens": bounds[1]}
    soft, hard = (cluster_patches(features, assignment=kind, **options) for kind in ("soft", "hard"))
    for index, image in enumerate(features):
        masks, seeds = slow_iterative(image, num_neighbors, stop, 0.8, *bounds)
        count = int(soft.mask[index].sum())
        assert count == len(seeds)
        assert torch.allclose(soft.cluster_masks[index, :count], masks, rtol=0, atol=1e-13)
        assert soft.centers[index, :count].tolist() == seeds
        labels = hard_labels(masks)
        assert soft.assignment[index].tolist() == labels
        left = kept(labels, len(masks))
        count = int(hard.mask[index].sum())
        assert count == len(left)
        assert hard.assignment[index].tolist() == [left.index(label) for label in labels]
        assert hard.centers[index, :count].tolist() == [seeds[cluster] for cluster in left]
        assert torch.allclose(hard.soft_masks[index, :count], masks[left], rtol=0, atol=1e-13)
        expected = torch.nn.functional.one_hot(torch.tensor(labels)).t()[left].double()
        assert torch.equal(hard.cluster_masks[index, :count], expected)


@pytest.mark.parametrize("num_neighbors", [1, 2, 5, 30])
@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.3, 5.0])
@pytest.mark.parametrize("bounds", [(1, 64), (3, 7), (5, 5), (30, 40)])
def test_threshold_clusters_are_the_patches_nearest_to_each_center(num_neighbors, threshold, bounds):
    lattice = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0), torch.arange(2.0)).double()
    features = torch.stack([*blobs(2, hidden_size=3), lattice, torch.randint(0, 2, (24, 3)).double()])
    options = {"num_neighbors": num_neighbors, "score_threshold": threshold}
    options |= {"min_tokens": bounds[0], "max_tokens": bounds[1]}
    found = cluster_patches(features, method="threshold", **options)
    for index, image in enumerate(features):
        labels, centers = slow_threshold(image, num_neighbors, threshold, *bounds)
        assert found.centers[index][found.mask[index]].tolist() == centers
        assert found.assignment[index].tolist() == labels
        assert torch.equal(found.cluster_masks[index].argmax(0), torch.tensor(labels))
    assert torch.allclose(found.scores[0], torch.tensor(slow_density_peaks(features[0], num_neighbors)[0]).double())


def test_soft_threshold_clusters_are_kernels_that_sum_to_one():
    features = blobs()
    found = cluster_patches(features, method="threshold", assignment="soft", score_threshold=0.2, kernel_scale=0.7)
    for index, image in enumerate(features):
        centers = image[found.centers[index][found.mask[index]]]
        squares = ((centers[:, None] - image[None]) ** 2).mean(-1)
        kernels = torch.exp(-squares / 0.7**2)
        assert torch.allclose(found.cluster_masks[index][found.mask[index]], kernels / kernels.sum(0), atol=1e-12)
    sharp = cluster_patches(features, method="threshold", assignment="soft", score_threshold=0.2, kernel_scale=1e-3)
    hard = cluster_patches(features, method="threshold", score_threshold=0.2)
    assert torch.allclose(sharp.cluster_masks, hard.cluster_masks)


@pytest.mark.parametrize(("method", "assignment"), COMBINATIONS)
@pytest.mark.parametrize("num_patches", [1, 2, 3, 12])
@pytest.mark.parametrize("bounds", [(1, 1), (2, 4), (5, 5), (20, 64)])
@pytest.mark.parametrize("kind", ["random", "constant", "two values", "huge", "bfloat16"])
def test_every_patch_belongs_to_a_token_and_there_are_no_more_than_allowed(
    method, assignment, num_patches, bounds, kind
):
    features = {
        "random": torch.randn(3, num_patches, 8),
        "constant": torch.full((3, num_patches, 8), 0.3),
        "two values": torch.randint(0, 2, (3, num_patches, 1)).expand(-1, -1, 8).float(),
        "huge": 1e4 * torch.randn(3, num_patches, 8),
        "bfloat16": torch.randn(3, num_patches, 8).bfloat16(),
    }[kind].requires_grad_()
    grid_size = (1, num_patches) if num_patches < 12 else (3, 4)
    for options in ({}, {"grid_size": grid_size}, {"relative_kernel_scale": True, "straight_through": True}):
        scale = torch.tensor(0.9, requires_grad=True)
        found = cluster_patches(
            features,
            method=method,
            assignment=assignment,
            min_tokens=bounds[0],
            max_tokens=bounds[1],
            kernel_scale=scale,
            **options,
        )
        counts = found.mask.sum(-1)
        assert counts.min() >= 1
        assert counts.max() == found.mask.shape[1] <= min(num_patches, bounds[1])
        if method == "threshold":
            assert counts.min() >= min(bounds[0], num_patches)
        assert torch.equal(found.mask, torch.arange(found.mask.shape[1]) < counts[:, None]), "padding is at the end"
        assert (found.assignment >= 0).all()
        assert (found.assignment < counts[:, None]).all()
        assert torch.allclose(found.cluster_masks.sum(1), torch.ones(3, num_patches), atol=1e-5)
        assert (found.cluster_masks.sum(-1)[found.mask] > 0).all()
        assert not found.cluster_masks[~found.mask].any()
        assert (found.centers[~found.mask] == -1).all()
        assert (found.centers[found.mask] >= 0).all()
        if found.cluster_masks.requires_grad:
            gradients = torch.autograd.grad(found.cluster_masks.square().sum(), (features, scale), allow_unused=True)
            assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relative", [True, False])
def test_an_image_has_the_same_clusters_alone_and_in_any_batch_bit_by_bit(method, dtype, relative):
    features = torch.cat([blobs(3, 48, 20), torch.randn(3, 48, 20).double(), torch.zeros(1, 48, 20).double()]).to(
        dtype
    )
    options = {"method": method, "kernel_scale": 0.8, "score_threshold": 0.2, "grid_size": (6, 8)}
    options |= {"relative_kernel_scale": relative}
    for assignment in ("hard", "soft"):
        together = cluster_patches(features, assignment=assignment, **options)
        assert len(set(together.mask.sum(-1).tolist())) > 1, "the images shall need different numbers of clusters"
        for chosen in ([0], [2], [6], [5, 1], [4, 3, 2]):
            some = cluster_patches(features[chosen], assignment=assignment, **options)
            width = some.mask.shape[1]
            for name, value in some.items():
                expected = together[name][chosen]
                expected = expected if name in ("scores", "assignment") else expected[:, :width]
                assert torch.equal(value, expected), (name, chosen)


@pytest.mark.parametrize(("method", "assignment"), COMBINATIONS)
def test_permuting_patches_permutes_the_assignment(method, assignment):
    features = blobs(4, 36)
    order = torch.randperm(36)
    options = {"method": method, "assignment": assignment, "score_threshold": 0.2}
    # Only the threshold method numbers clusters by patches: it is compared by who is together with whom.
    first, second = (cluster_patches(patches, **options) for patches in (features, features[:, order]))
    together = first.assignment[:, :, None] == first.assignment[:, None]
    again = second.assignment[:, :, None] == second.assignment[:, None]
    assert torch.equal(together[:, order][:, :, order], again)
    assert torch.equal(first.mask, second.mask)
    if method == "iterative":
        assert torch.equal(first.assignment[:, order], second.assignment)
        assert torch.allclose(first.cluster_masks[:, :, order], second.cluster_masks, atol=1e-12)
        assert torch.equal(order[second.centers.clamp(min=0)][second.mask], first.centers[first.mask])


@pytest.mark.parametrize(("method", "assignment"), COMBINATIONS)
def test_clusters_are_in_raster_order_of_their_centers_of_mass(method, assignment):
    features = blobs(4, 30, num_blobs=5)
    options = {"method": method, "assignment": assignment, "score_threshold": 0.2, "kernel_scale": 0.8}
    found, unordered = (cluster_patches(features, grid_size=grid, **options) for grid in ((5, 6), None))
    changed = False
    for index in range(4):
        masks = unordered.cluster_masks[index][unordered.mask[index]]
        order = raster_order([center_of_mass(mask.tolist(), (5, 6)) for mask in masks])
        changed |= order != sorted(order)
        real = found.mask[index]
        assert torch.equal(found.cluster_masks[index][real], masks[order])
        assert (
            torch.equal(found.soft_masks[index][real], unordered.soft_masks[index][unordered.mask[index]][order])
            if (found.soft_masks is not None)
            else method == "threshold"
        )
        assert found.centers[index][real].tolist() == unordered.centers[index][order].tolist()
        assert [order[label] for label in found.assignment[index]] == unordered.assignment[index].tolist()
    assert changed


@pytest.mark.parametrize("relative", [True, False])
def test_gradients_of_soft_masks_are_those_of_the_loop(relative):
    features = blobs(3, 16).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    options = {"kernel_scale": scale, "stop_threshold": 0.1, "relative_kernel_scale": relative}
    found = cluster_patches(features, method="iterative", assignment="soft", **options).cluster_masks
    weights = torch.randn_like(found)
    loss = 0
    for index, image in enumerate(features):
        distances = ((image[:, None] - image[None]) ** 2).mean(-1).sqrt().mean().detach()
        masks, _ = slow_iterative(image, 5, 0.1, scale * distances if relative else scale, 1, 64)
        loss = loss + (masks * weights[index, : len(masks)]).sum()
    expected = torch.autograd.grad(loss, (features, scale))
    gradients = torch.autograd.grad((found * weights).sum(), (features, scale))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(gradients, expected))
    assert gradients[0].abs().max() > 0.01


def test_gradients_of_soft_threshold_clusters_are_those_of_the_kernels():
    features = blobs(2, 16).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    found = cluster_patches(features, method="threshold", assignment="soft", score_threshold=0.2, kernel_scale=scale)
    weights = torch.randn_like(found.cluster_masks)
    loss = 0
    for index, image in enumerate(features):
        centers = image[found.centers[index][found.mask[index]]]
        kernels = torch.exp(-((centers[:, None] - image[None]) ** 2).mean(-1) / scale**2)
        loss = loss + (kernels / kernels.sum(0) * weights[index, : len(centers)]).sum()
    expected = torch.autograd.grad(loss, (features, scale))
    gradients = torch.autograd.grad((found.cluster_masks * weights).sum(), (features, scale))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(gradients, expected))


@pytest.mark.parametrize("method", METHODS)
def test_hard_masks_go_straight_through_only_if_asked_to(method):
    features = blobs().requires_grad_()
    options = {"method": method, "score_threshold": 0.2}
    plain = cluster_patches(features, **options)
    assert not plain.cluster_masks.requires_grad
    assert (plain.soft_masks is None) == (method == "threshold")
    through = cluster_patches(features, straight_through=True, **options)
    assert torch.equal(through.cluster_masks.detach(), plain.cluster_masks)
    weights = torch.randn_like(plain.cluster_masks)
    gradients = [
        torch.autograd.grad((masks * weights).sum(), features, retain_graph=True)[0]
        for masks in (through.cluster_masks, through.soft_masks)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_nothing_but_the_soft_masks_takes_part_in_the_graph():
    found = cluster_patches(blobs().requires_grad_(), method="iterative")
    assert [name for name, value in found.items() if value.requires_grad] == ["soft_masks"]


def test_planted_objects_become_clusters():
    """Four regions of one feature each, and a little noise: as many tokens, with their borders."""
    grid = torch.zeros(8, 8, dtype=torch.long)
    grid[1:4, 1:4], grid[1:4, 5:8], grid[5:7, 2:6] = 1, 2, 3
    features = 3 * torch.eye(4)[grid.flatten()].repeat(1, 4) + 0.02 * torch.randn(64, 16)
    expected = grid.flatten()
    for options in ({"method": "iterative", "kernel_scale": 0.5}, {"method": "threshold", "score_threshold": 0.5}):
        found = cluster_patches(features.unsqueeze(0), grid_size=(8, 8), **options)
        assert found.mask.sum() == 4
        pairs = set(zip(expected.tolist(), found.assignment[0].tolist()))
        assert len(pairs) == 4, "each region is one cluster"


def test_features_that_lie_far_apart_have_clusters_too():
    """Their densities and scores are 0 in float32, and their clusters are those that float64 finds."""
    generator = torch.Generator().manual_seed(0)
    kinds = 30 * torch.randn(4, 64, generator=generator)
    features = (kinds[torch.arange(64) // 16] + 11 * torch.randn(64, 64, generator=generator)).unsqueeze(0)
    relative = {"method": "iterative", "relative_kernel_scale": True, "kernel_scale": 0.7, "max_tokens": 8}
    for options in (relative, {"method": "threshold", "min_tokens": 4, "max_tokens": 4}):
        found, expected = (cluster_patches(features.to(dtype), **options) for dtype in (torch.float32, torch.float64))
        assert not found.scores.any() and expected.scores.all()
        assert torch.equal(found.centers, expected.centers)
        assert torch.equal(found.assignment, expected.assignment)
    planted = cluster_patches(features, **relative).assignment[0].view(4, 16)
    assert (planted == planted[:, :1]).all() and len(planted[:, 0].unique()) == 4


def test_what_contradicts_itself_is_named():
    features = torch.randn(1, 6, 4)
    with pytest.raises(ValueError, match="method is 'kmeans': choose 'iterative' or 'threshold'"):
        cluster_patches(features, method="kmeans")
    with pytest.raises(ValueError, match="assignment is 'firm'"):
        cluster_patches(features, method="threshold", assignment="firm")
    for bounds in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"min_tokens={bounds[0]} and max_tokens={bounds[1]} are no bounds"):
            cluster_patches(features, method="threshold", min_tokens=bounds[0], max_tokens=bounds[1])
    for scale in (0, -1.0, float("nan"), float("inf")):
        for given in (scale, torch.tensor([float(scale)])):
            with pytest.raises(ValueError, match="scale of a kernel is a number above 0"):
                cluster_patches(features, method="iterative", kernel_scale=given)
    with pytest.raises(ValueError, match="expected one number"):
        cluster_patches(features, method="iterative", kernel_scale=torch.ones(2))
    with pytest.raises(ValueError, match="2 × 4 has 8 patches, the features are of 6"):
        cluster_patches(features, method="iterative", grid_size=(2, 4))
