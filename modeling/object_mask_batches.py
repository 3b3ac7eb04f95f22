"""Ground-truth masks of objects as a batch, at the size in which they are compared."""

from collections.abc import Sequence

import torch
from torch import nn


def batch_object_masks(
    mask_labels: Sequence[torch.Tensor] | torch.Tensor, image_size: tuple[int, int], num_images: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    Checks the masks of the objects of each image, and finds those that are empty: they are no objects, and nothing is
    matched to them. So a padded batch needs no further mask: its padding is empty.

    Args:
        mask_labels (`list[torch.Tensor]` or `torch.Tensor`):
            For each image `(num_objects, height, width)`, boolean or 0 to 1, or all of them padded with empty masks,
            `(batch, num_objects, height, width)`. An image without objects has `(0, height, width)`.
        image_size (`tuple[int, int]`): height and width of the images that the model gets, in pixels.
        num_images (`int`): how many these are.

    Returns:
        `tuple[list[torch.Tensor], torch.BoolTensor]`: the masks of each image, and `(batch, num_objects)`, padded with
        False: which of them have a point.

    Raises:
        ValueError: if there are not as many as images, their size is another (names both sizes), or they have values
            below 0, above 1 or NaN.
    """
    if len(mask_labels) != num_images:
        raise ValueError(
            f"There are masks for {len(mask_labels)} images, but {num_images} images: give one tensor (num_objects, "
            "height, width) for each, of no objects where there are none."
        )
    masks = [torch.as_tensor(of_image) for of_image in mask_labels]
    for index, of_image in enumerate(masks):
        if of_image.ndim != 3 or tuple(of_image.shape[1:]) != tuple(image_size):
            raise ValueError(
                f"The masks of image {index} have the shape {tuple(of_image.shape)}, but the images that the model "
                f"gets are {image_size[0]} × {image_size[1]} pixels: expected (num_objects, {image_size[0]}, "
                f"{image_size[1]}). Resize and crop masks as the image processor does images."
            )
        if of_image.dtype != torch.bool and not bool(((of_image >= 0) & (of_image <= 1)).all()):
            raise ValueError(
                f"The masks of image {index} have values from {of_image.min().item()} to {of_image.max().item()}: "
                "expected booleans, or 0 to 1."
            )
    most = max((len(of_image) for of_image in masks), default=0)
    present = torch.zeros(num_images, most, dtype=torch.bool, device=masks[0].device if masks else None)
    for row, of_image in zip(present, masks):
        row[: len(of_image)] = of_image.flatten(1).any(1)
    return masks, present


def resize_object_masks(masks: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """
    Masks at another size: how much of each point the object covers, so that no object is too small to be seen.

    Args:
        masks (`list[torch.Tensor]`): for each image `(num_objects, height, width)`, boolean or 0 to 1.
        size (`tuple[int, int]`): height and width of the result: of the patch grid, or of predicted masks.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_objects, height, width)`, 0 to 1, padded with zeros.
    """
    most = max((len(of_image) for of_image in masks), default=0)
    resized = torch.zeros(len(masks), most, *size, device=masks[0].device if masks else None)
    for row, of_image in zip(resized, masks):
        if len(of_image):
            row[: len(of_image)] = nn.functional.interpolate(of_image[None].float(), size=size, mode="area")[0]
    return resized


__all__ = ["batch_object_masks", "resize_object_masks"]
