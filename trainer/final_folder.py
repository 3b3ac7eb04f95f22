"""The folder that a training ends with: written whole, and of an ordinary model where everything is saved."""

import contextlib
import copy
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling.trained_weights import TRAINED_WEIGHTS_NAME, is_lora_weight


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Lets files be written elsewhere and then puts them into a folder, each whole: weights last, in place of any others.
    An error leaves the folder as it was.

    Args:
        folder (`str`): made if it does not exist. Its other files stay.

    Yields:
        `Path`: an empty folder to write into.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        yield Path(temporary)
        written = sorted(path.relative_to(temporary) for path in Path(temporary).rglob("*") if path.is_file())
        written.sort(key=_is_weights)
        for name in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / name, folder / name)
        # Weights of a former run of another kind would be loaded in place of these.
        for path in folder.iterdir():
            if _is_weights(path) and Path(path.name) not in written:
                path.unlink()


def _is_weights(path: Path) -> bool:
    names = (TRAINED_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return path.name in names or re.fullmatch(r"model-\d+-of-\d+\.safetensors", path.name) is not None


def ordinary_model(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """
    A model with all weights, that needs neither adapters nor base models. It is made to be saved: what needs no change
    it shares with the given one, which stays as it is.

    Args:
        model (`PreTrainedModel`): a composed model, with or without LoRA adapters.
        dtype (`torch.dtype`, *optional*): of the weights; by default each keeps its own.
    """
    config = copy.deepcopy(model.config)
    config.lora_config = config.base_models = None
    with torch.device("meta"):
        ordinary = type(model)._from_config(config)
    weights = _merged_state_dict(model)
    ordinary.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, assign=True)
    ordinary.tie_weights()
    ordinary.generation_config = model.generation_config
    return ordinary


def _merged_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights = {name: tensor for name, tensor in model.state_dict().items() if not is_lora_weight(name)}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            merged = copy.deepcopy(module)  # layer by layer: a second model might not fit
            merged.merge()
            for key, tensor in merged.get_base_layer().state_dict().items():
                del weights[f"{name}.base_layer.{key}"]
                weights[f"{name}.{key}"] = tensor
    return weights


__all__ = ["ordinary_model", "replacing_files"]
