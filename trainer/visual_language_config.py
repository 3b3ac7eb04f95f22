"""Arguments of the trainer of multimodal language models."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from .part_learning_rates import check_learning_rates


@dataclass
class VisualLanguageConfig(TrainingArguments):
    r"""
    Arguments of [`VisualLanguageTrainer`]: those of `TrainingArguments` and these.

    Args:
        trainable (`dict[str, str]`, *optional*):
            For each part of the model `"frozen"`, `"full"` or `"lora"`. The default is GVT's: only the resampler and
            its projection are trained (Section 3.2).
        lora (`dict`, *optional*): fields of `peft.LoraConfig` for the parts that are adapted.
        learning_rates (`dict[str, float]`, *optional*):
            Of parts that learn at another rate than `learning_rate`, such as `{"vision": 1e-5}`; the schedule is the
            same.
        cache_features (`bool`, *optional*, defaults to `False`):
            Computes the features of a frozen tower once per image, shared out among all processes, and keeps them on
            disk.
        feature_cache_dir (`str`, *optional*): where; by default vistok's cache folder.
        augment (`bool`, *optional*, defaults to `False`):
            Random resized crop and horizontal flip of training images (Section 4.1).
        conversations_per_row (`int`, *optional*, defaults to 1):
            Lets up to so many conversations about the same images share their visual tokens. The result is the same,
            the cost per question is lower.
        alignment_examples (`int`, *optional*, defaults to 0):
            Before the first step the projection of visual tokens is set, in closed form, to what so many training rows
            say of their images (see [`ProjectionAlignment`]), drawn with `seed`; 0 to leave it as it is. What it was
            is lost, also where it was trained; a run that is resumed, and a second `train()`, keep what they have.
            From random weights a small language model learns to answer without images long before it reads them.
        max_length (`int`, *optional*): cuts longer rows, in tokens.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            As in `TrainingArguments`; `"group_by_length"` puts rows of like length in a step (see [`LengthGroups`]),
            images counted, and saves most of the padding.
        save_trained_only (`bool`, *optional*, defaults to `True`):
            Saves what was trained (`trained_weights.safetensors`), and names the base models; otherwise, or where
            these are not known, everything, with adapters merged.
        save_dtype (`str`, *optional*): dtype of the weights in the final folder, such as `"bfloat16"`.
    """

    trainable: Any = field(
        default_factory=lambda: {"vision": "frozen", "resampler": "full", "llm": "frozen"},
        metadata={"help": "For each part of the model: frozen, full or lora."},
    )
    lora: Any = field(default=None, metadata={"help": "Fields of peft.LoraConfig."})
    learning_rates: Any = field(default=None, metadata={"help": "Of parts with a learning rate of their own."})
    cache_features: bool = field(default=False, metadata={"help": "Compute features of a frozen tower once."})
    feature_cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached features."})
    augment: bool = field(default=False, metadata={"help": "Random resized crop and flip of training images."})
    conversations_per_row: int = field(default=1, metadata={"help": "Conversations that share visual tokens."})
    alignment_examples: int = field(default=0, metadata={"help": "Rows to align the projection with before training."})
    max_length: int | None = field(default=None, metadata={"help": "Cut longer rows, in tokens."})
    save_trained_only: bool = field(default=True, metadata={"help": "Save only what was trained."})
    save_dtype: str | None = field(default=None, metadata={"help": "dtype of the final weights."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads all columns."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Labels."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: training stops at such a loss."})

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "trainable", "lora", "learning_rates"]

    def __post_init__(self):
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # or transformers, which looks for a GPU, refuses what CPUs can do
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        # The order of examples is that of the seed, whatever was drawn before.
        self.data_seed: int | None = self.seed if self.data_seed is None else self.data_seed
        if self.accelerator_config.dispatch_batches is None:
            # Rows of different length, and images that are no rows, cannot be dealt out by one process.
            self.accelerator_config.dispatch_batches = False
        self._check_model_options()
        self._check_data_options()

    def _check_model_options(self):
        if not isinstance(self.trainable, dict):
            raise ValueError(f"trainable is {self.trainable!r}, expected frozen, full or lora for each part by name.")
        if self.lora is not None and "lora" not in self.trainable.values():
            raise ValueError(f"lora is given, but trainable adapts no part: {self.trainable}. Set a part to 'lora'.")
        if self.learning_rates is not None:
            if not isinstance(self.learning_rates, dict):
                raise ValueError(
                    f"learning_rates is {self.learning_rates!r}, expected a number for each part by name."
                )
            check_learning_rates(self.learning_rates, self.trainable)
        if self.save_dtype is not None and not isinstance(getattr(torch, self.save_dtype, None), torch.dtype):
            raise ValueError(f"save_dtype is {self.save_dtype!r}, expected a dtype such as 'bfloat16' or 'float32'.")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is not supported: the model computes the loss. Set it to 0.")

    def _check_data_options(self):
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay False: the collator needs images and messages.")
        if self.conversations_per_row < 1:
            raise ValueError(f"conversations_per_row is {self.conversations_per_row}, expected at least 1.")
        if not isinstance(self.alignment_examples, int) or self.alignment_examples < 0:
            raise ValueError(
                f"alignment_examples is {self.alignment_examples!r}, expected a number of rows, or 0 for none."
            )
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}, expected at least 1 token, or none for no limit.")
        if self.cache_features and self.augment:
            raise ValueError("cache_features needs fixed images and augment changes them: choose one of the two.")
        if self.cache_features and self.trainable.get("vision", "frozen") != "frozen":
            raise ValueError(f"cache_features needs a frozen tower, but vision is {self.trainable['vision']!r}.")


__all__ = ["VisualLanguageConfig"]
