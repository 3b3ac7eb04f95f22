"""What a run notes in its checkpoints: the recipe that it follows, and for how long it has trained."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState

from .checkpoints import STATE_NAME

# Sections of what is told of a model, and of what is measured once it is trained.
_SECTIONS_THAT_MAY_CHANGE = ("card", "probe")

# Fields of `training` that decide how far a run goes, where it goes and what it tells, not what it learns.
_MAY_CHANGE = re.compile(
    r"max_steps$|num_train_epochs$|save_(?!dtype|trained_only)|(?:log|eval|hub|push|report)|per_device_eval"
    r"|dataloader_(?:num_workers|pin_memory|persistent_workers|prefetch_factor)|gradient_checkpointing"
    r"|.*_dir$|run_name$|disable_tqdm$"
)


class TrainingRecord(TrainerCallback, ExportableState):
    """
    Notes a run's recipe and the time it has trained in the `trainer_state.json` of each checkpoint.

    Args:
        recipe (`Mapping`): as [`Recipe.to_dict`] gives it.
        seconds (`float`, *optional*, defaults to 0): time trained so far, over all sessions that led here.
    """

    def __init__(self, recipe: Mapping[str, Any], seconds: float = 0.0):
        self.recipe = what_must_stay(recipe)
        self._seconds_before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Time trained, in seconds: of this session, and of former ones up to the checkpoints that it went on from."""
        return self._seconds_before + (perf_counter() - self._started if self._started is not None else 0.0)

    def state(self) -> dict[str, Any]:
        return {"args": {"recipe": self.recipe, "seconds": self.seconds}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self._seconds_before, self._started = (_recorded(state) or {}).get("seconds", 0.0), perf_counter()
        self._note(state)  # the state of a run that was begun without such a record has no place for it

    def on_train_end(self, args, state, control, **kwargs):
        self._seconds_before, self._started = self.seconds, None
        self._note(state)

    def _note(self, state: TrainerState) -> None:
        state.stateful_callbacks[type(self).__name__] = self.state()


def what_must_stay(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """
    Those fields of a recipe that a run cannot change on its way.

    Args:
        recipe (`Mapping`): as [`Recipe.to_dict`] gives it.

    Returns:
        `dict`: as JSON has it, without the card, what is measured after training, how long the run is, where it saves
        and what it logs.
    """
    values = json.loads(json.dumps(recipe, default=str))
    for section in _SECTIONS_THAT_MAY_CHANGE:
        values.pop(section, None)
    training = values.get("training") or {}
    return {**values, "training": {name: value for name, value in training.items() if not _MAY_CHANGE.match(name)}}


def check_same_recipe(checkpoint: str | os.PathLike, recipe: Mapping[str, Any]) -> None:
    """
    Makes sure that a run goes on as it began. Checkpoints without a record are taken as they are.

    Args:
        checkpoint (`str`): folder of a complete checkpoint.
        recipe (`Mapping`): as [`Recipe.to_dict`] gives it.

    Raises:
        ValueError: if the checkpoint is of a run with another recipe. It names each field.
    """
    recorded = _recorded(TrainerState.load_from_json(str(Path(checkpoint, STATE_NAME))))
    if recorded is None:
        return
    before, now = dict(_fields(what_must_stay(recorded["recipe"]))), dict(_fields(what_must_stay(recipe)))
    changed = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    if changed:
        words = [f"{name} is {_word(now, name)} and was {_word(before, name)}" for name in changed]
        raise ValueError(
            f"{os.fspath(checkpoint)} is of a run with another recipe: {'; '.join(words)}. Put this back to go on "
            "with that run, or start a new one: in another folder (training.output_dir), or with --resume never "
            "(resume=False) in place of it."
        )


def seconds_trained(state: TrainerState) -> float:
    """
    The time that a run has trained, over all its sessions, in seconds.

    Args:
        state (`TrainerState`): of a trainer with a [`TrainingRecord`], after training.
    """
    return (_recorded(state) or {}).get("seconds", 0.0)


def _recorded(state: TrainerState) -> dict[str, Any] | None:
    entry = (state.stateful_callbacks or {}).get(TrainingRecord.__name__)
    return entry["args"] if entry else None


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values by their path, as overrides write it; what is empty counts as not set."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        yield from [(name, value)] if value is not None else []
    else:
        for key, entry in entries:
            yield from _fields(entry, f"{name}.{key}" if name else str(key))


def _word(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "not set"


__all__ = ["TrainingRecord", "check_same_recipe", "seconds_trained", "what_must_stay"]
