"""Augmentation of training images with Pillow alone."""

import math
from dataclasses import dataclass

import torch
from PIL import Image


@dataclass
class RandomResizedCropAndFlip:
    """
    Random resized crop and horizontal flip (GVT, Section 4.1). Draws from PyTorch's generator, so that seeds, workers
    and resuming treat it like any other randomness of training.

    Args:
        size (`int`): side of the result in pixels.
        scale (`tuple[float, float]`): share of the image's area that is kept.
        ratio (`tuple[float, float]`): width over height of the crop.
        flip_probability (`float`): how often the image is mirrored.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __call__(self, image: Image.Image) -> Image.Image:
        box = self._crop_box(*image.size)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if torch.rand(()).item() < self.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * _uniform(*self.scale)
            ratio = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(_uniform(0, width - crop_width + 1))
                top = int(_uniform(0, height - crop_height + 1))
                return left, top, left + crop_width, top + crop_height
        # A very long image: the largest allowed crop at its centre.
        crop_width = min(width, round(height * self.ratio[1]))
        crop_height = min(height, round(width / self.ratio[0]))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


__all__ = ["RandomResizedCropAndFlip"]
