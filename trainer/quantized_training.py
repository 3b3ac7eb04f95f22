"""Training beside quantised weights: which are quantised as a recipe says, and what is then trained (QLoRA)."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..configuration.optional import require
from ..modeling.quantized_weights import EXTRA, QUANTIZED_PARTS, QuantizablePreTrainedModel
from .sharded_training import divides_weights

_SWITCHES = ("load_in_4bit", "load_in_8bit")


def check_quantization(load_in_4bit: bool, load_in_8bit: bool, quantization: Mapping[str, Any]) -> None:
    """
    Checks what a recipe says of quantisation.

    Args:
        load_in_4bit, load_in_8bit (`bool`): its two switches.
        quantization (`dict`): further fields of `BitsAndBytesConfig`.

    Raises:
        ValueError: if both switches are on, one of them is no switch, or a field is unknown or of no use.
    """
    for name, value in zip(_SWITCHES, (load_in_4bit, load_in_8bit)):
        if not isinstance(value, bool):
            raise ValueError(f"model.{name} is {value!r}, expected true or false.")
    if load_in_4bit and load_in_8bit:
        raise ValueError("model.load_in_4bit and model.load_in_8bit are both true: choose one.")
    known = [name for name in inspect.signature(BitsAndBytesConfig).parameters if name != "kwargs"]
    for name in quantization:
        if name in _SWITCHES or name not in known:
            raise ValueError(
                f"model.quantization holds {name!r}, expected fields of BitsAndBytesConfig: "
                f"{', '.join(field for field in known if field not in _SWITCHES)}."
            )
    if quantization and not (load_in_4bit or load_in_8bit):
        raise ValueError("model.quantization says how to quantise: set model.load_in_4bit or model.load_in_8bit too.")


def without_unused_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """
    The model of a recipe, without the fields of quantisation if it is not quantised: jobs of a study whose recipe does
    not speak of quantisation are then the same ones as before recipes could.
    """
    if any(model.get(name) for name in _SWITCHES):
        return dict(model)
    return {name: value for name, value in model.items() if name not in (*_SWITCHES, "quantization")}


def quantization_options(
    recipe: Any, model_class: type[QuantizablePreTrainedModel], trainable: Mapping[str, str], args: Any
) -> dict[str, Any]:
    """
    What a recipe's quantisation is in arguments of `from_pretrained`. Quantised are the vision tower and the language
    model, but for what is trained in full; with NF4 in 4 bits.

    Args:
        recipe ([`ModelRecipe`]): with `load_in_4bit`, `load_in_8bit` and `quantization`.
        model_class (`type`): class of the model.
        trainable (`dict[str, str]`): of the recipe: how each part is trained.
        args (`TrainingArguments`, *optional*): of the run: its device, and how it is divided among processes.

    Returns:
        `dict`: `quantization_config` and, with `args`, `device_map`; empty where nothing is to be quantised.

    Raises:
        ImportError: if bitsandbytes is not installed; names the extra.
        ValueError: if nothing is left to quantise, or the run divides weights among processes.
    """
    if not (recipe.load_in_4bit or recipe.load_in_8bit):
        return {}
    require("bitsandbytes", EXTRA)
    in_full = [part for part, mode in trainable.items() if mode not in ("frozen", "lora")]
    if set(QUANTIZED_PARTS) <= set(in_full):
        raise ValueError(
            f"The recipe quantises the model, but trains {' and '.join(QUANTIZED_PARTS)} in full: set one of them to "
            "lora or frozen in trainable, or leave load_in_4bit and load_in_8bit out."
        )
    if args is not None:
        check_whole(args)
    fields: dict[str, Any] = {"load_in_8bit": True}
    if recipe.load_in_4bit:
        dtype = getattr(torch, recipe.dtype) if recipe.dtype else torch.float32
        fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    skipped = {"llm_int8_skip_modules": model_class.high_precision_modules(*in_full)}
    options = {"quantization_config": BitsAndBytesConfig(**{**fields, **skipped, **recipe.quantization})}
    return options if args is None else {**options, "device_map": {"": args.device}}


def check_whole(args: Any) -> None:
    """
    Checks that a run leaves quantised weights whole on every process.

    Args:
        args (`TrainingArguments`): of the run.

    Raises:
        ValueError: if it divides weights, by FSDP or DeepSpeed's ZeRO stage 3.
    """
    if divides_weights(args):
        raise ValueError(
            "Quantised weights stay whole on every process: leave fsdp and DeepSpeed's stage 3 out, and train with "
            "DDP or recipes/deepspeed/zero2.json; or leave load_in_4bit and load_in_8bit out."
        )


@contextlib.contextmanager
def beside_quantized_weights(model: Any) -> Iterator[None]:
    """
    Lets a `Trainer` be made for a model whose quantised parts are frozen while others are trained in full, without an
    adapter on any of them: `Trainer` takes it for a model that is quantised all through, which cannot be trained.

    Args:
        model (`PreTrainedModel`, *optional*): quantised or not.
    """
    trains_beside = getattr(model, "is_quantized", False) and any(p.requires_grad for p in model.parameters())
    if not trains_beside:
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = True


__all__ = [
    "beside_quantized_weights",
    "check_quantization",
    "check_whole",
    "quantization_options",
    "without_unused_fields",
]
