"""U-Nets, VAEs and schedulers of diffusers: built from configs, or loaded from a checkpoint such as SD v1.5."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from transformers.utils import cached_file

from ..configuration.optional import require
from .base_weights import resolve_checkpoint
from .trained_weights import CheckpointError

EXTRA = "generation"


@dataclass(frozen=True)
class DiffusionParts:
    """
    What is used of a diffusion checkpoint. Its text encoder is not.

    Args:
        unet (`UNet2DConditionModel`): the U-Net.
        vae (`AutoencoderKL` or `None`): `None` for a U-Net that works on pixels.
        scheduler_config (`dict`): of its scheduler, `_class_name` among the arguments.
    """

    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]

    @property
    def configs(self) -> dict[str, Any]:
        """Fields of [`ImageDetokenizerConfig`]."""
        return {
            "unet_config": constructor_arguments(self.unet.config),
            "vae_config": None if self.vae is None else constructor_arguments(self.vae.config),
            "scheduler_config": self.scheduler_config,
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights by the names that they have in an [`ImageDetokenizer`]."""
        weights = {f"unet.{name}": tensor for name, tensor in self.unet.state_dict().items()}
        if self.vae is not None:
            weights |= {f"vae.{name}": tensor for name, tensor in self.vae.state_dict().items()}
        return weights


def constructor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config of diffusers that are arguments: all but its notes, which begin with `_`."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def build_unet(config: Mapping[str, Any]) -> Any:
    """
    A `UNet2DConditionModel` with random weights.

    Args:
        config (`dict`): its arguments.

    Raises:
        ImportError: if the extra `generation` is not installed.
        ValueError: if it has no such arguments, or they do not fit one another.
    """
    return _built("UNet2DConditionModel", config, "unet_config")


def build_vae(config: Mapping[str, Any]) -> Any:
    """
    An `AutoencoderKL` with random weights.

    Args:
        config (`dict`): its arguments.

    Raises:
        ImportError: if the extra `generation` is not installed.
        ValueError: if it has no such arguments, or they do not fit one another.
    """
    return _built("AutoencoderKL", config, "vae_config")


def build_scheduler(config: Mapping[str, Any], class_name: str | None = None) -> Any:
    """
    A scheduler.

    Args:
        config (`dict`): its arguments, and `_class_name`.
        class_name (`str`, *optional*): another scheduler for the same noise. By default the one that the config names,
            or `"DDIMScheduler"`.

    Raises:
        ImportError: if the extra `generation` is not installed.
        ValueError: if diffusers has no such scheduler, or it is one of flow matching.
    """
    diffusers = require("diffusers", EXTRA)
    name = class_name or config.get("_class_name", "DDIMScheduler")
    scheduler_class = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if scheduler_class is None:
        raise ValueError(
            f"scheduler_config has _class_name={name!r}, which is no scheduler of diffusers: choose DDIMScheduler, "
            "DDPMScheduler, PNDMScheduler, DPMSolverMultistepScheduler …"
        )
    if not hasattr(scheduler_class, "add_noise"):
        raise ValueError(
            f"scheduler_config has _class_name={name!r}, which samples with other noise (flow matching) than the "
            "U-Net is trained with: choose DDIMScheduler, DDPMScheduler, PNDMScheduler …"
        )
    return scheduler_class.from_config(constructor_arguments(config))


def load_diffusion_parts(name_or_path: str, **hub_options) -> DiffusionParts:
    """
    Loads the U-Net, the VAE if there is one, and the scheduler's config of a diffusion checkpoint.

    Args:
        name_or_path (`str`): folder in the format of diffusers, or Hub id, such as that of SD v1.5.
        hub_options: `revision`, `token`, … as in `from_pretrained`.

    Raises:
        ImportError: if the extra `generation` is not installed.
        CheckpointError: if it is no diffusion checkpoint with a conditional U-Net, incomplete or damaged.
    """
    diffusers = require("diffusers", EXTRA)
    path = resolve_checkpoint(name_or_path)
    with _one_error(name_or_path):
        with open(cached_file(path, "model_index.json", **hub_options), encoding="utf-8") as file:
            index = json.load(file)
        if index.get("unet", [None, None])[1] != "UNet2DConditionModel":
            raise ValueError(f"its U-Net is {index.get('unet')}, not a UNet2DConditionModel")
        unet = diffusers.UNet2DConditionModel.from_pretrained(path, subfolder="unet", **hub_options)
        vae = None
        if index.get("vae", [None, None])[1] is not None:
            vae = diffusers.AutoencoderKL.from_pretrained(path, subfolder="vae", **hub_options)
        found = cached_file(path, "scheduler_config.json", subfolder="scheduler", **hub_options)
        with open(found, encoding="utf-8") as file:
            scheduler_config = json.load(file)
    return DiffusionParts(unet, vae, _scheduler_arguments(scheduler_config))


def read_diffusion_configs(name_or_path: str, **hub_options) -> dict[str, Any]:
    """
    What [`DiffusionParts.configs`] are of a diffusion checkpoint, without its weights, and without diffusers.

    Args:
        name_or_path (`str`), hub_options: as in [`load_diffusion_parts`].

    Returns:
        `dict`: fields of [`ImageDetokenizerConfig`].

    Raises:
        OSError: if a file is missing.
        ValueError: if one cannot be read.
    """

    def read(file: str, **where: str) -> dict[str, Any]:
        found = cached_file(resolve_checkpoint(name_or_path), file, **where, **hub_options)
        with open(found, encoding="utf-8") as opened:
            return json.load(opened)

    has_vae = read("model_index.json").get("vae", [None, None])[1] is not None
    return {
        "unet_config": constructor_arguments(read("config.json", subfolder="unet")),
        "vae_config": constructor_arguments(read("config.json", subfolder="vae")) if has_vae else None,
        "scheduler_config": _scheduler_arguments(read("scheduler_config.json", subfolder="scheduler")),
    }


def _scheduler_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return constructor_arguments(config) | {"_class_name": config.get("_class_name", "DDIMScheduler")}


def _built(class_name: str, config: Mapping[str, Any], field: str) -> Any:
    diffusers = require("diffusers", EXTRA)
    try:
        return getattr(diffusers, class_name)(**constructor_arguments(config))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{field} does not make a {class_name} of diffusers: {error}") from error


@contextlib.contextmanager
def _one_error(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded as a diffusion checkpoint ({error}): a folder or Hub id in the format of "
            "diffusers is expected, with model_index.json, unet/, scheduler/ and, for latent diffusion, vae/."
        ) from error


__all__ = [
    "DiffusionParts",
    "build_scheduler",
    "build_unet",
    "build_vae",
    "constructor_arguments",
    "load_diffusion_parts",
    "read_diffusion_configs",
]
