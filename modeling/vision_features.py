"""Patch features of vision transformers and convolutional networks, in the form that visual tokenizers read."""

import inspect
from typing import Any, Literal

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .final_norm import after_final_norm
from .visual_tokenizer import VisionFeatures, VisualTokenizer

FeatureLayer = int | Literal["final"]
"""An index into `hidden_states`, which have passed no final norm, or `"final"`: the last one after that norm."""

FINAL = "final"


def vision_tower_class(vision_config: PreTrainedConfig):
    """
    The class that a vision tower is built and loaded with: `AutoModel`, but for the towers it does not know.

    Args:
        vision_config (`PreTrainedConfig`): configuration of the tower.
    """
    if vision_config.model_type == "owlvit_vision_model":
        from transformers import OwlViTVisionModel

        return OwlViTVisionModel
    return AutoModel


def build_vision_tower(vision_config: PreTrainedConfig) -> PreTrainedModel:
    """A vision tower with random weights, from its configuration."""
    tower_class = vision_tower_class(vision_config)
    build = tower_class.from_config if tower_class is AutoModel else tower_class._from_config
    return build(vision_config)


def extract_vision_features(
    vision_tower: PreTrainedModel,
    pixel_values: torch.Tensor,
    feature_layer: FeatureLayer = -1,
    select_strategy: str = "full",
    required_inputs: tuple[str, ...] = (),
) -> VisionFeatures:
    """
    Runs a vision tower and picks the features of one layer.

    Args:
        vision_tower (`PreTrainedModel`):
            CLIP, SigLIP, DINOv2 (with or without registers), DINOv3, ViT, DeiT, ViT-MAE, OWL-ViT, or another model
            that returns `hidden_states` of shape `(batch, num_prefix_tokens + num_patches, hidden_size)`; or a
            convolutional network that returns feature maps `(batch, hidden_size, height, width)`, such as ConvNeXt,
            whose positions are the patches.
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
            Images, normalised as the tower expects.
        feature_layer (`int` or `"final"`):
            Index into the tower's `hidden_states`, which have passed no final norm, or the features after that norm.
        select_strategy (`str`): `"full"` keeps [CLS] and registers, `"default"` drops them.
        required_inputs (`tuple[str, ...]`): further fields of [`VisionFeatures`] to fill in.

    Returns:
        [`VisionFeatures`].

    Raises:
        ValueError: if the tower has fewer tokens than patches, or does not give what is required.
    """
    image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
    has_stages = bool(getattr(vision_tower.config, "hidden_sizes", None))
    grid_size = (0, 0) if has_stages else patch_grid(vision_tower.config, image_size)
    wants_attentions = "cls_attentions" in required_inputs
    if wants_attentions and vision_tower.config._attn_implementation != "eager":
        raise ValueError(
            f"The visual tokenizer reads the attention of [CLS], which {vision_tower.config._attn_implementation} "
            'attention does not return: load the model with attn_implementation={"vision_config": "eager"}.'
        )
    outputs = vision_tower(
        pixel_values.to(vision_tower.dtype),
        output_hidden_states=feature_layer != FINAL or "hidden_states" in required_inputs,
        output_attentions=wants_attentions,
        return_dict=True,
        **tower_arguments(vision_tower, pixel_values, grid_size),
    )
    if isinstance(feature_layer, int):
        features = outputs.hidden_states[feature_layer]
    else:
        features, feature_layer = after_final_norm(vision_tower, outputs.last_hidden_state), -1
    if has_stages:
        features, grid_size = _as_patches(vision_tower, features)
    num_patches = grid_size[0] * grid_size[1]
    num_prefix_tokens = features.shape[1] - num_patches
    if num_prefix_tokens < 0:
        raise ValueError(
            f"{type(vision_tower).__name__} returned {features.shape[1]} tokens for {num_patches} patches "
            f"({grid_size[0]} × {grid_size[1]}): the tower must keep one token per patch."
        )
    if num_prefix_tokens == 0 and ("cls_features" in required_inputs or wants_attentions):
        raise ValueError(f"The visual tokenizer reads [CLS], and {type(vision_tower).__name__} has none.")
    cls_attentions = None
    if wants_attentions:
        # hidden_states counts the embeddings, attentions does not
        layer = feature_layer % (len(outputs.attentions) + 1) - 1
        if layer < 0:
            raise ValueError(
                f"The visual tokenizer reads the attention of [CLS], and layer {feature_layer} is the embeddings, "
                "which have none: choose a later vision_feature_layer."
            )
        cls_attentions = outputs.attentions[layer][:, :, 0, num_prefix_tokens:]
    return VisionFeatures(
        patch_features=features[:, num_prefix_tokens:] if select_strategy == "default" else features,
        grid_size=grid_size,
        num_prefix_tokens=0 if select_strategy == "default" else num_prefix_tokens,
        cls_features=features[:, 0] if "cls_features" in required_inputs else None,
        hidden_states=outputs.hidden_states if "hidden_states" in required_inputs else None,
        cls_attentions=cls_attentions,
    )


def _as_patches(vision_tower: PreTrainedModel, feature_map: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Feature maps as patch features in row-major order, and their height and width."""
    if feature_map.ndim != 4:
        raise ValueError(
            f"{type(vision_tower).__name__} returned features of shape {tuple(feature_map.shape)}, expected feature "
            "maps of shape (batch, hidden_size, height, width): choose a ConvNeXt, ResNet or a vision transformer."
        )
    return feature_map.flatten(2).transpose(1, 2), (feature_map.shape[-2], feature_map.shape[-1])


def lacking_in_cache(visual_tokenizer: VisualTokenizer, select_strategy: str) -> list[str]:
    """
    What a visual tokenizer reads that nobody knows of cached features. How many of them come before the first patch is
    known where only patches are kept: none.

    Args:
        visual_tokenizer ([`VisualTokenizer`]): about to read them.
        select_strategy (`str`): as in [`extract_vision_features`].

    Returns:
        `list[str]`: those of its `required_inputs`.
    """
    known = ("num_prefix_tokens",) if select_strategy == "default" else ()
    return [name for name in visual_tokenizer.required_inputs if name not in known]


def cached_vision_features(
    patch_features: torch.Tensor, select_strategy: str, visual_tokenizer: VisualTokenizer
) -> VisionFeatures:
    """
    What is known of features that a tower computed earlier: whether [CLS] and registers are among them, but not how
    many, nor the size of the image.

    Args:
        patch_features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): computed earlier.
        select_strategy (`str`): as in [`extract_vision_features`].
        visual_tokenizer ([`VisualTokenizer`]): about to read them.

    Returns:
        [`VisionFeatures`].

    Raises:
        ValueError: if the visual tokenizer declares that it reads more.
    """
    if lacking := lacking_in_cache(visual_tokenizer, select_strategy):
        raise ValueError(
            f"{type(visual_tokenizer).__name__} reads {', '.join(lacking)} beside the patch features, which "
            "vision_features are alone: give pixel_values."
        )
    return VisionFeatures(patch_features, num_prefix_tokens=0 if select_strategy == "default" else None)


def patch_grid(vision_config, image_size: tuple[int, int]) -> tuple[int, int]:
    """
    Height and width of an image in patches.

    Args:
        vision_config (`PreTrainedConfig`): configuration of the tower.
        image_size (`tuple[int, int]`): height and width in pixels.

    Raises:
        ValueError: if the image is smaller than one patch.
    """
    patch_size = vision_config.patch_size
    patch_height, patch_width = patch_size if isinstance(patch_size, (list, tuple)) else (patch_size, patch_size)
    grid_size = (image_size[0] // patch_height, image_size[1] // patch_width)
    if min(grid_size) < 1:
        raise ValueError(
            f"The image is {image_size[0]} × {image_size[1]} pixels, smaller than one patch of "
            f"{patch_height} × {patch_width}."
        )
    return grid_size


def feature_grid(
    vision_config: PreTrainedConfig, image_size: tuple[int, int], feature_layer: FeatureLayer = -1
) -> tuple[int, int]:
    """
    Height and width, in patches, of what a layer of a tower makes of an image: of a convolutional network, whose
    stages differ, from the shapes that its layers have without weights.

    Args:
        vision_config (`PreTrainedConfig`): configuration of the tower.
        image_size (`tuple[int, int]`): height and width in pixels.
        feature_layer (`int` or `"final"`): as in [`extract_vision_features`].

    Raises:
        ValueError: if the image is smaller than one patch.
    """
    if not getattr(vision_config, "hidden_sizes", None):
        return patch_grid(vision_config, image_size)
    with torch.device("meta"), torch.no_grad():
        pixel_values = torch.empty(1, getattr(vision_config, "num_channels", 3), *image_size)
        features = extract_vision_features(build_vision_tower(vision_config), pixel_values, feature_layer)
    height, width = features.grid_size or (0, 0)
    return height, width


def tower_arguments(
    vision_tower: PreTrainedModel, pixel_values: torch.Tensor, grid_size: tuple[int, int]
) -> dict[str, Any]:
    """
    Arguments of a tower's `forward` that only some towers know.

    Args:
        vision_tower (`PreTrainedModel`): about to see the images.
        pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): the images.
        grid_size (`tuple[int, int]`): their height and width in patches.
    """
    arguments: dict[str, Any] = {}
    known = inspect.signature(vision_tower.forward).parameters
    if "noise" in known:
        # ViT-MAE shuffles patches by this noise even when none is masked: a rising one keeps their order.
        num_patches = grid_size[0] * grid_size[1]
        arguments["noise"] = torch.arange(num_patches, device=pixel_values.device).expand(len(pixel_values), -1)
    if "interpolate_pos_encoding" in known:
        trained_size = vision_tower.config.image_size
        height, width = trained_size if isinstance(trained_size, (list, tuple)) else (trained_size, trained_size)
        arguments["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != (height, width)
    return arguments


__all__ = [
    "build_vision_tower",
    "cached_vision_features",
    "extract_vision_features",
    "feature_grid",
    "lacking_in_cache",
    "patch_grid",
    "tower_arguments",
    "vision_tower_class",
]
