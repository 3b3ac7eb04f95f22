"""Images padded to squares, as LLaVA-1.5 and VT-LMM show them to their tower."""

from typing import Any

import torch
from PIL import Image
from transformers import LlavaImageProcessorPil

COLOURS = ("white", "black")


def square_image_processor(image_processor: Any, image_size: int | None = None) -> LlavaImageProcessorPil:
    """
    An image processor that pads images to squares of a tower's mean colour, themselves in the middle, and then resizes
    them; all else is that of the tower's own. It is transformers' own for LLaVA: any environment loads it.

    Args:
        image_processor: of the vision tower, from transformers. It stays as it is.
        image_size (`int`, *optional*): side of the squares in pixels; by default that of the tower's images.

    Raises:
        ValueError: if the tower's processor makes images of no fixed size, and none is given.
    """
    side = image_size if image_size is not None else prepared_side(image_processor)
    if side is None:
        raise ValueError(
            f"{type(image_processor).__name__} makes images of no fixed square (size is {image_processor.size}): give "
            "image_size, the side of the squares in pixels."
        )
    names = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    given = {name: getattr(image_processor, name, None) for name in names}
    return LlavaImageProcessorPil(
        do_pad=True,
        do_resize=True,
        size={"height": side, "width": side},
        do_center_crop=False,
        do_convert_rgb=True,
        **{name: value for name, value in given.items() if value is not None},
    )


def prepared_side(image_processor: Any) -> int | None:
    """
    Side in pixels of the images that an image processor makes; `None` if they are no squares of one size.

    Args:
        image_processor: of transformers.
    """
    if getattr(image_processor, "do_center_crop", False):
        size = image_processor.crop_size
    elif getattr(image_processor, "do_resize", True):
        size = image_processor.size
    else:
        return None
    height, width = size.get("height"), size.get("width")
    return height if height == width else None


def content_patches(processor: Any, size: tuple[int, int], grid_size: tuple[int, int]) -> torch.Tensor:
    """
    Which patches show a part of the image, and not only the border with which it is padded: what a white and a black
    image of its size differ in. Resizing blurs the edge, and the difference with it: to the image belong the pixels
    that are more image than border.

    Args:
        processor ([`VTLMMProcessor`]): whose image processor pads.
        size (`tuple[int, int]`): width and height of the image in pixels, as in `PIL.Image.size`.
        grid_size (`tuple[int, int]`): height and width of an image in patches.

    Returns:
        `torch.BoolTensor` of shape `(num_patches,)`, row by row.
    """
    image_processor = processor.image_processor
    if not _pads_alone(image_processor):
        is_image = _differing_pixels(image_processor, [Image.new("RGB", size, colour) for colour in COLOURS])
        height, width = (side // patches for side, patches in zip(is_image.shape, grid_size))
        patches = is_image[: grid_size[0] * height, : grid_size[1] * width]
        return patches.reshape(grid_size[0], height, grid_size[1], width).any(3).any(1).flatten()
    # All lines across the border are alike: one will do, where squares of photographs would take seconds to resize.
    is_wide = size[0] > size[1]
    num_patches, num_alike = grid_size if is_wide else grid_size[::-1]
    side = image_processor.size["height"]
    lines = _padded_lines(image_processor, size)
    is_image = _differing_pixels(image_processor, lines, do_pad=False, size={"height": side, "width": 1})
    height = side // num_patches
    patches = is_image[: num_patches * height].reshape(num_patches, height).any(1)
    patches = patches[:, None].expand(num_patches, num_alike)
    return (patches if is_wide else patches.t()).flatten()


def _pads_alone(image_processor: Any) -> bool:
    """Whether an image processor pads images to squares, resizes these, and moves no pixel otherwise."""
    size = getattr(image_processor, "size", None) or {}
    return (
        isinstance(image_processor, LlavaImageProcessorPil)
        and bool(image_processor.do_pad and image_processor.do_resize and not image_processor.do_center_crop)
        and size.get("height") is not None
        and size.get("height") == size.get("width")
    )


def _padded_lines(image_processor: Any, size: tuple[int, int]) -> list[Image.Image]:
    """A line across a white and a black image of this size and their border, as the processor pads them."""
    long, short = max(size), min(size)
    start = (long - short) // 2
    border = tuple(int(channel * 255) for channel in image_processor.image_mean)
    lines = [Image.new("RGB", (1, long), border) for _ in COLOURS]
    for line, colour in zip(lines, COLOURS):
        line.paste(colour, (0, start, 1, start + short))
    return lines


def _differing_pixels(image_processor: Any, images: list[Image.Image], **options: Any) -> torch.Tensor:
    """Where a white and a black image differ, by more than half as much as they do anywhere."""
    white, black = image_processor(images=images, return_tensors="pt", **options)["pixel_values"]
    difference = (white - black).abs().amax(0)
    return difference > difference.max() / 2


__all__ = ["content_patches", "prepared_side", "square_image_processor"]
