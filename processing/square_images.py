"""Images padded to squares, as LLaVA-1.5 and VT-LMM show them to their tower."""

from typing import Any

from transformers import LlavaImageProcessorPil


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


__all__ = ["prepared_side", "square_image_processor"]
