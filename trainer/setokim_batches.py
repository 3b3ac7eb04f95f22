"""What a batch of Setokim is made of before a step: images as their visual tokens, and how many are to be written."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.divided_weights import is_whole
from ..modeling.losses_segmentation import mask_bce_loss, mask_dice_loss
from ..modeling.mask_tokens import merged_mask_tokens, nearest_cluster_tokens
from ..modeling.patch_clusters import PatchClusters
from ..processing.collator import IGNORED
from .setokim_collator import OF_MASKS

IMAGES = ("pixel_values", "vision_features")


@dataclass
class WrittenMasks:
    """
    The masks that a batch is to write.

    Args:
        rows (`torch.LongTensor` of shape `(num_masks,)`): the visual token of each among those that the batch writes.
        patch_features (`torch.FloatTensor` of shape `(num_masks, num_patches, hidden_size)`): of the image of each.
        grid_size (`tuple[int, int]`): height and width of the images in patches.
        coverage (`torch.FloatTensor` of shape `(num_masks, height, width)`):
            What the mask decoder is to predict: how much of each of its pixels the mask covers.
        places (`torch.LongTensor` of shape `(num_masks,)`): the number of each among all images of the batch.
        pixels (`list[torch.BoolTensor]`): each mask in the pixels of its image.
    """

    rows: torch.Tensor
    patch_features: torch.Tensor
    grid_size: tuple[int, int]
    coverage: torch.Tensor
    places: torch.Tensor
    pixels: Sequence[torch.Tensor]

    def logits(self, setok: Any, visual_predictions: torch.Tensor) -> torch.Tensor:
        """
        The masks that the mask decoder makes of what was written, `(num_masks, height, width)`.

        Args:
            setok ([`SeTokForPreTraining`]): whose decoder it is.
            visual_predictions (`torch.FloatTensor` of shape `(num_written, token_size)`): that the batch writes.
        """
        tokens = visual_predictions[self.rows.to(visual_predictions.device)].unsqueeze(1)
        return setok.decode_masks(tokens, None, self.patch_features, self.grid_size)[:, 0]

    def losses(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy and dice loss of each mask, `(num_masks,)`, of what [`logits`] returned."""
        predicted, wanted = logits.flatten(1), self.coverage.to(logits.device).flatten(1)
        return {"mask_bce": mask_bce_loss(predicted, wanted), "mask_dice": mask_dice_loss(predicted, wanted)}


def image_reader(core: Any) -> Any:
    """
    A copy of what turns images into visual tokens, for [`with_visual_tokens`]. DeepSpeed's ZeRO stage 3 divides all of
    a model, and a process could use SeTok only while all others do, whether they have images or not.

    Args:
        core ([`SetokimModel`]): as it is before it is divided. SeTok stays frozen.

    Returns:
        [`SetokimModel`]: without language model and decoders, in evaluation mode.

    Raises:
        ValueError: if it is divided already.
    """
    if not all(map(is_whole, core.setok.vision_model.parameters())):
        raise ValueError(
            "ZeRO stage 3 has divided SeTok when it was loaded, and images become visual tokens with whole weights: "
            "load the model before the training arguments are made."
        )
    reader, setok = copy.copy(core), copy.copy(core.setok)
    setok._modules = {"vision_model": copy.deepcopy(core.setok.vision_model).eval()}
    reader._modules = {"setok": setok, "input_projection": copy.deepcopy(core.input_projection)}
    return reader


@torch.no_grad()
def with_visual_tokens(core: Any, batch: Mapping[str, Any], segmentation_target: str) -> dict[str, Any]:
    """
    A batch whose images are given as their visual tokens, which is the same to the model as long as SeTok is frozen.
    So it is known before a step how many of them are written, and SeTok runs once.

    Args:
        core ([`SetokimModel`]): its SeTok is used; or an [`image_reader`].
        batch (`dict`): of a [`SetokimCollator`], on the device of the model.
        segmentation_target (`"mask"` or `"cluster"`): see [`SetokimTrainingConfig`].

    Returns:
        `dict`: with `visual_tokens`, a list of `(num_tokens, token_size)`, masks included, in place of the images; and
        where there are masks, `mask_patches` and `grid_size` in place of `mask_sources`.
    """
    images = {name: batch[name] for name in IMAGES if name in batch}
    if not images:
        return dict(batch)
    features = core.get_image_features(**images)
    tokens = [image[kept] for image, kept in zip(features.tokens, features.token_mask)]
    found = {name: value for name, value in batch.items() if name not in (*IMAGES, "mask_sources")}
    if "mask_sources" in batch:
        sources = batch["mask_sources"].to(features.tokens.device)
        found |= {"mask_patches": features.patch_features[sources], "grid_size": features.grid_size}
        of_masks = _mask_tokens(core, features, sources, batch["mask_coverage"], segmentation_target)
        for place, token in zip(batch["mask_places"].tolist(), of_masks):
            tokens.insert(place, token.unsqueeze(0))
    return {**found, "visual_tokens": tokens}


def _mask_tokens(core, features, sources, coverage, segmentation_target: str) -> torch.Tensor:
    num_clusters, grid_size = features.cluster_masks.shape[1], features.grid_size
    scale = coverage.shape[-1] // grid_size[-1]
    coverage = torch.nn.functional.avg_pool2d(coverage.unsqueeze(1), scale).flatten(1).to(sources.device)
    clusters = PatchClusters(
        cluster_masks=features.cluster_masks[sources],
        assignment=features.assignment[sources],
        mask=features.token_mask[sources, :num_clusters],
    )
    if segmentation_target == "cluster":
        return nearest_cluster_tokens(features.tokens[sources, :num_clusters], clusters.cluster_masks, coverage)
    patches = features.patch_features[sources]
    return merged_mask_tokens(core.visual_tokenizer, patches, clusters, grid_size, coverage)


def are_written(batch: Mapping[str, Any], image_token_id: int, num_image_tokens: int) -> torch.Tensor:
    """
    Which images of a batch the model is to write, in the order of their placeholders.

    Args:
        batch (`dict`): with `input_ids` and `labels`.
        image_token_id, num_image_tokens (`int`): the placeholder, and how many of it an image has.

    Returns:
        `torch.BoolTensor` of shape `(num_images,)`.
    """
    labels = batch["labels"][batch["input_ids"] == image_token_id]
    return labels.view(-1, num_image_tokens)[:, 0] != IGNORED


def rows_of_images(batch: Mapping[str, Any], image_token_id: int, num_image_tokens: int) -> torch.Tensor:
    """The row that each image of a batch stands in, `(num_images,)`. Arguments are those of [`are_written`]."""
    rows = (batch["input_ids"] == image_token_id).nonzero()[:, 0]
    return rows.view(-1, num_image_tokens)[:, 0]


def count_items(batch: Mapping[str, Any], image_token_id: int, num_image_tokens: int) -> list[int]:
    """
    What a batch has of that losses are means over.

    Args:
        batch (`dict`): of [`with_visual_tokens`].
        image_token_id, num_image_tokens (`int`): as in [`are_written`].

    Returns:
        `list[int]`: labels of text, visual tokens that are written, masks that are written, and all tokens that the
        language model reads, without padding.
    """
    input_ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    text = (labels[:, 1:] != IGNORED) & (labels[:, 1:] != image_token_id)
    counts = torch.tensor([len(tokens) for tokens in batch.get("visual_tokens", ())], dtype=torch.long)
    written = are_written(batch, image_token_id, num_image_tokens).cpu() if len(counts) else counts.bool()
    num_tokens = int(mask.sum()) if mask.ndim == 2 else int((mask[:, 0].sum(-1) > 1).sum()) + len(mask)
    unused = int((input_ids == image_token_id).sum()) - int(counts.sum())
    return [int(text.sum()), int(counts[written].sum()), len(batch.get("object_masks", ())), num_tokens - unused]


def take_masks(batch: dict[str, Any], image_token_id: int, num_image_tokens: int) -> WrittenMasks | None:
    """
    Takes out of a batch what the model's forward pass has no use for.

    Args:
        batch (`dict`): of [`with_visual_tokens`]; changed in place.
        image_token_id, num_image_tokens (`int`): as in [`are_written`].

    Returns:
        [`WrittenMasks`], or `None` where there are none.
    """
    taken = {name: batch.pop(name, None) for name in (*OF_MASKS, "mask_patches", "grid_size")}
    if taken["object_masks"] is None:
        return None
    counts = torch.tensor([len(tokens) for tokens in batch["visual_tokens"]])
    written = are_written(batch, image_token_id, num_image_tokens).cpu()
    firsts = (counts * written).cumsum(0) - counts * written
    places = taken["mask_places"].cpu()
    return WrittenMasks(
        rows=firsts[places],
        patch_features=taken["mask_patches"],
        grid_size=taken["grid_size"],
        coverage=taken["mask_coverage"],
        places=places,
        pixels=taken["object_masks"],
    )


__all__ = [
    "IMAGES",
    "WrittenMasks",
    "are_written",
    "count_items",
    "image_reader",
    "rows_of_images",
    "take_masks",
    "with_visual_tokens",
]
