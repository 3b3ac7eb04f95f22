"""k-NN and linear probe find what is planted in features, and are what their definitions say."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.tiny import calls, tiny_dinov2_config, tiny_image, tiny_image_processor
from vistok.evaluation import image_representations as image_representations_module
from vistok.evaluation.representation_quality import (
    ImageTower,
    image_representations,
    knn_predictions,
    label_floors,
    linear_probe_predictions,
    representation_qualities,
    representation_quality,
    ridge_weights,
)
from vistok.modeling.vision_features import build_vision_tower


def planted(count, num_classes=3, width=8, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(9))
    return centres[labels] + noise * torch.randn(count, width, generator=generator), [f"c{n}" for n in labels]


def test_both_find_planted_classes_and_chance_where_there_are_none():
    (train, labels), (test, expected) = planted(60), planted(30, seed=1)
    for predict in (knn_predictions, linear_probe_predictions):
        assert sum(a == b for a, b in zip(predict(train, labels, test), expected, strict=True)) >= 28
        noise = predict(torch.randn(60, 8), labels, torch.randn(300, 8))
        assert 50 < sum(a == b for a, b in zip(noise, expected * 10, strict=True)) < 150


def test_the_vote_of_neighbours_is_weighted_by_similarity():
    train, labels = torch.randn(12, 5), ["a", "b", "c"] * 4
    test = torch.randn(6, 5)
    found = knn_predictions(train, labels, test, k=4, temperature=0.2)
    for vector, label in zip(test.tolist(), found, strict=True):

        def cosine(other, vector=vector):
            dot = sum(x * y for x, y in zip(vector, other, strict=True))
            return dot / math.dist(vector, [0] * 5) / math.dist(other, [0] * 5)

        nearest = sorted(((cosine(other), name) for other, name in zip(train.tolist(), labels, strict=True)))[-4:]
        votes = Counter()
        for similarity, name in nearest:
            votes[name] += math.exp(similarity / 0.2)
        assert label == votes.most_common(1)[0][0]


def test_the_penalty_of_the_probe_is_that_of_the_best_leave_one_out_accuracy():
    features, labels = planted(24, noise=1.5, width=12)
    numbers = torch.tensor([int(label[1]) for label in labels])
    x = (features - features.mean(0)).double()
    targets = torch.nn.functional.one_hot(numbers).double()
    offset = targets.mean(0)
    found = ridge_weights(x, targets - offset, numbers, offset)
    best = (-1.0, 0.0)
    for exponent in np.arange(1.0, -6.5, -0.5):
        penalty, right = 24 * 10.0**exponent, 0
        for out in range(24):  # refit without it: means, too
            rest = np.delete(np.arange(24), out)
            a, b = x[rest].numpy(), targets[rest].numpy()
            centre, mean = a.mean(0), b.mean(0)
            w = np.linalg.solve((a - centre).T @ (a - centre) + penalty * np.eye(12), (a - centre).T @ (b - mean))
            right += np.argmax((x[out].numpy() - centre) @ w + mean) == numbers[out].item()
        best = max(best, (right / 24, penalty))  # of equal ones the greatest penalty
    expected = torch.linalg.solve(x.T @ x + best[1] * torch.eye(12, dtype=torch.float64), x.T @ (targets - offset))
    assert torch.allclose(found, expected, atol=1e-8)


def test_representations_are_pooled_features():
    tower = build_vision_tower(tiny_dinov2_config()).train()
    images = [tiny_image(seed) for seed in range(3)]
    processor = tiny_image_processor()
    pooled = {
        name: image_representations(tower, processor, images, pooling=name, batch_size=2)
        for name in ("mean", "cls", "both")
    }
    assert tower.training
    features = tower.eval()(processor(images, return_tensors="pt")["pixel_values"]).last_hidden_state
    assert torch.allclose(pooled["mean"], features[:, 1:].mean(1), atol=1e-5)
    assert torch.allclose(pooled["cls"], features[:, 0], atol=1e-5)
    assert torch.equal(pooled["both"], torch.cat([pooled["cls"], pooled["mean"]], dim=1))
    with pytest.raises(ValueError, match="pooling is 'max'"):
        image_representations(tower, processor, images, pooling="max")


def test_a_report_has_accuracies_with_intervals_in_percent():
    tower, processor = build_vision_tower(tiny_dinov2_config()), tiny_image_processor()
    images, labels = [tiny_image(seed) for seed in range(8)], ["a", "b"] * 4
    report = representation_quality(tower, processor, (images, labels), (images, labels), k=1)
    assert report["knn"] == {"accuracy": 100.0, "interval": [pytest.approx(63.1, abs=0.1), 100.0]}
    assert 50 <= report["linear_probe"]["accuracy"] <= 100
    assert label_floors(["a", "b", "a"], ["b", "b", "a", "b"]) == {
        "majority": 25.0,
        "num_train": 3,
        "num_test": 4,
        "num_classes": 2,
    }


def test_what_does_not_fit_together_is_named():
    tower, processor = build_vision_tower(tiny_dinov2_config()), tiny_image_processor()
    with pytest.raises(ValueError, match="test has 0 images and 0 labels"):
        representation_quality(tower, processor, ([tiny_image()], ["a"]), ([], []))
    with pytest.raises(ValueError, match="of width 4 and test features of 5"):
        knn_predictions(torch.ones(2, 4), ["a", "b"], torch.ones(2, 5))
    with pytest.raises(ValueError, match="no finite numbers"):
        linear_probe_predictions(torch.ones(2, 4), ["a", "b"], torch.full((2, 4), torch.nan))
    with pytest.raises(ValueError, match="k is 0"):
        knn_predictions(torch.ones(2, 4), ["a", "b"], torch.ones(2, 4), k=0)


def test_several_towers_see_each_image_once_and_measure_as_each_alone(monkeypatch):
    read = calls(monkeypatch, image_representations_module, "load_image")
    towers = {
        "small": ImageTower(build_vision_tower(tiny_dinov2_config()), tiny_image_processor()),
        "other pixels": ImageTower(
            build_vision_tower(tiny_dinov2_config()), tiny_image_processor(image_mean=[0.5] * 3), 1
        ),
        "the same pixels": ImageTower(build_vision_tower(tiny_dinov2_config()), tiny_image_processor(), "final"),
    }
    train = [tiny_image(seed) for seed in range(6)], ["a", "b"] * 3
    test = [tiny_image(seed) for seed in range(6, 9)], ["a", "b", "a"]
    found = representation_qualities(towers, train, test, k=2)
    assert len(read) == 9
    for name, tower in towers.items():
        alone = representation_quality(tower.model, tower.image_processor, train, test, tower.feature_layer, k=2)
        assert found[name] == alone
    assert representation_qualities(towers, train, test, k=2, num_workers=2) == found


def test_labels_that_cannot_be_learned_are_refused():
    tower, images = build_vision_tower(tiny_dinov2_config()), [tiny_image(seed) for seed in range(3)]
    with pytest.raises(ValueError, match="2 of 3 test images have labels that no training image has, 'val', and so"):
        representation_quality(tower, tiny_image_processor(), (images, ["a", "b", "c"]), (images, ["val", "a", "val"]))
