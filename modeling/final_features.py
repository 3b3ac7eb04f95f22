"""Features of a vision tower that distillation and probes read: after its final norm, or of one layer."""

import torch
from transformers import PreTrainedModel

from .final_norm import after_final_norm
from .vision_features import FeatureLayer, extract_vision_features, patch_grid, tower_arguments


def tower_features(
    vision_tower: PreTrainedModel, pixel_values: torch.Tensor, feature_layer: FeatureLayer | None = None
) -> torch.Tensor:
    """
    Runs a vision tower and takes the features of all its tokens: after its final norm, or of one layer.

    Args:
        vision_tower (`PreTrainedModel`): as in [`extract_vision_features`].
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
            Images, normalised as the tower expects.
        feature_layer (`int` or `"final"`, *optional*):
            Index into the tower's `hidden_states`, which have passed no final norm; by default, or by `"final"`, after
            the final norm.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_prefix_tokens + num_patches, hidden_size)`.

    Raises:
        ValueError: if the tower has no such layer, or fewer tokens than patches.
    """
    if isinstance(feature_layer, int):
        num_states = getattr(vision_tower.config, "num_hidden_layers", feature_layer) + 1
        if not -num_states <= feature_layer < num_states:
            raise ValueError(
                f"The feature layer is {feature_layer}, but {type(vision_tower).__name__} has {num_states} hidden "
                f"states: expected {-num_states} to {num_states - 1}."
            )
        return extract_vision_features(vision_tower, pixel_values, feature_layer).patch_features
    # Not by extract_vision_features, which would keep the states of all layers.
    grid_size = patch_grid(vision_tower.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    arguments = tower_arguments(vision_tower, pixel_values, grid_size)
    features = vision_tower(pixel_values.to(vision_tower.dtype), return_dict=True, **arguments).last_hidden_state
    if features.ndim != 3 or features.shape[1] < grid_size[0] * grid_size[1]:
        raise ValueError(
            f"{type(vision_tower).__name__} returned features of shape {tuple(features.shape)} for "
            f"{grid_size[0]} × {grid_size[1]} patches: the tower must keep one token per patch."
        )
    return after_final_norm(vision_tower, features)


__all__ = ["tower_features"]
