"""A folder of all weights made of one that others have to complete: adapters merged, base models in it."""

import os
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file

from ..modeling.adapter_folders import adapter_and_model
from ..modeling.lora_adapters import ordinary_model
from .card_facts import is_hub_id
from .remote_code import PROCESSOR_FILES, auto_classes


@dataclass(frozen=True)
class WholeFolder:
    """
    What [`save_whole`] wrote.

    Args:
        model_type (`str`): of the model.
        num_parameters (`int`): all of them.
        processor_from (`str`, *optional*): where its processor lay; `None` if there was none.
    """

    model_type: str
    num_parameters: int
    processor_from: str | None


def save_whole(folder: str | os.PathLike, out: str | os.PathLike, dtype: str = "auto") -> WholeFolder:
    """
    Loads a model and writes it with all its weights, in plain numbers, and its processor: adapters are merged, base
    models need not be there any more.

    Args:
        folder (`str`): of trained weights, or of an adapter that peft wrote; or a Hub id.
        out (`str`): an empty folder.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; `"auto"` is that of the base models.

    Returns:
        [`WholeFolder`].

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the model is none of vistok's.
        CheckpointError: if weights are truncated or missing, or an adapter does not say which model it adapts.
    """
    if not os.path.isdir(folder) and not is_hub_id(os.fspath(folder)):
        raise FileNotFoundError(f"There is no folder {folder}: expected one of trained weights, or of an adapter.")
    _, model_folder, _ = adapter_and_model(folder, {})
    kind = model_class(AutoConfig.from_pretrained(model_folder))
    model = ordinary_model(kind.from_pretrained(folder, dtype=dtype))
    model.save_pretrained(out)
    places = dict.fromkeys((os.fspath(folder), os.fspath(model_folder)))
    processor_from = next(filter(_has_processor, places), None)
    if processor_from is not None:
        AutoProcessor.from_pretrained(processor_from).save_pretrained(out)
    return WholeFolder(
        model.config.model_type, sum(parameter.numel() for parameter in model.parameters()), processor_from
    )


def _has_processor(name_or_path: str) -> bool:
    found = (cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False) for name in PROCESSOR_FILES)
    return any(path is not None for path in found)


def model_class(config: PreTrainedConfig) -> Any:
    """
    The class of vistok that a model is to be loaded with: that which its `architectures` name, else one with a head.

    Args:
        config (`PreTrainedConfig`): of the model.

    Raises:
        ValueError: if the model is none of vistok's.
    """
    classes = auto_classes(config.model_type)
    named: dict[str, Any] = {kind.__name__: kind for kind in classes.values()}
    kind = named.get((config.architectures or [""])[0])
    kind = kind or classes.get("AutoModelForImageTextToText") or classes.get("AutoModel")
    if kind is None:
        raise ValueError(
            f"{config.name_or_path} holds a model of type {config.model_type}, which is none of vistok's."
        )
    return kind


__all__ = ["WholeFolder", "model_class", "save_whole"]
