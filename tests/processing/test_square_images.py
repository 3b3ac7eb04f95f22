"""Which patches of an image that was padded to a square show it, and which the border alone."""

from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.tiny_kinds import tiny_vtlmm_processor
from vistok.processing.square_images import content_patches, square_image_processor


def of_clip(side: int) -> SimpleNamespace:
    """A processor whose images are padded, and resized as CLIP's are."""
    size = {"height": side, "width": side}
    own = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size, resample=Image.Resampling.BICUBIC)
    return SimpleNamespace(image_processor=square_image_processor(own))


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ((24, 8), [1]),
        ((24, 24), [0, 1, 2]),
        ((24, 10), [0, 1, 2]),  # a pixel in the first and the last row
        ((240, 80), [1]),
        ((641, 213), [1]),
        ((20, 4), [1]),
    ],
)
def test_a_patch_with_a_pixel_of_the_image_shows_it(size, rows):
    expected = [[row in rows] * 3 for row in range(3)]
    assert content_patches(of_clip(24), size, (3, 3)).reshape(3, 3).tolist() == expected
    upright = content_patches(of_clip(24), size[::-1], (3, 3)).reshape(3, 3)
    assert upright.t().tolist() == expected


@pytest.mark.parametrize("size", [(336, 252), (640, 480), (1000, 750), (200, 150)])
def test_a_photograph_is_as_many_rows_high_as_it_is_part_of_the_square(size):
    """Three quarters of 24 rows, at whatever resolution: resizing blurs the edge into the border."""
    shown = content_patches(of_clip(336), size, (24, 24)).reshape(24, 24)
    assert shown.all(1).tolist() == shown.any(1).tolist() == [3 <= row < 21 for row in range(24)]


def test_without_a_border_every_patch_shows_the_image():
    assert content_patches(tiny_vtlmm_processor(), (40, 10), (3, 3)).all()
