"""Checkpoints of DeepSpeed's ZeRO: how a training goes on from them with another number of processes."""

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..modeling.trained_weights import CheckpointError

WHOLE = "_universal"
"""End of the name of a folder where the parts of all processes were put together, beside that of the parts."""


@contextlib.contextmanager
def parts_put_together(accelerator: Accelerator, checkpoint: str | os.PathLike | None) -> Iterator[bool]:
    """
    Within, DeepSpeed reads a checkpoint that another number of processes wrote: their parts are put together once, by
    the first process, into files beside them (DeepSpeed's universal checkpoints). All processes have to enter.

    Args:
        accelerator (`accelerate.Accelerator`): of the training, with DeepSpeed.
        checkpoint (`str`, *optional*): folder that the training goes on from.

    Yields:
        `bool`: whether the parts had to be put together.

    Raises:
        CheckpointError: if they cannot be: there is none of some, or the optimizer is not one of Adam's kind.
    """
    parts = None if checkpoint is None else _folder_of_parts(Path(checkpoint))
    if parts is None or _num_parts(parts) == accelerator.num_processes:
        yield False
        return
    if accelerator.is_main_process and not parts.with_name(parts.name + WHOLE).is_dir():
        _put_together(parts)
    accelerator.wait_for_everyone()
    plugin: Any = accelerator.state.deepspeed_plugin
    configs = (plugin.deepspeed_config, plugin.hf_ds_config.config)
    settings = [config.setdefault("checkpoint", {}) for config in configs]
    for setting in settings:
        setting["load_universal"] = True
    try:
        yield True
    finally:
        for setting in settings:
            setting["load_universal"] = False  # for a training with the same settings that goes on with its own parts


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: str | os.PathLike) -> None:
    """
    Mends what DeepSpeed's stage 3 reads of a checkpoint that was put together: all weights share one count of steps,
    which each of them then raises, and all groups of weights get the settings of the first.

    Args:
        optimizer (`torch.optim.Optimizer`): that DeepSpeed wraps.
        checkpoint (`str`): folder that the training goes on from.
    """
    parts = _folder_of_parts(Path(checkpoint))
    assert parts is not None
    saved = torch.load(parts.with_name(parts.name + WHOLE) / "zero" / "optimizer_state.pt", weights_only=False)
    for group, known in zip(optimizer.param_groups, saved["optimizer_state_dict"]["param_groups"], strict=True):
        group.update({name: value for name, value in known.items() if name != "params"})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _folder_of_parts(checkpoint: Path) -> Path | None:
    found = [entry for entry in checkpoint.glob("global_step*") if entry.name.removeprefix("global_step").isdigit()]
    return found[0] if found else None


def _num_parts(folder: Path) -> int:
    return len(list(folder.glob("*_optim_states.pt")))


def _put_together(parts: Path) -> None:
    """Writes `<parts>_universal` and `latest_universal` beside `parts`; all of it, or nothing."""
    from deepspeed.checkpoint import ds_to_universal

    with tempfile.TemporaryDirectory(dir=parts.parent, prefix=".universal-") as temporary:
        whole = Path(temporary, parts.name + WHOLE)
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
        settings = argparse.Namespace(
            input_folder=str(parts), output_folder=str(whole), inject_missing_state=True, **options
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                ds_to_universal.main(settings)
        except Exception as error:
            raise CheckpointError(
                f"The parts of {_num_parts(parts)} processes in {parts} cannot be put together for another number of "
                f"them ({type(error).__name__}: {error}): go on with {_num_parts(parts)} processes, or from an "
                "earlier checkpoint."
            ) from error
        if not any(whole.glob("zero/*/exp_avg_sq.pt")):
            raise CheckpointError(
                f"{parts} holds the state of an optimizer that is not one of Adam's kind, and DeepSpeed goes on with "
                f"such a one with as many processes as wrote it: start {_num_parts(parts)}."
            )
        os.replace(Path(temporary, "latest_universal"), parts.with_name("latest_universal"))
        os.replace(whole, parts.with_name(whole.name))  # last: where it is, all is


__all__ = ["parts_put_together", "restore_optimizer"]
