"""What the card of a vision tower says that no training described: of one that was converted, for instance."""

from typing import Any

from transformers import PreTrainedConfig

from . import card_facts

KINDS = ("eva_vision", "setok_vision")
"""The types of such models."""


def tower_card_values(config: PreTrainedConfig) -> dict[str, Any]:
    """
    What the template of a tower shows, beside what all cards show.

    Args:
        config (`PreTrainedConfig`): of the tower.

    Returns:
        `dict`: values of the template.
    """
    clusters_patches = config.model_type == "setok_vision"
    size = getattr(config, "image_size", None)
    rows = [
        ("images", f"{size} × {size} pixels" if isinstance(size, int) else ""),
        ("patches", f"{config.patch_size} × {config.patch_size} pixels" if hasattr(config, "patch_size") else ""),
        ("layers", card_facts.kind_in_words(config) if not clusters_patches else ""),
        ("vision tower", card_facts.tower_in_words(config) if clusters_patches else ""),
        ("clusters", _clusters(config) if clusters_patches else ""),
    ]
    return {
        "summary": "A vision tower with the visual tokenizer SeTok: it clusters the patches of an image into as many "
        "tokens as the image has parts."
        if clusters_patches
        else "A vision tower: EVA-02, the vision transformer of EVA-CLIP, in the layout of transformers.",
        "clusters_patches": clusters_patches,
        "tower": [(name, value) for name, value in rows if value],
    }


def _clusters(config: Any) -> str:
    return f"density peaks, {config.method}, assignment {config.assignment}, at most {config.max_tokens}"


__all__ = ["KINDS", "tower_card_values"]
