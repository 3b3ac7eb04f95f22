"""Visual tokens of the images of an evaluation: each image goes through the vision tower once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..modeling.vision_features import lacking_in_cache
from ..processing.images import image_key, load_example_images


class ImageEncoder:
    """
    Encodes images by their key, and remembers them over batches, conditions and calls.

    Args:
        model ([`GVTForConditionalGeneration`] or alike): encodes; must not be trained in between.
        processor ([`GVTProcessor`] or alike): prepares the images.
        features (`Mapping[str, torch.Tensor]`, *optional*):
            Features of the tower by image key, such as a [`FeatureCache`]. Images it lacks go through the tower.
        batch_size (`int`, *optional*, defaults to 32): images per pass.
        max_bytes (`int`, *optional*, defaults to 1 GiB): memory for visual tokens; the oldest are forgotten first.
        image_size (`tuple[int, int]`, *optional*): width and height in pixels that images are brought to before the
            processor sees them, see [`resized`].

    Raises:
        ValueError: if features are given to a visual tokenizer that reads more than these.
    """

    def __init__(
        self,
        model,
        processor,
        features: Mapping[str, torch.Tensor] | None = None,
        batch_size: int = 32,
        max_bytes: int = 1 << 30,
        image_size: tuple[int, int] | None = None,
    ):
        tokenizer = model.model.visual_tokenizer
        lacking = lacking_in_cache(tokenizer, model.config.vision_feature_select_strategy)
        if features is not None and lacking:
            raise ValueError(
                f"{type(tokenizer).__name__} reads {', '.join(lacking)} beside the patch features, and only these are "
                "cached: leave the features out."
            )
        self.model, self.processor, self.features = model, processor, features
        self.batch_size, self.max_bytes, self.image_size = batch_size, max_bytes, image_size
        self._examples: dict[str, Mapping[str, Any]] = {}
        self._blocks: list[list[str]] = []
        self._block_of: dict[str, int] = {}
        self._tokens: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._bytes = 0
        self._output_class: Any = None

    def know(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """Notes where the images of examples are to be read, when they are needed."""
        new: list[str] = []
        for example in examples:
            for image in example.get("images") or []:
                key = image_key(image)
                if key not in self._examples:
                    self._examples[key] = {**example, "images": [image]}
                    new.append(key)
        # What is encoded together is decided here and not by who asks first: rounding depends on it, and every
        # process, resumed or not, is to see the same visual tokens.
        for start in range(0, len(new), self.batch_size):
            block = new[start : start + self.batch_size]
            self._block_of.update(dict.fromkeys(block, len(self._blocks)))
            self._blocks.append(block)

    @torch.no_grad()
    def __call__(self, keys: Sequence[str]):
        """
        Visual tokens of images.

        Args:
            keys (`list[str]`): keys of images, with repetitions, in the order of their placeholders.

        Returns:
            `dict` or `None`: the `mm_encoder_outputs` of a model; `None` without images.

        Raises:
            BadSampleError: if an image cannot be read; names file and row.
        """
        if not keys:
            return None
        # Taken out of the memory first, because encoding the others may push them out of it.
        tokens = {key: self._tokens[key] for key in dict.fromkeys(keys) if key in self._tokens}
        blocks = dict.fromkeys(self._block_of[key] for key in dict.fromkeys(keys) if key not in tokens)
        for number in blocks:
            for from_cache in (True, False):
                block = self._blocks[number]
                chosen = [key for key in block if (self.features is not None and key in self.features) is from_cache]
                if chosen:
                    encoded = self._encode(chosen, from_cache)
                    tokens |= {key: encoded[key] for key in chosen if key not in tokens}
        device = self.model.get_input_embeddings().weight.device
        states = torch.stack([tokens[key][0] for key in keys]).to(device)
        mask = torch.stack([tokens[key][1] for key in keys]).to(device)
        return {"image": self._output_class(last_hidden_state=states, token_mask=mask)}

    def _encode(self, keys: list[str], from_cache: bool) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        device = self.model.get_input_embeddings().weight.device
        if from_cache:
            assert self.features is not None
            inputs = {"vision_features": torch.stack([self.features[key] for key in keys])}
        else:
            images = [
                resized(image, self.image_size) for key in keys for image in load_example_images(self._examples[key])
            ]
            inputs = {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        encoded = self.model.get_image_features(**{name: value.to(device) for name, value in inputs.items()})
        self._output_class = type(encoded)
        states, mask = encoded.embeddings.cpu(), encoded.token_mask.cpu()
        new = dict(zip(keys, zip(states.unbind(0), mask.unbind(0))))
        for key, (image_states, image_mask) in new.items():
            if key in self._tokens:
                continue
            self._tokens[key] = (image_states.clone(), image_mask.clone())  # not views that keep a batch alive
            self._bytes += image_states.nbytes + image_mask.nbytes
        while self._bytes > self.max_bytes:
            _, forgotten = self._tokens.popitem(last=False)
            self._bytes -= sum(tensor.nbytes for tensor in forgotten)
        return new


def resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """
    An image brought to a size, bicubically and without a crop, as GVT's released code does.

    Args:
        image (`PIL.Image.Image`): the image.
        size (`tuple[int, int]`, *optional*): width and height in pixels; `None` leaves it as it is.
    """
    return image if size is None else image.resize(size, Image.Resampling.BICUBIC)


__all__ = ["ImageEncoder", "resized"]
