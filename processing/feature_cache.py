"""Features of a frozen vision tower, computed once per image and kept on disk."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..modeling.base_weights import cache_dir
from .images import image_key, load_example_images

logger = logging.get_logger(__name__)

# numpy has no bfloat16: its bits are stored as 16-bit integers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


class FeatureCache(Mapping):
    """
    Tower features by image key, read from a memory-mapped file.

    Args:
        folder (`str`): made by [`FeatureCache.build`]; holds `features.npy` and `index.json`.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text())
        self.dtype = getattr(torch, index["dtype"])
        self._rows = {key: row for row, key in enumerate(index["keys"])}
        self._features: np.ndarray | None = None

    def __getstate__(self):
        return {**self.__dict__, "_features": None}  # workers map the file themselves

    def __getitem__(self, key: str) -> torch.Tensor:
        """Features of one image, `(num_patches, hidden_size)`."""
        if key not in self._rows:
            raise KeyError(f"No features are cached for the image {key}: build the cache over all images in use.")
        if self._features is None:
            self._features = np.load(self.folder / "features.npy", mmap_mode="r")
        stored = torch.from_numpy(np.array(self._features[self._rows[key]]))
        return stored.view(self.dtype) if self.dtype == torch.bfloat16 else stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @classmethod
    def build(
        cls,
        model,
        processor,
        examples: Iterable[Mapping[str, Any]],
        folder: str | os.PathLike | None = None,
        batch_size: int = 32,
        progress_bar: bool = True,
    ) -> "FeatureCache":
        """
        Runs the tower once over every distinct image, or finds that this was done before.

        Args:
            model ([`GVTForConditionalGeneration`] or alike): its tower is frozen.
            processor ([`GVTProcessor`] or alike): prepares the images.
            examples (`Iterable[dict]`): training and evaluation examples.
            folder (`str`, *optional*): where caches lie; by default vistok's cache folder. Each cache has a folder of
                its own in it, named after the tower, the preparation of images and the images.
            batch_size (`int`, *optional*, defaults to 32): images per step.
            progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.

        Returns:
            [`FeatureCache`].

        Raises:
            ValueError: if there are no images, or the visual tokenizer reads more than patch features.
        """
        core = model.model
        tokenizer = core.visual_tokenizer
        if tokenizer.required_inputs:
            raise ValueError(
                f"{type(tokenizer).__name__} reads {', '.join(tokenizer.required_inputs)} beside the patch features; "
                "only these are cached: train it with cache_features off."
            )

        def compute(batch: list[Image.Image]) -> torch.Tensor:
            pixel_values = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
            return core.get_vision_features(pixel_values.to(core.vision_tower.device)).patch_features

        settings = [
            core.config.vision_feature_layer,
            core.config.vision_feature_select_strategy,
            processor.image_processor.to_json_string(),
        ]
        return cls.of_tower(
            core.vision_tower, compute, settings, examples, core.vision_tower.dtype, folder, batch_size, progress_bar
        )

    @classmethod
    def of_tower(
        cls,
        tower: torch.nn.Module,
        compute: Callable[[list[Image.Image]], torch.Tensor],
        settings: list[Any],
        examples: Iterable[Mapping[str, Any]],
        dtype: torch.dtype,
        folder: str | os.PathLike | None = None,
        batch_size: int = 32,
        progress_bar: bool = True,
    ) -> "FeatureCache":
        """
        Computes the features of every distinct image once, or finds that this was done before.

        Args:
            tower (`PreTrainedModel`): what they are computed with, to know them again by its weights.
            compute (`Callable`): makes features, `(batch, num_tokens, hidden_size)`, of a list of images.
            settings (`list`): whatever else they depend on, of types that JSON has.
            examples (`Iterable[dict]`): training and evaluation examples.
            dtype (`torch.dtype`): in which they are kept: float32, float16 or bfloat16.
            folder, batch_size, progress_bar: as in [`FeatureCache.build`].

        Returns:
            [`FeatureCache`].

        Raises:
            ValueError: if there are no images, or the dtype is another.
        """
        if dtype not in _STORED:
            raise ValueError(f"Features are kept in {', '.join(map(str, _STORED))}, not in {dtype}.")
        images: dict[str, Mapping[str, Any]] = {}
        for example in examples:
            for position, image in enumerate(example.get("images") or []):
                images.setdefault(image_key(image), {**example, "images": [example["images"][position]]})
        if not images:
            raise ValueError("The data has no images, so there are no features to cache: turn the cache off.")
        parent = Path(folder) if folder is not None else cache_dir() / "features"
        target = parent / _fingerprint(tower, dtype, settings, list(images))
        if not (target / "index.json").exists():
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=".building-") as building:
                _write(compute, dtype, images, Path(building), batch_size, progress_bar)
                finished = Path(building) / "finished"
                try:
                    os.replace(finished, target)
                except OSError:
                    if not (target / "index.json").exists():  # not another process that was faster
                        raise
        return cls(target)


def _write(compute, dtype: torch.dtype, images, building: Path, batch_size: int, progress_bar: bool) -> None:
    finished = building / "finished"
    finished.mkdir()
    keys, stored = list(images), None
    starts: Sequence[int] = range(0, len(keys), batch_size)
    for start in logging.tqdm(starts, desc="Computing features of the frozen tower", disable=not progress_bar):
        batch = [load_example_images(images[key])[0] for key in keys[start : start + batch_size]]
        with torch.inference_mode():
            features = compute(batch).to("cpu", dtype)
        if stored is None:
            shape = (len(keys), *features.shape[1:])
            stored = np.lib.format.open_memmap(finished / "features.npy", "w+", dtype=_STORED[dtype], shape=shape)
        array = features.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else features.numpy()
        stored[start : start + len(batch)] = array
    assert stored is not None
    stored.flush()
    del stored
    index = {"dtype": str(dtype).removeprefix("torch."), "keys": keys}
    (finished / "index.json").write_text(json.dumps(index))


def _fingerprint(tower, dtype: torch.dtype, settings: list[Any], keys: list[str]) -> str:
    """Changes with the tower's weights, precision, attention and device, the layer, and the prepared images."""
    digest = hashlib.sha256()
    for name, parameter in tower.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten().contiguous().view(torch.uint8).cpu().numpy())
    device = tower.device.type
    settings = [
        tower.config.model_type,
        str(tower.dtype),
        tower.config._attn_implementation,
        device,
        *settings,
        sorted(keys),
    ]
    if dtype != tower.dtype:
        settings.append(f"kept in {dtype}")
    if torch.is_autocast_enabled(device):
        settings.append(f"autocast {torch.get_autocast_dtype(device)}")
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:24]


__all__ = ["FeatureCache"]
