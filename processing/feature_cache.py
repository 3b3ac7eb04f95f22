"""Features of a frozen vision tower, computed once per image and kept on disk."""

import contextlib
import copy
import functools
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
from .images import image_key, is_turned, load_example_images

logger = logging.get_logger(__name__)

# numpy has no bfloat16: its bits are stored as 16-bit integers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}
_FILE = "features.npy"
_IMAGES_AT_RISK = 1024


class FeatureCache(Mapping):
    """
    Tower features by image key, read from memory-mapped files.

    Args:
        folder (`str`): made by [`FeatureCache.build`] or a [`FeatureCacheBuilder`]; holds `index.json`, and
            `features.npy`, files of the parts that it was built in, or of caches that had some of its images before.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text())
        self.dtype = getattr(torch, index["dtype"])
        self.made_by: str | None = index.get("made_by")
        files = index.get("files", {_FILE: len(index["keys"])})
        rows = {file: range(found) if isinstance(found, int) else found for file, found in files.items()}
        places = [(file, row) for file, of_file in rows.items() for row in of_file]
        self._places: dict[str, tuple[str, int]] = dict(zip(index["keys"], places, strict=True))
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

    def files_of(self, keys: Iterable[str]) -> dict[str, dict[str, int]]:
        """Of images that are here, the row of each by file."""
        found: dict[str, dict[str, int]] = {}
        for key in keys:
            file, row = self._places[key]
            found.setdefault(file, {})[key] = row
        return found

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
    Computes the features of every distinct image once, in one go or in parts, or finds that this was done before: for
    all of the images, or for some of them in other caches of the folder, whose files are then linked.

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
        load_options (`dict`, *optional*): of [`load_image`], where images are not to be read as usual. They count only
            if one of the images is turned by its EXIF data, which is all that they can change.

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
        has_effect = bool(load_options) and any(is_turned(example["images"][0]) for example in images.values())
        self._settings = [*settings, self._load_options] if has_effect else settings
        self._parent = Path(folder) if folder is not None else cache_dir() / "features"
        self._batch_size, self._progress_bar = batch_size, progress_bar
        self._weights = _digest_of_weights(tower)
        self._images: dict[str, Mapping[str, Any]] = images
        self._target = self._folder_of(images)

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

        config, image_processor = core.config, processor.image_processor
        settings = feature_settings(
            config.vision_feature_layer, image_processor, config.vision_feature_select_strategy
        )
        tower = core.vision_tower
        return cls(tower, compute, settings, examples, tower.dtype, folder, batch_size, progress_bar)

    def build(self, num_parts: int = 1) -> FeatureCache:
        """
        Makes the cache, of what there is of its parts. A part of more than a thousand images or so is made in parts
        itself, so that a process that is killed loses minutes.

        Args:
            num_parts (`int`, *optional*, defaults to 1): how many parts there may be; those that are not there are
                computed first.

        Returns:
            [`FeatureCache`].
        """
        if self._is_built:
            return FeatureCache(self._target)
        parts = self._parts(num_parts if num_parts > 1 else -(-len(self._images) // _IMAGES_AT_RISK))
        if len(parts) == 1:
            with self._replacing_target() as building:
                self._write(building)
            return FeatureCache(self._target)
        with self._replacing_target() as building:
            linked = _linked([(part, list(part)) for part in (part.build() for part in parts)], building)
            _write_index(building, self._dtype, self._made_by, linked)
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
        """Changes with whatever the features depend on, and with the images."""
        return self._parent / hashlib.sha256(json.dumps([self._made_by, sorted(images)]).encode()).hexdigest()[:24]

    @functools.cached_property
    def _made_by(self) -> str:
        """Changes with weights, precision, attention and device of the tower, its layer, and the image processor."""
        device = self._tower.device.type
        settings = [
            self._tower.config.model_type,
            str(self._tower.dtype),
            self._tower.config._attn_implementation,
            device,
            *self._settings,
        ]
        if self._dtype != self._tower.dtype:
            settings.append(f"kept in {self._dtype}")
        if torch.is_autocast_enabled(device):
            settings.append(f"autocast {torch.get_autocast_dtype(device)}")
        digest = self._weights.copy()
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()

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
        linked = _linked(self._known_elsewhere(), folder)
        known = {key for rows in linked.values() for key in rows}
        new = [key for key in self._images if key not in known]
        self._compute_features(new, folder)
        _write_index(folder, self._dtype, self._made_by, {**linked, _FILE: dict(zip(new, range(len(new))))})

    def _known_elsewhere(self) -> list[tuple[FeatureCache, list[str]]]:
        """Other caches of the same features, and which of the images each has that those before it lack."""
        missing, found = set(self._images), []
        for name in sorted(os.listdir(self._parent)) if self._parent.is_dir() else []:
            if name.startswith(".") or not (self._parent / name / "index.json").is_file():
                continue
            try:
                cache = FeatureCache(self._parent / name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # just removed, or not vistok's
                continue
            keys = [key for key in self._images if key in missing and key in cache]
            if cache.made_by == self._made_by and keys:
                found.append((cache, keys))
                missing -= {*keys}
        return found

    def _compute_features(self, keys: Sequence[str], folder: Path) -> None:
        if not keys:
            return
        stored = None
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


def feature_settings(layer: Any, image_processor: Any, select_strategy: str = "default") -> list[Any]:
    """
    What features of a tower depend on beside its weights, for a [`FeatureCacheBuilder`]: whoever says the same shares
    caches.

    Args:
        layer (`int` or `"final"`): of the tower.
        image_processor: of transformers; prepares the images.
        select_strategy (`str`, *optional*, defaults to `"default"`): `"default"` leaves [CLS] and registers out.
    """
    prepared = json.loads(image_processor.to_json_string())
    # Some classes say that they do not crop or pad, others say nothing of it.
    prepared |= {name: bool(getattr(image_processor, name, None)) for name in ("do_center_crop", "do_pad")}
    return [layer, select_strategy, json.dumps(prepared, sort_keys=True)]


def _linked(known: Iterable[tuple[FeatureCache, list[str]]], folder: Path) -> dict[str, dict[str, int]]:
    """Links files of caches, without a second copy where the disk can do without; the row of each image by file."""
    linked: dict[str, dict[str, int]] = {}
    for cache, keys in known:
        for file, rows in cache.files_of(keys).items():
            name = f"features-{len(linked):05}.npy"
            try:
                os.link(cache.folder / file, folder / name)
            except OSError:  # a file system without links
                try:
                    shutil.copyfile(cache.folder / file, folder / name)
                except FileNotFoundError:  # removed in the meantime: its images are computed
                    continue
            linked[name] = rows
    return linked


def _write_index(folder: Path, dtype: torch.dtype, made_by: str, files: Mapping[str, Mapping[str, int]]) -> None:
    index = {
        "dtype": str(dtype).removeprefix("torch."),
        "made_by": made_by,
        "files": {file: list(rows.values()) for file, rows in files.items() if rows},
        "keys": [key for rows in files.values() for key in rows],
    }
    (folder / "index.json").write_text(json.dumps(index))


def _digest_of_weights(tower):
    digest = hashlib.sha256()
    for name, parameter in tower.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten().contiguous().view(torch.uint8).cpu().numpy())
    return digest


__all__ = ["FeatureCache", "FeatureCacheBuilder", "feature_settings"]
