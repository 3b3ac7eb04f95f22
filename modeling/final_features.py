"""Features of a vision tower after its final norm, for all tokens, whatever the tower itself does with that norm."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .vision_features import extract_vision_features, patch_grid, tower_arguments

# Towers that apply their final norm to the pooled [CLS] alone; their last_hidden_state is before it.
_NORM_ON_CLS_ALONE = (
    *("clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model", "clipseg_vision_model"),
    *("metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model", "xclip_vision_model"),
)


def tower_features(
    vision_tower: PreTrainedModel, pixel_values: torch.Tensor, feature_layer: int | None = None
) -> torch.Tensor:
    """
    Runs a vision tower and takes the features of all its tokens: after its final norm, or of one layer.

    Args:
        vision_tower (`PreTrainedModel`): as in [`extract_vision_features`].
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
            Images, normalised as the tower expects.
        feature_layer (`int`, *optional*): index into the tower's `hidden_states`, which have passed no final norm.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_prefix_tokens + num_patches, hidden_size)`.

    Raises:
        ValueError: if the tower has no such layer, or fewer tokens than patches.
    """
    if feature_layer is not None:
        num_states = getattr(vision_tower.config, "num_hidden_layers", feature_layer) + 1
        if not -num_states <= feature_layer < num_states:
            raise ValueError(
                f"The feature layer is {feature_layer}, but {type(vision_tower).__name__} has {num_states} hidden "
                f"states: expected {-num_states} to {num_states - 1}."
            )
        return extract_vision_features(vision_tower, pixel_values, feature_layer).patch_features
    grid_size = patch_grid(vision_tower.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    arguments = tower_arguments(vision_tower, pixel_values, grid_size)
    features = vision_tower(pixel_values.to(vision_tower.dtype), return_dict=True, **arguments).last_hidden_state
    if features.ndim != 3 or features.shape[1] < grid_size[0] * grid_size[1]:
        raise ValueError(
            f"{type(vision_tower).__name__} returned features of shape {tuple(features.shape)} for "
            f"{grid_size[0]} × {grid_size[1]} patches: the tower must keep one token per patch."
        )
    norm = _skipped_norm(vision_tower)
    return features if norm is None else norm(features)


def _skipped_norm(vision_tower: PreTrainedModel) -> nn.Module | None:
    if vision_tower.config.model_type not in _NORM_ON_CLS_ALONE:
        return None
    return next(
        (module for name, module in vision_tower.named_modules() if name.split(".")[-1] == "post_layernorm"), None
    )


__all__ = ["tower_features"]
