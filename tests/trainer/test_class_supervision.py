"""Class supervision: a tiny tower learns planted classes, and what is saved is the tower."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, TrainingArguments, ViTConfig

from tests.tiny import tiny_clip_config, tiny_dinov2_config, tiny_image_processor
from vistok.trainer.class_supervision import (
    ClassSupervisionCollator,
    ClassSupervisionTrainer,
    class_dataset,
    class_supervised_model,
    mean_average_precision,
)

VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=24, patch_size=8
)
CLASSES = ["left is bright", "right is bright"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pictures whose left or right half is bright, or both, or none."""
    folder, files, labels = tmp_path_factory.mktemp("scenes"), [], []
    generator = np.random.default_rng(0)
    for number in range(32):
        label = [number % 2, number // 2 % 2]
        pixels = generator.integers(0, 60, (24, 24, 3)) + 180 * np.repeat(label, 12)[None, :, None]
        files.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
        labels.append([float(value) for value in label])
    return class_dataset(files, labels)


def trainer_for(folder, dataset, evaluate=None, config=None, flip=False, **options) -> ClassSupervisionTrainer:
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 40,
        "learning_rate": 3e-3, "per_device_train_batch_size": 8, "logging_steps": 5, "save_strategy": "no",
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    model = class_supervised_model(config or tiny_dinov2_config(), CLASSES, image_size=24, seed=0)
    args = TrainingArguments(**{**settings, **options})
    return ClassSupervisionTrainer(model, args, dataset, evaluate, tiny_image_processor(), flip=flip)


def test_a_tower_learns_which_classes_are_in_an_image(scenes, tmp_path):
    trainer = trainer_for(tmp_path, scenes, scenes)
    before = trainer.evaluate()["eval_mean_average_precision"]
    trainer.train()
    assert before < 90 < 99 < trainer.evaluate()["eval_mean_average_precision"]


@pytest.mark.parametrize("config", [tiny_dinov2_config(), VIT])
def test_what_is_saved_is_the_tower_as_it_was_trained(scenes, tmp_path, config):
    trainer = trainer_for(tmp_path / "run", scenes, config=config, max_steps=2)
    trainer.train()
    trainer.save_final(tmp_path / "tower")
    loaded = AutoModel.from_pretrained(tmp_path / "tower").state_dict()
    trained = {name: tensor for name, tensor in trainer.model.base_model.state_dict().items() if name in loaded}
    assert trained and all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    assert not any("classifier" in name for name in loaded)
    assert AutoImageProcessor.from_pretrained(tmp_path / "tower").size["height"] == 24


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(scenes, tmp_path):
    whole = trainer_for(tmp_path / "whole", scenes, flip=True, max_steps=6)
    whole.train()
    begun = trainer_for(tmp_path / "run", scenes, flip=True, max_steps=6, save_strategy="steps", save_steps=3)
    begun.train()
    resumed = trainer_for(tmp_path / "run", scenes, flip=True, max_steps=6)
    resumed.train(str(tmp_path / "run" / "checkpoint-3"))
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_the_architecture_keeps_its_config_and_the_seed_decides_on_the_weights():
    config = tiny_dinov2_config()
    before = copy.deepcopy(config.to_dict())
    first, same, other = (class_supervised_model(config, CLASSES, seed=seed) for seed in (0, 0, 1))
    assert config.to_dict() == before
    assert first.config.num_labels == 2 and first.config.id2label == dict(enumerate(CLASSES))
    weights = [next(model.parameters()) for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_images_are_mirrored_anew_in_each_epoch_and_alike_for_the_same_seed(scenes):
    def batch(flip=True, epoch=0, seed=0):
        collator = ClassSupervisionCollator(tiny_image_processor(), flip, seed)
        collator.epoch.fill_(epoch)
        return collator(list(scenes))["pixel_values"]

    plain = batch(flip=False)
    flipped = [not torch.equal(one, other) for one, other in zip(batch(), plain)]
    assert 6 <= sum(flipped) <= 26
    assert all(
        torch.equal(one, torch.flip(other, [-1])) for one, other, is_other in zip(batch(), plain, flipped) if is_other
    )
    assert torch.equal(batch(), batch()) and not torch.equal(batch(), batch(epoch=1))
    assert not torch.equal(batch(), batch(seed=1))


def test_average_precision_is_that_of_the_ranks():
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    scores = np.array([[0.9, 0], [0.8, 0], [0.7, 0], [0.1, 0]])  # the hits are ranked first and third
    assert mean_average_precision(scores, labels) == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    generator = np.random.default_rng(0)
    scores, labels = generator.random((50, 4)), generator.integers(0, 2, (50, 4))
    by_hand = []
    for score, label in zip(scores.T, labels.T):
        # At each image that holds the class: the share of those that rank as high or higher and hold it, too.
        by_hand.append(np.mean([label[score >= score[hit]].mean() for hit in np.flatnonzero(label)]))
    assert mean_average_precision(scores, labels) == pytest.approx(100 * np.mean(by_hand))


def test_what_does_not_fit_together_is_refused(scenes, tmp_path):
    with pytest.raises(ValueError, match="2 images and labels of 1"):
        class_dataset(["a.png", "b.png"], [[1.0]])
    with pytest.raises(ValueError, match="no classes to learn"):
        class_supervised_model(tiny_dinov2_config(), [])
    with pytest.raises(ValueError, match="no image classifier with the architecture clip_vision_model"):
        class_supervised_model(tiny_clip_config(), CLASSES)
    with pytest.raises(ValueError, match="is empty"):
        trainer_for(tmp_path, scenes.select([]))
    with pytest.raises(ValueError, match="No image holds any class"):
        mean_average_precision(np.zeros((2, 1)), np.zeros((2, 1)))
