"""What the card of a Setokim says, gathered from its config."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from . import card_facts

KIND = "setokim"
"""The type of such a model."""


def setokim_card_values(folder: Path, config: PreTrainedConfig | None) -> dict[str, Any]:
    """
    What the template of a Setokim shows, beside what all cards show.

    Args:
        folder (`Path`): of the model.
        config (`PreTrainedConfig`, *optional*): the model's.

    Returns:
        `dict`: values of the template.
    """
    models = card_facts.base_models(getattr(config, "base_models", None), folder)
    names = {entry.part: f" ({entry.name})" for entry in models}
    return {
        "summary": f"A Setokim, which reads and writes images: SeTok{names.get('vision', '')} clusters the patches of "
        "an image into as many visual tokens as it has parts, and a language model"
        f"{names.get('text', '')} reads them among words and writes them, from which decoders make masks and images.",
        "architecture": [] if config is None else _architecture(config),
        "draws": getattr(getattr(config, "setok_config", None), "detokenizer_config", None) is not None,
        "losses": _losses(config),
    }


def _architecture(config: PreTrainedConfig) -> list[card_facts.Row]:
    vision: Any = config.setok_config.vision_config
    return [
        ("vision tower", card_facts.tower_in_words(vision)),
        ("clusters", f"density peaks, {vision.method}, assignment {vision.assignment}, at most {vision.max_tokens}"),
        ("decoders", " and ".join(_decoders(config)) or "none"),
        ("language model", card_facts.language_model_in_words(config)),
        *([("LoRA", lora)] if (lora := card_facts.lora_in_words(config)) else []),
    ]


def _decoders(config: PreTrainedConfig) -> list[str]:
    setok: Any = config.setok_config
    named = {"masks": setok.mask_decoder_config, "images": setok.detokenizer_config}
    return [name for name, decoder in named.items() if decoder is not None]


def _losses(config: PreTrainedConfig | None) -> list[card_facts.Row]:
    if config is None:
        return []
    return [
        ("next word", "1"),
        ("regression of visual tokens", f"{config.visual_loss_weight:g}"),
        ("one more visual token", f"{config.length_loss_weight:g}"),
    ]


__all__ = ["KIND", "setokim_card_values"]
