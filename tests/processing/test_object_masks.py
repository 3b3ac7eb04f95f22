"""Masks of objects: which label a pixel or a patch has, how much of a patch is covered, where a tower sees them."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from vistok.processing.object_masks import (
    MaskedImage,
    ObjectMasks,
    label_map,
    patch_coverage,
    patch_labels,
    seen_objects,
)


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def objects_of(*masks, ignored=None):
    stacked = np.stack(masks)
    return ObjectMasks(stacked, ("",) * len(masks), np.zeros(stacked.shape[1:], bool) if ignored is None else ignored)


class TestLabels:
    def test_of_overlapping_masks_the_smallest_has_the_pixel(self):
        small, large = rectangle((4, 4), 1, 1, 3, 3), rectangle((4, 4), 0, 0, 4, 4)
        for masks, expected in (((small, large), (1, 2)), ((large, small), (2, 1))):
            labels = label_map(objects_of(*masks))
            assert labels[1, 1] == expected[0] and labels[0, 0] == expected[1]

    def test_ignored_pixels_are_no_background_but_may_be_objects(self):
        labels = label_map(objects_of(rectangle((2, 3), 0, 0, 1, 2), ignored=rectangle((2, 3), 0, 1, 2, 3)))
        assert labels.tolist() == [[1, 1, -1], [0, -1, -1]]

    def test_a_patch_is_what_most_of_it_is(self):
        masks = rectangle((4, 8), 0, 0, 3, 2), rectangle((4, 8), 0, 4, 4, 7)
        assert patch_labels(objects_of(*masks), (1, 2)).tolist() == [[0, 2]]  # 6 of 16 pixels, and 12 of 16
        assert patch_labels(objects_of(*masks), (2, 4)).tolist() == [[1, 0, 2, 0], [0, 0, 2, 0]]

    def test_of_equal_shares_background_wins_then_the_lower_number(self):
        halves = rectangle((2, 4), 0, 0, 2, 1), rectangle((2, 4), 0, 2, 2, 3), rectangle((2, 4), 0, 3, 2, 4)
        assert patch_labels(objects_of(*halves), (1, 2)).tolist() == [[0, 2]]
        thirds = rectangle((1, 7), 0, 0, 1, 3), rectangle((1, 7), 0, 4, 1, 7)
        assert patch_labels(objects_of(*thirds), (1, 1)).tolist() == [[1]]

    def test_no_object_leaves_background(self):
        none = ObjectMasks(np.zeros((0, 4, 4), bool), (), np.zeros((4, 4), bool))
        assert patch_labels(none, (2, 2)).tolist() == [[0, 0], [0, 0]]
        assert patch_coverage(none.masks, (2, 2)).shape == (0, 2, 2)


class TestCoverage:
    def test_whole_patches_are_averaged(self):
        mask = np.random.default_rng(0).random((1, 12, 20)) > 0.5
        expected = mask[0].reshape(3, 4, 4, 5).mean((1, 3))
        np.testing.assert_allclose(patch_coverage(mask, (3, 4))[0], expected, atol=1e-12)

    @pytest.mark.parametrize("grid_size", [(3, 4), (5, 7), (16, 9)])
    def test_patches_that_end_within_pixels_share_them(self, grid_size):
        mask = np.random.default_rng(1).random((2, 11, 13)) > 0.5
        # Each pixel as a block of grid_size pixels: patches end where blocks do.
        finer = np.kron(mask, np.ones((1, *grid_size)))
        expected = finer.reshape(2, grid_size[0], 11, grid_size[1], 13).mean((2, 4))
        np.testing.assert_allclose(patch_coverage(mask, grid_size), expected, atol=1e-12)

    def test_what_is_no_mask_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \(4, 4\) cannot be pooled to 2 × 2"):
            patch_coverage(np.zeros((4, 4)), (2, 2))


class TestSeenObjects:
    def test_masks_go_where_a_crop_and_a_resize_put_their_image(self):
        processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
        masks = [rectangle((20, 30), 2 * n % 9, n % 13, 9 + n % 7, 14 + n % 9) for n in range(30)]
        ignored = rectangle((20, 30), 15, 0, 20, 30)
        seen = seen_objects(objects_of(*masks, ignored=ignored), processor)
        assert len(seen) == 30 and seen.size == (32, 32)
        for mask, found in zip([*masks, ignored], [*seen.masks, seen.ignored]):
            # resized by 2, of which the middle 32 of 40 × 60 pixels are cut
            assert np.array_equal(found, mask.repeat(2, 0).repeat(2, 1)[4:36, 14:46])

    def test_the_padding_of_a_square_is_background(self):
        processor = LlavaImageProcessorPil(
            do_pad=True, do_center_crop=False, size={"height": 30, "width": 30}, image_mean=[0.9, 0.9, 0.9]
        )
        seen = seen_objects(objects_of(np.ones((10, 30), bool)), processor)
        assert np.array_equal(seen.masks[0], rectangle((30, 30), 10, 0, 20, 30)) and not seen.ignored.any()

    def test_an_object_that_is_cut_away_keeps_its_place(self):
        processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        gone, kept = rectangle((8, 24), 0, 0, 8, 2), rectangle((8, 24), 0, 10, 8, 12)
        seen = seen_objects(objects_of(gone, kept), processor)
        assert seen.masks.sum((1, 2)).tolist() == [0, 16]


def test_an_image_of_another_size_is_refused(tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "image.png")
    one = MaskedImage(tmp_path / "image.png", (5, 7), (), tmp_path / "instances.json")
    with pytest.raises(ValueError, match=r"image.png.*5 × 6 pixels .* for 5 × 7"):
        one.image()
