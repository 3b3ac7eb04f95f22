"""Masks of COCO's instances, on shapes whose pixels are known."""

import numpy as np
import pytest

from vistok.processing.coco_masks import decode_mask


def planted() -> np.ndarray:
    """A disc and a rectangle, which the fixtures below are of."""
    rows, columns = np.mgrid[:37, :53]
    disc = (rows - 15) ** 2 + (columns - 30) ** 2 < 120
    return disc | ((rows > 20) & (rows < 33) & (columns > 3) & (columns < 9))


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, the first of background, written from their definition."""
    counts, last, length = [], False, 0
    for value in mask.T.reshape(-1):
        if bool(value) != last:
            counts.append(length)
            last, length = bool(value), 0
        length += 1
    return [*counts, length]


def test_run_lengths_go_down_the_columns_and_begin_with_background():
    mask = decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    first = decode_mask({"size": [2, 3], "counts": [0, 1, 5]}, (2, 3))
    assert first.tolist() == [[True, False, False], [False, False, False]]


def test_any_mask_comes_back_from_its_run_lengths():
    mask = np.random.default_rng(0).random((7, 5)) > 0.4
    np.testing.assert_array_equal(decode_mask({"size": [7, 5], "counts": runs(mask)}, (7, 5)), mask)


# Encoded by pycocotools 2.0 (cocodataset/cocoapi).
@pytest.mark.parametrize(
    ("counts", "mask"),
    [
        ("Y5<i00000000]<MdC4M2N2N2O0O2O0000000000000001N101N2N2N3Lc=", planted()),
        ("0110" + "0" * 67, np.arange(70)[None] % 2 == 0),
    ],
)
def test_compressed_run_lengths_are_those_of_pycocotools(counts, mask):
    np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": counts}, mask.shape), mask)
    np.testing.assert_array_equal(decode_mask({"size": list(mask.shape), "counts": counts.encode()}, mask.shape), mask)


def test_a_polygon_covers_the_pixels_whose_centre_lies_in_it():
    mask = decode_mask([[2, 1, 6, 1, 6, 4, 2, 4], [8, 8, 9.6, 8, 9.6, 9.6, 8, 9.6]], (10, 10))
    assert mask[1:4, 2:6].all() and mask[8:10, 8:10].all() and mask.sum() == 12 + 4
    beyond = decode_mask([[-5, -5, 30, -5, 30, 4.4, -5, 4.4]], (10, 10))
    assert beyond[:4].all() and not beyond[4:].any()


def test_polygons_are_those_of_pycocotools():
    mask_tools = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for number in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 12))
        radii = generator.uniform(10, 40, 12)
        points = np.stack([60 + 1.4 * radii * np.cos(angles), 50 + radii * np.sin(angles)], axis=1)
        polygon = points.round(2).ravel().tolist()
        theirs = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects([polygon], 100, 120))).astype(bool)
        ours = decode_mask([polygon], (100, 120))
        # They round points to fifths of a pixel.
        assert (ours != theirs).sum() <= 0.02 * theirs.sum()
        assert abs(int(ours.sum()) - int(theirs.sum())) <= 0.01 * theirs.sum(), number


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 2], "counts": [6]}, "size"),
        ({"size": [2, 3], "counts": [1, 2]}, "add up to 3 pixels"),
        ({"size": [2, 3], "counts": "~~"}, "no character of compressed run lengths"),
        ([[0, 0, 1, 1]], "A polygon has 4 numbers"),
        ("text", "segmentation is a str"),
        (None, "segmentation is a NoneType"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(segmentation, (2, 3))
