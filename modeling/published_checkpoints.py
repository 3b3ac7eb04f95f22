"""Checkpoints as their authors published them: read without running what is in them; what does not fit, in words."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .trained_weights import CheckpointError

# What training scripts put around a state dict: beside the optimizer's state, or by a wrapper around the model.
_CONTAINERS = ("state_dict", "model", "module")
_WRAPPERS = ("_forward_module.", "module.")
_LISTED = 24


def read_published_checkpoint(source: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Reads the weights in a file of safetensors or of PyTorch. Pickles are unpickled weights-only: no code in them runs.

    Args:
        source (`str` or `Path`): the file. The weights may lie under `state_dict`, `model` or `module` in it.

    Returns:
        `dict[str, torch.Tensor]`: by published name, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is truncated, holds objects other than tensors, or no weights.
    """
    path = Path(source)
    if not path.is_file():
        what = "is a folder: name the file in it" if path.is_dir() else "does not exist: download the checkpoint first"
        raise FileNotFoundError(f"{path} {what} (.pt, .pth, .ckpt, .bin or .safetensors).")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    tensors = _unwrapped(content)
    if not tensors:
        raise CheckpointError(f"{path} holds no weights by name: it is no state dict.")
    return tensors


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): download it anew.") from error


def _load_pickle(path: Path) -> Any:
    try:
        # The file format of today can be read where it is needed, that of before PyTorch 1.6 only as a whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects beside its weights, which would run code when they are read: "
            f"they are not read. Where you trust the file, save its state dict alone: torch.save(torch.load(file, "
            f"weights_only=False)['state_dict'], other_file). ({first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size} bytes) is truncated or no file of PyTorch ({first_line(error)}): download it anew."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unwrapped(content: Any) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping):
        inner = [content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def refuse_misfits(
    source: str | os.PathLike,
    what: str,
    missing: Iterable[str] = (),
    unknown: Iterable[str] = (),
    misshapen: Iterable[str] = (),
) -> None:
    """
    Ends a conversion whose weights do not fit.

    Args:
        source (`str` or `Path`): the file.
        what (`str`): what its weights should be.
        missing, unknown (iterable of `str`): published names that are lacking or have no place.
        misshapen (iterable of `str`): names with what is wrong with them, in words.

    Raises:
        CheckpointError: unless there are none; lists them, layers folded into ranges.
    """
    problems = [f"missing {name}" for name in folded(missing)]
    problems += [f"unknown {name}" for name in folded(unknown)]
    problems += list(misshapen)
    if not problems:
        return
    listed = [f"- {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        listed.append(f"… and {len(problems) - _LISTED} more")
    raise CheckpointError("\n".join([f"The weights of {source} are not {what}:", *listed]))


def folded(names: Iterable[str]) -> list[str]:
    """
    Names of weights, those that differ in the number of their layer only as one: `blocks.{0-23}.norm1.weight`.

    Args:
        names (iterable of `str`): as published; only the first number of a name is taken for that of a layer.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    plain: dict[str, None] = {}
    for name in names:
        if match := re.match(r"(.*?\.)(\d+)(\..*)", name):
            groups.setdefault((match[1], match[3]), []).append(int(match[2]))
            plain[f"{match[1]}\0{match[3]}"] = None
        else:
            plain[name] = None
    result = []
    for name in plain:
        before, marked, after = name.partition("\0")
        result.append(f"{before}{_ranges(groups[before, after])}{after}" if marked else name)
    return result


def _ranges(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return texts[0] if len(numbers) == 1 else "{" + ",".join(texts) + "}"


__all__ = ["first_line", "folded", "read_published_checkpoint", "refuse_misfits"]
