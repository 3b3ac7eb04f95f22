"""How much the frozen features of a vision tower say about what an image shows: k nearest neighbours, linear probe."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.vision_features import FeatureLayer
from ..processing.images import ImageSource
from .bootstrap import bootstrap_interval
from .image_representations import POOLINGS, ImageTower, image_representations, representations_of

LabelledImages = tuple[Sequence[ImageSource], Sequence[Hashable]]
"""Images, and a label for each."""


def knn_predictions(
    train_features: torch.Tensor,
    train_labels: Sequence[Hashable],
    test_features: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> list[Hashable]:
    """
    Lets the k training images of the greatest cosine similarity vote, each with the weight exp(similarity /
    temperature).

    Args:
        train_features (`torch.FloatTensor` of shape `(num_train, hidden_size)`): to compare with.
        train_labels (`list`): of the training images.
        test_features (`torch.FloatTensor` of shape `(num_test, hidden_size)`): to classify.
        k (`int`, *optional*, defaults to 20): neighbours; all, where there are fewer.
        temperature (`float`, *optional*, defaults to 0.07): of the weights.

    Returns:
        `list`: a label for each test image.

    Raises:
        ValueError: if k is less than 1, or features and labels do not fit together.
    """
    _check(train_features, train_labels, test_features)
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1 neighbour.")
    classes, numbers = _numbered(train_labels)
    train = nn.functional.normalize(train_features.double(), dim=1)
    test = nn.functional.normalize(test_features.double(), dim=1)
    predicted: list[Hashable] = []
    for some in test.split(1024):  # all similarities at once would not fit for large sets
        similarity, neighbours = (some @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(some), len(classes), dtype=torch.float64)
        votes.scatter_add_(1, numbers[neighbours], torch.exp((similarity - 1) / temperature))
        predicted += [classes[number] for number in votes.argmax(1).tolist()]
    return predicted


def linear_probe_predictions(
    train_features: torch.Tensor, train_labels: Sequence[Hashable], test_features: torch.Tensor
) -> list[Hashable]:
    """
    A linear classifier in closed form: ridge regression of the classes on standardised features, with the penalty
    that classifies most training images rightly when each is left out.

    Args:
        train_features (`torch.FloatTensor` of shape `(num_train, hidden_size)`): to learn from.
        train_labels (`list`): of the training images.
        test_features (`torch.FloatTensor` of shape `(num_test, hidden_size)`): to classify.

    Returns:
        `list`: a label for each test image.

    Raises:
        ValueError: if features and labels do not fit together.
    """
    _check(train_features, train_labels, test_features)
    classes, numbers = _numbered(train_labels)
    targets = nn.functional.one_hot(numbers, len(classes)).double()
    mean, std = train_features.double().mean(0), train_features.double().std(0, unbiased=False).clamp_min(1e-8)
    features, test = (train_features.double() - mean) / std, (test_features.double() - mean) / std
    weights = ridge_weights(features, targets - targets.mean(0), numbers, targets.mean(0))
    return [classes[number] for number in (test @ weights + targets.mean(0)).argmax(1).tolist()]


def ridge_weights(
    features: torch.Tensor, targets: torch.Tensor, numbers: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """
    Ridge regression with the penalty, of a grid from 1e-6 to 10 per image, of the best leave-one-out accuracy; of
    equally good ones the greatest.

    Args:
        features (`torch.DoubleTensor` of shape `(num_images, hidden_size)`): of mean zero.
        targets (`torch.DoubleTensor` of shape `(num_images, num_classes)`): one for the class, of mean zero.
        numbers (`torch.LongTensor` of shape `(num_images,)`): of the classes.
        offset (`torch.DoubleTensor` of shape `(num_classes,)`): what was subtracted from the targets.

    Returns:
        `torch.DoubleTensor` of shape `(hidden_size, num_classes)`.
    """
    left, singular, right = torch.linalg.svd(features, full_matrices=False)
    projected, best, weights = left.T @ targets, -1.0, torch.empty(0)
    for exponent in torch.arange(1.0, -6.5, -0.5).tolist():
        penalty = len(features) * 10.0**exponent
        shrinkage = singular.square() / (singular.square() + penalty)
        fitted = left @ (shrinkage.unsqueeze(1) * projected)
        # 1/n is what an image pulls the means towards itself.
        leverage = (left.square() * shrinkage).sum(1) + 1 / len(features)
        left_out = targets - (targets - fitted) / (1 - leverage).clamp_min(1e-12).unsqueeze(1)
        accuracy = ((left_out + offset).argmax(1) == numbers).double().mean().item()
        if accuracy > best:
            best = accuracy
            weights = right.T @ ((singular / (singular.square() + penalty)).unsqueeze(1) * projected)
    return weights


def representation_quality(
    vision_tower: PreTrainedModel,
    image_processor: Any,
    train: LabelledImages,
    test: LabelledImages,
    feature_layer: FeatureLayer | None = None,
    pooling: str = "mean",
    k: int = 20,
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[str, dict[str, Any]]:
    """
    Accuracies of a frozen tower's features on labelled images: [`representation_qualities`] of a single tower.

    Args:
        vision_tower, image_processor, feature_layer: as in [`ImageTower`].
        train, test, pooling, k, batch_size, num_workers: as in [`representation_qualities`].

    Returns:
        `dict`: as [`representation_qualities`] has it for each tower.

    Raises:
        ValueError: as there.
    """
    towers = {"tower": ImageTower(vision_tower, image_processor, feature_layer)}
    return representation_qualities(towers, train, test, pooling, k, batch_size, num_workers)["tower"]


def representation_qualities(
    towers: Mapping[str, ImageTower],
    train: LabelledImages,
    test: LabelledImages,
    pooling: str = "mean",
    k: int = 20,
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Accuracies of the features of several frozen towers on labelled images, each of which is read once.

    Args:
        towers, pooling, batch_size, num_workers: as in [`representations_of`].
        train, test (`tuple` of images and labels): to learn from, and to measure on; they share no image.
        k (`int`, *optional*, defaults to 20): as in [`knn_predictions`].

    Returns:
        `dict`: for each tower `knn` and `linear_probe`, each with `accuracy` in percent and `interval`, its 95 %
        bootstrap interval. See [`label_floors`] for what they have to rise above, beside a tower with random weights.

    Raises:
        ValueError: if there are no images, not as many labels, or test labels that no training image has.
    """
    for name, (images, labels) in {"train": train, "test": test}.items():
        if not images or len(images) != len(labels):
            raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels: expected as many, and some.")
    check_labels(train[1], test[1])
    train_features, test_features = (
        representations_of(towers, images, pooling, batch_size, num_workers) for images, _ in (train, test)
    )
    found = {}
    for name in towers:
        features = train_features[name], train[1], test_features[name]
        predictions = {"knn": knn_predictions(*features, k), "linear_probe": linear_probe_predictions(*features)}
        found[name] = {probe: _score(predicted, test[1]) for probe, predicted in predictions.items()}
    return found


def check_labels(train_labels: Sequence[Hashable], test_labels: Sequence[Hashable]) -> None:
    """
    Makes sure that every test image can be classified rightly.

    Args:
        train_labels, test_labels (`list`): of the images to learn from, and of those to measure on.

    Raises:
        ValueError: if some test label is that of no training image; names labels of both.
    """
    known = set(train_labels)
    missing = Counter(label for label in test_labels if label not in known)
    if missing:
        raise ValueError(
            f"{sum(missing.values())} of {len(test_labels)} test images have labels that no training image has, "
            f"{_some(missing)}, and so could never be classified rightly; training images have {_some(train_labels)}. "
            "In folders of images, each class needs its own folder of the same name on both sides."
        )


def label_floors(train_labels: Sequence[Hashable], test_labels: Sequence[Hashable]) -> dict[str, Any]:
    """
    What can be reached without looking.

    Args:
        train_labels, test_labels (`list`): of the images to learn from, and of those to measure on.

    Returns:
        `dict`: `majority`, the accuracy in percent of always giving the most frequent training label, and numbers
        `num_train`, `num_test`, `num_classes`.
    """
    majority = Counter(train_labels).most_common(1)[0][0]
    return {
        "majority": 100 * sum(label == majority for label in test_labels) / len(test_labels),
        "num_train": len(train_labels),
        "num_test": len(test_labels),
        "num_classes": len(set(train_labels)),
    }


def _some(labels: Iterable[Hashable], count: int = 5) -> str:
    names = [repr(label) for label in dict.fromkeys(labels)]
    return ", ".join(names[:count]) + (f" and {len(names) - count} others" if len(names) > count else "")


def _score(predicted: Sequence[Hashable], labels: Sequence[Hashable]) -> dict[str, Any]:
    right = [float(found == label) for found, label in zip(predicted, labels, strict=True)]
    interval = bootstrap_interval(right, range(len(right)))
    return {
        "accuracy": 100 * sum(right) / len(right),
        "interval": None if interval is None else [100 * end for end in interval],
    }


def _numbered(labels: Sequence[Hashable]) -> tuple[list[Hashable], torch.Tensor]:
    classes: Mapping[Hashable, int] = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return list(classes), torch.tensor([classes[label] for label in labels])


def _check(train_features: torch.Tensor, train_labels: Sequence[Hashable], test_features: torch.Tensor) -> None:
    if len(train_features) != len(train_labels) or not len(train_labels):
        raise ValueError(f"There are {len(train_features)} training features and {len(train_labels)} labels.")
    if train_features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"Training features are of width {train_features.shape[-1]} and test features of "
            f"{test_features.shape[-1]}: both have to come from the same tower and pooling."
        )
    if not (torch.isfinite(train_features).all() and torch.isfinite(test_features).all()):
        raise ValueError("Some features are no finite numbers: the tower has diverged, or was loaded wrongly.")


__all__ = [
    "POOLINGS",
    "ImageTower",
    "check_labels",
    "image_representations",
    "knn_predictions",
    "label_floors",
    "linear_probe_predictions",
    "representation_qualities",
    "representation_quality",
    "ridge_weights",
]
