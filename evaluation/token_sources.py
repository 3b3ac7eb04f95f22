"""Where visual tokens come from: a trained SeTok, or the clusters of a bare vision tower's patches."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTImageProcessorPil

from ..modeling.base_weights import resolve_checkpoint
from ..modeling.modeling_setok_vision import SeTokVisionModel
from ..modeling.trained_setok import without_detokenizer
from ..modeling.vision_features import FeatureLayer, extract_vision_features

TRAINED_KINDS = ("setok_vision", "setok", "setokim")
"""Models that hold a SeTok with its tower."""
TOWER_LAYERS = {"vistok:dinov2-small": -3}
"""Whose last layers say less of what is in an image than an earlier one; the others are read at -2."""
TOWER_LAYER = -2
TOWER_IMAGE_SIZE = 336  # pixels
TOWER_SETTINGS: dict[str, Any] = {
    "method": "threshold",
    "num_neighbors": 20,
    "normalize_features": True,
}
"""Of a bare tower: what separates objects without training. Features of any tower are brought to one scale, in which
the kernel of the iterative method is as wide for all images: one relative to an image's mean distance is narrow where
the background is plain, and breaks objects into pieces."""


@dataclass
class TokenSource:
    """
    A tokenizer and its image processor.

    Args:
        name (`str`): as the user named it.
        model ([`SeTokVisionModel`]): tower and tokenizer; of a bare tower only its clusters are used.
        image_processor: of the tower, from transformers.
        is_trained (`bool`): whether the tokenizer was, or is a bare tower's.
    """

    name: str
    model: SeTokVisionModel
    image_processor: Any
    is_trained: bool

    @property
    def feature_layer(self) -> FeatureLayer:
        """The layer of the tower that patches are read from."""
        return self.model.config.vision_feature_layer

    @cached_property
    def grid_size(self) -> tuple[int, int]:
        """Height and width of every image in patches, after the image processor."""
        return self._extract([Image.new("RGB", (64, 64))]).grid_size

    @torch.no_grad()
    def patch_features(self, images: list[Image.Image]) -> torch.Tensor:
        """
        Features of the patches of images.

        Args:
            images (`list[PIL.Image.Image]`): RGB.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`.
        """
        return self._extract(images).patch_features

    def _extract(self, images: list[Image.Image]):
        pixel_values = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return extract_vision_features(
                self.model.vision_tower,
                pixel_values.to(self.model.device),
                feature_layer=self.feature_layer,
                select_strategy="default",
            )


def load_token_source(
    name: str | os.PathLike,
    layer: FeatureLayer | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> TokenSource:
    """
    Loads a trained SeTok, or a vision tower whose patches are clustered without training. A detokenizer, which draws
    images, is left out.

    Args:
        name (`str`): folder of a SeTok; or a vision tower: `"vistok:dinov2-small"`, a folder or a Hub id.
        layer (`int` or `"final"`, *optional*): of the tower; by default that of the SeTok, of a bare tower -2, and -3
            of `vistok:dinov2-small`.
        image_size (`int`, *optional*): side in pixels that images are resized to, as squares and without a crop; by
            default as the SeTok was trained, and 336 of a bare tower.
        device (`str`, *optional*, defaults to `"cpu"`): where it runs.

    Returns:
        [`TokenSource`], in evaluation mode.

    Raises:
        OSError, CheckpointError: if there is no such model, or it is damaged.
        ValueError: if it is a model of another kind, or has no such layer.
        FetchError: if base weights are not in the cache.
    """
    path = resolve_checkpoint(os.fspath(name))
    config = AutoConfig.from_pretrained(path)
    is_trained = config.model_type in TRAINED_KINDS
    if not is_trained and "text" in (getattr(config, "base_models", None) or {}):
        raise ValueError(
            f"{name} holds a model of type {config.model_type}, a language model with images: give a SeTok, a Setokim "
            "or a vision tower."
        )
    if is_trained:
        model = _trained(path)
        if layer is not None and layer != model.config.vision_feature_layer:
            raise ValueError(
                f"{name} was trained on layer {model.config.vision_feature_layer} of its tower, so that layer {layer} "
                "would be foreign to it: leave the layer out."
            )
    else:
        chosen = TOWER_LAYERS.get(os.fspath(name), TOWER_LAYER) if layer is None else layer
        model = SeTokVisionModel.from_vision_pretrained(
            os.fspath(name), vision_feature_layer=chosen, merger="mean", learn_kernel_scale=False, **TOWER_SETTINGS
        )
    processor = AutoImageProcessor.from_pretrained(path)
    side = image_size or (None if is_trained else TOWER_IMAGE_SIZE)
    if side is not None:
        processor = resized_processor(processor, side)
    return TokenSource(os.fspath(name), model.to(device).eval(), processor, is_trained)


def _trained(path: str) -> SeTokVisionModel:
    loaded = AutoModel.from_pretrained(path, **without_detokenizer(path))
    found = [module for module in loaded.modules() if isinstance(module, SeTokVisionModel)]
    if not found:
        raise ValueError(f"{path} holds {type(loaded).__name__}, in which there is no SeTok.")
    return found[0]


def resized_processor(image_processor: Any, side: int) -> ViTImageProcessorPil:
    """
    An image processor that resizes whole images to squares, without a crop; colours are as they were.

    Args:
        image_processor: of transformers. It stays as it is. What a size means differs from one to another, and those
            of ConvNeXt crop by it, which is why this is of one kind.
        side (`int`): in pixels.

    Raises:
        ValueError: if the side is less than 1.
    """
    if side < 1:
        raise ValueError(f"The side of images is {side} pixels, expected at least 1.")
    names = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    given = {name: getattr(image_processor, name, None) for name in names}
    return ViTImageProcessorPil(
        do_resize=True,
        size={"height": side, "width": side},
        do_convert_rgb=True,
        **{name: value for name, value in given.items() if value is not None},
    )


__all__ = ["TOWER_SETTINGS", "TokenSource", "load_token_source", "resized_processor"]
