"""Images for batches of text alone, so that whatever learns from images takes part in every step."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from ..modeling.trainable_parts import part_prefixes
from ..processing.collator import IGNORED
from ..processing.image_placeholders import num_placeholders


class BlankImages:
    """
    Adds a row with a blank image to batches of text alone. Nothing looks at it and nothing predicts it: losses and
    gradients stay as they are, but what is trained on images has a gradient, of zero. Several processes wait for one
    another's gradients, and where weights are divided among them for one another's calls of every layer.

    Args:
        model (`PreTrainedModel`): a composed model of vistok, frozen where it is not trained.
        processor ([`VTLMMProcessor`] or alike, *optional*): prepares images. Without one, batches stay as they are.
        features (`Mapping[str, torch.Tensor]`, *optional*): cached features in place of images.
        divided (`bool`, *optional*, defaults to `False`): whether weights are divided among processes.
        visual_tokens (`torch.FloatTensor` of shape `(num_tokens, token_size)`, *optional*):
            What stands for the image, of a model whose batches hold visual tokens in place of images.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        features: Mapping[str, torch.Tensor] | None = None,
        divided: bool = False,
        visual_tokens: torch.Tensor | None = None,
    ):
        of_text = part_prefixes(model, "llm")
        self._learns_from_images = any(
            parameter.requires_grad and not name.startswith(of_text) for name, parameter in model.named_parameters()
        )
        self._processor, self._features, self._divided = processor, features, divided
        self._visual_tokens = visual_tokens

    @property
    def are_needed(self) -> bool:
        """Whether a batch of text alone that is trained on needs one."""
        return self.are_needed_to_predict or (self._processor is not None and self._learns_from_images)

    @property
    def are_needed_to_predict(self) -> bool:
        """Whether any batch of text alone needs one."""
        return self._processor is not None and self._divided

    def add_to(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """
        Args:
            inputs (`dict`): a batch of text, of a [`VisualLanguageCollator`].

        Returns:
            `dict`: the batch with one row more.
        """
        mask, input_ids = inputs["attention_mask"], inputs["input_ids"]
        tokenizer = self._processor.tokenizer
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        row = [filler, *[self._processor.image_token_id] * num_placeholders(self._processor)]
        added = {**inputs, "input_ids": _with_row(input_ids, row, filler)}
        width = added["input_ids"].shape[1]
        added["attention_mask"] = _with_row(mask, [1], 0, width) if mask.ndim == 2 else _with_lonely_row(mask, width)
        if "position_ids" in inputs:
            added["position_ids"] = _with_row(inputs["position_ids"], [], 0, width)
        if inputs.get("labels") is not None:
            labels = inputs["labels"]
            width = width if labels.shape == input_ids.shape else labels.shape[1]
            added["labels"] = _with_row(labels, [], IGNORED, width)
        return added | self._image(input_ids.device)

    def _image(self, device: torch.device) -> dict[str, Any]:
        if self._visual_tokens is not None:
            return {"visual_tokens": [self._visual_tokens.to(device)]}
        if self._features is not None:
            return {"vision_features": torch.zeros_like(next(iter(self._features.values())))[None].to(device)}
        blank = self._processor.image_processor([Image.new("RGB", (32, 32))], return_tensors="pt")["pixel_values"]
        return {"pixel_values": torch.zeros_like(blank).to(device)}


def _with_row(rows: torch.Tensor, row: list[int], filler: int, width: int = 0) -> torch.Tensor:
    width = max(width, rows.shape[1], len(row))
    padded = rows.new_full((len(rows) + 1, width), filler)
    padded[:-1, : rows.shape[1]] = rows
    padded[-1, : len(row)] = rows.new_tensor(row)
    return padded


def _with_lonely_row(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Of rows that are shared, `(batch, 1, length, length)`: tokens of the new one attend to themselves alone."""
    wider = torch.eye(width, dtype=mask.dtype, device=mask.device).repeat(len(mask) + 1, 1, 1, 1)
    wider[:-1, :, : mask.shape[2], : mask.shape[3]] = mask
    return wider


__all__ = ["BlankImages"]
