"""What a model was made of over all its runs: base models, and data that earlier runs were trained on."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..modeling.base_weights import shipped_checkpoint
from .card_facts import BaseModel, base_models, is_hub_id
from .run_results import read_results

EARLIER = "earlier"
"""Of a run's results: what the folder that it started from was made of."""

PARTS = ("vision", "text", "diffusion", "bert", "llava")
"""Fields of a recipe's section `model` that name base models."""


def made_of_earlier(start: str | os.PathLike | None) -> dict[str, Any]:
    """
    What a run takes over from the folder that it starts from.

    Args:
        start (`str`, *optional*): folder of an earlier run, or of what ships; of the Hub nothing is read.

    Returns:
        `dict`: `base_models`, by part, and `data`, the data sources of that run and those before it. Empty where there
        is no such folder.
    """
    if start is None or not Path(start, CONFIG_NAME).is_file():
        return {}
    recorded = read_results(start)
    before, recipe = recorded.get(EARLIER) or {}, recorded.get("recipe") or {}
    own = json.loads(Path(start, CONFIG_NAME).read_bytes()).get("base_models")
    if own is None:
        own = _of_recipe(recipe.get("model") or {})
    data = [*(before.get("data") or []), *((recipe.get("data") or {}).get("train") or [])]
    return {
        "base_models": {**(before.get("base_models") or {}), **own},
        "data": [source for place, source in enumerate(data) if source not in data[:place]],
    }


def models_made_of(config: PreTrainedConfig | None, results: Mapping[str, Any], folder: Path) -> list[BaseModel]:
    """
    The pretrained parts of a model: those that it was composed of, what it started from if that can be had by a name,
    and the parts of that.

    Args:
        config (`PreTrainedConfig`, *optional*): the model's.
        results (`Mapping`): as they stand in `results.json`.
        folder (`Path`): of the model, beside which relative folders may lie.
    """
    model = (results.get("recipe") or {}).get("model") or {}
    # The config names the folders of base models in full; only their last component goes further.
    own = getattr(config, "base_models", None)
    found = base_models(_of_recipe(model) if own is None else own, folder)
    start = str(model.get("checkpoint") or "")
    was_no_folder = results.get(EARLIER) == {}  # of a folder something is recorded
    if shipped_checkpoint(start) or (was_no_folder and is_hub_id(start)):
        found += base_models({"start": start}, folder)
    for entry in base_models((results.get(EARLIER) or {}).get("base_models"), folder):
        if entry.name not in [known.name for known in found]:
            found.append(entry if own is None else replace(entry, part=f"{entry.part} of an earlier run"))
    return found


def data_of_all_runs(results: Mapping[str, Any], sources: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """
    The data that a model was trained on, in earlier runs and in the last one.

    Args:
        results (`Mapping`): as they stand in `results.json`.
        sources (iterable of `Mapping`): the data of the last run.
    """
    return [*((results.get(EARLIER) or {}).get("data") or []), *sources]


def _of_recipe(model: Mapping[str, Any]) -> dict[str, str]:
    """Base models as a recipe names them; none where it starts from a checkpoint, which has its own."""
    if model.get("checkpoint"):
        return {}
    return {part: str(model[part]) for part in PARTS if model.get(part)}


__all__ = ["EARLIER", "data_of_all_runs", "made_of_earlier", "models_made_of"]
