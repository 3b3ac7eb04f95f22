"""Scores of referring segmentation on planted masks."""

import numpy as np
import pytest

from vistok.evaluation.segmentation_scores import mask_overlap, referring_segmentation_scores


def columns(first, last, size=(2, 10)):
    mask = np.zeros(size, dtype=bool)
    mask[:, first:last] = True
    return mask


def test_ciou_counts_pixels_and_giou_expressions():
    predictions = [columns(0, 4), columns(0, 1), columns(0, 10, (8, 10))]
    targets = [columns(0, 2), columns(5, 6), columns(0, 10, (8, 10))]
    found = referring_segmentation_scores(predictions, targets, num_resamples=100)
    assert found["ciou"]["value"] == pytest.approx((4 + 0 + 80) / (8 + 4 + 80))
    assert found["giou"]["value"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found["precision_at_50"]["value"] == pytest.approx(1 / 3)  # one half is not above one half
    assert "no_target_accuracy" not in found
    for name in ("ciou", "giou"):
        low, high = found[name]["interval"]
        assert low <= found[name]["value"] <= high
    assert (found["num_expressions"], found["num_images"]) == (3, 3)


def test_an_expression_that_nothing_fits_wants_an_empty_mask():
    nothing = columns(0, 0)
    found = referring_segmentation_scores([nothing, columns(0, 1), columns(0, 2)], [nothing, nothing, columns(0, 2)])
    assert found["giou"]["value"] == pytest.approx(2 / 3)
    assert found["ciou"]["value"] == pytest.approx(4 / 6)
    assert found["no_target_accuracy"]["value"] == 0.5
    assert referring_segmentation_scores([nothing], [nothing])["ciou"] is None


def test_expressions_of_one_image_are_resampled_together():
    generator = np.random.default_rng(0)
    targets = [columns(0, 10)] * 80
    predictions = [columns(0, int(width)) for width in np.repeat(generator.integers(1, 11, 20), 4)]
    widths = [
        np.ptp(referring_segmentation_scores(predictions, targets, images, 400)["giou"]["interval"])
        for images in (np.repeat(np.arange(20), 4).tolist(), None)
    ]
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.ones((3, 3), bool), r"Expression 1: A predicted mask is of shape \(3, 3\)"),
        (np.full((2, 10), 0.3), "has values from 0.3 to 0.3"),
        (np.ones((1, 2, 10), bool), r"of shape \(1, 2, 10\)"),
        (np.full((2, 10), np.nan), "has values from nan"),
    ],
)
def test_what_is_no_mask_of_the_image_is_named(prediction, message):
    with pytest.raises(ValueError, match=message):
        referring_segmentation_scores([columns(0, 1), prediction], [columns(0, 1)] * 2)


@pytest.mark.parametrize(("number", "images"), [(0, None), (1, None), (2, ["a"])])
def test_wrong_numbers_are_told(number, images):
    with pytest.raises(ValueError, match=r"expected as many|its image"):
        referring_segmentation_scores([columns(0, 1)] * number, [columns(0, 1)] * (2 if number else 0), images)


def test_zeros_and_ones_are_masks():
    assert mask_overlap(np.array([[1, 0, 1]]), np.array([[1.0, 1.0, 0.0]])) == (1, 3)
