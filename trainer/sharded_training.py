"""Whether FSDP or DeepSpeed divide a training among processes, and what they ask of it where they do."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration
from transformers.utils import strtobool


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """
    Models that are loaded within have whole weights on every process, also where training will divide them: composing
    reads the weights of base models. DeepSpeed divides them when training begins.
    """
    reference: Any = getattr(integration, "_hf_deepspeed_config_weak_ref", None)
    config = None if reference is None else reference()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            integration.set_hf_deepspeed_config(config)


def uses_deepspeed(args: Any) -> bool:
    """
    Whether a training runs with DeepSpeed, by its arguments or by those of `accelerate launch`.

    Args:
        args (`TrainingArguments`): of the training.
    """
    return getattr(args, "deepspeed_plugin", None) is not None


def uses_zero3(args: Any) -> bool:
    """
    Whether each process has a share of every weight by DeepSpeed's ZeRO stage 3.

    Args:
        args (`TrainingArguments`): of the training.
    """
    return uses_deepspeed(args) and args.deepspeed_plugin.zero_stage == 3


def divides_weights(args: Any) -> bool:
    """
    Whether each process has a share of every weight: with FSDP or ZeRO stage 3, by the arguments of a training or by
    those of `accelerate launch`.

    Args:
        args (`TrainingArguments`): of the training.
    """
    uses_fsdp = args.fsdp or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    return bool(uses_fsdp) or uses_zero3(args)


def prepare_fsdp(plugin: Any, model: nn.Module) -> None:
    """
    Makes sure that FSDP does what trainers of vistok rely on, and tells it which layers are put together one by one:
    those that a model, or a part of it, names in `_no_split_modules`, as far as it has them.

    Args:
        plugin (`accelerate.FullyShardedDataParallelPlugin`): of the training; changed in place.
        model (`nn.Module`): to be trained.

    Raises:
        ValueError: if it is FSDP1, or processes but the first would be given models without weights.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {plugin.fsdp_version}, which makes one vector of the weights of a layer, trained and "
            "frozen: set fsdp_version to 2, as recipes/accelerate/fsdp2.yaml does."
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is on, which gives the weights of base models to the first process alone, "
            "while all of them compose the model: set it to false, as recipes/accelerate/fsdp2.yaml does."
        )
    if plugin.transformer_cls_names_to_wrap is None:
        named = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
        embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
        layers = [part for part in model.modules() if type(part).__name__ in named]
        # Accelerate divides the embeddings by themselves, so they are no part of what else is divided.
        around = {type(part).__name__ for part in layers if any(inner is embeddings for inner in part.modules())}
        plugin.transformer_cls_names_to_wrap = sorted({type(part).__name__ for part in layers} - around)


__all__ = ["divides_weights", "prepare_fsdp", "uses_deepspeed", "uses_zero3", "whole_models"]
