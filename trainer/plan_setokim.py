"""Plans of Setokim: what it costs to write images and masks, beside what it costs to read."""

from typing import Any

import torch

from ..modeling.fused_head_losses import fused_divergence
from ..modeling.losses_segmentation import mask_bce_loss, mask_dice_loss
from ..modeling.visual_regression import visual_regression_loss
from ..modeling.vocabulary_chunks import OutputHead
from .plan_clusters import Part, equal_clusters, real_tensors

OF_FORMATS = {"generation-pairs": "images", "instruct-pix2pix": "images", "refcoco": "mask"}
OF_SCENES = {"drawing captions": "images", "edits": "images", "expressions": "mask"}
"""What data asks to be written: by its format, or by what scenes tell."""
WRITTEN = {
    "images": "Some of the data asks for images: planned as if every image of a row were written.",
    "mask": "Some of the data asks for masks: planned as if each row wrote one, of its first image.",
}
"""Notes on what a plan assumes of it."""


def written_by(recipe: Any) -> tuple[str, ...]:
    """
    What a recipe's data asks a Setokim to write.

    Args:
        recipe ([`SetokimRecipe`]): with the section `data`.

    Returns:
        `tuple[str, ...]`: `"images"`, `"mask"`, both or none.
    """
    asked = set()
    for source in recipe.data.train:
        tell = str((source.get("options") or {}).get("tell"))
        asked.add(OF_FORMATS.get(source["format"]) or OF_SCENES.get(tell))
    return tuple(name for name in ("images", "mask") if name in asked)


def text_head(model: Any, states: torch.Tensor) -> OutputHead:
    """
    The head of a language model, as a loss that never holds its logits takes it.

    Args:
        model (`PreTrainedModel`): composed; of a Setokim with rows of its own for special tokens.
        states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`): that predict tokens.
    """
    weight = model.lm_head.weight
    if getattr(model.config, "trained_token_rows", False):
        weight = model._rows_of_head().in_matrix(weight)
    return OutputHead.of(states, weight, model.lm_head.bias)


def written_losses(
    model: Any, hidden: torch.Tensor, features: Any, image_tokens: int, shape: Any, part: Part
) -> list[torch.Tensor]:
    """
    Losses of visual tokens and masks that a step of [`SetokimTrainer`] writes: as if all images of a row were to be
    written where some are, and each row had a mask of its first image where some have.

    Args:
        model ([`SetokimForConditionalGeneration`]): of fake tensors.
        hidden (`torch.FloatTensor` of shape `(rows, sequence_length, hidden_size)`): last states.
        features ([`VisionFeatures`]): of the images.
        image_tokens (`int`): of an image.
        shape ([`StepShape`]): of the batch.
        part (`Callable`): of the step.
    """
    count = image_tokens * shape.images if "images" in shape.writes else 0
    count = min(count + ("mask" in shape.writes), hidden.shape[1])
    states = hidden[:, :count].reshape(-1, hidden.shape[-1])
    predictions = model._visual_predictions(states)
    targets = torch.empty_like(predictions)
    losses = [visual_regression_loss(predictions, targets, num_items=1)]
    more = torch.zeros(len(states), dtype=torch.long)
    losses.append(fused_divergence(text_head(model, states), more, 1.0))  # that there is one more
    if model.token_bank is not None:
        rows = torch.arange(shape.rows).repeat_interleave(count)
        losses.append(model.token_bank.losses(states, rows, targets, rows, torch.arange(len(rows))).sum() / len(rows))
    if "mask" in shape.writes:
        of_masks = predictions.unflatten(0, (shape.rows, count))[:, -1:]
        losses += _mask_losses(model, of_masks, features, image_tokens, part)
    return losses


def _mask_losses(
    model: Any, predictions: torch.Tensor, features: Any, image_tokens: int, part: Part
) -> list[torch.Tensor]:
    """Of a mask of each row, whose target is merged as a cluster beside those of its image."""
    setok, grid_size = model.model.setok, features.grid_size
    patches = features.patch_features[: len(predictions)].to(model.model._tokenizer_dtype())
    with real_tensors():
        clusters = equal_clusters(len(patches), patches.shape[1], min(image_tokens + 1, patches.shape[1]))
        with part("visual tokenizer"), torch.no_grad():
            setok.vision_model.tokenizer.merger(patches, clusters, grid_size)
        with part("mask decoder"):
            logits = setok.decode_masks(predictions, None, patches, grid_size)[:, 0].flatten(1)
        wanted = torch.ones(logits.shape)
        return [loss(logits, wanted).sum() / len(logits) for loss in (mask_bce_loss, mask_dice_loss)]


__all__ = ["WRITTEN", "text_head", "written_by", "written_losses"]
