"""Instruction training of multimodal language models, on transformers' Trainer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ..modeling.completed_model import check_weights
from ..modeling.lora_adapters import ordinary_model
from ..modeling.quantized_weights import without_quantization
from ..modeling.trained_weights import (
    TRAINED_WEIGHTS_NAME,
    CheckpointError,
    load_trained_state_dict,
    plain_name,
    read_trained_weights,
    save_trained_weights,
    trained_state_dict,
    write_safetensors,
)
from ..processing.augmentation import RandomResizedCropAndFlip
from ..processing.collator import IGNORED, VisualLanguageCollator
from ..processing.feature_cache import FeatureCache, FeatureCacheBuilder
from .alignment import align_projection, check_alignment
from .answer_accuracy import answer_accuracy, answer_numbers, right_answers, row_losses
from .blank_images import BlankImages
from .checkpoints import checkpoint_to_resume
from .conversation_groups import group_by_images
from .endless_stream import EndlessStream
from .final_folder import replacing_files
from .freezing import FreezeCheckCallback, rest_frozen_parts, set_trainable, upcast_trained
from .length_groups import STRATEGIES, with_lengths
from .refused_samples import leave_out_refused
from .reproducible_trainer import DivergedError, ReproducibleTrainer, check_datasets, named_datasets
from .seeded_augmentation import SeededAugmentationCollator, number_examples
from .sharded_training import uses_deepspeed
from .shared_feature_cache import build_together
from .visual_language_config import VisualLanguageConfig


class VisualLanguageTrainer(ReproducibleTrainer):
    """
    Trains a composed model on images and conversations with the language modelling loss on the answers.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): frozen and opened as `args.trainable` says.
        args ([`VisualLanguageConfig`]): arguments.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]), with `images` and `messages`. Streams are repeated until `max_steps`.
        processing_class ([`GVTProcessor`] or alike): saved beside the model.
        data_collator (`Callable`, *optional*): by default a [`VisualLanguageCollator`].
        kwargs: passed to `transformers.Trainer`.

    Raises:
        ValueError: if a data set is empty, or the data or the collator does not go with the arguments.

    Evaluation reports `eval_loss`, the mean over all answer tokens, and `eval_answer_accuracy`: the share of answers
    of which every token, the end included, is the most probable one, which are the answers that greedy decoding gets
    exactly right.
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
        _check_datasets(args, train_dataset, eval_dataset)
        _check_own_collator(args, data_collator)
        if args.conversations_per_row > 1 and model.config.is_encoder_decoder:
            raise ValueError("Encoder-decoder language models cannot share rows: set conversations_per_row to 1.")
        self.trainable = args.trainable
        set_trainable(model, self.trainable, args.lora)
        if args.alignment_examples:
            check_alignment(model)
        if not uses_deepspeed(args):  # which keeps a copy of them in float32
            upcast_trained(model)
        features = None
        if args.cache_features:
            features = self._cache_features(model, args, processing_class, train_dataset, eval_dataset)
        if data_collator is None:
            data_collator = self._make_collator(model, args, processing_class, features)
        eval_collator = data_collator
        train_dataset = leave_out_refused(train_dataset, data_collator)
        eval_dataset = leave_out_refused(eval_dataset, data_collator)
        if args.conversations_per_row > 1:
            train_dataset = _group(train_dataset, args.conversations_per_row)
            eval_dataset = _group(eval_dataset, args.conversations_per_row)
        if args.train_sampling_strategy in STRATEGIES and train_dataset is not None:
            train_dataset = with_lengths(train_dataset, data_collator, args)
        if isinstance(train_dataset, IterableDataset):
            train_dataset = EndlessStream(train_dataset)
        if args.augment and train_dataset is not None:
            train_dataset = number_examples(train_dataset)
            data_collator = _augmenting(data_collator, args.seed)
        kwargs.setdefault("compute_metrics", answer_accuracy)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            eval_collator=eval_collator,
            **kwargs,
        )
        self._has_begun = False
        self._blank_images = BlankImages(model, processing_class, features, self.weights_are_divided)
        vars(self.model.config).pop("use_cache", None)  # Trainer's mark; it would be saved with the trained model
        self.add_callback(FreezeCheckCallback(self.trainable))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if not self._has_begun and checkpoint is None and self.train_dataset is not None:
            self._set_start()
        self._has_begun = True  # or further on: what was learned is not set anew
        return super().train(checkpoint, *args, **kwargs)

    def _set_start(self) -> None:
        """Sets what training data say of where a training starts."""
        if self.args.alignment_examples:
            self._align()

    def _place_model(self) -> None:
        # Trainer leaves quantised and dispatched models where they are, and moves others too late with DeepSpeed.
        is_placed = getattr(self.model, "hf_device_map", None) or getattr(self.model, "is_quantized", False)
        if not is_placed:
            self.model.to(self.args.device)

    def _align(self) -> None:
        self._place_model()
        with self.compute_loss_context_manager():
            align_projection(
                self.model,
                self.train_dataset,
                self._train_collator,
                num_examples=self.args.alignment_examples,
                batch_size=self.args.per_device_eval_batch_size,
                seed=self.args.seed,
                progress_bar=not self.args.disable_tqdm and self.is_world_process_zero(),
            )

    @staticmethod
    def _make_collator(model, args, processing_class, features: FeatureCache | None) -> VisualLanguageCollator:
        return VisualLanguageCollator(
            processing_class,
            features=features,
            max_length=args.max_length,
            is_encoder_decoder=model.config.is_encoder_decoder,
        )

    @staticmethod
    def _cache_features(model, args, processing_class, train_dataset, eval_dataset) -> FeatureCache:
        datasets = named_datasets(train_dataset, eval_dataset).values()
        examples = (example for dataset in datasets if dataset is not None for example in dataset)
        model.to(args.device)
        # As they would be computed in the forward pass of a training step.
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16):
            builder = FeatureCacheBuilder.of_model(
                model, processing_class, examples, args.feature_cache_dir, progress_bar=not args.disable_tqdm
            )
            return build_together(builder, args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Language modelling loss on the answers, with the head run at their positions only."""
        if not self.model.config.is_encoder_decoder:
            inputs = {**inputs, "skip_logits": True}
        if model.training:
            rest_frozen_parts(self.model, self.trainable)
            if self._blank_images.are_needed and not _has_images(inputs):
                inputs = self._blank_images.add_to(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss; of each row which answers are exactly right (see [`right_answers`]); and its loss ([`row_losses`])."""
        inputs = dict(self._prepare_inputs(inputs))
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            _, right, losses = self._measure_answers(model, inputs, labels)
        loss = losses[:, 0].sum() / losses[:, 1].sum()
        return (loss, None, None) if prediction_loss_only else (loss, right, losses)

    def _measure_answers(self, model, inputs, labels) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The output of the model, [`right_answers`] and [`row_losses`]."""
        if self.model.config.is_encoder_decoder:
            outputs, targets = model(**inputs, labels=labels), labels
            numbers = answer_numbers(targets)
        else:
            shifted = labels[:, 1:]
            positions = (shifted != IGNORED).any(0).nonzero().squeeze(-1)
            if self._blank_images.are_needed_to_predict and not _has_images(inputs):
                inputs = self._blank_images.add_to(inputs)
            outputs, targets = model(**inputs, logits_to_keep=positions), shifted[:, positions]
            numbers = answer_numbers(shifted)[:, positions]
        logits = outputs.logits[: len(labels)]  # without a row that holds a blank image
        losses = row_losses(logits, targets)
        # What generate() never writes, the image placeholder, is no answer of greedy decoding.
        suppressed = getattr(getattr(self.model, "generation_config", None), "suppress_tokens", None)
        logits[..., list(suppressed or [])] = -torch.inf
        return outputs, right_answers(logits.argmax(-1), targets, numbers), losses

    def _save(self, output_dir: str | None = None, state_dict=None):
        # Adapters are resumed from as they are, and merged at the end; what is quantised is not trained.
        all_in_full = getattr(self.model.config, "lora_config", None) is None
        if not self._saves_trained_only and all_in_full and not getattr(self.model, "is_quantized", False):
            return super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return None
        folder = output_dir if output_dir is not None else self.args.output_dir
        trained = trained_state_dict(self.model)
        if state_dict is not None:  # gathered from several devices
            trained = {plain_name(name): t for name, t in state_dict.items() if plain_name(name) in trained}
        if self._saves_trained_only:
            save_trained_weights(self.model, folder, trained)
        else:
            with without_quantization(self.model.config):
                self.model.config.save_pretrained(folder)
            write_safetensors(
                {name: tensor.cpu() for name, tensor in trained.items()}, Path(folder, TRAINED_WEIGHTS_NAME)
            )
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, os.path.join(folder, "training_args.bin"))
        return None

    @property
    def _saves_trained_only(self) -> bool:
        return self.args.save_trained_only and bool(getattr(self.model.config, "base_models", None))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        if self.weights_are_divided or not self._load_trained(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        if self.weights_are_divided or not self._load_trained(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_trained(self, folder: str) -> bool:
        trained = read_trained_weights(folder) if Path(folder).is_dir() else None
        if trained is None:
            return False
        expected = trained_state_dict(self.model)
        try:
            check_weights(folder, trained, {name: tensor.shape for name, tensor in expected.items()})
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Resume with the model and the `trainable` of that run, or start a new one."
            ) from error
        load_trained_state_dict(self.model, trained)
        return True

    def save_final(self, folder: str | os.PathLike) -> None:
        """
        Saves the trained model and its processor for use: only what was trained, or everything, as
        `args.save_trained_only` says, in `args.save_dtype`. Everything is plain numbers, also of a model that was
        quantised to be trained. The folder has all of it in the end, or none. (What
        `save_model` and checkpoints hold is to be trained on: adapters are not merged.) All processes have to call
        it, and one of them writes.

        Args:
            folder (`str`): where; files of other names stay.
        """
        dtype = getattr(torch, self.args.save_dtype) if self.args.save_dtype else None
        with self.model_to_save(self.model) as model:
            if model is not None:
                self._save_whole(model, folder, dtype)

    def _save_whole(self, model: Any, folder: str | os.PathLike, dtype: torch.dtype | None) -> None:
        with replacing_files(folder) as temporary:
            if self._saves_trained_only:
                save_trained_weights(model, temporary, dtype=dtype)
            else:
                ordinary_model(model, dtype).save_pretrained(temporary)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(temporary)


def _has_images(inputs: Mapping[str, Any]) -> bool:
    return any(name in inputs for name in ("pixel_values", "vision_features", "visual_tokens"))


def _check_datasets(args: VisualLanguageConfig, train_dataset, eval_dataset) -> None:
    check_datasets(args, train_dataset, eval_dataset)
    options = {
        "cache_features": args.cache_features,
        "alignment_examples": args.alignment_examples > 0,
        "conversations_per_row": args.conversations_per_row > 1,
        f"train_sampling_strategy {args.train_sampling_strategy}": args.train_sampling_strategy in STRATEGIES,
    }
    for option in [option for option, is_set in options.items() if is_set]:
        for name, dataset in named_datasets(train_dataset, eval_dataset).items():
            if isinstance(dataset, IterableDataset):
                raise ValueError(f"{option} needs data of known size: load {name} with streaming off.")


def _check_own_collator(args: VisualLanguageConfig, collator) -> None:
    for option, its_own in {"cache_features": "features", "max_length": "max_length"}.items():
        if collator is not None and getattr(args, option):
            raise ValueError(
                f"{option} is {getattr(args, option)!r}, but only the trainer's own collator follows it, not the "
                f"given {type(collator).__name__}: give that one its `{its_own}`, and leave {option} out of the "
                "arguments."
            )


def _group(dataset, conversations_per_row: int):
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: _group(part, conversations_per_row) for name, part in dataset.items()}
    return group_by_images(dataset, conversations_per_row)


def _augmenting(collator, seed: int) -> SeededAugmentationCollator:
    if type(collator) is not VisualLanguageCollator:
        raise ValueError(
            f"augment works on VisualLanguageCollator, not on {type(collator).__name__}: give your own collator an "
            "image_transform, and set augment to False."
        )
    size = collator.processor.image_processor.size
    transform = RandomResizedCropAndFlip(size.get("height") or size["shortest_edge"])
    return SeededAugmentationCollator(**{**vars(collator), "image_transform": transform}, seed=seed)


__all__ = ["DivergedError", "VisualLanguageTrainer"]
