"""Batches of images without text, for the stage that trains visual tokens (VT-LMM, Section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .collator import VisualLanguageCollator
from .images import BadSampleError


@dataclass
class ImageCollator(VisualLanguageCollator):
    """
    Makes a row of each image of training examples: the token that begins a text, and the image behind it. Whatever the
    examples say is left out, and so are labels.

    A tokenizer without such a token (`bos_token`) gives the one that ends a text, which its language model has read
    before every text as well (as GPT-2's `<|endoftext|>`). Without that one, too, the row is the image alone, and
    nothing predicts its first token.

    Args:
        processor, image_transform, features: as in [`VisualLanguageCollator`]. The others of its arguments are about
            text.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.max_length is not None or self.is_encoder_decoder:
            raise ValueError("Rows of an image alone cannot be cut, and are for decoders: leave these options out.")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples (`list[dict]`): training examples with `images`.

        Returns:
            `dict`: `input_ids` and `attention_mask` of shape `(num_images, 1 + num_image_tokens)`, and `pixel_values`
            or `vision_features` of all images.

        Raises:
            BadSampleError: if an example has no images, or an image is unreadable; names file and row.
        """
        for example in examples:
            self.check(example)
        row = [*self.first_ids, *[self.processor.image_token_id] * self.processor.num_image_tokens]
        num_images = sum(len(example["images"]) for example in examples)
        input_ids = torch.tensor([row] * num_images)
        texts = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return texts | self._images(examples, [1] * len(examples))

    @property
    def first_ids(self) -> list[int]:
        """What stands before an image: at most one token."""
        tokenizer = self.processor.tokenizer
        ids = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        return [token for token in ids if token is not None][:1]

    def check(self, example: Mapping[str, Any]) -> None:
        """
        Makes sure that an example has images; they are not read.

        Raises:
            BadSampleError: if it has none; names the row.
        """
        if not example.get("images"):
            place = {name: example.get(name) for name in ("row", "source")}
            raise BadSampleError("there is no image to learn visual tokens from", file=None, **place)


__all__ = ["ImageCollator"]
