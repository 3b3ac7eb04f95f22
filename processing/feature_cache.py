"""Features of a frozen vision tower, computed once per image and kept on disk."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling.base_weights import cache_dir
from ..modeling.vision_features import lacking_in_cache
from .images import image_key, load_example_images

logger = logging.get_logger(__name__)

# numpy has no bfloat16: its bits are stored as 16-bit integers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
_FILE = "features.npy"


class FeatureCache(Mapping):
    """
    Tower features by image key, read from memory-mapped files.

    Args:
        folder (`str`): made by [`FeatureCache.build`] or a [`FeatureCacheBuilder`]; holds `index.json`, and
            `features.npy` or a file for each part that it was built in.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text())
        self.dtype = getattr(torch, index["dtype"])
        files = index.get("files", {_FILE: len(index["keys"])})
        places = [(file, row) for file, num_rows in files.items() for row in range(num_rows)]
        self._places = dict(zip(index["keys"], places, strict=True))
        self._features: dict[str, np.ndarray] = {}

    def __getstate__(self):
        return {**self.__dict__, "_features": {}}  # workers map the files themselves

    def __getitem__(self, key: str) -> torch.Tensor:
        """Features of one image, `(num_patches, hidden_size)`."""
        if key not in self._places:
            raise KeyError(f"No features are cached for the image {key}: build the cache over all images in use.")
        file, row = self._places[key]
        if file not in self._features:
            self._features[file] = np.load(self.folder / file, mmap_mode="r")
        stored = torch.from_numpy(np.array(self._features[file][row]))
        return stored.view(self.dtype) if self.dtype == torch.bfloat16 else stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

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
            model, processor, examples, folder, batch_size, progress_bar: as in [`FeatureCacheBuilder.of_model`].

        Returns:
            [`FeatureCache`].

        Raises:
            ValueError: if there are no images, or the visual tokenizer reads more than patch features.
        """
        return FeatureCacheBuilder.of_model(model, processor, examples, folder, batch_size, progress_bar).build()


class FeatureCacheBuilder:
    """
    Computes the features of every distinct image once, in one go or in parts, or finds that this was done before.

    Parts are made of whole batches, dealt in turns, so that every image is computed beside the same others as in one
    go. They are caches themselves, complete or absent, in the same folder, until the cache is built of them.

    Args:
        tower (`PreTrainedModel`): what they are computed with, to know them again by its weights.
        compute (`Callable`): makes features, `(batch, num_tokens, hidden_size)`, of a list of images.
        settings (`list`): whatever else they depend on, of types that JSON has.
        examples (`Iterable[dict]`): training and evaluation examples.
        dtype (`torch.dtype`): in which they are kept: float32, float16 or bfloat16.
        folder (`str`, *optional*): where caches lie; by default vistok's cache folder. Each cache has a folder of its
            own in it, named after the tower, the preparation of images and the images.
        batch_size (`int`, *optional*, defaults to 32): images per step.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.
        load_options (`dict`, *optional*): of [`load_image`], where images are not to be read as usual.

    Raises:
        ValueError: if there are no images, or the dtype is another.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        compute: Callable[[list[Image.Image]], torch.Tensor],
        settings: list[Any],
        examples: Iterable[Mapping[str, Any]],
        dtype: torch.dtype,
        folder: str | os.PathLike | None = None,
        batch_size: int = 32,
        progress_bar: bool = True,
        load_options: Mapping[str, Any] | None = None,
    ):
        if dtype not in _STORED:
            raise ValueError(f"Features are kept in {', '.join(map(str, _STORED))}, not in {dtype}.")
        images: dict[str, Mapping[str, Any]] = {}
        for example in examples:
            for position, image in enumerate(example.get("images") or []):
                images.setdefault(image_key(image), {**example, "images": [example["images"][position]]})
        if not images:
            raise ValueError("The data has no images, so there are no features to cache: turn the cache off.")
        self._tower, self._compute, self._dtype = tower, compute, dtype
        self._load_options = dict(load_options or {})
        self._settings = [*settings, self._load_options] if load_options else settings
        self._parent = Path(folder) if folder is not None else cache_dir() / "features"
        self._batch_size, self._progress_bar = batch_size, progress_bar
        self._weights = _digest_of_weights(tower)
        self._images, self._target = images, self._folder_of(images)

    @classmethod
    def of_model(
        cls,
        model,
        processor,
        examples: Iterable[Mapping[str, Any]],
        folder: str | os.PathLike | None = None,
        batch_size: int = 32,
        progress_bar: bool = True,
    ) -> "FeatureCacheBuilder":
        """
        Prepares to run the tower of a multimodal model, as its own forward pass does.

        Args:
            model ([`GVTForConditionalGeneration`] or alike): its tower is frozen.
            processor ([`GVTProcessor`] or alike): prepares the images.
            examples, folder, batch_size, progress_bar: as in [`FeatureCacheBuilder`].

        Returns:
            [`FeatureCacheBuilder`].

        Raises:
            ValueError: if there are no images, or the visual tokenizer reads more than patch features.
        """
        core = model.model
        tokenizer = core.visual_tokenizer
        if lacking := lacking_in_cache(tokenizer, model.config.vision_feature_select_strategy):
            raise ValueError(
                f"{type(tokenizer).__name__} reads {', '.join(lacking)} beside the patch features; only these are "
                "cached: train it with cache_features off."
            )

        def compute(batch: list[Image.Image]) -> torch.Tensor:
            pixel_values = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
            return core.get_vision_features(pixel_values.to(core.vision_tower.device)).patch_features

        settings = [
            core.config.vision_feature_layer,
            core.config.vision_feature_select_strategy,
            processor.image_processor.to_json_string(),
        ]
        tower = core.vision_tower
        return cls(tower, compute, settings, examples, tower.dtype, folder, batch_size, progress_bar)

    def build(self, num_parts: int = 1) -> FeatureCache:
        """
        Makes the cache, of what there is of its parts.

        Args:
            num_parts (`int`, *optional*, defaults to 1): how many parts there may be; those that are not there are
                computed first.

        Returns:
            [`FeatureCache`].
        """
        if self._is_built:
            return FeatureCache(self._target)
        parts = self._parts(num_parts)
        if len(parts) == 1:
            with self._replacing_target() as building:
                self._write(building)
            return FeatureCache(self._target)
        with self._replacing_target() as building:
            _gather([part.build() for part in parts], building)
        for part in parts:
            shutil.rmtree(part._target, ignore_errors=True)
        return FeatureCache(self._target)

    def build_parts(self, numbers: Iterable[int], num_parts: int) -> None:
        """
        Computes some parts, unless they are there, or the whole cache.

        Args:
            numbers (`list[int]`): of the parts, from 0 on.
            num_parts (`int`): how many there are.
        """
        parts = self._parts(num_parts)
        for number in numbers:
            if number < len(parts) and not self._is_built:
                parts[number].build()

    def _parts(self, num_parts: int) -> list["FeatureCacheBuilder"]:
        """No more than there are batches; a single one is the whole."""
        keys = list(self._images)
        batches = [keys[start : start + self._batch_size] for start in range(0, len(keys), self._batch_size)]
        parts = [copy.copy(self) for _ in batches[:num_parts]]
        for number, part in enumerate(parts):
            part._images = {key: self._images[key] for batch in batches[number::num_parts] for key in batch}
            part._target = self._folder_of(part._images)
        return parts

    @property
    def _is_built(self) -> bool:
        # Network file systems remember for a while that something was not there, until its folder is listed.
        names = os.listdir(self._parent) if self._parent.is_dir() else []
        return self._target.name in names and (self._target / "index.json").exists()

    def _folder_of(self, images: Iterable[str]) -> Path:
        """Changes with the tower's weights, precision, attention and device, the layer, and the prepared images."""
        device = self._tower.device.type
        settings = [
            self._tower.config.model_type,
            str(self._tower.dtype),
            self._tower.config._attn_implementation,
            device,
            *self._settings,
            sorted(images),
        ]
        if self._dtype != self._tower.dtype:
            settings.append(f"kept in {self._dtype}")
        if torch.is_autocast_enabled(device):
            settings.append(f"autocast {torch.get_autocast_dtype(device)}")
        digest = self._weights.copy()
        digest.update(json.dumps(settings).encode())
        return self._parent / digest.hexdigest()[:24]

    @contextlib.contextmanager
    def _replacing_target(self) -> Iterator[Path]:
        """A folder to fill, which becomes the target unless another process was faster. A failure leaves nothing."""
        self._parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._parent, prefix=".building-") as building:
            finished = Path(building) / "finished"
            finished.mkdir()
            try:
                yield finished
                os.replace(finished, self._target)
            except OSError:
                if not self._is_built:
                    raise

    def _write(self, folder: Path) -> None:
        keys, stored = list(self._images), None
        starts: Sequence[int] = range(0, len(keys), self._batch_size)
        label = "Computing features of the frozen tower"
        for start in logging.tqdm(starts, desc=label, disable=not self._progress_bar):
            some = keys[start : start + self._batch_size]
            batch = [load_example_images(self._images[key], **self._load_options)[0] for key in some]
            with torch.inference_mode():
                features = self._compute(batch).to("cpu", self._dtype)
            if stored is None:
                shape = (len(keys), *features.shape[1:])
                stored = np.lib.format.open_memmap(folder / _FILE, "w+", dtype=_STORED[self._dtype], shape=shape)
            is_bfloat16 = self._dtype == torch.bfloat16
            array = features.view(torch.int16).numpy().view(np.uint16) if is_bfloat16 else features.numpy()
            stored[start : start + len(batch)] = array
        assert stored is not None
        stored.flush()
        del stored
        _write_index(folder, self._dtype, keys)


def _gather(parts: list[FeatureCache], folder: Path) -> None:
    """Makes one cache of several, without a second copy of the features where the disk can do without."""
    files = {}
    for number, part in enumerate(parts):
        file = f"features-{number:05}-of-{len(parts):05}.npy"
        try:
            os.link(part.folder / _FILE, folder / file)
        except OSError:  # a file system without links
            shutil.copyfile(part.folder / _FILE, folder / file)
        files[file] = len(part)
    _write_index(folder, parts[0].dtype, [key for part in parts for key in part], files)


def _write_index(folder: Path, dtype: torch.dtype, keys: list[str], files: dict[str, int] | None = None) -> None:
    index = {"dtype": str(dtype).removeprefix("torch."), "keys": keys}
    (folder / "index.json").write_text(json.dumps(index if files is None else {**index, "files": files}))


def _digest_of_weights(tower):
    digest = hashlib.sha256()
    for name, parameter in tower.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten().contiguous().view(torch.uint8).cpu().numpy())
    return digest


__all__ = ["FeatureCache", "FeatureCacheBuilder"]
