"""Tiny models of every kind in folders as a training ends with them, for tests of what is published."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.tiny import pixels, tiny_eva_config, tiny_gvt, tiny_image_processor, tiny_processor
from tests.tiny_kinds import tiny_vtlmm, tiny_vtlmm_processor
from tests.tiny_llava import tiny_llava_processor, tiny_setok_llava
from tests.tiny_setokim import tiny_setok_config, tiny_setok_vision_config, tiny_setokim, tiny_setokim_processor
from vistok import EvaVisionModel, SeTokForPreTraining, SeTokVisionModel

QUESTION = "<image>\nQuestion: how many cats are there? Answer:"


def _tiny_setok():
    return SeTokForPreTraining(tiny_setok_config()).eval()


def _tiny_setok_vision():
    return SeTokVisionModel(tiny_setok_vision_config()).eval()


def _tiny_eva():
    return EvaVisionModel(tiny_eva_config()).eval()


# Kind → model, and what prepares its images.
KINDS: dict[str, tuple[Callable, Callable]] = {
    "gvt": (tiny_gvt, tiny_processor),
    "vtlmm": (tiny_vtlmm, tiny_vtlmm_processor),
    "setokim": (tiny_setokim, tiny_setokim_processor),
    "setok": (_tiny_setok, tiny_image_processor),
    "setok_vision": (_tiny_setok_vision, tiny_image_processor),
    "setok_llava": (tiny_setok_llava, tiny_llava_processor),
    "eva_vision": (_tiny_eva, tiny_image_processor),
}


def save_kind(kind: str, folder: Path):
    """A tiny model of a kind, saved with its processor."""
    torch.manual_seed(1)
    model, processor = (make() for make in KINDS[kind])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def features_of(model) -> list[float]:
    """A few numbers that any of these models makes of an image: equal only where all weights before them are."""
    image = pixels(1, seed=3)
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(image).pooler_output[0]
        elif hasattr(model, "vision_model"):
            found = model.vision_model(image).tokens
        else:
            found = model(image).last_hidden_state
    return [round(value, 4) for value in found.flatten()[:8].tolist()]


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Puts generated files into a folder."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def auto_map(folder: Path, name: str = "config.json") -> dict[str, str]:
    """What a config says of its code."""
    return json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map", {})
