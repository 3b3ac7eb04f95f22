"""What the card of a LLaVA with SeTok behind its projector says."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from . import card_facts

KIND = "setok_llava"
"""The type of its config."""


def setok_llava_card_values(folder: Path, results: Any, config: PreTrainedConfig | None) -> dict[str, Any]:
    """
    What the template shows, beside what all cards show.

    Args:
        folder (`Path`): of the model.
        results (`Mapping`): as they stand in `results.json`.
        config (`PreTrainedConfig`, *optional*): the model's.

    Returns:
        `dict`: values of the template.
    """
    parts = getattr(config, "base_models", None) or {}
    names = " and ".join(entry.name for entry in card_facts.base_models(parts, folder) if entry.part in parts)
    image_size = ((results.get("recipe") or {}).get("model") or {}).get("image_size")
    return {
        "summary": f"A LLaVA{f' ({names})' if names else ''} that reads semantic tokens: SeTok clusters the projected "
        "patches of an image, and the language model reads one token for each cluster in place of one for each patch.",
        "architecture": [] if config is None else _architecture(config, image_size),
    }


def _architecture(config: Any, image_size: int | None) -> list[card_facts.Row]:
    setok = config.setok_config
    rows = [
        ("images", f"{image_size} × {image_size} pixels" if image_size else ""),
        ("vision tower", card_facts.tower_in_words(config)),
        ("projector", f"{config.vision_config.hidden_size} → {config.text_config.hidden_size}, two layers"),
        ("clusters", f"{setok.method} method, {setok.assignment} assignment; merged by {setok.merger}"),
        ("visual tokens per image", card_facts.token_count_in_words(setok)),
        ("language model", card_facts.language_model_in_words(config)),
        ("LoRA", card_facts.lora_in_words(config)),
    ]
    return [(name, value) for name, value in rows if value]
