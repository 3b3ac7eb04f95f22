"""The Fréchet distance against its formula with the root of a matrix, and on Gaussians whose distance is known."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_dinov2_config, tiny_image, tiny_image_processor
from vistok.evaluation import frechet_distance as frechet_module
from vistok.evaluation.frechet_distance import frechet_distance, image_frechet_distance
from vistok.evaluation.image_representations import ImageTower
from vistok.modeling.vision_features import build_vision_tower

EXTRACTOR = "planted features"


@pytest.mark.parametrize(("num_real", "number"), [(50, 40), (5, 7)])
def test_it_is_that_of_the_formula_even_where_covariances_are_singular(num_real, number):
    linalg = pytest.importorskip("scipy.linalg")
    real, other = torch.randn(num_real, 8) @ torch.randn(8, 8), torch.randn(number, 8) + 0.5
    covariances = [np.cov(one.double().numpy(), rowvar=False) for one in (real, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = ((real.double().mean(0) - other.double().mean(0)) ** 2).sum().item()
    expected = means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    found = frechet_distance(real, other, EXTRACTOR)
    # sqrtm is that inexact where the product has no full rank
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-9 if number > 8 else 1e-4)
    assert (found["extractor"], found["num_real"], found["num_images"]) == (EXTRACTOR, num_real, number)


def test_gaussians_of_one_axis_have_their_known_distance():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400_000, 2, generator=generator)
    second = 3 * torch.randn(400_000, 2, generator=generator) + torch.tensor([1.0, 2.0])
    # |(1, 2)|² + two axes of (3 − 1)²
    assert frechet_distance(first, second, EXTRACTOR)["frechet_distance"] == pytest.approx(5 + 8, rel=0.02)
    assert frechet_distance(first, first, EXTRACTOR)["frechet_distance"] == pytest.approx(0, abs=1e-9)


def test_a_small_sample_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(frechet_module.logger, "warning", told.append)
    found = frechet_distance(torch.randn(5, 8), torch.randn(9, 8), EXTRACTOR)
    assert found["warning"].startswith("small sample: 5 images, and the covariance of 8 features has no full rank")
    assert len(told) == 1
    assert "warning" not in frechet_distance(torch.randn(10_000, 2), torch.randn(10_000, 2), EXTRACTOR)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("features", "extractor", "message"),
    [
        (torch.randn(5, 7), EXTRACTOR, r"shapes \(5, 8\) and \(5, 7\)"),
        (torch.randn(1, 8), EXTRACTOR, "There are 1 generated images"),
        (torch.full((5, 8), float("inf")), EXTRACTOR, "generated images are not finite"),
        (torch.randn(5, 8), " ", "extractor is empty"),
    ],
)
def test_what_has_no_distance_is_refused(features, extractor, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(torch.randn(5, 8), features, extractor)


def test_images_are_compared_in_the_features_of_a_named_tower():
    tower = ImageTower(build_vision_tower(tiny_dinov2_config()), tiny_image_processor(), -1)
    real, other = ([tiny_image(seed) for seed in seeds] for seeds in (range(4), range(4, 9)))
    found = image_frechet_distance(real, other, tower, "tiny")
    assert found["extractor"] == "tiny, layer -1, mean of patches" and found["frechet_distance"] > 0
    assert image_frechet_distance(real, real, tower, "tiny")["frechet_distance"] == pytest.approx(0, abs=1e-6)
