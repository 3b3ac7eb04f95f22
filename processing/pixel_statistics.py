"""What an image processor does to pixel values, so that images prepared for one tower can be shown to another."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Channels = tuple[float, ...]


@dataclass(frozen=True)
class PixelStatistics:
    """
    A tower's pixel values are `(pixel · scale − mean) / std`, of pixels from 0 to 255.

    Args:
        scale (`float`): such as 1/255.
        mean, std (`tuple[float, ...]`): of each channel.
    """

    scale: float
    mean: Channels
    std: Channels

    @classmethod
    def of(cls, image_processor: Any) -> "PixelStatistics":
        """
        Those of an image processor.

        Args:
            image_processor: of transformers.
        """
        scale = float(image_processor.rescale_factor) if getattr(image_processor, "do_rescale", True) else 1.0
        if not getattr(image_processor, "do_normalize", True):
            return cls(scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return cls(scale, _channels(image_processor.image_mean), _channels(image_processor.image_std))


def with_statistics(image_processor: Any, mean: Sequence[float] | None, std: Sequence[float] | None) -> Any:
    """
    An image processor that normalises by other statistics.

    Args:
        image_processor: of transformers. It stays as it is.
        mean, std (`list[float]`, *optional*): of each channel, of pixels from 0 to 1; by default those that it has.

    Raises:
        ValueError: if they are not three numbers each, or a standard deviation is not positive.
    """
    if mean is None and std is None:
        return image_processor
    for name, values in {"image_mean": mean, "image_std": std}.items():
        numbers = values is None or (isinstance(values, list | tuple) and len(values) == 3)
        if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values or ()):
            raise ValueError(f"{name} is {values!r}, expected a number for each of three channels.")
    if std is not None and min(std) <= 0:
        raise ValueError(f"image_std is {list(std)}, expected positive numbers.")
    image_processor = copy.deepcopy(image_processor)
    image_processor.do_normalize = True
    image_processor.image_mean = list(mean) if mean is not None else image_processor.image_mean
    image_processor.image_std = list(std) if std is not None else image_processor.image_std
    return image_processor


def _channels(values: Any) -> Channels:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)


def renormalise(pixel_values: torch.Tensor, source: PixelStatistics, target: PixelStatistics) -> torch.Tensor:
    """
    Pixel values as they would be with other statistics, exactly: (x·σ_s + μ_s − μ_t) / σ_t where both scales are the
    same.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): made with `source`.
        source, target ([`PixelStatistics`]): those that were used, and those that are wanted.

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    if source == target:
        return pixel_values
    ratio = target.scale / source.scale
    factor = [ratio * s / t for s, t in zip(source.std, target.std, strict=True)]
    offset = [
        (ratio * source_mean - target_mean) / target_std
        for source_mean, target_mean, target_std in zip(source.mean, target.mean, target.std, strict=True)
    ]
    weight, bias = (torch.tensor(values).to(pixel_values).view(-1, 1, 1) for values in (factor, offset))
    return pixel_values * weight + bias


__all__ = ["PixelStatistics", "renormalise", "with_statistics"]
