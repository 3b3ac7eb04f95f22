"""What the card of a SeTok says, gathered from what its training recorded."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from . import card_facts

KIND = "setok"
"""The trainer in the recipe of a SeTok, and the type of its config."""

_PHASES = {
    "reconstruction": "stage I-a: its tokens learned to draw the image again",
    "boundaries": "stage I-b: its tokens learned the boundaries of objects",
}
_TOKENS_STAY = "stage I-a: its detokenizer learned to draw images from tokens that stayed as they were"
_MEASURES = {"ari": "adjusted Rand index", "ari_objects": "the same, object patches alone", "iou": "mean best IoU",
             "rank_correlation": "rank correlation of tokens and objects"}  # fmt: skip


def setok_card_values(results: Mapping[str, Any], config: PreTrainedConfig | None = None) -> dict[str, Any]:
    """
    What the template of a SeTok shows, beside what all cards show.

    Args:
        results (`Mapping`): as they stand in `results.json`.
        config (`PreTrainedConfig`, *optional*): the model's.

    Returns:
        `dict`: values of the template.
    """
    draws = config is None or getattr(config, "detokenizer_config", None) is not None
    decoders = "decoders for masks and images" if draws else "a decoder for masks"
    recipe = results.get("recipe") or {}
    training = recipe.get("training") or {}
    name = training.get("phase") or "reconstruction"
    stay = name == "reconstruction" and (training.get("trainable") or {}).get("merger") == "frozen"
    phase = _TOKENS_STAY if stay else _PHASES.get(name, "stage I")
    return {
        "summary": "A SeTok: a vision tower whose patches are clustered into as many visual tokens as the image has "
        f"parts, with {decoders}. It was trained in {phase}.",
        "architecture": [] if config is None else _architecture(config, (recipe.get("model") or {}).get("image_size")),
        "trainable": _trainable(config, name, draws, training.get("trainable") or {}),
        "clusters": _clusters(results.get("clusters") or {}),
        "while_training": _while_training(results.get("metrics") or {}),
    }


def _architecture(config: Any, image_size: int | None) -> list[card_facts.Row]:
    vision, masks = config.vision_config, getattr(config, "mask_decoder_config", None)
    rows = [
        ("images", f"{image_size} × {image_size} pixels" if image_size else ""),
        ("vision tower", card_facts.tower_in_words(vision)),
        ("clusters", clusters_in_words(vision)),
        ("merger", f"{vision.merger}, {vision.merger_num_layers} layers" if vision.merger == "attention" else "mean"),
        ("visual tokens", f"{card_facts.number(vision.output_size or vision.patch_hidden_size)} wide"),
        ("mask decoder", "none" if masks is None else f"{masks.num_hidden_layers} layers, {masks.hidden_size} wide"),
        ("draws images", drawing_in_words(config)),
    ]
    return [(name, value) for name, value in rows if value]


def clusters_in_words(config: Any) -> str:
    """How patches become tokens, of the config of a SeTok's vision model or tokenizer."""
    return f"{config.method}, {config.assignment}, {config.min_tokens} to {config.max_tokens} of an image"


def drawing_in_words(config: Any) -> str:
    """What a SeTok draws images with."""
    has_detokenizer = getattr(config, "detokenizer_config", None) is not None
    return "with its own diffusion model" if has_detokenizer else "no: it has no detokenizer"


def _trainable(config: Any, phase: str, draws: bool, changed: Mapping[str, str]) -> list[card_facts.Row]:
    is_of_phase = config is not None and (draws or phase == "boundaries")
    modes = {**(config.phase_trainable(phase) if is_of_phase else {}), **changed}
    return [(part, card_facts.MODES.get(mode, mode)) for part, mode in modes.items()]


def _clusters(measured: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [name, row["label"], *(_estimate(row.get(key)) for key in _MEASURES)]
        for name, found in measured.items()
        for row in found.get("rows") or []
    ]
    return [["on", "tokens", *_MEASURES.values()], *rows] if rows else []


def _estimate(found: Any) -> str:
    if not isinstance(found, Mapping) or found.get("value") is None:
        return "–"
    interval = found.get("interval")
    between = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{found['value']:.3f}{between}"


def _while_training(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [name.removeprefix("eval_").replace("_", " "), f"{value:.4g}"]
        for name, value in sorted(metrics.items())
        if isinstance(value, int | float) and not name.endswith(("runtime", "per_second"))
    ]
    return [["measure", "value"], *rows] if rows else []


__all__ = ["KIND", "clusters_in_words", "drawing_in_words", "setok_card_values"]
