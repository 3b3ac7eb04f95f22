"""Supervision by classes: a vision tower learns which objects are in an image, on transformers' Trainer."""

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS

from ..modeling.completed_model import check_weights
from ..modeling.trained_weights import write_safetensors
from ..processing.images import load_image
from .final_folder import replacing_files
from .reproducible_trainer import ReproducibleTrainer, check_datasets

POSITION = "position"


@dataclass
class ClassSupervisionCollator:
    """
    Makes batches of images and of the classes in them.

    Args:
        image_processor: of transformers.
        flip (`bool`, *optional*, defaults to `False`): mirrors every other image, another half in each epoch.
        seed (`int`, *optional*, defaults to 0): of the choice.
        epoch (`torch.LongTensor` of shape `()`): current epoch; shared with data loader workers.
    """

    image_processor: Any
    flip: bool = False
    seed: int = 0
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        images = [self._image(row) for row in rows]
        pixel_values = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "labels": torch.tensor([row["labels"] for row in rows])}

    def _image(self, row: Mapping[str, Any]) -> Image.Image:
        image = load_image(row["image"])
        draw = hashlib.sha256(f"{self.seed} {int(self.epoch)} {row[POSITION]}".encode()).digest()[0]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip and draw % 2 else image


class ClassSupervisionTrainer(ReproducibleTrainer):
    """
    Trains an image classifier of transformers on several labels per image, with binary cross-entropy. What is saved in
    the end is its vision tower alone, an ordinary vision model with its image processor.

    Args:
        model (`PreTrainedModel`): from [`class_supervised_model`].
        args (`TrainingArguments`): arguments.
        train_dataset, eval_dataset (`Dataset`, *optional*): from [`class_dataset`].
        processing_class: image processor, saved beside the tower.
        flip (`bool`, *optional*, defaults to `True`): whether training images are mirrored at random.
        kwargs: passed to `transformers.Trainer`.

    Evaluation reports `eval_loss` and `eval_mean_average_precision` (percent), see [`mean_average_precision`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: Any = None,
        flip: bool = True,
        **kwargs,
    ):
        check_datasets(args, train_dataset, eval_dataset)
        args.remove_unused_columns = False  # the collator reads the images
        kwargs.setdefault("compute_metrics", _metrics)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=ClassSupervisionCollator(processing_class, flip, args.seed),
            eval_collator=ClassSupervisionCollator(processing_class),
            **kwargs,
        )
        # Classifiers of transformers take any keyword, but their loss is the mean over a batch.
        self.model_accepts_loss_kwargs = False

    def _save(self, output_dir: str | None = None, state_dict=None):
        # Under the names that the model has: save_pretrained gives some architectures those of older checkpoints,
        # which the Trainer does not find again when it resumes.
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.model.state_dict() if state_dict is None else state_dict
        write_safetensors({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / WEIGHTS)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        if self.weights_are_divided:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        weights = load_file(Path(resume_from_checkpoint, WEIGHTS))
        expected = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        check_weights(str(resume_from_checkpoint), weights, expected)
        return self.model.load_state_dict(weights)

    def save_final(self, folder: str | os.PathLike) -> None:
        """
        Saves the vision tower, without the classifier, and its image processor. All processes have to call it, and
        one of them writes.

        Args:
            folder (`str`): where; files of other names stay.
        """
        with self.model_to_save(self.accelerator.unwrap_model(self.model)) as model:
            if model is not None:
                with replacing_files(folder) as temporary:
                    model.base_model.save_pretrained(temporary)
                    self.processing_class.save_pretrained(temporary)


def class_supervised_model(
    config: PreTrainedConfig, classes: Sequence[str], image_size: int | None = None, seed: int = 0
) -> PreTrainedModel:
    """
    A classifier with the architecture of a vision tower and random weights.

    Args:
        config (`PreTrainedConfig`): of the architecture. It stays as it is.
        classes (`list[str]`): names of the classes.
        image_size (`int`, *optional*): side of its images in pixels; by default that of the config.
        seed (`int`, *optional*, defaults to 0): of the weights.

    Returns:
        `PreTrainedModel`: in float32.

    Raises:
        ValueError: if there are no classes, or transformers has no classifier of this architecture.
    """
    if not classes:
        raise ValueError("There are no classes to learn: the annotations name no categories.")
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise ValueError(
            f"transformers has no image classifier with the architecture {config.model_type}: choose one that it has, "
            "such as dinov2, vit or siglip."
        )
    config = copy.deepcopy(config)
    config.image_size = config.image_size if image_size is None else image_size
    config.dtype = torch.float32
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.problem_type = "multi_label_classification"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForImageClassification.from_config(config)


def class_dataset(files: Sequence[str], labels: Sequence[Sequence[float]]) -> Dataset:
    """
    Images and the classes in them, as [`ClassSupervisionTrainer`] reads them.

    Args:
        files (`list[str]`): image files.
        labels (`list[list[float]]`): for each image a 1 or 0 for each class.

    Raises:
        ValueError: if there are not labels for each image.
    """
    if len(files) != len(labels):
        raise ValueError(
            f"{len(files)} images and labels of {len(labels)} were given, expected labels for each image."
        )
    columns = {"image": list(files), "labels": [list(row) for row in labels], POSITION: list(range(len(files)))}
    return Dataset.from_dict(columns).cast_column("labels", List(Value("float32")))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """
    Mean over classes of the average precision: that of the images ranked by the score of a class, averaged over the
    ranks of those that hold it.

    Args:
        scores (`np.ndarray` of shape `(num_images, num_classes)`): greater means more likely.
        labels (`np.ndarray` of shape `(num_images, num_classes)`): 1 where a class is in an image.

    Returns:
        `float`: in percent. Classes that are in no image do not count. By chance it is about the share of images that
        hold a class.

    Raises:
        ValueError: if the shapes differ, or no image holds any class.
    """
    if scores.shape != labels.shape:
        raise ValueError(f"Scores have shape {scores.shape} and labels {labels.shape}.")
    precisions = []
    for score, label in zip(scores.T, labels.T):
        ranked = label[np.argsort(-score, kind="stable")] > 0
        if ranked.any():
            hits = np.flatnonzero(ranked)
            precisions.append((np.arange(1, len(hits) + 1) / (hits + 1)).mean())
    if not precisions:
        raise ValueError("No image holds any class: there is no precision to measure.")
    return 100.0 * float(np.mean(precisions))


def _metrics(predicted) -> dict[str, float]:
    return {"mean_average_precision": mean_average_precision(predicted.predictions, predicted.label_ids)}


__all__ = [
    "ClassSupervisionCollator",
    "ClassSupervisionTrainer",
    "class_dataset",
    "class_supervised_model",
    "mean_average_precision",
]
