"""Hungarian matching of predicted masks to objects: one to one, at the least total cost (SeTok, stage I-b)."""

import numpy as np
import torch
from torch import nn

from .losses_segmentation import check_same_images


def pairwise_mask_costs(mask_logits: torch.Tensor, object_masks: torch.Tensor) -> torch.Tensor:
    """
    Cost of every pair of a predicted mask and an object: binary cross-entropy plus dice loss, as in
    [`mask_bce_loss`] and [`mask_dice_loss`] (SeTok, Section 2.2). Two matrix products for a whole batch.

    Args:
        mask_logits (`torch.FloatTensor` of shape `(batch, num_tokens, num_points)`): before the sigmoid.
        object_masks (`torch.Tensor` of shape `(batch, num_objects, num_points)`): 0 to 1.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_tokens, num_objects)`, without a gradient, in float32, or in float64
        if the logits are.

    Raises:
        ValueError: if batches or points do not agree.
    """
    check_same_images(mask_logits, object_masks, "mask_logits", "num_points")
    logits = mask_logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = object_masks.to(logits.dtype).transpose(1, 2)
    with torch.autocast(logits.device.type, enabled=False):  # in half precision the products would decide otherwise
        # −y log p − (1 − y) log (1 − p) = softplus(x) − xy, with p the sigmoid of x
        bce = (nn.functional.softplus(logits).sum(-1, keepdim=True) - logits @ targets) / max(logits.shape[-1], 1)
        probabilities = logits.sigmoid()
        sizes = probabilities.sum(-1, keepdim=True) + targets.sum(1, keepdim=True)
        return bce + 1 - (2 * probabilities @ targets + 1) / (sizes + 1)


def linear_assignment(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Solves the assignment problem exactly: as many pairs of a row and a column as there are of the fewer, no row and no
    column twice, at the least sum of costs. Successive shortest augmenting paths (Jonker and Volgenant, 1987), which
    take O(rows² · columns) steps. SciPy, which has it too, is no dependency of what every user needs.

    Args:
        costs (`numpy.ndarray` of shape `(num_rows, num_columns)`): finite.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: rows, in rising order, and the column of each.

    Raises:
        ValueError: if costs are no matrix, or NaN or infinite.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2:
        raise ValueError(f"costs have the shape {costs.shape}, expected (num_rows, num_columns).")
    if not np.isfinite(costs).all():
        raise ValueError(
            f"{int((~np.isfinite(costs)).sum())} of {costs.size} costs are NaN or infinite, so no assignment is the "
            "best: predicted masks that are NaN mean that training has diverged."
        )
    if costs.shape[0] <= costs.shape[1]:
        return np.arange(costs.shape[0]), _columns_of_rows(costs)
    columns = np.arange(costs.shape[1])
    rows = _columns_of_rows(costs.T)
    order = np.argsort(rows)
    return rows[order], columns[order]


def _columns_of_rows(costs: np.ndarray) -> np.ndarray:
    """The column of each row; no more rows than columns."""
    num_rows, num_columns = costs.shape
    start = num_columns  # a column of no cost, from which the path of each new row begins
    row_of_column = np.full(num_columns + 1, -1)
    row_potential, column_potential = np.zeros(num_rows), np.zeros(num_columns + 1)
    for row in range(num_rows):
        row_of_column[start] = row
        column = start
        visited = np.zeros(num_columns + 1, dtype=bool)
        distance = np.full(num_columns, np.inf)
        previous = np.full(num_columns, start)
        while row_of_column[column] >= 0:
            visited[column] = True
            current = row_of_column[column]
            reduced = costs[current] - row_potential[current] - column_potential[:-1]
            shorter = ~visited[:-1] & (reduced < distance)
            distance[shorter], previous[shorter] = reduced[shorter], column
            open_distance = np.where(visited[:-1], np.inf, distance)
            nearest = int(open_distance.argmin())
            step = open_distance[nearest]
            row_potential[row_of_column[visited]] += step
            column_potential[visited] -= step
            distance -= step
            column = nearest
        while column != start:  # the path is walked back, and every column on it goes to the row before it
            row_of_column[column] = row_of_column[previous[column]]
            column = previous[column]
    columns = np.empty(num_rows, dtype=np.int64)
    taken = np.flatnonzero(row_of_column[:-1] >= 0)
    columns[row_of_column[taken]] = taken
    return columns


def match_masks(
    costs: torch.Tensor, token_mask: torch.Tensor, object_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Matches the tokens of each image to its objects, one to one. Of more objects than tokens, or more tokens than
    objects, those are left over that cost the most; an image without objects has no pairs.

    Args:
        costs (`torch.FloatTensor` of shape `(batch, num_tokens, num_objects)`): see [`pairwise_mask_costs`].
        token_mask (`torch.BoolTensor` of shape `(batch, num_tokens)`): True at real tokens.
        object_mask (`torch.BoolTensor` of shape `(batch, num_objects)`): True at real objects.

    Returns:
        `tuple` of three `torch.LongTensor` of shape `(num_pairs,)`: image, token and object of every pair, by image.

    Raises:
        ValueError: if shapes do not agree, or costs of real pairs are NaN or infinite.
    """
    if costs.shape != (*token_mask.shape, object_mask.shape[-1]) or len(costs) != len(object_mask):
        raise ValueError(
            f"costs have the shape {tuple(costs.shape)}, but there are {tuple(token_mask.shape)} tokens and "
            f"{tuple(object_mask.shape)} objects: expected (batch, num_tokens, num_objects)."
        )
    all_costs = costs.detach().cpu().double().numpy()
    all_tokens, all_objects = token_mask.cpu().numpy(), object_mask.cpu().numpy()
    pairs = [np.zeros((3, 0), dtype=np.int64)]
    for image, (of_image, is_token, is_object) in enumerate(zip(all_costs, all_tokens, all_objects)):
        tokens, objects = np.flatnonzero(is_token), np.flatnonzero(is_object)
        rows, columns = linear_assignment(of_image[np.ix_(tokens, objects)])
        pairs.append(np.stack([np.full(len(rows), image), tokens[rows], objects[columns]]))
    images, tokens, objects = torch.from_numpy(np.concatenate(pairs, axis=1)).to(costs.device)
    return images, tokens, objects


__all__ = ["linear_assignment", "match_masks", "pairwise_mask_costs"]
