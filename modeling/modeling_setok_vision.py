"""SeTok: a vision tower and the tokenizer that turns its patches into as many tokens as the image has parts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_setok_vision import SeTokVisionConfig
from .base_checkpoints import hub_arguments, load_vision_tower
from .hub_weights import DownloadedPreTrainedModel
from .setok_tokenizer import SeTokTokenizer, SeTokTokenizerOutput
from .trained_weights import CheckpointError
from .vision_features import build_vision_tower, extract_vision_features
from .visual_tokenizer import computing_dtype


@dataclass
class SeTokVisionOutput(SeTokTokenizerOutput):
    """
    Output of [`SeTokVisionModel`]: that of its tokenizer, and what the tower gave to it. `last_hidden_state` is
    another name of `tokens`.

    Args:
        patch_features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`):
            Features of the patches, in row-major order.
        grid_size (`tuple[int, int]`): height and width of the images in patches.
    """

    patch_features: torch.Tensor | None = None
    grid_size: tuple[int, int] | None = None

    @property
    def last_hidden_state(self) -> torch.Tensor | None:
        return self.tokens


class SeTokVisionPreTrainedModel(DownloadedPreTrainedModel):
    config: SeTokVisionConfig
    config_class = SeTokVisionConfig
    base_model_prefix = "setok_vision"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SegmentLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class SeTokVisionModel(SeTokVisionPreTrainedModel):
    """
    The tokenizer of "Towards Semantic Equivalence of Tokenization in Multimodal LLM" (Section 2.1): vision tower →
    density peaks → cluster merger. Images become visual tokens, whose number follows the image.

    Args:
        config ([`SeTokVisionConfig`]): see there.
    """

    def __init__(self, config: SeTokVisionConfig):
        super().__init__(config)
        self.vision_tower = build_vision_tower(config.vision_config)
        self.tokenizer = SeTokTokenizer(config.tokenizer_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        `PreTrainedModel.from_pretrained`.

        Raises:
            CheckpointError: if the checkpoint is a whole SeTok, with decoders, whose weights have other names; as
                [`PreTrainedModel.from_pretrained`] otherwise.
        """
        name = pretrained_model_name_or_path
        if name is not None and not isinstance(config, PreTrainedConfig):
            found, _ = PreTrainedConfig.get_config_dict(config or name, **hub_arguments(kwargs))
            if found.get("model_type") == "setok":
                raise CheckpointError(
                    f"{name} is a SeTok with decoders, not {cls.__name__} alone, which would start from random "
                    "weights: load it with AutoModel or SeTokForPreTraining, and take its vision_model."
                )
        return super().from_pretrained(name, *model_args, config=config, **kwargs)

    @classmethod
    def from_vision_pretrained(cls, vision: str, *, vision_kwargs: dict[str, Any] | None = None, **overrides):
        """
        A tokenizer with the pretrained tower of a vision checkpoint; its merger is new and random.

        Args:
            vision (`str`): `"vistok:dinov2-small"`, a folder or a Hub id, of a vision transformer or a ConvNeXt.
            vision_kwargs (`dict`, *optional*): for the `from_pretrained` of the tower, such as `dtype`.
            overrides: fields of [`SeTokVisionConfig`].

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if an override is no field of the config.
            CheckpointError: if it is no vision tower, or its weights are truncated or missing.
        """
        unknown = sorted(set(overrides) - set(SeTokVisionConfig.__dataclass_fields__))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no field of SeTokVisionConfig.")
        tower = load_vision_tower(vision, **(vision_kwargs or {}))
        model = cls(SeTokVisionConfig(vision_config=tower.config, **overrides)).to(tower.dtype)
        model.vision_tower = tower
        return model.eval()

    def get_input_embeddings(self) -> Any:
        return self.vision_tower.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        patch_features: torch.Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
        assignment: torch.Tensor | None = None,
        **kwargs,
    ) -> SeTokVisionOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`, *optional*):
                Images, normalised as the tower expects.
            patch_features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`, *optional*):
                In their place the features that the tower gave of their patches, without [CLS] and registers.
            grid_size (`tuple[int, int]`, *optional*): height and width in patches, of these; by default a square.
            assignment (`torch.LongTensor` of shape `(batch, num_patches)`, *optional*):
                Clusters in place of the tokenizer's own: see [`SeTokTokenizer`].

        Returns:
            [`SeTokVisionOutput`].

        Raises:
            ValueError: if neither or both are given, or the features are not finite, or not one for each patch.
        """
        if pixel_values is not None and patch_features is None:
            features = extract_vision_features(
                self.vision_tower,
                pixel_values,
                feature_layer=self.config.vision_feature_layer,
                select_strategy="default",
            )
            patch_features, grid_size = features.patch_features, features.grid_size
        elif patch_features is not None and pixel_values is None:
            side = math.isqrt(patch_features.shape[1])
            grid_size = grid_size or (side, side)
        else:
            raise ValueError("SeTok reads pixel_values, or the patch_features of a tower: give one of the two.")
        patch_features = patch_features.to(computing_dtype(self.tokenizer, self.vision_tower))
        outputs = self.tokenizer(patch_features, grid_size, assignment=assignment)
        return SeTokVisionOutput(**outputs, patch_features=patch_features, grid_size=grid_size)


__all__ = ["SeTokVisionModel", "SeTokVisionOutput", "SeTokVisionPreTrainedModel"]
