"""Feature distillation: a student learns the patch features of a frozen teacher, on transformers' Trainer."""

import contextlib
import copy
import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..modeling.completed_model import check_weights
from ..modeling.distillation_students import random_student
from ..modeling.distilled_student import DistilledStudent
from ..modeling.final_features import tower_features
from ..modeling.losses_distillation import feature_distillation_loss, whiten
from ..modeling.stochastic_depth import drop_path, transformer_layers
from ..modeling.trained_weights import CheckpointError
from ..modeling.vision_features import patch_grid
from ..processing.augmentation import RandomResizedCropAndFlip
from ..processing.feature_cache import FeatureCache, FeatureCacheBuilder
from ..processing.pixel_statistics import PixelStatistics, renormalise
from .distillation_collator import DistillationCollator, at_size, image_sizes, processor_size
from .distillation_metrics import distillation_metrics, image_measures
from .distinct_images import distinct_images, images_in
from .endless_stream import EndlessStream
from .feature_distillation_config import FeatureDistillationConfig
from .final_folder import replacing_files
from .reproducible_trainer import ReproducibleTrainer, check_datasets, named_datasets
from .seeded_augmentation import number_examples
from .shared_feature_cache import build_together

logger = logging.get_logger(__name__)

# Beside what has one dimension (biases, norms, layer scales): positions, relative position biases and special tokens.
_NOT_DECAYED = re.compile(r"bias|position|pos_embed|(?:cls|mask|register|class|distillation)_(?:token|embedding)s?$")


class FeatureDistillationTrainer(ReproducibleTrainer):
    """
    Trains a student to predict the whitened features of a frozen teacher (GVT, Section 3.2, Eq. 1), image by image;
    texts of training examples are not read, and an image that several are about counts once per epoch. What is saved
    in the end is the student alone, an ordinary vision model of transformers with its image processor.

    Args:
        model (`PreTrainedModel`, *optional*):
            The student; by default the teacher's architecture with random weights of the arguments' `seed`
            ([`random_student`]). In the end of a training nothing of it has changed but its weights.
        teacher (`PreTrainedModel`): CLIP, EVA-CLIP, DINOv2 … It is frozen and put into evaluation mode.
        args ([`FeatureDistillationConfig`]): arguments.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]) with `images`, or any data with a column `image`. Streams are repeated until
            `max_steps`.
        processing_class: image processor of the student, saved beside it; that of a default student is the teacher's.
        teacher_processing_class (*optional*): that of the teacher; by default the student's.
        kwargs: passed to `transformers.Trainer`.

    Raises:
        ValueError: if a data set is empty, the student has other patches or tokens than the teacher, or the data does
            not go with the arguments.

    What learns is the student's features after its final norm, or those of `student_feature_layer`: whoever uses the
    student has to read the same. A GVT does with `vision_feature_layer="final"`; its default, -1, is before the norm.

    Evaluation reports `eval_loss`, `eval_cosine_similarity` and `eval_explained_variance` on images without
    augmentation (see [`distillation_metrics`]).
    """

    card_kind = "feature-distillation"

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        teacher: PreTrainedModel | None = None,
        args: FeatureDistillationConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        **kwargs,
    ):
        args = FeatureDistillationConfig() if args is None else args
        check_datasets(args, train_dataset, eval_dataset)
        if teacher is None:
            raise ValueError("teacher is missing: give the vision tower whose features are to be learned.")
        if model is None and processing_class is None:
            processing_class = teacher_processing_class
        if processing_class is None:
            raise ValueError("processing_class is missing: give the image processor of the student.")
        teacher_processing_class = teacher_processing_class or processing_class
        if model is None:
            model = random_student(teacher.config, args.image_size or processor_size(processing_class), args.seed)
        self.teacher: PreTrainedModel = teacher.requires_grad_(False).eval()
        sizes = image_sizes(args, model, teacher, processing_class)
        processing_class, teacher_processor = (
            at_size(processing_class, sizes[0]),
            at_size(teacher_processing_class, sizes[1]),
        )
        self._statistics = PixelStatistics.of(processing_class), PixelStatistics.of(teacher_processor)
        self.teacher.to(args.device)
        if args.drop_path_rate:
            transformer_layers(model)  # not found out about at the start of the training
        distilled = DistilledStudent(
            model,
            teacher.config.hidden_size,
            args.beta,
            args.student_feature_layer,
            args.feature_tokens,
            masked=args.mask_ratio > 0,
            seed=args.seed,
        )
        grid = patch_grid(model.config, (sizes[0], sizes[0]))
        num_masked = _num_masked(args.mask_ratio, grid[0] * grid[1])
        self._leave_out_unused(distilled.to(args.device), args, sizes, grid[0] * grid[1], num_masked)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        train_dataset, eval_dataset = _images_of(train_dataset), _images_of(eval_dataset)
        collator = DistillationCollator(
            processing_class,
            teacher_image_processor=teacher_processor if sizes[0] != sizes[1] else None,
            num_patches=grid[0] * grid[1],
            num_masked=num_masked,
            seed=args.seed,
        )
        if args.cache_teacher_features:
            collator.teacher_features = self._cache_features(args, teacher_processor, train_dataset, eval_dataset)
        if isinstance(train_dataset, IterableDataset):
            train_dataset = EndlessStream(train_dataset)
        transform = RandomResizedCropAndFlip(sizes[0], scale=(args.min_crop_share, 1.0)) if args.augment else None
        if train_dataset is not None:
            train_dataset = number_examples(train_dataset)
        kwargs.setdefault("compute_metrics", distillation_metrics)
        super().__init__(
            model=distilled,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=dataclasses.replace(collator, transform=transform),
            # Masks are to be those of one epoch, whenever evaluation takes place.
            eval_collator=dataclasses.replace(collator, epoch=torch.zeros((), dtype=torch.long)),
            **kwargs,
        )
        vars(model.config).pop("use_cache", None)  # Trainer's mark

    def train(self, *args, **kwargs):
        """`Trainer.train`, with drop path. The student is then as it was before, but for its weights."""
        student, rate = self.student, self.args.drop_path_rate
        trained = self.accelerator.unwrap_model(self.model)
        with contextlib.ExitStack() as stack:
            if rate or getattr(student.config, "drop_path_rate", 0.0):
                stack.enter_context(drop_path(student, rate))
            self._train_unused(trained, False)
            stack.callback(self._train_unused, trained, True)
            return super().train(*args, **kwargs)

    def _train_unused(self, trained: nn.Module, value: bool) -> None:
        for name, parameter in trained.named_parameters():  # FSDP puts others in their place
            if name in self._unused:
                parameter.requires_grad_(value)

    @property
    def student(self) -> PreTrainedModel:
        """The student, without the projection and the mask token that it is trained with."""
        return self.accelerator.unwrap_model(self.model).student

    def teacher_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Runs the teacher.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): as it expects them.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`: not whitened, without gradient.
        """
        with torch.no_grad():
            return tower_features(self.teacher, pixel_values, self.args.teacher_feature_layer)

    def autocast(self) -> torch.autocast:
        """The precision that the student is trained in."""
        return _autocast(self.args)

    def _leave_out_unused(self, distilled: DistilledStudent, args, sizes, num_patches: int, num_masked: int) -> None:
        """
        Runs both on one blank image, which finds what does not fit together, and freezes what the loss never reaches:
        poolers, mask tokens, layers above the one that is distilled. Several processes would wait for its gradients.
        """
        channels = getattr(distilled.config, "num_channels", 3)
        blank = [torch.zeros(1, channels, size, size, device=args.device) for size in sizes]
        mask = torch.arange(num_patches, device=args.device).view(1, -1) < num_masked if num_masked else None
        training = distilled.training
        distilled.train().student.eval()  # no dropout
        with _autocast(args):
            with torch.no_grad():
                features = tower_features(self.teacher, blank[1], args.teacher_feature_layer)
            loss = distilled(blank[0], features, mask)["loss"]
        trainable = {name: p for name, p in distilled.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        distilled.train(training)
        self._unused = {name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None}
        for name in self._unused:
            trainable[name].requires_grad_(False)
        if self._unused:
            logger.info(f"Not trained, as the distilled features do not depend on it: {', '.join(self._unused)}.")

    def _cache_features(self, args, teacher_processor, train_dataset, eval_dataset) -> FeatureCache:
        datasets = named_datasets(train_dataset, eval_dataset)
        for name, dataset in datasets.items():
            if isinstance(dataset, IterableDataset):
                raise ValueError(f"cache_teacher_features needs data of known size: load {name} with streaming off.")
        examples = (
            {**example, "images": images_in(example)}
            for dataset in datasets.values()
            if dataset is not None
            for example in dataset
        )

        def compute(images):
            pixel_values = teacher_processor(images, return_tensors="pt")["pixel_values"].to(args.device)
            return tower_features(self.teacher, pixel_values, args.teacher_feature_layer)

        settings = [args.teacher_feature_layer, "final features", teacher_processor.to_json_string()]
        # As they would be computed in a training step.
        with _autocast(args):
            builder = FeatureCacheBuilder(
                self.teacher,
                compute,
                settings,
                examples,
                getattr(torch, args.feature_cache_dtype),
                args.feature_cache_dir,
                progress_bar=not args.disable_tqdm,
            )
            return build_together(builder, args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean over all elements of the batch (Eq. 1)."""
        outputs = model(**self._with_teacher_features(inputs))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _with_teacher_features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = dict(inputs)
        pixel_values = inputs.pop("teacher_pixel_values", None)
        if "teacher_features" not in inputs:
            if pixel_values is None:
                pixel_values = renormalise(inputs["pixel_values"], *self._statistics)
            inputs["teacher_features"] = self.teacher_features(pixel_values)
        return inputs

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and what [`distillation_metrics`] are made of."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss.detach()
        if prediction_loss_only:
            return loss, None, None
        mask = inputs.get("masked_patches")
        if mask is not None:
            mask = nn.functional.pad(mask, (outputs["target"].shape[1] - mask.shape[1], 0), value=False)
        return loss, *image_measures(outputs["predicted"], outputs["target"], self.args.beta, mask)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices, but for positions and special tokens (protocol of Wei et al. 2022)."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and not _NOT_DECAYED.search(name)
        ]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Linear warm-up and a cosine, between rates that are scaled with the batch (see [`learning_rate`])."""
        if getattr(self, "lr_scheduler", None) is None:
            args, warmup_steps = self.args, self._warmup_steps(num_training_steps)

            def factor(step: int) -> float:
                return learning_rate(args, step, warmup_steps, num_training_steps) / args.learning_rate

            self.lr_scheduler: Any = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _warmup_steps(self, num_training_steps: int) -> int:
        args = self.args
        if args.warmup_steps:
            steps, source = args.get_warmup_steps(num_training_steps), f"warmup_steps {args.warmup_steps}"
        elif not args.warmup_epochs:
            return 0
        elif isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "How many steps an epoch of a stream has, nobody knows: give warmup_steps, or set warmup_epochs to 0."
            )
        else:
            batches = len(self.train_dataset) / (args.per_device_train_batch_size * args.world_size)
            batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
            steps = round(args.warmup_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))
            source = f"warmup_epochs {args.warmup_epochs:g}"
        if steps >= num_training_steps:
            raise ValueError(
                f"A warm-up of {steps} steps ({source}) leaves none of {num_training_steps} for the rest: lower "
                "warmup_epochs, or give warmup_steps."
            )
        return steps

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        path = Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)
        if path.is_file() and not self.weights_are_divided:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as weights:
                found = {
                    name: torch.empty(weights.get_slice(name).get_shape(), device="meta")
                    for name in weights.keys()  # noqa: SIM118
                }
            expected = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
            try:
                check_weights(str(resume_from_checkpoint), found, expected)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error} Resume with the student, teacher and mask_ratio of that run."
                ) from error
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Saves the student for use, as [`save_final`] does; checkpoints, which the trainer saves on its way, hold the
        projection and the mask token beside it.
        """
        is_checkpoint = output_dir is not None and Path(output_dir).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        if _internal_call and is_checkpoint:
            super().save_model(output_dir, _internal_call=True)
        else:  # also before it is pushed
            self.save_final(output_dir or str(self.args.output_dir))

    def save_final(self, folder: str | os.PathLike) -> None:
        """
        Saves the student and its image processor: an ordinary vision model of transformers, in `args.save_dtype`. The
        folder has all of it in the end, or none. All processes have to call it, and one of them writes.

        Args:
            folder (`str`): where; files of other names stay.
        """
        dtype = getattr(torch, self.args.save_dtype) if self.args.save_dtype else None
        with self.model_to_save(self.student) as student:
            if student is not None:
                with replacing_files(folder) as temporary:
                    _with_dtype(student, dtype).save_pretrained(temporary)
                    self.processing_class.save_pretrained(temporary)


def learning_rate(args: FeatureDistillationConfig, step: int, warmup_steps: int, num_steps: int) -> float:
    """
    The learning rate of a step: from `warmup_start_learning_rate` linearly to `learning_rate`, from there in a cosine
    to `final_learning_rate`, all of them times the global batch size / 512.

    Args:
        args ([`FeatureDistillationConfig`]): the three rates.
        step (`int`): counted from 0.
        warmup_steps, num_steps (`int`): steps of the warm-up, and of the whole training.
    """
    peak, start, final = args.learning_rate, args.warmup_start_learning_rate, args.final_learning_rate
    if step < warmup_steps:
        rate = start + (peak - start) * step / warmup_steps
    else:
        progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
        rate = final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))
    return args.learning_rate_scale * rate


def _autocast(args: FeatureDistillationConfig) -> torch.autocast:
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    return torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16)


def _with_dtype(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """The same weights, but for rounding, in a model without hooks; to be saved."""
    with torch.device("meta"):
        plain = type(model)._from_config(copy.deepcopy(model.config))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if dtype is not None:
        weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
    plain.load_state_dict(weights, assign=True)
    return plain


def _num_masked(mask_ratio: float, num_patches: int) -> int:
    """At least one where any are masked, and never all."""
    return min(max(round(mask_ratio * num_patches), 1), num_patches - 1) if mask_ratio > 0 else 0


def _images_of(dataset):
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: distinct_images(part) for name, part in dataset.items()}
    return distinct_images(dataset)


__all__ = ["FeatureDistillationTrainer", "feature_distillation_loss", "learning_rate", "whiten"]
