"""Instruction training of multimodal language models, on transformers' Trainer."""

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from ..modeling.composition import check_weights
from ..modeling.trained_weights import read_trained_weights, save_trained_weights, trained_state_dict
from ..processing.augmentation import RandomResizedCropAndFlip
from ..processing.collator import IGNORED, VisualLanguageCollator
from ..processing.feature_cache import FeatureCache
from .conversation_groups import group_by_images
from .freezing import FreezeCheckCallback, set_trainable, upcast_trained
from .visual_language_config import VisualLanguageConfig

logger = logging.get_logger(__name__)


class VisualLanguageTrainer(Trainer):
    """
    Trains a composed model on images and conversations with the language modelling loss on the answers.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): frozen and opened as `args.trainable` says.
        args ([`VisualLanguageConfig`]): arguments.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]), with `images` and `messages`.
        processing_class ([`GVTProcessor`] or alike): saved beside the model.
        data_collator (`Callable`, *optional*): by default a [`VisualLanguageCollator`].
        kwargs: passed to `transformers.Trainer`.

    Evaluation reports `eval_loss` and `eval_answer_accuracy`: the share of answers of which every token, the end
    included, is the most probable one, which are the answers that greedy decoding gets exactly right.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisualLanguageConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **kwargs,
    ):
        set_trainable(model, args.trainable, args.lora)
        upcast_trained(model)
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
        features = None
        if args.cache_features:
            features = self._cache_features(model, args, processing_class, train_dataset, eval_dataset)
        if data_collator is None:
            data_collator = VisualLanguageCollator(
                processing_class,
                features=features,
                max_length=args.max_length,
                is_encoder_decoder=model.config.is_encoder_decoder,
            )
        self._eval_collator = data_collator
        if args.augment:
            size = processing_class.image_processor.size
            transform = RandomResizedCropAndFlip(size.get("height") or size["shortest_edge"])
            data_collator = VisualLanguageCollator(**{**vars(data_collator), "image_transform": transform})
        self._train_collator = data_collator
        if args.conversations_per_row > 1:
            train_dataset = self._group(train_dataset, args.conversations_per_row)
            eval_dataset = self._group(eval_dataset, args.conversations_per_row)
        kwargs.setdefault("compute_metrics", answer_accuracy)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self.add_callback(FreezeCheckCallback(args.trainable))

    @staticmethod
    def _cache_features(model, args, processing_class, train_dataset, eval_dataset) -> FeatureCache:
        evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        datasets: list[Any] = [dataset for dataset in (train_dataset, *evaluated) if dataset is not None]
        if any(isinstance(dataset, IterableDataset) for dataset in datasets):
            raise ValueError("cache_features needs data of known size: load the sources with streaming off.")
        model.to(args.device)
        examples = (example for dataset in datasets for example in dataset)
        return FeatureCache.build(
            model, processing_class, examples, args.feature_cache_dir, progress_bar=not args.disable_tqdm
        )

    @classmethod
    def _group(cls, dataset, conversations_per_row: int):
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {name: cls._group(part, conversations_per_row) for name, part in dataset.items()}
        if isinstance(dataset, IterableDataset):
            raise ValueError("conversations_per_row needs data of known size: load the sources with streaming off.")
        return group_by_images(dataset, conversations_per_row)

    def get_eval_dataloader(self, eval_dataset=None):
        training_collator = self._train_collator
        self.data_collator: Any = self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Language modelling loss on the answers, with the head run at their positions only."""
        if not self.model.config.is_encoder_decoder:
            inputs = {**inputs, "skip_logits": True}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and for each row of the batch which answers are exactly right (1), wrong (0) or absent (-100)."""
        inputs = dict(self._prepare_inputs(inputs))
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.model.config.is_encoder_decoder:
                logits, targets = model(**inputs, labels=labels).logits, labels
                numbers = answer_numbers(targets)
            else:
                shifted = labels[:, 1:]
                positions = (shifted != IGNORED).any(0).nonzero().squeeze(-1)
                logits, targets = model(**inputs, logits_to_keep=positions).logits, shifted[:, positions]
                numbers = answer_numbers(shifted)[:, positions]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        if prediction_loss_only:
            return loss, None, None
        right = right_answers(logits.argmax(-1), targets, numbers)
        return loss, right, right

    def _save(self, output_dir: str | None = None, state_dict=None):
        if not self.args.save_trained_only or not getattr(self.model.config, "base_models", None):
            return super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return None
        folder = output_dir if output_dir is not None else self.args.output_dir
        if state_dict is not None:
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name in trained}
        save_trained_weights(self.model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, os.path.join(folder, "training_args.bin"))
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        if not self._load_trained(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if not self._load_trained(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_trained(self, folder: str) -> bool:
        trained = read_trained_weights(folder) if Path(folder).is_dir() else None
        if trained is None:
            return False
        expected = trained_state_dict(self.model)
        check_weights(folder, trained, {name: tensor.shape for name, tensor in expected.items()})
        self.model.load_state_dict(trained, strict=False)
        return True

    def save_final(self, folder: str | os.PathLike) -> None:
        """
        Saves the trained model and its processor for use: only what was trained, or everything, as
        `args.save_trained_only` says, in `args.save_dtype`.

        Args:
            folder (`str`): where.
        """
        dtype = getattr(torch, self.args.save_dtype) if self.args.save_dtype else None
        model = self.accelerator.unwrap_model(self.model)
        if self.args.save_trained_only and getattr(model.config, "base_models", None):
            save_trained_weights(model, folder, dtype=dtype)
        else:
            merge_lora(model)
            (model.to(dtype) if dtype is not None else model).save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)


def merge_lora(model: PreTrainedModel) -> None:
    """Adds LoRA adapters into the weights they adapt and removes them, so that the model is an ordinary one again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import _get_submodules

    if getattr(model.config, "lora_config", None) is None:
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = _get_submodules(model, name)
            setattr(parent, child, module.get_base_layer())
    model.config.lora_config = None
    model._hf_peft_config_loaded = False
    if hasattr(model, "peft_config"):
        del model.peft_config


def answer_numbers(labels: torch.Tensor) -> torch.Tensor:
    """
    Numbers the answers of each row: 0 at the tokens of its first supervised run, 1 at the second, -1 between.

    Args:
        labels (`torch.LongTensor` of shape `(batch, positions)`): -100 where unsupervised.
    """
    supervised = labels != IGNORED
    starts = supervised.clone()
    starts[:, 1:] &= ~supervised[:, :-1]
    return torch.where(supervised, starts.cumsum(1) - 1, -1)


def right_answers(predictions: torch.Tensor, targets: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """
    Which answers were predicted exactly.

    Args:
        predictions, targets, numbers (`torch.LongTensor` of shape `(batch, positions)`): predicted and right tokens,
            and the answer that each belongs to, from [`answer_numbers`].

    Returns:
        `torch.LongTensor` of shape `(batch, answers)`: 1 right, 0 wrong, -100 no such answer.
    """
    num_answers = max(int(numbers.max()) + 1, 1)
    tokens = torch.zeros(len(targets), num_answers, dtype=torch.long, device=targets.device)
    wrong = tokens.clone()
    supervised = numbers >= 0
    tokens.scatter_add_(1, numbers.clamp(min=0), supervised.long())
    wrong.scatter_add_(1, numbers.clamp(min=0), (supervised & (predictions != targets)).long())
    return torch.where(tokens > 0, (wrong == 0).long(), IGNORED)


def answer_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of answers that are exactly right, from what [`VisualLanguageTrainer.prediction_step`] returns."""
    right = prediction.predictions
    return {"answer_accuracy": float((right == 1).sum() / max((right >= 0).sum(), 1))}


__all__ = ["VisualLanguageTrainer", "answer_accuracy", "answer_numbers", "merge_lora", "right_answers"]
