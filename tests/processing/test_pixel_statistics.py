"""Images prepared for one tower become those that another expects, exactly."""

import pytest
import torch

from tests.tiny import same, tiny_image, tiny_image_processor
from vistok.processing.pixel_statistics import PixelStatistics, renormalise

CLIP = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OTHERS = [IMAGENET, {"do_normalize": False}, {**IMAGENET, "rescale_factor": 1 / 127.5}, {"do_rescale": False, **CLIP}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_renormalised_pixels_are_those_of_the_other_processor(other):
    processors = tiny_image_processor(**CLIP), tiny_image_processor(**other)
    ours, theirs = (processor(tiny_image(), return_tensors="pt")["pixel_values"] for processor in processors)
    found = renormalise(ours, *(PixelStatistics.of(processor) for processor in processors))
    assert same(found, theirs.float(), 1e-4) and not same(ours, theirs.float(), 1e-4)


def test_equal_statistics_cost_nothing():
    statistics = PixelStatistics.of(tiny_image_processor(**CLIP))
    images = torch.randn(1, 3, 4, 4)
    assert renormalise(images, statistics, statistics) is images
