"""Arguments of the trainer of SeTok, by the two sub-phases of its stage I."""

import math
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from transformers import TrainingArguments

from ..configuration.configuration_setok import Phase
from .data_formats import known

PHASES = get_args(Phase)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class SeTokTrainingConfig(TrainingArguments):
    r"""
    Arguments of [`SeTokTrainer`]: those of `TrainingArguments` and these. The paper names parts, losses and 50k steps
    (SeTok, Section 2.2); its tables of hyper-parameters are lost, and the defaults are those of the released code: a
    learning rate of 1e-3 with a cosine and a warm-up of 3 %.

    Args:
        phase (`str`, *optional*, defaults to `"reconstruction"`):
            I-a `"reconstruction"`: merger, mapper and the U-Net's cross-attention learn to draw the image again. I-b
            `"boundaries"`: mask decoder, merger and clustering learn from masks of objects. See
            [`SeTokConfig.phase_trainable`].
        trainable (`dict[str, str]`, *optional*):
            Parts that are otherwise than in the phase: `"frozen"` or `"full"`, such as `{"merger": "frozen"}`.
        reconstruct_boundaries (`bool`, *optional*, defaults to `False`):
            Adds the reconstruction to the losses of I-b, where the model has a detokenizer.
        learning_rates (`dict[str, float]`, *optional*): of parts by name, where they differ from `learning_rate`.
        cache_features (`bool`, *optional*, defaults to `False`):
            Runs the frozen tower once per image, in all processes together, and keeps its features on disk.
        feature_cache_dir (`str`, *optional*): where; by default vistok's cache folder.
        feature_cache_dtype (`str`, *optional*, defaults to `"bfloat16"`): in which they are kept.
        keep_tokens (`bool`, *optional*, defaults to `False`):
            Computes the tokens of each image once in each process, from cached features, and keeps them in memory:
            where the phase `"reconstruction"` leaves the tokens as they are (`trainable: {merger: frozen}`).
        mask_scale (`int`, *optional*, defaults to 4):
            Masks are kept at so many pixels per side of a patch, as the share of each that an object covers. Memory is
            bounded so; the patch grid is a whole part of it, and loses nothing.
        max_objects (`int`, *optional*, defaults to 64): most objects of an image, the largest; SA-1B has hundreds.
        sample_steps (`int`, *optional*, defaults to 500):
            Every so many steps a picture is written to `samples` in the output folder: input, tokens, reconstruction
            and masks of some images. 0 for none.
        num_samples (`int`, *optional*, defaults to 4): images in it.
        sample_inference_steps (`int`, *optional*, defaults to 20): steps of denoising of its reconstructions.

    Raises:
        ValueError: if a value is unknown or out of its range.
    """

    phase: str = field(default="reconstruction", metadata={"help": "reconstruction or boundaries."})
    trainable: Any = field(default=None, metadata={"help": "Parts that are otherwise than in the phase."})
    reconstruct_boundaries: bool = field(default=False, metadata={"help": "Reconstruction in I-b too."})
    learning_rates: Any = field(default=None, metadata={"help": "Learning rates of parts by name."})
    cache_features: bool = field(default=False, metadata={"help": "Run the tower once per image."})
    feature_cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached features."})
    feature_cache_dtype: str = field(default="bfloat16", metadata={"help": "dtype of cached features."})
    keep_tokens: bool = field(default=False, metadata={"help": "Compute tokens that stay once per image."})
    mask_scale: int = field(default=4, metadata={"help": "Pixels of masks per side of a patch."})
    max_objects: int = field(default=64, metadata={"help": "Most objects of an image."})
    sample_steps: int = field(default=500, metadata={"help": "Steps between pictures of samples; 0 for none."})
    num_samples: int = field(default=4, metadata={"help": "Images in each picture."})
    sample_inference_steps: int = field(default=20, metadata={"help": "Denoising steps of samples."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or if less than 1 their share of all."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the collator reads images."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: training stops at such a loss."})

    def __post_init__(self):
        known("phase", self.phase, PHASES)
        known("feature_cache_dtype", self.feature_cache_dtype, DTYPES)
        for name, least in (
            *(("mask_scale", 1), ("max_objects", 1), ("sample_steps", 0)),
            *(("num_samples", 1), ("sample_inference_steps", 1)),
        ):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a whole number of at least {least}.")
        for name in ("trainable", "learning_rates"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a value for each part by name.")
        if self.cache_features and (self.trainable or {}).get("vision", "frozen") != "frozen":
            raise ValueError("cache_features needs a frozen tower: leave vision out of trainable, or the cache off.")
        if self.keep_tokens:
            stays = self.phase == "reconstruction" and (self.trainable or {}).get("merger") == "frozen"
            stays &= (self.trainable or {}).get("clustering", "frozen") == "frozen"
            if not stays or not self.cache_features or self.dataloader_num_workers:
                raise ValueError(
                    "keep_tokens is for the phase reconstruction with a frozen merger (trainable: {merger: frozen}), "
                    "cache_features on and dataloader_num_workers 0: otherwise tokens change, or are kept several "
                    "times over."
                )
        if self.reconstruct_boundaries and self.phase != "boundaries":
            raise ValueError("reconstruct_boundaries adds to the losses of the phase boundaries: leave it out.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate!r}, expected a number greater than 0.")
        if self.remove_unused_columns or self.label_smoothing_factor:
            raise ValueError("remove_unused_columns and label_smoothing_factor must stay off: there are no labels.")
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        self.data_seed: int | None = self.seed if self.data_seed is None else self.data_seed
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False  # objects are no rows to be dealt out


__all__ = ["PHASES", "SeTokTrainingConfig"]
