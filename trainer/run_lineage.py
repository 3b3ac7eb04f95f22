"""Which run a folder holds: of which recipe, and what it started from."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..hub_cards.card_facts import is_hub_id
from ..hub_cards.published_text import base_name, published_values
from ..hub_cards.run_results import read_results
from ..modeling.base_weights import shipped_checkpoint
from ..modeling.trained_weights import TRAINED_WEIGHTS_NAME
from .recipe_sections import Recipe
from .training_record import what_must_stay

STARTED_FROM = "started_from"
"""Of a run's results and records: the sha256 of the weights that it started from."""

_LENGTH = ("max_steps", "num_train_epochs")


def is_checkpoint(name: str | os.PathLike) -> bool:
    """
    Whether a model can be started from, as far as a folder shows it. Of the Hub it is not asked.

    Args:
        name (`str`): folder or Hub id.
    """
    folder = Path(name)
    if folder.is_dir():
        return (folder / CONFIG_NAME).is_file() and bool(_weights(folder))
    return is_hub_id(os.fspath(name)) and not folder.parent.is_dir()


def weights_digest(name: str | os.PathLike | None) -> str | None:
    """
    Tells apart the weights in a folder.

    Args:
        name (`str`, *optional*): folder or Hub id.

    Returns:
        `str`: sha256 over all files of weights, in hexadecimal; `None` if this is no folder.
    """
    if name is None or not Path(name).is_dir():
        return None
    digest = hashlib.sha256()
    for path in _weights(Path(name)):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def described_run(recipe: Recipe) -> dict[str, Any]:
    """
    What a run is, for the record in its checkpoints: its recipe, and the weights that it starts from.

    Args:
        recipe ([`Recipe`]): of the run.
    """
    digest = weights_digest(start_of(recipe))
    return {**recipe.to_dict(), **({} if digest is None else {STARTED_FROM: digest})}


def start_of(recipe: Recipe) -> str | None:
    """
    The folder, or the Hub id, of what an earlier run left and a recipe starts from; for the name of what ships with
    vistok its folder.

    Args:
        recipe ([`Recipe`]): of the run.
    """
    model: Any = getattr(recipe, "model", None)
    start = getattr(model, "starts_from", getattr(model, "checkpoint", None))
    shipped = shipped_checkpoint(start) if start is not None else None
    return start if shipped is None else str(shipped)


def run_is_finished(recipe: Recipe) -> bool:
    """
    Whether the output folder of a recipe holds its run, at its end, from the weights that it would start from now.

    Args:
        recipe ([`Recipe`]): of the run.
    """
    folder = Path(recipe.training.get("output_dir") or "trainer_output")
    if not is_checkpoint(folder):
        return False
    recorded, described = read_results(folder), described_run(recipe)
    if recorded.get(STARTED_FROM) != described.pop(STARTED_FROM, None):
        return False
    before, now = recorded.get("recipe") or {}, json.loads(json.dumps(published_values(described)))
    for name in ("vision", "text"):  # a run records the base models also where a checkpoint names them
        asked, found = ((one.get("model") or {}).get(name) for one in (now, before))
        if asked is None or (found and base_name(asked) == base_name(found)):  # of a folder its last component
            before = {**before, "model": {**(before.get("model") or {}), name: asked}}
    return _identity(before) == _identity(now)


def _identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    training = recipe.get("training") or {}
    length = {name: training.get(name) for name in _LENGTH}
    return {"length": length, **_without_nothing(what_must_stay(recipe))}


def _without_nothing(values: Any) -> Any:
    if isinstance(values, Mapping):
        kept = {name: _without_nothing(value) for name, value in values.items()}
        return {name: value for name, value in kept.items() if value not in (None, {}, [])}
    return [_without_nothing(value) for value in values] if isinstance(values, list) else values


def _weights(folder: Path) -> list[Path]:
    return sorted([*folder.glob(TRAINED_WEIGHTS_NAME), *folder.glob("model*.safetensors"),
                   *folder.glob(SAFE_WEIGHTS_INDEX_NAME)])  # fmt: skip


__all__ = ["STARTED_FROM", "described_run", "is_checkpoint", "run_is_finished", "start_of", "weights_digest"]
