"""Which patches of an image that was padded to a square show it, and which the border alone."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from tests.tiny_kinds import tiny_vtlmm_processor
from vistok.processing import square_images
from vistok.processing.square_images import content_patches, square_image_processor


def of_clip(side: int, resample: int = Image.Resampling.BICUBIC) -> SimpleNamespace:
    """A processor whose images are padded, and resized as CLIP's are."""
    size = {"height": side, "width": side}
    own = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size, resample=resample)
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


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST])
def test_one_line_across_the_border_tells_what_the_whole_square_does(resample, monkeypatch):
    sizes = [(640, 481), (333, 517), (9, 400), (400, 7), (31, 30), (64, 64)]
    lines = [content_patches(of_clip(112, resample), size, (8, 8)) for size in sizes]
    monkeypatch.setattr(square_images, "_pads_alone", lambda image_processor: False)
    for size, shown in zip(sizes, lines, strict=True):
        assert torch.equal(shown, content_patches(of_clip(112, resample), size, (8, 8)))


def test_photographs_of_many_megapixels_are_not_resized(monkeypatch):
    made = []
    new = Image.new
    monkeypatch.setattr(Image, "new", lambda mode, size, *rest: made.append(size) or new(mode, size, *rest))
    assert content_patches(of_clip(336), (4000, 3000), (24, 24)).sum() == 18 * 24
    assert made and all(width * height <= 4000 for width, height in made)


def test_without_a_border_every_patch_shows_the_image():
    assert content_patches(tiny_vtlmm_processor(), (40, 10), (3, 3)).all()
