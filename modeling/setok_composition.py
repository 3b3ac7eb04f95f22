"""How the configuration of a SeTok comes about: of a tower, of a diffusion checkpoint, and of what is otherwise."""

from collections.abc import Mapping
from typing import Any

from ..configuration.configuration_image_detokenizer import ImageDetokenizerConfig
from ..configuration.configuration_setok import SeTokConfig
from ..configuration.configuration_setok_vision import SeTokVisionConfig
from .completed_model import without_path


def compose_setok_config(
    tower_config: Any, diffusion: Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> SeTokConfig:
    """
    The configuration of a SeTok of pretrained parts.

    Args:
        tower_config (`PreTrainedConfig`): of its vision tower.
        diffusion (`dict`, *optional*): of its diffusion checkpoint: [`DiffusionParts.configs`].
        overrides (`dict`): fields of [`SeTokConfig`] or of [`SeTokVisionConfig`] that are to be otherwise.

    Raises:
        ValueError: if an override is a field of neither, or follows from the checkpoints.
    """
    given = {name for name in ("base_models", "lora_config") if name in overrides}
    known = set(SeTokConfig.__dataclass_fields__) | set(SeTokVisionConfig.__dataclass_fields__)
    if wrong := sorted((set(overrides) - known) | given):
        raise ValueError(
            f"{', '.join(wrong)}: no field of SeTokConfig or SeTokVisionConfig, or it follows from the checkpoints."
        )
    own = {name: value for name, value in overrides.items() if name in SeTokConfig.__dataclass_fields__}
    vision = _as_dict(own.pop("vision_config", None))
    vision |= {name: value for name, value in overrides.items() if name not in SeTokConfig.__dataclass_fields__}
    if diffusion is not None:
        detokenizer = _as_dict(own.get("detokenizer_config"))
        follows = [name for name in ("unet_config", "vae_config") if detokenizer.get(name) is not None]
        if follows and isinstance(own.get("detokenizer_config"), dict):
            raise ValueError(f"{', '.join(follows)} of detokenizer_config follows from the diffusion checkpoint.")
        chosen = {name: value for name, value in detokenizer.items() if name not in ("unet_config", "vae_config")}
        own["detokenizer_config"] = ImageDetokenizerConfig(**{**diffusion, **chosen})
    return SeTokConfig(vision_config={**vision, "vision_config": without_path(tower_config)}, **own)


def _as_dict(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


__all__ = ["compose_setok_config"]
