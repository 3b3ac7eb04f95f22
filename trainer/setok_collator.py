"""Batches of images and masks for SeTok, or of cached features in place of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..processing.drawn_images import drawing_targets
from ..processing.feature_cache import FeatureCache
from ..processing.images import BadSampleError, image_key, load_example_images
from ..processing.object_masks import patch_coverage, seen_objects
from .kept_tokens import KeptTokens
from .masked_images import masked_image_of
from .seeded_augmentation import seed_of

LEVELS = 255
"""Shares of pixels that masks cover are kept in so many steps."""


@dataclass
class SeTokCollator:
    """
    Prepares the first image of each example, and the masks of its objects as the vision tower sees them.

    Args:
        image_processor: of the vision tower, from transformers.
        grid_size (`tuple[int, int]`): height and width of images in patches.
        draw_size (`int`, *optional*): side of the images that are to be drawn; `None` for none.
        with_masks (`bool`): whether masks are read; examples must then have some.
        mask_scale (`int`): pixels of masks per side of a patch.
        max_objects (`int`): most objects of an image, the largest.
        features (`FeatureCache`, *optional*): in place of images for the tower.
        tokens ([`KeptTokens`], *optional*): in place of both for the tokenizer, where it stays as it is.
        seed (`int`, *optional*, defaults to 0): of the noise that is taken off drawn images.
        epoch (`torch.LongTensor` of shape `()`): current epoch, in which each image gets another noise; shared with
            data loader workers.
    """

    image_processor: Any
    grid_size: tuple[int, int]
    draw_size: int | None = None
    with_masks: bool = False
    mask_scale: int = 4
    max_objects: int = 64
    features: FeatureCache | None = None
    tokens: KeptTokens | None = None
    seed: int = 0
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())
    _masks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of masks."""
        return self.grid_size[0] * self.mask_scale, self.grid_size[1] * self.mask_scale

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Makes a batch.

        Args:
            examples (`list[dict]`): with an image each, in a list `images`; and `masks`, of the format
                `object-masks`.

        Returns:
            `dict`: `pixel_values`, or `patch_features` and `grid_size`, or what [`KeptTokens.batch`] gives;
            `target_pixel_values` if images are to be
            drawn, and `noise_seeds`, a number for each, whatever process meets it; `mask_labels`, `(batch,
            num_objects, *mask_size)` from 0 to 1 padded with zeros, `mask_size`, `patch_labels`, `(batch,
            num_patches)` (-1 ignored, 0 background, objects from 1), and `num_objects`, `(batch,)`, if there are
            masks.

        Raises:
            BadSampleError: if an image or a mask is missing, damaged or of another size; or an example has no masks.
        """
        batch: dict[str, Any] = {}
        needs_images = self.features is None or self.draw_size is not None
        images = [self.image(example) for example in examples] if needs_images else []
        if self.tokens is not None:
            batch |= self.tokens.batch([_key(example) for example in examples])
        elif self.features is None:
            batch["pixel_values"] = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        else:
            batch["patch_features"] = torch.stack([self.features[_key(example)] for example in examples])
            batch["grid_size"] = self.grid_size
        if self.draw_size is not None:
            batch["target_pixel_values"] = self.targets(images, self.draw_size)
            seeds = [seed_of(example, self.seed, int(self.epoch), "noise") for example in examples]
            batch["noise_seeds"] = torch.tensor(seeds)
        if self.with_masks:
            batch |= self._mask_batch(examples)
        return batch

    def image(self, example: Mapping[str, Any]) -> Image.Image:
        """
        The image of an example. Where it has masks it is read as it is stored, which is what masks refer to.

        Raises:
            BadSampleError: if it is missing or unreadable, or not of the size of its masks.
        """
        masked = masked_image_of(example)
        return load_example_images(example)[0] if masked is None else masked.image()

    def targets(self, images: Sequence[Image.Image], side: int) -> torch.Tensor:
        """
        Images as the tower sees them, but for their colours, at another size.

        Args:
            images (`list[PIL.Image.Image]`): RGB.
            side (`int`): of the result, in pixels.

        Returns:
            `torch.FloatTensor` of shape `(batch, 3, side, side)`, 0 to 1.
        """
        return drawing_targets(self.image_processor, images, side)

    def _mask_batch(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        layers = [torch.from_numpy(self._layers(example)).float() / LEVELS for example in examples]
        counts = [len(of_image) - 1 for of_image in layers]
        masks = torch.zeros(len(layers), max(1, *counts), *self.mask_size)
        for row, of_image in zip(masks, layers):
            row[: len(of_image) - 1] = of_image[:-1]
        on_grid = [nn.functional.avg_pool2d(of_image[None], self.mask_scale)[0].flatten(1) for of_image in layers]
        return {
            "mask_labels": masks,
            "mask_size": self.mask_size,
            "patch_labels": torch.stack([_labels(of_image) for of_image in on_grid]),
            "num_objects": torch.tensor(counts),
        }

    def _layers(self, example: Mapping[str, Any]) -> np.ndarray:
        """Shares of pixels that each object covers, and at last what is to be ignored, in 255 steps."""
        key = str(example["images"][0]["path"])
        if key not in self._masks:
            masked = masked_image_of(example)
            if masked is None:
                raise BadSampleError(
                    "it has no masks, from which boundaries are to be learned: give data of the format object-masks",
                    key,
                    example.get("row"),
                    example.get("source"),
                )
            seen = seen_objects(masked.objects(skip_empty=True), self.image_processor)
            masks = seen.masks[seen.masks.any((1, 2))]
            largest = np.sort(np.argsort(-masks.sum((1, 2)), kind="stable")[: self.max_objects])
            layers = np.concatenate([masks[largest], seen.ignored[None]])
            self._masks[key] = np.round(LEVELS * patch_coverage(layers, self.mask_size)).astype(np.uint8)
        return self._masks[key]


def _labels(coverage: torch.Tensor) -> torch.Tensor:
    """What most of each patch is: overlapping objects share what they cover, and what none covers is background."""
    background = (1 - coverage.sum(0, keepdim=True)).clamp(min=0)
    number = torch.cat([background, coverage]).argmax(0)
    return torch.where(number == len(coverage), -1, number)


def _key(example: Mapping[str, Any]) -> str:
    return image_key(example["images"][0])


__all__ = ["SeTokCollator"]
