"""Where the stream that a training reads stands, in its checkpoints."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..modeling.atomic_folder import write_text_atomically
from ..modeling.trained_weights import CheckpointError
from .endless_stream import STREAM_STATE, EndlessStream

NAME = "stream_state_{process}.json"


class StreamStates:
    """
    Notes where the data loader workers of a process stand, by the batches that were trained on, not by those that
    were read ahead.

    Args:
        args (`TrainingArguments`): of the training.
    """

    def __init__(self, args: TrainingArguments):
        self._args = args
        self._states: dict[int, dict[str, Any]] = {}

    def note(self, batch: Any) -> Any:
        """Takes the state out of a batch that is about to be trained on."""
        state = batch.pop(STREAM_STATE, None) if isinstance(batch, dict) else None
        if state is not None:
            found = json.loads(state)
            self._states[found.pop("worker")] = found
        return batch

    def save(self, checkpoint: str) -> None:
        """Writes them to a checkpoint; nothing, if the data is no stream."""
        if self._states:
            told = {**self._reading, "states": {str(worker): state for worker, state in self._states.items()}}
            write_text_atomically(self._file(checkpoint), json.dumps(told))

    def load(self, checkpoint: str, stream: EndlessStream) -> None:
        """
        Lets a stream go on where a checkpoint left it. A checkpoint of an earlier version says nothing of streams:
        the trainer then reads again what was read.

        Args:
            checkpoint (`str`): its folder.
            stream ([`EndlessStream`]): of this process.

        Raises:
            CheckpointError: if it was read in other batches, or by other numbers of processes or workers.
        """
        if not any(Path(checkpoint).glob(NAME.format(process="*"))):
            return
        path = self._file(checkpoint)
        first = path if path.exists() else self._file(checkpoint, 0)
        told = json.loads(first.read_text())
        for name, value in self._reading.items():
            if told[name] != value:
                raise CheckpointError(
                    f"{checkpoint} was written by a training that read its stream with {told[name]} {name}, this one "
                    f"has {value}, and would meet some examples twice and others never. Resume with {told[name]}, or "
                    "set ignore_data_skip, to begin the stream anew."
                )
        self._states = {int(worker): state for worker, state in told["states"].items()}
        stream.go_on_from(self._states)

    @property
    def _reading(self) -> dict[str, int]:
        return {
            "processes": self._args.world_size,
            "data loader workers": self._args.dataloader_num_workers,
            "examples per batch": self._args.train_batch_size,
        }

    def _file(self, checkpoint: str, process: int | None = None) -> Path:
        return Path(checkpoint, NAME.format(process=self._args.process_index if process is None else process))


__all__ = ["StreamStates"]
