"""Checkpoints of DeepSpeed's ZeRO: how a training goes on from them with another number of processes."""

import argparse
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..modeling.divided_weights import writable_weight
from ..modeling.trained_weights import CheckpointError

WHOLE = "_universal"
"""End of the name of a folder where the parts of all processes were put together, beside that of the parts."""
_TEMPORARY = ".universal-"


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


def restore_rest(engine: Any, checkpoint: str | os.PathLike) -> None:
    """
    Adds what DeepSpeed leaves out, or mistakes, where it reads a checkpoint that was put together. Frozen weights and
    buffers are not read. With stage 3, all weights share one count of steps, which each of them then raises, and all
    groups of weights get the settings of the first. All processes have to call it.

    Args:
        engine (`deepspeed.DeepSpeedEngine`): that has read the checkpoint.
        checkpoint (`str`): its folder.
    """
    engine._config.load_universal_checkpoint = False  # what it reads next may be a checkpoint of its own
    parts: Any = _folder_of_parts(Path(checkpoint))
    _restore_frozen(engine.module, parts)
    if engine.zero_optimization_stage() < 3:
        return
    optimizer = engine.optimizer.optimizer
    saved = _read(parts.with_name(parts.name + WHOLE) / "zero" / "optimizer_state.pt")
    for group, known in zip(optimizer.param_groups, saved["optimizer_state_dict"]["param_groups"], strict=True):
        group.update({name: value for name, value in known.items() if name != "params"})
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


@torch.no_grad()
def _restore_frozen(model: torch.nn.Module, parts: Path) -> None:
    """Of stage 3 each file has a part of each frozen weight; of stage 2 there is one file, with all of them."""
    files = sorted(parts.glob("*_model_states.pt"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
    states = [_read(file) for file in files]
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        if name in parameters and not parameters[name].requires_grad:
            with writable_weight(parameters[name]) as weight:
                if weight is not None:
                    pieces = [state["frozen_param_fragments"][name].flatten() for state in states]
                    weight.copy_(torch.cat(pieces)[: shape.numel()].view(shape))
    for name in states[0].get("buffer_names") or ():
        if name in buffers and name in states[0]["module"]:
            buffers[name].copy_(states[0]["module"][name])


def _read(file: Path) -> Any:
    """A file of DeepSpeed's, which reads its own likewise; tensors are read where they are used."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


def zero_stage_of(checkpoint: str | os.PathLike) -> int | None:
    """Which of DeepSpeed's stages, 2 or 3, wrote a checkpoint; `None` for none of them."""
    parts = _folder_of_parts(Path(checkpoint))
    if parts is None:
        return None
    return 3 if any(parts.glob("*zero_pp_rank_*_model_states.pt")) else 2


def _folder_of_parts(checkpoint: Path) -> Path | None:
    found = [entry for entry in checkpoint.glob("global_step*") if entry.name.removeprefix("global_step").isdigit()]
    return found[0] if found else None


def _num_parts(folder: Path) -> int:
    return len(list(folder.glob("*_optim_states.pt")))


def _put_together(parts: Path) -> None:
    """Writes `<parts>_universal` and `latest_universal` beside `parts`; all of it, or nothing."""
    from deepspeed.checkpoint import ds_to_universal

    for left in parts.parent.glob(f"{_TEMPORARY}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    count = _num_parts(parts)
    with tempfile.TemporaryDirectory(dir=parts.parent, prefix=_TEMPORARY) as temporary:
        whole = Path(temporary, parts.name + WHOLE)
        options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
        settings = argparse.Namespace(
            input_folder=str(parts), output_folder=str(whole), inject_missing_state=True, **options
        )
        try:
            is_adam = _holds(_read(next(parts.glob("*_optim_states.pt"))), "exp_avg_sq")
            if is_adam:
                with contextlib.redirect_stdout(io.StringIO()):
                    ds_to_universal.main(settings)
        except Exception as error:
            raise CheckpointError(
                f"The parts of {count} processes in {parts} cannot be put together for another number of them "
                f"({type(error).__name__}: {error}): go on with {count} processes, or from an earlier checkpoint."
            ) from error
        if not is_adam:
            raise CheckpointError(
                f"{parts} holds the state of an optimizer that is not one of Adam's kind, and DeepSpeed goes on with "
                f"such a one with as many processes as wrote it: start {count}, or start anew."
            )
        os.replace(Path(temporary, "latest_universal"), parts.with_name("latest_universal"))
        os.replace(whole, parts.with_name(whole.name))  # last: where it is, all is


def _holds(values: Any, name: str) -> bool:
    """Whether nested dictionaries and lists have an entry of that name somewhere."""
    if isinstance(values, Mapping):
        return name in values or any(_holds(value, name) for value in values.values())
    return isinstance(values, list | tuple) and any(_holds(value, name) for value in values)


__all__ = ["parts_put_together", "restore_rest", "zero_stage_of"]
