"""What the card of a Setokim says, gathered from its config and from what its training recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from . import card_facts
from .card_evaluation import measured_while_training
from .setok_card import clusters_in_words, drawing_in_words

KIND = "setokim"
"""The trainer in the recipe of a Setokim, and the type of its config."""

_STAGES = {
    "pretraining": "II, multimodal pre-training: it learned to read and to write visual tokens",
    "instruction": "III, instruction tuning: conversations, expressions to segment, images to draw and to edit",
}
_MEASURED = {
    "loss_lm": ("text: loss (nats per label)", 1.0, "{:.4g}"),
    "answer_accuracy": ("answers right (%)", 100.0, "{:.2f}"),
    "loss_visual": ("visual tokens: squared error", 1.0, "{:.4g}"),
    "loss_length": ("one more visual token (nats)", 1.0, "{:.4g}"),
    "loss_choice": ("visual tokens among real ones (nats)", 1.0, "{:.4g}"),
    "ciou": ("cIoU (%)", 100.0, "{:.1f}"),
    "giou": ("gIoU (%)", 100.0, "{:.1f}"),
}


def setokim_card_values(
    results: Mapping[str, Any], config: PreTrainedConfig | None, models: Sequence[card_facts.BaseModel]
) -> dict[str, Any]:
    """
    What the template of a Setokim shows, beside what all cards show.

    Args:
        results (`Mapping`): as they stand in `results.json`.
        config (`PreTrainedConfig`, *optional*): the model's.
        models (`list[BaseModel]`): what it was made of.

    Returns:
        `dict`: values of the template.
    """
    recipe = results.get("recipe") or {}
    training = recipe.get("training") or {}
    detokenizer = getattr(getattr(config, "setok_config", None), "detokenizer_config", None)
    return {
        "summary": _summary(models),
        "architecture": [] if config is None else _architecture(config, (recipe.get("model") or {}).get("image_size")),
        "draws": config is not None and detokenizer is not None,
        "stage": _stage(recipe.get("trainer"), training),
        "while_training": measured_while_training(results.get("metrics") or {}, _MEASURED, "loss_lm"),
    }


def _summary(models: Sequence[card_facts.BaseModel]) -> str:
    names = {entry.part: f" ({entry.name})" for entry in models}
    return (
        f"A Setokim, which reads text and images and writes both: SeTok{names.get('vision', '')} clusters an image "
        f"into as many visual tokens as it has parts, a language model{names.get('text', '')} reads them among its "
        "text and writes them, and SeTok's decoders turn what it wrote into images and masks."
    )


def _architecture(config: Any, image_size: int | None) -> list[card_facts.Row]:
    vision, text = config.tokenizer_config, config.text_config
    token_size = vision.output_size or vision.patch_hidden_size
    bank = getattr(config, "token_bank_size", 0)
    rows = [
        ("images", f"{image_size} × {image_size} pixels" if image_size else ""),
        ("vision tower", card_facts.tower_in_words(config)),
        ("clusters", clusters_in_words(vision)),
        ("visual tokens", f"{card_facts.number(token_size)} wide"),
        ("projections", f"{token_size} → {text.hidden_size} and back"),
        ("language model", card_facts.language_model_in_words(config)),
        ("written tokens", f"chosen among {card_facts.number(bank)} real ones" if bank else ""),
        ("draws images", drawing_in_words(config.setok_config)),
        ("LoRA", card_facts.lora_in_words(config)),
    ]
    return [(name, value) for name, value in rows if value]


def _stage(trainer: Any, training: Mapping[str, Any]) -> list[card_facts.Row]:
    if trainer != KIND:
        return []
    stage = _STAGES.get(training.get("stage") or "pretraining", "")
    return [("stage", stage)] if stage else []


__all__ = ["KIND", "setokim_card_values"]
