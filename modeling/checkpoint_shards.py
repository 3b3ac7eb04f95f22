"""Checkpoints of several files: read one file at a time, written tensor by tensor, never in memory as a whole."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .atomic_folder import write_text_atomically
from .published_checkpoints import folded, read_published_checkpoint
from .trained_weights import CheckpointError

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of weights in a file that is written, unless one tensor alone is larger."""

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Kinds of numbers that weights are made of, by their names in safetensors."""


@dataclass(frozen=True)
class StoredTensor:
    """
    What is known of a tensor before it is read.

    Args:
        file (`Path`): the shard that holds it.
        shape (`torch.Size`): its shape.
        dtype (`torch.dtype`): its kind of numbers.
    """

    file: Path
    shape: torch.Size
    dtype: torch.dtype


class ShardedCheckpoint:
    """
    The weights in a folder: one file or several with an index, of safetensors or of PyTorch. Files are mapped into
    memory where their format allows it, and no more than one is open at a time.

    Args:
        folder (`str` or `Path`): holds `model.safetensors`, `pytorch_model.bin`, or the index of one of them.

    Raises:
        FileNotFoundError: if there are no weights in the folder, or files are missing that its index lists; names
            them.
        CheckpointError: if the index or a file is truncated, a weight is in two files, or is missing in its file.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.files, listed = _weights_files(self.folder)
        self.stored: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, tensor in read_published_checkpoint(file).items():
                if name in self.stored:
                    raise CheckpointError(f"{name} is both in {self.stored[name].file} and in {file}: remove one.")
                self.stored[name] = StoredTensor(file, tensor.shape, tensor.dtype)
        if missing := [name for name in listed if name not in self.stored]:
            raise CheckpointError(
                f"The files of {self.folder} lack weights that their index lists, download them anew: "
                f"{', '.join(folded(missing)[:5])}."
            )

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights by name, file after file. Let go of one before asking for the next."""
        for file in self.files:
            tensors = read_published_checkpoint(file)
            for name in list(tensors):
                yield name, tensors.pop(name)


def _weights_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files with weights, and the names in their index."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / single).is_file():
            return [folder / single], []
        if (folder / index).is_file():
            return _files_of_index(folder / index)
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {SAFE_WEIGHTS_NAME}, {SAFE_WEIGHTS_INDEX_NAME}, {WEIGHTS_NAME} or "
        f"{WEIGHTS_INDEX_NAME}. (A LoRA has to be merged into its base model first.)"
    )


def _files_of_index(index: Path) -> tuple[list[Path], list[str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is truncated or no index of weights ({type(error).__name__}: {error}): download it anew."
        ) from error
    if foreign := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} lists the file {foreign[0]!r}: expected files in its own folder.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} files that {index.name} lists: download "
            f"{', '.join(missing)}."
        )
    return [index.parent / name for name in names], list(weight_map)


class ShardWriter:
    """
    Writes weights as safetensors, with an index where they are several files, as `from_pretrained` reads them. Every
    tensor goes to the disk as it comes.

    Args:
        folder (`Path`): exists; its caller writes it atomically.
        tensors (`dict[str, tuple[torch.Size, torch.dtype]]`): shape and dtype of what is coming, in this order.
        max_shard_size (`int`, *optional*, defaults to 5 GB): bytes of weights in a file.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[torch.Size, torch.dtype]],
        max_shard_size: int = MAX_SHARD_SIZE,
    ):
        self.folder, self.tensors = folder, tensors
        shards = _planned_shards(tensors, max_shard_size)
        count = len(shards)
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        self.shards = dict(zip(files if count > 1 else [SAFE_WEIGHTS_NAME], shards))
        self.file_of = {name: file for file, names in self.shards.items() for name in names}
        self.coming = iter(tensors)

    def write(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """
        Writes the next tensor.

        Args:
            name (`str`): the next of those that were announced.
            parts (iterable of `torch.Tensor`): put one above the other, they are the tensor.

        Raises:
            ValueError: if another tensor, another size or another dtype was announced.
        """
        if name != (announced := next(self.coming, None)):
            raise ValueError(f"{name} was written where {announced} was announced.")
        path = self.folder / self.file_of[name]
        if name == self.shards[path.name][0]:
            path.write_bytes(self._header(path.name))
        shape, dtype = self.tensors[name]
        written = 0
        with open(path, "ab") as file:
            for part in parts:
                if part.dtype != dtype:
                    raise ValueError(f"{name} has dtype {part.dtype}, announced was {dtype}.")
                written += file.write(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if written != _num_bytes(shape, dtype):
            raise ValueError(f"{name} has {written} bytes, announced were {_num_bytes(shape, dtype)}.")

    def finish(self) -> None:
        """
        Writes the index, where there are several files.

        Raises:
            ValueError: if a tensor that was announced has not come.
        """
        if (missing := next(self.coming, None)) is not None:
            raise ValueError(f"{missing} was announced and not written.")
        if len(self.shards) > 1:
            total_size = sum(_num_bytes(*announced) for announced in self.tensors.values())
            index = {"metadata": {"total_size": total_size}, "weight_map": self.file_of}
            write_text_atomically(self.folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2) + "\n")

    def _header(self, file: str) -> bytes:
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.shards[file]:
            shape, dtype = self.tensors[name]
            start, end = end, end + _num_bytes(shape, dtype)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _planned_shards(tensors: Mapping[str, tuple[torch.Size, torch.dtype]], max_shard_size: int) -> list[list[str]]:
    """Names per file. Every tensor starts at a multiple of the size of its numbers, else it could not be mapped."""
    shards: list[list[str]] = []
    size = 0
    for name, (shape, dtype) in tensors.items():
        num_bytes = _num_bytes(shape, dtype)
        if not shards or size + num_bytes > max_shard_size or size % dtype.itemsize:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def _num_bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


__all__ = ["DTYPE_NAMES", "MAX_SHARD_SIZE", "ShardWriter", "ShardedCheckpoint", "StoredTensor"]
