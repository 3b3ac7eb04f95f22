"""Arguments of the trainer that distils the features of a vision tower."""

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from ..modeling.vision_features import FINAL

REFERENCE_BATCH_SIZE = 512
FEATURE_TOKENS = ("all", "patches")
DTYPES = ("float32", "float16", "bfloat16")
_LAYERS = ("teacher_feature_layer", "student_feature_layer")
_NUMBERS = (
    *("beta", "mask_ratio", "drop_path_rate", "min_crop_share", "warmup_epochs"),
    *("learning_rate", "warmup_start_learning_rate", "final_learning_rate"),
)


@dataclass
class FeatureDistillationConfig(TrainingArguments):
    r"""
    Arguments of [`FeatureDistillationTrainer`]: those of `TrainingArguments` and these. The defaults are the protocol
    of Wei et al. (2022) for ViT-L/14 with the 50 epochs of GVT (Sections 3.2 and 4.1): AdamW, betas 0.9 and 0.999,
    learning rate 3e-4, weight decay 0.05 on matrices alone, gradients clipped at 3.0.

    Args:
        beta (`float`, *optional*, defaults to 2.0): where the loss turns from quadratic to linear (Eq. 1).
        mask_ratio (`float`, *optional*, defaults to 0.0):
            Share of the student's patch embeddings that a learned mask token replaces. The loss is then that of these
            patches alone. GVT masks nothing; masked variants are what it argues against (Table 4).
        drop_path_rate (`float`, *optional*, defaults to 0.3): of the student's last layer; it grows linearly from 0.
        teacher_feature_layer (`int`, *optional*):
            Index into the teacher's `hidden_states` of the features to learn; by default, or by `"final"`, those after
            its final norm.
        student_feature_layer (`int`, *optional*):
            The same of the student. Whoever uses the student has to read this layer: a GVT by default
            `vision_feature_layer="final"`. Models that read `hidden_states` alone, as LLaVA does, are better served by
            the index that they read.
        feature_tokens (`str`, *optional*, defaults to `"all"`): `"all"` with [CLS], or `"patches"` alone.
        image_size (`int`, *optional*): side of the student's images in pixels; by default what its processor says.
        teacher_image_size (`int`, *optional*):
            Side of the teacher's; by default the student's. Both must be cut into the same grid of patches.
        augment (`bool`, *optional*, defaults to `True`): random resized crop and horizontal flip.
        min_crop_share (`float`, *optional*, defaults to 0.08): least share of an image's area that a crop keeps.
        warmup_start_learning_rate (`float`, *optional*, defaults to 5e-7): learning rate of the first step.
        final_learning_rate (`float`, *optional*, defaults to 5e-6): where the cosine ends.
        scale_learning_rates (`bool`, *optional*, defaults to `True`):
            Multiplies all three learning rates by the global batch size / 512.
        warmup_epochs (`float`, *optional*, defaults to 10.0):
            Epochs of linear warm-up, unless `warmup_steps` gives a number of steps or a share of all.
        cache_teacher_features (`bool`, *optional*, defaults to `False`):
            Runs the teacher once per image, in all processes together, and keeps its features on disk; needs
            `augment` off.
        feature_cache_dir (`str`, *optional*): where; by default vistok's cache folder.
        feature_cache_dtype (`str`, *optional*, defaults to `"bfloat16"`): in which they are kept, one of the same.
        save_dtype (`str`, *optional*): dtype of the weights in the final folder: float32, float16 or bfloat16.
    """

    beta: float = field(default=2.0, metadata={"help": "Where the loss turns from quadratic to linear."})
    mask_ratio: float = field(default=0.0, metadata={"help": "Share of masked patch embeddings of the student."})
    drop_path_rate: float = field(default=0.3, metadata={"help": "Of the last layer; grows linearly from 0."})
    teacher_feature_layer: int | None = field(default=None, metadata={"help": "Of hidden_states; after the norm."})
    student_feature_layer: int | None = field(default=None, metadata={"help": "Of hidden_states; after the norm."})
    feature_tokens: str = field(default="all", metadata={"help": "all or patches."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the student's images, in pixels."})
    teacher_image_size: int | None = field(default=None, metadata={"help": "Side of the teacher's images, in pixels."})
    augment: bool = field(default=True, metadata={"help": "Random resized crop and flip."})
    min_crop_share: float = field(default=0.08, metadata={"help": "Least share of the area that a crop keeps."})
    warmup_start_learning_rate: float = field(default=5e-7, metadata={"help": "Learning rate of the first step."})
    final_learning_rate: float = field(default=5e-6, metadata={"help": "Learning rate that the cosine ends with."})
    scale_learning_rates: bool = field(default=True, metadata={"help": "Times the global batch size / 512."})
    warmup_epochs: float = field(default=10.0, metadata={"help": "Epochs of linear warm-up."})
    cache_teacher_features: bool = field(default=False, metadata={"help": "Run the teacher once per image."})
    feature_cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached features."})
    feature_cache_dtype: str = field(default="bfloat16", metadata={"help": "dtype of cached features."})
    save_dtype: str | None = field(default=None, metadata={"help": "dtype of the final weights."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate, before scaling."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Kept: cosine."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices alone."})
    max_grad_norm: float = field(default=3.0, metadata={"help": "Gradient clip."})
    num_train_epochs: float = field(default=50.0, metadata={"help": "Epochs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads images."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: training stops at such a loss."})

    def __post_init__(self):
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # or transformers, which looks for a GPU, refuses what CPUs can do
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        # The order of examples is that of the seed, whatever was drawn before.
        self.data_seed: int | None = self.seed if self.data_seed is None else self.data_seed
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False
        self._check_types()
        self._check_loss()
        self._check_schedule()
        self._check_data()

    @property
    def global_batch_size(self) -> int:
        """Images per step, over all processes and accumulated batches."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def learning_rate_scale(self) -> float:
        """What all learning rates are multiplied by."""
        return self.global_batch_size / REFERENCE_BATCH_SIZE if self.scale_learning_rates else 1.0

    def _check_types(self):
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is {value!r}, expected a number.")
        for name in ("image_size", "teacher_image_size", *_LAYERS):
            value = getattr(self, name)
            if name in _LAYERS and value == FINAL:
                setattr(self, name, None)
            elif value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                also = f", or {FINAL!r}" if name in _LAYERS else ""
                raise ValueError(f"{name} is {value!r}, expected a whole number{also}.")
        for name in ("save_dtype", "feature_cache_dtype"):
            value = getattr(self, name)
            if value not in DTYPES and not (value is None and name == "save_dtype"):
                raise ValueError(f"{name} is {value!r}, expected {', '.join(DTYPES)}.")

    def _check_loss(self):
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta is {self.beta}, expected a positive number such as 2.0.")
        for name in ("mask_ratio", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1.")
        if self.feature_tokens not in FEATURE_TOKENS:
            raise ValueError(f"feature_tokens is {self.feature_tokens!r}, expected {' or '.join(FEATURE_TOKENS)}.")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for classes, and there are none here: set it to 0.")

    def _check_schedule(self):
        if self.lr_scheduler_type != SchedulerType.COSINE:
            raise ValueError(
                f"lr_scheduler_type is {self.lr_scheduler_type!r}: feature distillation warms up from "
                "warmup_start_learning_rate and falls to final_learning_rate in a cosine. Leave it out."
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0.")
        for name in ("warmup_start_learning_rate", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= self.learning_rate:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected between 0 and learning_rate ({self.learning_rate})."
                )
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, expected at least 0.")

    def _check_data(self):
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay False: the collator needs the images.")
        if not 0 < self.min_crop_share <= 1:
            raise ValueError(f"min_crop_share is {self.min_crop_share}, expected more than 0 and at most 1.")
        for name in ("image_size", "teacher_image_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1 pixel.")
        if self.cache_teacher_features and self.augment:
            raise ValueError(
                "cache_teacher_features needs fixed images and augment changes them in every epoch: set augment to "
                "False, or leave the cache off."
            )


__all__ = ["FEATURE_TOKENS", "REFERENCE_BATCH_SIZE", "FeatureDistillationConfig"]
