"""Folders that hold only the weights that were trained, and name the base models which complete them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from .divided_weights import original_class
from .hub_weights import download_weights_file
from .quantized_weights import without_quantization

logger = logging.get_logger(__name__)

TRAINED_WEIGHTS_NAME = "trained_weights.safetensors"
LORA_MARK = ".lora_"  # in the name of every weight of an adapter
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class CheckpointError(ValueError):
    """A checkpoint that is truncated, incomplete or of another kind of model."""


@contextlib.contextmanager
def one_checkpoint_error(name: str) -> Iterator[None]:
    """
    Whatever goes wrong while the weights of a checkpoint are read is one kind of error, which names the checkpoint.

    Args:
        name (`str`): folder or Hub id.

    Raises:
        CheckpointError: if weights are truncated, or missing in a folder.
    """
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"The weights of {name} are truncated or damaged ({error}): copy them anew.") from error
    except OSError as error:
        if not Path(name).is_dir():
            raise
        raise CheckpointError(f"{name} is incomplete ({error}): copy it anew.") from error


def is_lora_weight(name: str) -> bool:
    """Whether a weight, by its name, belongs to a LoRA adapter."""
    return LORA_MARK in name


def tied_names(base: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Trained weights under all names that share a tensor in the base model, such as embeddings and output head.

    Args:
        base (`dict[str, torch.Tensor]`): weights of the base models, where tied ones are one tensor.
        trained (`dict[str, torch.Tensor]`): weights that take the place of some of them.

    Returns:
        `dict[str, torch.Tensor]`: `trained`, and each of its weights again for the names tied to it.
    """
    sharing = {_memory(base[name]): tensor for name, tensor in trained.items() if name in base}
    tied = {name: sharing[_memory(tensor)] for name, tensor in base.items() if _memory(tensor) in sharing}
    return {**tied, **trained}


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def trained_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The weights that base models lack: those that are being trained, and those that were trained before, or are new.

    Args:
        model (`PreTrainedModel`): frozen where it is not trained. What it has beside its base models since it was
            composed or loaded stands in its attribute `added_weights`.

    Returns:
        `dict[str, torch.Tensor]`: parameters by the name that they have without adapters.

    Raises:
        ValueError: if there are none.
    """
    added: set[str] = getattr(model, "added_weights", set())
    trained = {
        plain_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or plain_name(name) in added
    }
    if not trained:
        raise ValueError("Every parameter of the model is frozen: there are no trained weights to save.")
    return trained


def load_trained_state_dict(model: PreTrainedModel, trained: Mapping[str, torch.Tensor]) -> None:
    """
    Loads what [`trained_state_dict`] gave into a model that has the same adapters, or none, by then.

    Args:
        model (`PreTrainedModel`): changed in place.
        trained (`dict[str, torch.Tensor]`): weights by the name that they have without adapters.
    """
    names = {plain_name(name): name for name, _ in model.named_parameters()}
    model.load_state_dict({names[name]: tensor for name, tensor in trained.items()}, strict=False)


def plain_name(name: str) -> str:
    """The name of a weight as it was before an adapter was put around its layer."""
    return name.replace(".base_layer.", ".")


def save_trained_weights(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """
    Saves only what was trained: a few megabytes beside gigabytes of frozen base models, which the config names.
    `from_pretrained` puts the whole together again.

    Args:
        model (`PreTrainedModel`): a composed model whose `config.base_models` says where the frozen weights come from.
        folder (`str`): where `config.json`, `generation_config.json` and `trained_weights.safetensors` go.
        state_dict (`dict[str, torch.Tensor]`, *optional*): weights to save; by default [`trained_state_dict`].
        dtype (`torch.dtype`, *optional*): saves in this dtype.

    Raises:
        ValueError: if the model does not know its base models.
    """
    if not getattr(model.config, "base_models", None):
        raise ValueError(
            "config.base_models is None, so a folder of trained weights could not be completed: compose the model "
            "with from_vision_text_pretrained, or save everything with save_pretrained."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = trained_state_dict(model) if state_dict is None else state_dict
    prefix = _prefix_of_whole(model)
    trained = {prefix + name: tensor.to("cpu", dtype).contiguous() for name, tensor in trained.items()}
    model.config.architectures = [original_class(model).__name__]
    with without_quantization(model.config):  # base models are loaded as they are, unless one asks for something else
        model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:  # a model without a head has that of its language model
        model.generation_config.save_pretrained(folder)
    write_safetensors(trained, folder / TRAINED_WEIGHTS_NAME)


def _prefix_of_whole(model: PreTrainedModel) -> str:
    """What names of weights lack in a model without a head: the folder is one for the model with its head too."""
    prefix = f"{model.base_model_prefix}."
    whole = not model.base_model_prefix or any(name.startswith(prefix) for name, _ in model.named_parameters())
    return "" if whole else prefix


def write_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_trained_weights(name_or_path: str, **hub_arguments) -> dict[str, torch.Tensor] | None:
    """
    Reads the weights that [`save_trained_weights`] wrote.

    Args:
        name_or_path (`str`): folder or Hub id.
        hub_arguments: `revision`, `token`, … as in `from_pretrained`.

    Returns:
        `dict[str, torch.Tensor]`, or `None` where there is no such file.

    Raises:
        CheckpointError: if the file is truncated or damaged.
        DownloadError: if it did not arrive from the Hub as it was published.
    """
    path = download_weights_file(name_or_path, TRAINED_WEIGHTS_NAME, **hub_arguments)
    if path is None:
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({os.path.getsize(path)} bytes) is truncated or no safetensors file ({error}): copy it anew."
        ) from error


__all__ = [
    "TRAINED_WEIGHTS_NAME",
    "CheckpointError",
    "load_trained_state_dict",
    "read_trained_weights",
    "save_trained_weights",
    "tied_names",
    "trained_state_dict",
]
