"""Batches of examples whose answers may be text, images or masks, for Setokim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing.collator import VisualLanguageCollator
from ..processing.images import BadSampleError, image_key, load_image
from ..processing.object_masks import ObjectMasks, patch_coverage, seen_objects
from .image_answers import TASK_PROMPTS, read_mask

SEGMENT = "segment"
OF_MASKS = ("mask_places", "mask_sources", "mask_coverage", "object_masks")
"""What a batch says of masks that are to be written."""


@dataclass
class SetokimCollator(VisualLanguageCollator):
    """
    A [`VisualLanguageCollator`] of examples whose answers may hold images (see `image_answers.py`). Placeholders of
    images that are to be written are their own labels; those of images that are only read are -100, as the text around
    them. A mask (`task` is `"segment"`) is no image for the tower: it has placeholders, and its token is found later.

    Args:
        grid_size (`tuple[int, int]`): height and width of images in patches.
        mask_scale (`int`): pixels of masks per side of a patch: those that the mask decoder predicts.
        processor, image_transform, features, max_length, is_encoder_decoder: as in [`VisualLanguageCollator`].
    """

    grid_size: tuple[int, int] = (1, 1)
    mask_scale: int = 4

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            examples (`list[dict]`): training examples, some of them with a `task`.

        Returns:
            `dict`: as of [`VisualLanguageCollator`], with `pixel_values` or `vision_features` of all images but masks;
            and where masks are to be written, of each: `mask_places`, its number among all images of the batch, masks
            included; `mask_sources`, the number of the image that it is of, among those without masks;
            `mask_coverage`, `(num_masks, height, width)`, how much of each pixel of the mask decoder it covers, 0 to
            1; and `object_masks`, a list, in the pixels of the image, `(height, width)`, boolean.

        Raises:
            BadSampleError: as [`VisualLanguageCollator`]; or if a mask is missing, empty, or of another size than its
                image, or an example of a task has an answer without an image.
        """
        return super().__call__(examples)

    def _check(self, conversation, example, place) -> None:
        super()._check(conversation, example, place)
        task = example.get("task")
        if task is None:
            return
        if task not in TASK_PROMPTS:
            raise BadSampleError(f"the task {task!r} is unknown: expected {', '.join(TASK_PROMPTS)}, or none", **place)
        placeholder = self.processor.image_token_id
        written = [
            supervised for token, supervised in zip(conversation.input_ids, conversation.supervised)
            if token == placeholder
        ]  # fmt: skip
        if not written or not written[-1]:
            raise BadSampleError(
                f"the task is {task!r}, but no answer ends in an image: the last image is to be written by the "
                "assistant, and by the chat template in its turn ('vicuna' and 'chatml' do)",
                **place,
            )
        if task == SEGMENT and len(example["images"]) < 2:
            raise BadSampleError("to segment takes an image and the mask of an object in it, got one image", **place)

    def _images(self, examples, shows: Sequence[int]) -> dict[str, Any]:
        shown: list[Any] = []
        places: list[int] = []
        sources: list[int] = []
        masks: list[tuple[np.ndarray, np.ndarray]] = []
        for example, times in zip(examples, shows):
            is_mask = example.get("task") == SEGMENT
            images = list(example.get("images") or [])
            for _ in range(times):
                shown += [(example, image) for image in (images[:-1] if is_mask else images)]
            if is_mask:
                places.append(len(shown) + len(masks))
                sources.append(len(shown) - 1)
                masks.append(self._mask(example))
        if not shown:
            return {}
        batch: dict[str, Any] = {}
        if self.features is not None:
            batch["vision_features"] = torch.stack([self.features[image_key(image)] for _, image in shown])
        else:
            read = [self.load_images({**example, "images": [image]})[0] for example, image in shown]
            batch["pixel_values"] = self.processor.image_processor(read, return_tensors="pt")["pixel_values"]
        if masks:
            batch |= {
                "mask_places": torch.tensor(places),
                "mask_sources": torch.tensor(sources),
                "mask_coverage": torch.from_numpy(np.stack([coverage for _, coverage in masks])).float(),
                "object_masks": [torch.from_numpy(mask) for mask, _ in masks],
            }
        return batch

    def _mask(self, example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The mask in pixels of its image, and how much it covers of each pixel of the mask decoder."""
        image, mask_image = example["images"][-2:]
        place = {name: example.get(name) for name in ("row", "source")}
        place["file"] = mask_image.get("path") if isinstance(mask_image, Mapping) else None
        mask = read_mask(mask_image)
        size = load_image(image).size[::-1]
        if mask.shape != size:
            raise BadSampleError(
                f"the mask has {mask.shape[0]} × {mask.shape[1]} pixels (height × width), and its image {size[0]} × "
                f"{size[1]}: give masks of the size of their images",
                **place,
            )
        if not mask.any():
            raise BadSampleError("the mask is empty: an expression refers to an object that can be seen", **place)
        seen = seen_objects(ObjectMasks(mask[None], ("",), np.zeros_like(mask)), self.processor.image_processor)
        fine = (self.grid_size[0] * self.mask_scale, self.grid_size[1] * self.mask_scale)
        # An object may be so thin that resizing by nearest pixels loses it.
        layers = seen.masks if seen.masks.any() else mask[None]
        return mask, patch_coverage(layers, fine)[0]


def shown_images(example: Mapping[str, Any]) -> dict[str, Any]:
    """
    An example with the images alone that a vision tower is to see: without a mask.

    Args:
        example (`dict`): training example.
    """
    images = list(example.get("images") or [])
    return {**example, "images": images[:-1] if example.get("task") == SEGMENT else images}


@torch.no_grad()
def grid_size_of(model: Any, processor: Any) -> tuple[int, int]:
    """
    Height and width, in patches, of the images that a processor prepares.

    Args:
        model ([`SetokimForConditionalGeneration`]): whose tower sees them.
        processor ([`SetokimProcessor`]): prepares them.
    """
    pixels = processor.image_processor([Image.new("RGB", (32, 32))], return_tensors="pt")["pixel_values"]
    return model.model.get_vision_features(pixels.to(model.device, model.model.vision_tower.dtype)).grid_size


__all__ = ["SEGMENT", "SetokimCollator", "grid_size_of", "shown_images"]
