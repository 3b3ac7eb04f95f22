"""Configuration of SeTok with its decoders: what stage I trains."""

import math
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_image_detokenizer import ImageDetokenizerConfig
from .configuration_mask_decoder import MaskDecoderConfig
from .configuration_setok_vision import SeTokVisionConfig
from .multimodal_config import with_fields

Phase = Literal["reconstruction", "boundaries"]
"""The sub-phases of stage I: I-a and I-b."""
LOSS_TERMS = ("reconstruction", "mask_bce", "mask_dice", "mask_consistency", "object_contrast", "preview", "placement")
"""The parts of the loss of stage I. Each has a weight in [`SeTokConfig`], as in `mask_bce_weight`."""


@strict
class SeTokConfig(PreTrainedConfig):
    r"""
    Configuration of [`SeTokForPreTraining`]: the tokenizer of "Towards Semantic Equivalence of Tokenization in
    Multimodal LLM" with the decoders of its stage I (Section 2.2).

    Args:
        vision_config ([`SeTokVisionConfig`] or `dict`, *optional*, defaults to `SeTokVisionConfig()`):
            Vision tower, clustering and merger.
        mask_decoder_config ([`MaskDecoderConfig`] or `dict`, *optional*, defaults to `MaskDecoderConfig()`):
            The mask decoder. Its `token_size` and `patch_hidden_size` follow the tokenizer.
        detokenizer_config ([`ImageDetokenizerConfig`] or `dict`, *optional*):
            Feature mapper and U-Net. The mapper's `token_size` follows the tokenizer. `None`: images are not
            reconstructed, and the extra `generation` is not needed.
        reconstruction_weight (`float`, *optional*, defaults to 1.0): of the denoising loss in the total.
        mask_bce_weight (`float`, *optional*, defaults to 1.0): of the masks' binary cross-entropy in the total.
        mask_dice_weight (`float`, *optional*, defaults to 1.0): of the masks' dice loss in the total.
        mask_consistency_weight (`float`, *optional*, defaults to 1.0): of the mask consistency in the total.
        object_contrast_weight (`float`, *optional*, defaults to 0.0):
            Of [`object_contrast_loss`] in the total: pairs of patches of one object, or of the background, are to be
            near each other, and others far. Not in the paper; at 0 it is not computed.
        preview_weight (`float`, *optional*, defaults to 1.0):
            Of the preview in the total, with the mapper's `query_grid`: what each query says is seen in its square of
            the image. Not in the paper.
        placement_weight (`float`, *optional*, defaults to 1.0):
            Of the placement in the total, likewise: which token each query says is in its square.
        cluster_matching_weight (`float`, *optional*, defaults to 0.0):
            Of 1 − IoU of the patches that a token is made of with an object, in the cost by which tokens are matched
            to objects, beside BCE + dice of the predicted masks. Not in the paper; without it masks of a decoder that
            has learned nothing decide, and a token that is matched to another object than it shows learns no place.
        consistency_masks (`"soft"` or `"assigned"`, *optional*, defaults to `"soft"`):
            The attention masks that mask consistency compares with objects: the soft ones wherever clustering has
            some, or those that tokens are made of, which are hard where the assignment is, with the gradient of the
            soft ones (`straight_through` of the tokenizer).
        base_models (`dict[str, str]`, *optional*):
            Checkpoints (`{"vision": …, "diffusion": …}`: names, folders or Hub ids) which complete a folder that holds
            only the trained weights; `./name` lies in that folder. `None` for a folder that holds all weights.
        lora_config (`dict`, *optional*):
            The `peft.LoraConfig`, as a dictionary, of the adapters among the trained weights of such a folder.

    Example:

    ```python
    >>> from transformers import Dinov2Config
    >>> from vistok import SeTokConfig, SeTokForPreTraining

    >>> config = SeTokConfig(vision_config={"vision_config": Dinov2Config().to_dict(), "max_tokens": 32})
    >>> model = SeTokForPreTraining(config)  # random weights
    ```"""

    model_type = "setok"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=SeTokVisionConfig),
        "mask_decoder_config": SubConfigSpec(config_class=MaskDecoderConfig),
        "detokenizer_config": SubConfigSpec(config_class=ImageDetokenizerConfig, optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    mask_decoder_config: dict | PreTrainedConfig | None = None
    detokenizer_config: dict | PreTrainedConfig | None = None
    reconstruction_weight: float | int = 1.0
    mask_bce_weight: float | int = 1.0
    mask_dice_weight: float | int = 1.0
    mask_consistency_weight: float | int = 1.0
    object_contrast_weight: float | int = 0.0
    preview_weight: float | int = 1.0
    placement_weight: float | int = 1.0
    cluster_matching_weight: float | int = 0.0
    consistency_masks: Literal["soft", "assigned"] = "soft"
    base_models: dict[str, str] | None = None
    lora_config: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in (f"{term}_weight" for term in LOSS_TERMS):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 (the term is only logged) or more.")
        if not 0 <= self.cluster_matching_weight < math.inf:
            raise ValueError(
                f"cluster_matching_weight is {self.cluster_matching_weight}, expected 0 (predicted masks alone are "
                "matched) or more."
            )
        vision: Any = self.vision_config
        token_size = vision.output_size or vision.patch_hidden_size
        self.mask_decoder_config = with_fields(
            self.mask_decoder_config, token_size=token_size, patch_hidden_size=vision.patch_hidden_size
        )
        detokenizer: Any = self.detokenizer_config
        if detokenizer is not None:
            mapper_config = with_fields(detokenizer.mapper_config, token_size=token_size)
            self.detokenizer_config = with_fields(detokenizer, mapper_config=mapper_config)

    def phase_trainable(self, phase: Phase) -> dict[str, str]:
        """
        What a sub-phase of stage I trains: for each part of [`SeTokForPreTraining`] that is not frozen how much of it,
        as a recipe's `trainable` says it (SeTok, Section 2.2).

        Args:
            phase (`"reconstruction"` or `"boundaries"`):
                I-a trains the merger, the mapper, and keys and values of the U-Net's cross-attention (all of it where
                `trained_unet_parts` says so). I-b trains the mask decoder, the merger, and what clustering learns: its
                projection and the scale of its kernel.

        Raises:
            ValueError: if there is no such phase, or it needs a detokenizer and there is none.
        """
        vision: Any = self.vision_config
        detokenizer: Any = self.detokenizer_config
        check_phase(phase)
        has_merger = vision.merger == "attention" or vision.output_size not in (None, vision.patch_hidden_size)
        trained = {"merger": "full"} if has_merger else {}
        if phase == "boundaries":
            learns = vision.learn_kernel_scale or vision.cluster_projection_size is not None
            learns |= vision.cluster_projection_layers > 0
            # Hard clusters of nearest centres are no function of what is learned, unless the soft ones stand in; the
            # object contrast is one of the distances themselves.
            has_gradient = vision.assignment == "soft" or vision.method == "iterative" or vision.straight_through
            learns &= has_gradient or self.object_contrast_weight > 0
            return {**({"clustering": "full"} if learns else {}), **trained, "mask_decoder": "full"}
        if detokenizer is None:
            raise ValueError(
                "The phase reconstruction trains a detokenizer, and there is none: give SeTokConfig a "
                "detokenizer_config."
            )
        unet = "full" if detokenizer.trained_unet_parts == "all" else "keys_values"
        return {**trained, "mapper": "full", "unet": unet}


def check_phase(phase: str) -> None:
    """
    Makes sure that a sub-phase of stage I exists.

    Args:
        phase (`str`): its name.

    Raises:
        ValueError: if it does not; lists those that do.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"phase is {phase!r}: choose one of {', '.join(get_args(Phase))}.")


__all__ = ["LOSS_TERMS", "Phase", "SeTokConfig", "check_phase"]
