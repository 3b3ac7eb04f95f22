"""What the card of a VT-LMM says, gathered from its config and from what its training recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from . import card_facts
from .card_evaluation import measured_while_training

KIND = "vtlmm"
"""The type of such a model."""

_STAGES = {
    "alignment": ("I, alignment: the adapter learns from captions", "Loss_LM (Eq. 4)"),
    "instruction": ("II, instruction: adapter and language model learn from conversations", "Loss_LM (Eq. 4)"),
    "visual_tokens": (
        "III, visual tokens: the VM head learns from images without text",
        "Loss'_VM = KL(Q‖P') (Eq. 9)",
    ),
    "visual_modeling": (
        "IV, visual modelling: the language model learns from conversations and from the images in them",
        "Loss_LM + Loss_VM, Loss_VM = KL(P'‖Q) (Eq. 6 and 7)",
    ),
}
_MEASURED = {
    "loss_lm": ("text: loss (nats per answer token)", 1.0, "{:.4g}"),
    "answer_accuracy": ("answers right (%)", 100.0, "{:.2f}"),
    "loss_vm": ("images: loss (nats per visual token)", 1.0, "{:.4g}"),
    "visual_perplexity": ("perplexity of visual tokens", 1.0, "{:.4g}"),
    "visual_entropy": ("entropy of visual tokens (nats)", 1.0, "{:.4g}"),
    "punctuation_share": ("most probable word is a punctuation mark (%)", 100.0, "{:.1f}"),
}


def vtlmm_card_values(
    results: Mapping[str, Any], config: PreTrainedConfig | None, models: Sequence[card_facts.BaseModel]
) -> dict[str, Any]:
    """
    What the template of a VT-LMM shows, beside what all cards show.

    Args:
        results (`Mapping`): as they stand in `results.json`.
        config (`PreTrainedConfig`, *optional*): the model's.
        models (`list[BaseModel]`): what it was made of.

    Returns:
        `dict`: values of the template.
    """
    recipe = results.get("recipe") or {}
    model, training = recipe.get("model") or {}, recipe.get("training") or {}
    return {
        "summary": _summary(config, models),
        "architecture": [] if config is None else _architecture(config, model.get("image_size")),
        "stage": _stage(recipe.get("trainer"), training),
        "while_training": measured_while_training(results.get("metrics") or {}, _MEASURED, "loss"),
    }


def _summary(config: PreTrainedConfig | None, models: Sequence[card_facts.BaseModel]) -> str:
    names = {entry.part: f" ({entry.name})" for entry in models}
    count = getattr(getattr(config, "adapter_config", None), "num_tokens", None)
    return (
        f"A VT-LMM, which answers questions about images and reads images as words: a vision tower"
        f"{names.get('vision', '')} sees the image, an adapter turns its {f'{count} ' if count else ''}patches into "
        f"visual tokens, a language model{names.get('text', '')} reads them as if they were words, and a visual "
        "modelling head says of each which words of the vocabulary it stands for."
    )


def _architecture(config: PreTrainedConfig, image_size: int | None) -> list[card_facts.Row]:
    text, adapter = config.text_config, config.adapter_config
    widths = [getattr(adapter, name, None) for name in ("patch_hidden_size", "intermediate_size", "output_size")]
    rank = config.vm_head_rank
    rows = [
        ("images", f"{image_size} × {image_size} pixels, padded to squares" if image_size else ""),
        ("vision tower", card_facts.tower_in_words(config)),
        ("adapter", adapter.model_type if None in widths else " → ".join(map(str, widths))),
        ("visual tokens per image", card_facts.number(getattr(adapter, "num_tokens", "") or "")),
        ("language model", card_facts.language_model_in_words(config)),
        (
            "visual modelling head",
            f"{text.hidden_size} → {card_facts.number(text.vocab_size)}"
            + (f", of rank {rank}" if rank else "")
            + (", random: not trained yet" if config.vm_head_trained is False else ""),
        ),
        ("read by the language model", "pseudo image features (Eq. 8)" if config.pseudo_image_features else ""),
        ("LoRA", card_facts.lora_in_words(config)),
    ]
    return [(name, value) for name, value in rows if value]


def _stage(trainer: Any, training: Mapping[str, Any]) -> list[card_facts.Row]:
    if trainer != "visual-modeling":
        return []
    what, loss = _STAGES.get(training.get("stage") or "alignment", ("", ""))
    weight = training.get("visual_loss_weight")
    if training.get("stage") == "visual_modeling" and weight is not None and weight != 1:
        loss = f"Loss_LM + {weight:g} · Loss_VM" if weight else "Loss_LM alone: a control for visual modelling"
    return [("stage", what), ("loss", loss)] if what else []


__all__ = ["KIND", "vtlmm_card_values"]
