"""Density peaks and clusters written down as the paper does: image by image, patch by patch, for tests to compare."""

import math
from fractions import Fraction

import torch


def exact_squares(features: torch.Tensor) -> list[list[Fraction]]:
    """d_ij² = ‖x_i - x_j‖² / D of one image, in exact arithmetic: whatever is a tie is one."""
    rows = [[Fraction(value) for value in row] for row in features.double().tolist()]
    return [[sum((a - b) ** 2 for a, b in zip(first, second)) / len(first) for second in rows] for first in rows]


def slow_density_peaks(features: torch.Tensor, num_neighbors: int):
    """Scores, densities and distances of one image, `(num_patches, hidden_size)`, as lists."""
    squares = exact_squares(features)
    num_patches = len(squares)
    energies = []
    for row in squares:
        nearest = sorted(row)[:num_neighbors]
        energies.append(sum(nearest, Fraction(0)) / len(nearest))
    densities = [math.exp(-float(energy)) for energy in energies]
    distances = []
    for i in range(num_patches):
        denser = [j for j in range(num_patches) if (energies[j], j) < (energies[i], i)]
        squared = min(squares[i][j] for j in denser) if denser else max(squares[i])
        distances.append(math.sqrt(squared))
    return [density * distance for density, distance in zip(densities, distances)], densities, distances


def first_argmax(values) -> int:
    values = list(values)
    return values.index(max(values))


def slow_iterative(features, num_neighbors, stop_threshold, scale, min_tokens, max_tokens, scores=None):
    """Algorithm 1 of one image: its masks in the order they are found, differentiable, and their centres."""
    num_patches, hidden_size = features.shape
    min_tokens, max_tokens = min(min_tokens, num_patches), min(max_tokens, num_patches)
    scores = slow_density_peaks(features.detach(), num_neighbors)[0] if scores is None else scores
    scope = torch.ones(num_patches, dtype=features.dtype)
    masks, seeds = [], []
    while len(seeds) < max_tokens - 1:
        if float(scope.detach().mean()) < stop_threshold and len(seeds) >= min_tokens - 1:
            break
        seed = first_argmax(s * float(left) for s, left in zip(scores, scope.detach()))
        alpha = torch.exp(-((features[seed] - features) ** 2).sum(-1) / hidden_size / scale**2)
        masks.append(scope * alpha)
        scope = scope * (1 - alpha)
        seeds.append(seed)
    seeds.append(first_argmax(s * float(left) for s, left in zip(scores, scope.detach())))
    return torch.stack([*masks, scope]), seeds


def hard_labels(masks: torch.Tensor) -> list[int]:
    """The mask that is the largest at each patch, the first of equal ones."""
    return [first_argmax(column) for column in masks.detach().t().tolist()]


def slow_threshold(features, num_neighbors, score_threshold, min_tokens, max_tokens):
    """The clusters of centres above a threshold in one image: the label of each patch, and the centres."""
    squares = exact_squares(features)
    scores = slow_density_peaks(features, num_neighbors)[0]
    num_patches = len(scores)
    by_score = sorted(range(num_patches), key=lambda i: (-scores[i], i))
    centers = [i for i in range(num_patches) if scores[i] > score_threshold]
    if len(centers) < min(min_tokens, num_patches):
        centers = by_score[: min(min_tokens, num_patches)]
    if len(centers) > max_tokens:
        centers = by_score[:max_tokens]
    centers = sorted(centers)
    labels = []
    for i in range(num_patches):
        to_centers = [squares[i][center] for center in centers]
        labels.append(centers.index(i) if i in centers else to_centers.index(min(to_centers)))
    return labels, centers


def raster_order(positions) -> list[int]:
    """Order of clusters by the row, then the column, of their centres of mass."""
    return sorted(range(len(positions)), key=lambda cluster: (*positions[cluster], cluster))


def center_of_mass(weights, grid_size) -> tuple[Fraction, Fraction]:
    """Row and column of the weighted mean of patches, weights a list in row-major order."""
    exact = [Fraction(weight) for weight in weights]
    rows = sum(weight * (patch // grid_size[1]) for patch, weight in enumerate(exact))
    columns = sum(weight * (patch % grid_size[1]) for patch, weight in enumerate(exact))
    return rows / sum(exact), columns / sum(exact)
