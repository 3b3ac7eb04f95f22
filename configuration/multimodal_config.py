"""What the configs of composed models have in common: a tower, a visual tokenizer and a language model that fit."""

import copy
from typing import Any

from transformers import PreTrainedConfig


def with_fields(config: Any, **values: Any) -> Any:
    """
    A config with other values in those fields that it has: a copy, because the config may be the caller's.

    Args:
        config (`PreTrainedConfig`): stays as it is.
        values: of its fields.
    """
    values = {name: value for name, value in values.items() if getattr(config, name, value) != value}
    if values:
        config = copy.deepcopy(config)
    for name, value in values.items():
        setattr(config, name, value)
    return config


def complete_tower(vision_config: Any) -> Any:
    """The config of a tower that keeps all patches: ViT-MAE drops some even in evaluation."""
    return with_fields(vision_config, mask_ratio=0.0)


def check_feature_layer(config: PreTrainedConfig) -> None:
    """
    Makes sure that the tower has the layer that is read.

    Args:
        config (`PreTrainedConfig`): of a composed model.

    Raises:
        ValueError: if it has not; names the layers.
    """
    stages, layer = getattr(config.vision_config, "hidden_sizes", None), config.vision_feature_layer
    num_layers = len(stages) if stages else getattr(config.vision_config, "num_hidden_layers", None)
    if num_layers is not None and isinstance(layer, int) and not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(
            f"vision_feature_layer is {layer}, but a tower of {num_layers} layers has hidden "
            f"states 0 to {num_layers} (or -{num_layers + 1} to -1)."
        )


def feature_width(vision_config: Any, feature_layer: int | str = -1) -> int:
    """
    Width of the patch features of a layer of a tower. That of a convolutional network, whose hidden states are its
    stages, differs from stage to stage.

    Args:
        vision_config (`PreTrainedConfig`): configuration of the tower.
        feature_layer (`int` or `"final"`): index into its `hidden_states`, or the final features.

    Raises:
        ValueError: if the config says nothing of a width.
    """
    stage_widths = getattr(vision_config, "hidden_sizes", None)
    if not stage_widths:
        if (width := getattr(vision_config, "hidden_size", None)) is None:
            raise ValueError(
                f"The vision tower, {vision_config.model_type}, has neither hidden_size nor hidden_sizes: choose a "
                "vision transformer or a convolutional network with stages, such as ConvNeXt."
            )
        return width
    widths = [getattr(vision_config, "embedding_size", stage_widths[0]), *stage_widths]
    return widths[feature_layer if isinstance(feature_layer, int) else -1]


def check_image_token(config: PreTrainedConfig, name: str = "image_token_id") -> None:
    """
    Makes sure that the placeholder, or another token around images, is a token of the language model.

    Args:
        config (`PreTrainedConfig`): of a composed model.
        name (`str`, *optional*, defaults to `"image_token_id"`): field of the config that holds the id.

    Raises:
        ValueError: if it is none; names its id and the size of the vocabulary.
    """
    vocab_size, token_id = getattr(config.text_config, "vocab_size", None), getattr(config, name)
    if vocab_size is not None and not 0 <= token_id < vocab_size:
        raise ValueError(
            f"{name} is {token_id}, but the language model has vocab_size={vocab_size}, ids 0 to {vocab_size - 1}: "
            f"choose one of these, or give text_config a vocab_size of {token_id + 1} or more."
        )


__all__ = ["check_feature_layer", "check_image_token", "complete_tower", "feature_width", "with_fields"]
