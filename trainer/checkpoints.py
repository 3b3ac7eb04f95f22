"""Checkpoints to continue a training from: whether one is complete, and which is the last that is."""

import json
import os
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import FSDP_MODEL_NAME
from transformers.trainer_callback import TrainerState
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from ..modeling.trained_weights import CheckpointError
from .zero_checkpoints import zero_stage_of

logger = logging.get_logger(__name__)

STATE_NAME = "trainer_state.json"  # written last
RESUMED_FROM = ("optimizer.pt", "scheduler.pt", "rng_state.pth")  # the last with a number each of several processes
SHARDED = ("global_step", "pytorch_model", "optimizer_")  # DeepSpeed and FSDP keep all of it in files of their own


def checkpoint_to_resume(resume: str | os.PathLike | bool | None, output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint that a training is to go on from.

    Args:
        resume (`str` or `bool`, *optional*):
            Folder of a checkpoint; `True` for the last complete one in the output folder, `"auto"` for the same if
            there is one.
        output_dir (`str`): of the run; need not exist.

    Returns:
        `str`: its folder, or `None` to start anew.

    Raises:
        CheckpointError: if the given checkpoint is incomplete or truncated.
        ValueError: if there has to be one in the output folder and there is none.
    """
    if resume == "auto" or resume is True:
        found = last_complete_checkpoint(output_dir)
        if found is None and resume is True:
            raise ValueError(f"There is no complete checkpoint in {output_dir} to resume from.")
        return found
    if not resume:
        return None
    check_checkpoint(resume)
    return os.fspath(resume)


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint that a run which was interrupted goes on from. One that was being written when the run was killed
    is passed over, with a warning.

    Args:
        output_dir (`str`): of the run; need not exist.

    Returns:
        `str`: the folder of the last complete checkpoint, or `None` if there is none.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            found.append((int(match[1]), folder))
    for _, folder in sorted(found, reverse=True):
        try:
            check_checkpoint(folder)
        except CheckpointError as error:
            logger.warning(f"Passing over a checkpoint that no training can go on from: {error}")
        else:
            return str(folder)
    return None


def check_checkpoint(folder: str | os.PathLike) -> TrainerState:
    """
    Makes sure that a checkpoint was written to its end and that a training can go on from it, before a model is half
    loaded from it.

    Args:
        folder (`str`): of the checkpoint.

    Returns:
        `TrainerState`: of the run when it was written.

    Raises:
        CheckpointError: if there is no such folder, a file is missing (with `save_only_model` all but the weights), or
            a file is truncated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint {folder}: give the path of a checkpoint-… folder of a run.")
    try:
        state = TrainerState.load_from_json(str(folder / STATE_NAME))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {STATE_NAME}, which is written last: resume from an earlier checkpoint."
        ) from error
    except (ValueError, TypeError) as error:
        raise _truncated(folder / STATE_NAME, error) from error
    weights = [*folder.glob("*.safetensors"), *_shards(folder)]
    others = [entry for entry in folder.iterdir() if entry.is_dir() or entry.name.startswith("pytorch_model")]
    if not weights and not others:
        raise CheckpointError(f"{folder} holds no weights: resume from an earlier checkpoint.")
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _truncated(path, error) from error
    _check_rest(folder)
    return state


def check_strategy(
    folder: str | os.PathLike, fsdp: bool = False, deepspeed: bool = False, zero_stage: int = 0
) -> None:
    """
    Makes sure that a checkpoint is of the kind that a training reads: FSDP and DeepSpeed each write one of their own.

    Args:
        folder (`str`): of the checkpoint.
        fsdp, deepspeed (`bool`, *optional*, defaults to `False`): which of them the training uses.
        zero_stage (`int`, *optional*, defaults to 0): of the training, with DeepSpeed.

    Raises:
        CheckpointError: if it is of another kind, or of another of DeepSpeed's stages.
    """
    names = [entry.name for entry in Path(folder).iterdir()]
    kinds = {"FSDP": FSDP_MODEL_NAME, "DeepSpeed": "global_step"}
    written = next((kind for kind, start in kinds.items() if any(name.startswith(start) for name in names)), None)
    wanted = "FSDP" if fsdp else "DeepSpeed" if deepspeed else None
    if written != wanted:
        raise CheckpointError(
            f"{folder} is a checkpoint of a training with {written or 'neither FSDP nor DeepSpeed'}, and this one is "
            f"with {wanted or 'neither'}: go on as it began, or start anew from what that training saved in its end."
        )
    stage = zero_stage_of(folder)
    if deepspeed and stage is not None and (stage == 3) != (zero_stage == 3):
        raise CheckpointError(
            f"{folder} is a checkpoint of ZeRO stage {stage}, and this training is with stage {zero_stage}: go on as "
            "it began, or start anew from what that training saved in its end."
        )


def _check_rest(folder: Path) -> None:
    """What a training goes on with beside the weights."""
    for path in [*folder.glob("*.pt"), *folder.glob("*.pth")]:
        if not zipfile.is_zipfile(path):
            raise _truncated(path, "the end is missing")
    if any(entry.name.startswith(SHARDED) for entry in folder.iterdir()):
        return
    missing = [name for name in RESUMED_FROM if not any(folder.glob(name.replace(".", "*.")))]
    if len(missing) == len(RESUMED_FROM):
        raise CheckpointError(
            f"{folder} holds weights without {', '.join(missing)}, as save_only_model saves it: no training can go on "
            "from it. Resume from a checkpoint with all of these, or start anew, with save_only_model off."
        )
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(missing)}: resume from an earlier checkpoint.")


def _shards(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return []
    try:
        return sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError) as error:
        raise _truncated(index, error) from error


def _truncated(path: Path, error: object) -> CheckpointError:
    size = f"{path.stat().st_size} bytes" if path.exists() else "absent"
    return CheckpointError(f"{path} ({size}) is truncated or damaged ({error}): resume from an earlier checkpoint.")


__all__ = ["check_checkpoint", "check_strategy", "checkpoint_to_resume", "last_complete_checkpoint"]
