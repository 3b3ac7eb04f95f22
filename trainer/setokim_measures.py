"""What is measured of Setokim while it is trained: text, visual tokens and masks, from one pass over right answers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction

from ..evaluation.segmentation_scores import mask_overlap
from .answer_accuracy import share_right
from .setokim_batches import WrittenMasks

TERMS = {
    "lm": "text",
    "visual": "written",
    "length": "written",
    "choice": "written",
    "mask_bce": "masks",
    "mask_dice": "masks",
}
"""The terms of the loss, and what each is a mean over."""
OF_MASK_TERMS = tuple(name for name, over in TERMS.items() if over == "masks")
COUNTS = ("text", "written", "masks")
OVERLAPS = ("intersection", "union", "iou")
COLUMNS = (*TERMS, *COUNTS, *OVERLAPS)
"""Of each row of an evaluation: sums of the terms, of how many they are sums, and sums over masks."""
IMAGES_OF = "images of tokens/"
"""What names of counts of images begin with."""


def token_counts(batch: Mapping[str, Any]) -> list[str]:
    """
    How many visual tokens the images of a batch have, each as the name of a count of such images.

    Args:
        batch (`dict`): see [`with_visual_tokens`]; the token of a mask is no image.
    """
    masks = set(batch["mask_places"].tolist()) if "mask_places" in batch else set()
    tokens = enumerate(batch.get("visual_tokens", ()))
    return [f"{IMAGES_OF}{len(image)}" for place, image in tokens if place not in masks]


def token_statistics(sums: Mapping[str, float]) -> dict[str, float]:
    """
    Visual tokens per image.

    Args:
        sums (`dict[str, float]`): how many images there were of each name of [`token_counts`]; others are passed over.

    Returns:
        `dict[str, float]`: `tokens_mean`, `tokens_min`, `tokens_max`; nothing where there were no images.
    """
    counts = {int(name.removeprefix(IMAGES_OF)): sums[name] for name in sums if name.startswith(IMAGES_OF)}
    if not counts:
        return {}
    mean = sum(tokens * images for tokens, images in counts.items()) / sum(counts.values())
    return {"tokens_mean": mean, "tokens_min": float(min(counts)), "tokens_max": float(max(counts))}


class RowSums:
    """
    Adds up what the rows of a batch contribute to the metrics.

    Args:
        num_rows (`int`): of the batch.
        device (`torch.device`): of the result.
    """

    def __init__(self, num_rows: int, device: torch.device):
        self.values = torch.zeros(num_rows, len(COLUMNS), dtype=torch.float64, device=device)

    def add(self, name: str, rows: Any, values: Any) -> None:
        """
        Adds values to rows.

        Args:
            name (`str`): one of `COLUMNS`.
            rows (`torch.LongTensor` of shape `(num_values,)`): the row of each.
            values (`torch.Tensor` of shape `(num_values,)`): values.
        """
        column = self.values[:, COLUMNS.index(name)]
        column.index_add_(0, rows.to(column.device), values.to(column))

    def add_tokens(
        self,
        rows: torch.Tensor,
        errors: torch.Tensor,
        length_losses: torch.Tensor,
        choice_losses: torch.Tensor | None = None,
    ) -> None:
        """
        Adds visual tokens that were written.

        Args:
            rows (`torch.LongTensor` of shape `(num_written,)`): the row of each.
            errors (`torch.FloatTensor` of shape `(num_written,)`): mean squared error of each.
            length_losses (`torch.FloatTensor` of shape `(num_written,)`): cross-entropy of "one more".
            choice_losses (`torch.FloatTensor` of shape `(num_written,)`, *optional*): of a model with a bank.
        """
        self.add("visual", rows, errors)
        self.add("length", rows, length_losses)
        if choice_losses is not None:
            self.add("choice", rows, choice_losses)
        self.add("written", rows, torch.ones_like(errors))

    def add_masks(self, rows: torch.Tensor, masks: WrittenMasks, logits: torch.Tensor) -> None:
        """
        Adds masks that were written.

        Args:
            rows (`torch.LongTensor` of shape `(num_masks,)`): the row of each.
            masks ([`WrittenMasks`]): what they should be.
            logits (`torch.FloatTensor` of shape `(num_masks, height, width)`): of the mask decoder.
        """
        for name, losses in masks.losses(logits).items():
            self.add(name, rows, losses)
        self.add("masks", rows, torch.ones(len(logits)))
        overlaps = [mask_overlap(as_pixels(one, mask), mask.cpu().numpy()) for one, mask in zip(logits, masks.pixels)]
        shared, united = torch.tensor(overlaps, dtype=torch.float64).unbind(1)
        self.add("intersection", rows, shared)
        self.add("union", rows, united)
        self.add("iou", rows, shared / united)


def as_pixels(logits: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """
    A predicted mask in the pixels of another: from one half on, inside.

    Args:
        logits (`torch.FloatTensor` of shape `(height, width)`): before the sigmoid.
        mask (`torch.BoolTensor` of shape `(other_height, other_width)`): whose size it takes.
    """
    resized = nn.functional.interpolate(logits[None, None].float(), size=tuple(mask.shape), mode="bilinear")
    return (resized[0, 0] >= 0).cpu().numpy()


class SetokimMetrics:
    """
    Metrics of an evaluation: `loss`, as it is minimised, and its terms by name; `answer_accuracy` of answers that are
    text alone; `ciou` and `giou` of masks, in pixels of their images.

    Args:
        weights (`dict[str, float]`): of the terms in the loss; others are left out.
    """

    def __init__(self, weights: Mapping[str, float]):
        self.weights = dict(weights)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        right, rows = np.asarray(prediction.predictions), np.asarray(prediction.label_ids, dtype=np.float64)
        metrics = self.losses(dict(zip(COLUMNS, rows.sum(0).tolist())))
        if (right >= 0).any():
            metrics["answer_accuracy"] = share_right(right)
        return metrics

    def losses(self, sums: Mapping[str, float]) -> dict[str, float]:
        """
        Means of the terms, their weighted sum, and overlaps of masks.

        Args:
            sums (`dict[str, float]`): by the names of `COLUMNS`; overlaps may be missing.
        """
        terms = {name: over for name, over in TERMS.items() if name in self.weights}
        means = {name: sums[name] / sums[over] for name, over in terms.items() if sums.get(over, 0) > 0}
        found = {"loss": float(sum(self.weights[name] * mean for name, mean in means.items()))}
        found |= {f"loss_{name}": float(mean) for name, mean in means.items()}
        if sums.get("union", 0) > 0:
            found["ciou"] = sums["intersection"] / sums["union"]
            found["giou"] = sums["iou"] / sums["masks"]
        return found


__all__ = [
    "COLUMNS",
    "OF_MASK_TERMS",
    "TERMS",
    "RowSums",
    "SetokimMetrics",
    "as_pixels",
    "token_counts",
    "token_statistics",
]
