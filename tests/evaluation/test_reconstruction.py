"""Reconstruction scores against their formulas and scikit-image."""

import numpy as np
import pytest
import torch

from vistok.evaluation.reconstruction import l1_distance, reconstruction_scores, structural_similarity


def images(number=3, size=(20, 31), noise=0.1):
    targets = torch.rand(number, 3, *size)
    smooth = torch.nn.functional.avg_pool2d(targets, 5, 1, 2)
    return (smooth + noise * torch.randn_like(smooth)).clamp(0, 1), smooth


def windowed_similarity(first, second):
    """Equation 13 place by place, of one plane."""
    places = np.arange(-5, 6)
    window = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x, y = (plane[row : row + 11, column : column + 11] for plane in (first, second))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            covariance = (window * (x - mx) * (y - my)).sum()
            luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
            found.append(luminance * (2 * covariance + 0.03**2) / (vx + vy + 0.03**2))
    return np.mean(found)


def test_ssim_is_that_of_its_formula_and_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    first, second = images()
    found = structural_similarity(first, second)
    for a, b, one in zip(first.double().numpy(), second.double().numpy(), found.tolist()):
        assert one == pytest.approx(np.mean([windowed_similarity(*planes) for planes in zip(a, b)]), abs=1e-12)
        theirs = metrics.structural_similarity(
            a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert one == pytest.approx(theirs, abs=1e-7)
    assert 0.2 < found.mean() < 0.99


def test_equal_images_are_equal_and_inverted_ones_far():
    image = images()[1]
    assert structural_similarity(image, image).tolist() == pytest.approx([1, 1, 1])
    assert structural_similarity(image, 1 - image).max() < 0
    assert l1_distance(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.25)).item() == pytest.approx(0.25)


def test_scores_are_means_with_intervals_over_images():
    first, second = images(6)
    found = reconstruction_scores(list(first), list(second), num_resamples=200)
    assert found["l1"]["value"] == pytest.approx(l1_distance(first, second).mean().item())
    assert found["ssim"]["value"] == pytest.approx(structural_similarity(first, second).mean().item())
    assert all(
        found[name]["interval"][0] < found[name]["value"] < found[name]["interval"][1] for name in ("l1", "ssim")
    )
    assert found["num_images"] == 6


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 20, 20) * 255, "Image b: Images have values from .* undo the normalisation"),
        (torch.full((3, 20, 20), float("nan")), "values from nan"),
        (torch.rand(3, 20, 21), r"shape \(1, 3, 20, 21\)"),
        (torch.rand(1, 20, 20), r"shape \(1, 1, 20, 20\)"),
    ],
)
def test_what_cannot_be_compared_is_named(image, message):
    good = torch.rand(3, 20, 20)
    with pytest.raises(ValueError, match=message):
        reconstruction_scores([good, image], [good, good], ["a", "b"])


def test_too_small_images_and_wrong_numbers_are_told():
    with pytest.raises(ValueError, match="10 × 30 pixels are smaller than the window"):
        structural_similarity(*(torch.rand(1, 3, 10, 30) for _ in range(2)))
    with pytest.raises(ValueError, match="1 images for 2 targets"):
        reconstruction_scores([torch.rand(3, 20, 20)], [torch.rand(3, 20, 20)] * 2)
    with pytest.raises(ValueError, match="0 images for 0 targets"):
        reconstruction_scores([], [])
