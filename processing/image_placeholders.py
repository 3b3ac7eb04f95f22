"""What an image becomes in a text, as a processor says: one of vistok, or another whose images are of one size."""

from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

_SIDE = 64
_FOUND: "WeakKeyDictionary[Any, tuple[str, str]]" = WeakKeyDictionary()


def image_text(processor: Any, index: int = 0) -> str:
    """
    The text that stands for an image, with all its placeholders.

    Args:
        processor ([`GVTProcessor`] or alike, or `LlavaProcessor`): one that counts patches in prepared images is shown
            a blank one, because images of one size have as many.
        index (`int`, *optional*, defaults to 0): which image of the text it is.
    """
    if hasattr(processor, "num_image_tokens"):
        return processor.replace_image_token({}, index)
    image_processor = processor.image_processor
    settings = str([getattr(image_processor, name, None) for name in ("size", "crop_size")])
    known, text = _FOUND.get(processor, ("", ""))
    if known != settings:
        prepared = image_processor([Image.new("RGB", (_SIDE, _SIDE))], return_tensors="pt")
        text = processor.replace_image_token(prepared, 0)
        _FOUND[processor] = (settings, text)
    return text


def num_placeholders(processor: Any) -> int:
    """
    The number of placeholders of an image.

    Args:
        processor: as in [`image_text`].
    """
    if (count := getattr(processor, "num_image_tokens", None)) is not None:
        return count
    return image_text(processor).count(processor.image_token)


__all__ = ["image_text", "num_placeholders"]
