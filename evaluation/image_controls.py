"""Control conditions: the same questions asked about blank or about other examples' images."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..processing.images import image_key, load_example_images

IMAGE_CONTROLS = ("given", "blank", "shuffled")
GREY = (128, 128, 128)


def control_images(
    examples: Sequence[Mapping[str, Any]], images: str = "given", seed: int = 0
) -> list[Mapping[str, Any]]:
    """
    Replaces the images of examples, to see what a model answers without looking.

    Args:
        examples (`list[dict]`): training examples, with `images` and `messages`.
        images (`str`): `"given"` leaves them as they are; `"blank"` makes every image uniform grey, of the same size;
            `"shuffled"` deals the distinct images to one another, so that no example keeps an image of its own and
            questions about one image are all asked about one other image.
        seed (`int`): of the dealing.

    Returns:
        `list[dict]`: the examples, with other `images`.

    Raises:
        ValueError: if the control is unknown, or the images are too few to be dealt.
        BadSampleError: if an image cannot be read; names file and row.
    """
    if images not in IMAGE_CONTROLS:
        raise ValueError(f"images is {images!r}, expected one of {', '.join(IMAGE_CONTROLS)}.")
    if images == "given":
        return list(examples)
    keys = [shown_images(example) for example in examples]
    replacement = _blank(examples, keys) if images == "blank" else _shuffled(examples, keys, seed)
    return [{**example, "images": [replacement[key] for key in names]} for example, names in zip(examples, keys)]


def shown_images(example: Mapping[str, Any]) -> tuple[str, ...]:
    """Which images an example shows, by their keys."""
    return tuple(image_key(image) for image in example.get("images") or [])


def _blank(examples, keys) -> dict[str, Image.Image]:
    blank: dict[str, Image.Image] = {}
    of_size: dict[tuple[int, int], Image.Image] = {}
    for example, names in zip(examples, keys):
        for key, image in zip(names, example.get("images") or []):
            if key not in blank:
                (loaded,) = load_example_images({**example, "images": [image]})
                blank[key] = of_size.setdefault(loaded.size, Image.new("RGB", loaded.size, GREY))
    return blank


def _shuffled(examples, keys, seed: int) -> dict[str, Any]:
    images: dict[str, Any] = {}
    together: dict[str, set[str]] = {}
    for example, names in zip(examples, keys):
        images.update(zip(names, example.get("images") or []))
        for key in names:
            together.setdefault(key, set()).update(names)
    dealt = derange(list(together), together, random.Random(seed))
    return {key: images[other] for key, other in dealt.items()}


def derange(keys: list[str], together: Mapping[str, set[str]], generator: random.Random) -> dict[str, str]:
    """
    Deals keys to one another, each to exactly one, so that none gets itself nor one of its companions.

    Args:
        keys (`list[str]`): distinct.
        together (`dict[str, set[str]]`): for each key those it must not get, itself among them.
        generator (`random.Random`): decides.

    Returns:
        `dict[str, str]`: for each key the one it gets.

    Raises:
        ValueError: if no dealing was found.
    """
    dealt = list(keys)
    for index in range(len(keys) - 1, 0, -1):  # Sattolo: one cycle through all keys, so nobody gets itself
        other = generator.randrange(index)
        dealt[index], dealt[other] = dealt[other], dealt[index]
    for index, key in enumerate(keys):
        if dealt[index] not in together[key]:
            continue
        for other in generator.sample(range(len(keys)), len(keys)):
            if dealt[other] not in together[key] and dealt[index] not in together[keys[other]]:
                dealt[index], dealt[other] = dealt[other], dealt[index]
                break
        else:
            raise ValueError(
                f"The examples have {len(keys)} distinct images, too few to give every example images that are not "
                "its own: evaluate on more images, or leave out the shuffled images."
            )
    return dict(zip(keys, dealt))


__all__ = ["IMAGE_CONTROLS", "control_images", "derange", "shown_images"]
