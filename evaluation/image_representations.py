"""A vector for each image from each of several vision towers, in one pass over the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..modeling.final_features import tower_features
from ..modeling.vision_features import FeatureLayer, patch_grid
from ..processing.images import ImageSource, load_image

POOLINGS = ("mean", "cls", "both")


@dataclass(frozen=True)
class ImageTower:
    """
    A vision tower and how its features are read.

    Args:
        model (`PreTrainedModel`): a vision transformer.
        image_processor: its own.
        feature_layer (`int` or `"final"`, *optional*): as in [`tower_features`].
    """

    model: PreTrainedModel
    image_processor: Any
    feature_layer: FeatureLayer | None = None


@torch.no_grad()
def representations_of(
    towers: Mapping[str, ImageTower],
    images: Sequence[ImageSource],
    pooling: str = "mean",
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[str, torch.Tensor]:
    """
    One vector for each image from each tower. Every image is read once, and prepared once for all towers whose image
    processors are alike.

    Args:
        towers (`dict[str, ImageTower]`): by name; put into evaluation mode, and left in the mode they were in.
        images (`list`): paths, PIL images, or images of training examples.
        pooling (`str`, *optional*, defaults to `"mean"`): `"mean"` of the patches, `"cls"`, or `"both"`, one behind
            the other.
        batch_size (`int`, *optional*, defaults to 32): images per pass.
        num_workers (`int`, *optional*, defaults to 0): processes that read images.

    Returns:
        `dict[str, torch.FloatTensor]`: of shape `(num_images, hidden_size)`, for `"both"` twice as wide; on the CPU.

    Raises:
        ValueError: if the pooling is unknown, or reads [CLS] and a tower has none.
        BadSampleError: if an image cannot be read.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}, expected {', '.join(POOLINGS)}.")
    processors = {_key(tower): tower.image_processor for tower in towers.values()}
    loader: DataLoader = DataLoader(_Pixels(images, processors), batch_size=batch_size, num_workers=num_workers)
    pooled: dict[str, list[torch.Tensor]] = {name: [] for name in towers}
    training = {name: tower.model.training for name, tower in towers.items()}
    try:
        for tower in towers.values():
            tower.model.eval()
        for pixel_values in loader:
            for name, tower in towers.items():
                pooled[name].append(_represent(tower, pixel_values[_key(tower)], pooling).cpu())
    finally:
        for name, tower in towers.items():
            tower.model.train(training[name])
    return {name: torch.cat(parts) for name, parts in pooled.items()}


def image_representations(
    vision_tower: PreTrainedModel,
    image_processor: Any,
    images: Sequence[ImageSource],
    feature_layer: FeatureLayer | None = None,
    pooling: str = "mean",
    batch_size: int = 32,
    num_workers: int = 0,
) -> torch.Tensor:
    """
    One vector for each image: [`representations_of`] a single tower.

    Args:
        vision_tower, image_processor, feature_layer: as in [`ImageTower`].
        images, pooling, batch_size, num_workers: as in [`representations_of`].

    Returns:
        `torch.FloatTensor` of shape `(num_images, hidden_size)`, for `"both"` twice as wide; on the CPU.

    Raises:
        ValueError: if the pooling is unknown, or reads [CLS] and the tower has none.
        BadSampleError: if an image cannot be read.
    """
    towers = {"tower": ImageTower(vision_tower, image_processor, feature_layer)}
    return representations_of(towers, images, pooling, batch_size, num_workers)["tower"]


class _Pixels(Dataset):
    """What each of several image processors makes of an image."""

    def __init__(self, images: Sequence[ImageSource], processors: Mapping[str, Any]):
        self.images, self.processors = images, processors

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = load_image(self.images[index])
        return {
            key: processor(image, return_tensors="pt")["pixel_values"][0] for key, processor in self.processors.items()
        }


def _key(tower: ImageTower) -> str:
    return tower.image_processor.to_json_string()


def _represent(tower: ImageTower, pixel_values: torch.Tensor, pooling: str) -> torch.Tensor:
    pixel_values = pixel_values.to(tower.model.device)
    features = tower_features(tower.model, pixel_values, tower.feature_layer).float()
    height, width = patch_grid(tower.model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    num_prefix_tokens = features.shape[1] - height * width
    mean = features[:, num_prefix_tokens:].mean(1)
    if pooling == "mean":
        return mean
    if num_prefix_tokens == 0:
        raise ValueError(f"pooling {pooling!r} reads [CLS], and {type(tower.model).__name__} has none: choose 'mean'.")
    return features[:, 0] if pooling == "cls" else torch.cat([features[:, 0], mean], dim=1)


__all__ = ["POOLINGS", "ImageTower", "image_representations", "representations_of"]
