"""Random resized crops and flips: within the image, of the shares and ratios asked for, from PyTorch's generator."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_image
from vistok.processing.augmentation import RandomResizedCropAndFlip


def position_image(width, height):
    """Red says where a pixel lies from left to right, green from top to bottom."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], axis=-1).round().astype(np.uint8))


def pixels_of(image):
    return np.asarray(image).astype(int)


def test_result_is_a_square_of_the_size_asked_for():
    for size in ((50, 20), (7, 90), (1, 1)):
        result = RandomResizedCropAndFlip(16)(tiny_image(0, size))
        assert (result.size, result.mode) == ((16, 16), "RGB")


def test_without_crop_and_with_a_sure_flip_it_is_the_mirrored_resized_image():
    image = tiny_image(0, (40, 40))
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    resized = image.resize((16, 16), Image.Resampling.BICUBIC)
    mirrored = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(RandomResizedCropAndFlip(16, **whole, flip_probability=1.0)(image), mirrored)
    assert np.array_equal(RandomResizedCropAndFlip(16, **whole, flip_probability=0.0)(image), resized)


def test_the_seed_decides_and_only_that_of_pytorch():
    transform, image = RandomResizedCropAndFlip(16), tiny_image(0, (60, 40))
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    torch.manual_seed(1)
    first = [pixels_of(transform(image)) for _ in range(4)]
    torch.manual_seed(1)
    assert all(np.array_equal(pixels_of(transform(image)), expected) for expected in first)
    assert not np.array_equal(pixels_of(transform(image)), first[0])
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("size", [(60, 40), (33, 90)])
def test_crops_lie_in_the_image_and_have_the_shares_and_ratios_asked_for(size):
    transform = RandomResizedCropAndFlip(16, scale=(0.2, 0.6))
    shares, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = transform._crop_box(*size)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        shares.append((right - left) * (bottom - top) / (size[0] * size[1]))
        ratios.append((right - left) / (bottom - top))
    assert 0.17 < min(shares) < 0.25
    assert 0.45 < max(shares) < 0.63
    assert 0.7 < min(ratios) < 0.8
    assert 1.2 < max(ratios) < 1.42


def test_crops_of_a_square_are_uniform_in_share_and_place():
    transform = RandomResizedCropAndFlip(16, scale=(0.1, 0.5))
    boxes = np.array([transform._crop_box(200, 200) for _ in range(2000)])
    shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 200**2
    assert abs(shares.mean() - 0.3) < 0.02
    assert abs(np.quantile(shares, 0.25) - 0.2) < 0.03
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(centres.mean(0) - 100).max() < 3
    assert (boxes[:, :2] == 0).any(0).all(), "crops reach the left and the upper edge"
    assert (boxes[:, 2:] == 200).any(0).all(), "crops reach the right and the lower edge"


def test_half_of_the_results_are_mirrored():
    transform, image = RandomResizedCropAndFlip(8), position_image(64, 64)
    mirrored = [pixels_of(transform(image))[:, :, 0] for _ in range(300)]
    share = np.mean([reds[:, 0].mean() > reds[:, -1].mean() for reds in mirrored])
    assert 0.4 < share < 0.6


def test_nothing_is_turned_upside_down():
    transform, image = RandomResizedCropAndFlip(8), position_image(64, 64)
    for _ in range(50):
        greens = pixels_of(transform(image))[:, :, 1]
        assert greens[0].mean() < greens[-1].mean()


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000)])
def test_of_a_very_long_image_the_middle_is_taken(size):
    left, top, right, bottom = RandomResizedCropAndFlip(16, scale=(0.9, 1.0))._crop_box(*size)
    assert (right - left, bottom - top) in ((13, 10), (10, 13))
    assert abs((left + right) / 2 - size[0] / 2) <= 1
    assert abs((top + bottom) / 2 - size[1] / 2) <= 1
