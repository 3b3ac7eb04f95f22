"""What a model was made of over all its runs: base models, and data that earlier runs were trained on."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..modeling.base_weights import PREFIX, shipped_checkpoint
from .card_facts import BaseModel, base_models, is_hub_id, source_label
from .published_text import base_name, is_absolute
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
        `dict`: of that run and those before it `base_models`, by part, `data`, the data sources, and `licences`, one
        for each folder: its `name` and its `license`, which may be `None`. Empty where there is no such folder.
    """
    if start is None or not Path(start, CONFIG_NAME).is_file():
        return {}
    recorded = read_results(start)
    before, recipe = recorded.get(EARLIER) or {}, recorded.get("recipe") or {}
    name = _public(os.fspath(start))
    own = json.loads(Path(start, CONFIG_NAME).read_bytes()).get("base_models")
    if own is None:
        own = _of_recipe(recipe.get("model") or {})
    if checkpoint := _named_start(recorded):
        own = {**own, f"start of {name}": checkpoint}
    data = [*(before.get("data") or []), *((recipe.get("data") or {}).get("train") or [])]
    licence = {"name": name, "license": (recorded.get("card") or {}).get("license")}
    ships = shipped_checkpoint(PREFIX + Path(start).name) == Path(start)  # and is named with its licence
    return {
        "base_models": {**_parts_of_parts(before.get("base_models") or {}, own), **own},
        "data": [source for place, source in enumerate(data) if source not in data[:place]],
        "licences": [*(before.get("licences") or []), *([] if ships else [licence])],
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
    if start := _named_start(results):
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


def licences_of_earlier_runs(results: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """
    Under which licences the folders are that a model was trained on from.

    Args:
        results (`Mapping`): as they stand in `results.json`.

    Returns:
        `tuple[list[tuple[str, str, str]], list[str]]`: what, where from and under which licence; and the names of the
        folders that have no recorded licence.
    """
    found = (results.get(EARLIER) or {}).get("licences") or []
    rows = [(f"`{run['name']}`", "an earlier run", run["license"]) for run in found if run["license"]]
    return rows, [run["name"] for run in found if not run["license"]]


def data_of_earlier_runs(results: Mapping[str, Any]) -> str:
    """By which names cards call what earlier runs of a model were trained on, with commas between."""
    return ", ".join(dict.fromkeys(map(source_label, data_of_all_runs(results, []))))


def _named_start(results: Mapping[str, Any]) -> str:
    """The checkpoint that a run started from, if it can be had by a name: it ships, or the Hub has it."""
    start = str(((results.get("recipe") or {}).get("model") or {}).get("checkpoint") or "")
    was_no_folder = results.get(EARLIER) == {}  # of a folder something is recorded
    return start if shipped_checkpoint(start) or (was_no_folder and is_hub_id(start)) else ""


def _parts_of_parts(before: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Base models of an earlier run, where a part of its own took their place: the tower of the SeTok of a Setokim."""
    return {
        f"{part} of {_public(own[part])}" if part in own and own[part] != name else part: name
        for part, name in before.items()
    }


def _public(name: str) -> str:
    return base_name(name) if is_absolute(name) else name


def _of_recipe(model: Mapping[str, Any]) -> dict[str, str]:
    """Base models as a recipe names them; none where it starts from a checkpoint, which has its own."""
    if model.get("checkpoint"):
        return {}
    return {part: str(model[part]) for part in PARTS if model.get(part)}


__all__ = [
    "EARLIER",
    "data_of_all_runs",
    "data_of_earlier_runs",
    "licences_of_earlier_runs",
    "made_of_earlier",
    "models_made_of",
]
