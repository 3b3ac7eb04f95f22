"""Which parts of a model are trained: said by name, applied, and checked while training runs."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling.divided_weights import whole_tensor
from ..modeling.lora_adapters import add_lora
from ..modeling.quantized_weights import is_quantized_weight, num_elements
from ..modeling.trainable_parts import MODES, parameters_to_train, part_prefixes
from .sharded_training import uses_deepspeed


def set_trainable(model: PreTrainedModel, trainable: Mapping[str, str], lora: Mapping[str, Any] | None = None) -> None:
    """
    Freezes a model and then opens what is to be trained.

    Args:
        model (`PreTrainedModel`): changed in place.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"`, `"lora"` or `"keys_values"`; parts left
            out are frozen.
        lora (`dict`, *optional*): fields of `peft.LoraConfig` (`r`, `lora_alpha`, `target_modules` …). By default the
            attention and feed-forward projections of the part, with rank 16. Names in `target_modules` are looked up
            in the adapted parts only.

    Raises:
        ValueError: if a part or a mode is unknown, a part to be trained has nothing to train, nothing would be
            trained, quantised weights would be, `lora` would train more than adapters, or the model has adapters
            already, and of another kind than `lora` asks for.
    """
    for part, mode in trainable.items():
        part_prefixes(model, part)
        if mode not in MODES:
            raise ValueError(f"{part} is to be {mode!r}: choose {', '.join(MODES)}.")
    if all(mode == "frozen" for mode in trainable.values()):
        raise ValueError(f"Nothing is trained: {dict(trainable)} freezes every part.")
    model.requires_grad_(False)
    lora_parts = [part for part, mode in trainable.items() if mode == "lora"]
    if lora_parts and getattr(model.config, "lora_config", None) is None:
        _inject_lora(model, lora_parts, dict(lora or {}))
    elif lora_parts:
        _compare_lora(model.config.lora_config, dict(lora or {}))
    for part, mode in trainable.items():
        opened = parameters_to_train(model, part, mode)
        if not opened and mode != "frozen":
            raise ValueError(f"{part} is to be trained ({mode}), but the model has no such weights.")
        if any(map(is_quantized_weight, opened.values())):
            raise ValueError(
                f"{part} is to be trained ({mode}), but its weights are quantised: set it to lora, or load the model "
                f"without quantising it (llm_int8_skip_modules=model.high_precision_modules({part!r}))."
            )
        for parameter in opened.values():
            parameter.requires_grad_(True)


def _inject_lora(model: PreTrainedModel, parts: list[str], fields: dict[str, Any]) -> None:
    if beside := [name for name in ("modules_to_save", "trainable_token_indices") if fields.get(name)]:
        raise ValueError(
            f"lora asks for {beside[0]}={fields[beside[0]]!r}, but only adapters come back when the model is loaded: "
            "leave it out, and set the part that holds these weights to `full` in trainable."
        )
    named = fields.get("target_modules")
    if named is None or named == "all-linear" or not isinstance(named, str):
        fields["target_modules"] = _modules_in_parts(model, parts, None if isinstance(named, str) else named)
    fields = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, **fields}
    try:
        LoraConfig(**fields)  # a wrong field is an error here, not at the end of the run
    except TypeError as error:
        raise ValueError(f"lora holds what is no field of peft.LoraConfig: {error}.") from error
    add_lora(model, fields)
    model.config.lora_config = fields


def _modules_in_parts(model: PreTrainedModel, parts: list[str], names: list[str] | None) -> str:
    """A regular expression for the linear layers of some parts, or those of them that have one of the names."""
    prefixes = [prefix for part in parts for prefix in part_prefixes(model, part)]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    kinds = {name.rsplit(".", 1)[-1] for name in linear if name.startswith(tuple(f"{p}." for p in prefixes))}
    chosen = sorted(kinds if names is None else set(names))
    pattern = rf"({'|'.join(map(re.escape, prefixes))})\.(.*\.)?({'|'.join(map(re.escape, chosen))})"
    # A part may be a single linear layer, such as the projector. The head of a language model is left alone.
    single = [prefix for prefix in prefixes if prefix in linear and prefix != "lm_head"] if names is None else []
    return "|".join([pattern, *map(re.escape, single)])


def _compare_lora(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if name != "target_modules" and present.get(name) != value:
            raise ValueError(
                f"lora asks for {name}={value!r}, but the model has adapters with {name}={present.get(name)!r}: leave "
                "the section lora out to train these on, or merge them first (save with save_trained_only=False)."
            )


def upcast_trained(model: PreTrainedModel) -> None:
    """Keeps trained weights in float32, where small updates are not lost; frozen ones stay as they are."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def rest_frozen_parts(model: PreTrainedModel, trainable: Mapping[str, str]) -> None:
    """
    Takes frozen parts out of training mode: they have no dropout, and give the same features whenever they are asked.

    Args:
        model (`PreTrainedModel`): in training mode, changed in place.
        trainable (`dict[str, str]`): as in [`set_trainable`].
    """
    frozen = [part for part in type(model).trainable_parts if trainable.get(part, "frozen") == "frozen"]
    prefixes = tuple(prefix for part in frozen for prefix in part_prefixes(model, part))
    for name, module in model.named_modules():
        # Layers that save memory by computing twice do so in training mode only.
        checkpointed = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
        if name.startswith(prefixes) and prefixes and not checkpointed:
            module.training = False


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Number of `"trained"` and of `"all"` parameters."""
    parameters = list(model.parameters())
    return {
        "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "all": sum(map(num_elements, parameters)),
    }


class FreezeCheckCallback(TrainerCallback):
    """
    Checks, around the first step of a run, that what should be frozen has not moved and that what should be trained
    gets gradients.

    Args:
        trainable (`dict[str, str]`): as in [`set_trainable`].

    Raises:
        RuntimeError: in the first step; names the part, or the first parameters.
    """

    def __init__(self, trainable: Mapping[str, str]):
        self.trainable = dict(trainable)
        self.checksums: dict[str, tuple[float, float]] = {}
        self.done = False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.done = False
        self.checksums = self._checksums(model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done or uses_deepspeed(args):  # which keeps gradients elsewhere
            return
        for part, mode in self.trainable.items():
            to_train = parameters_to_train(model, part, mode).values()
            if to_train and all(parameter.grad is None for parameter in to_train):
                raise RuntimeError(
                    f"{part} is to be trained ({mode}), but none of its {len(to_train)} parameters got a gradient in "
                    "the first step: is it frozen, or no part of the loss?"
                )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        self.done = True
        now = self._checksums(model)
        moved = [name for name, value in self.checksums.items() if now.get(name) != value]
        self.checksums = {}
        if moved:
            raise RuntimeError(f"{len(moved)} frozen parameters changed in the first step, among them {moved[:3]}.")

    def _checksums(self, model: PreTrainedModel) -> dict[str, tuple[float, float]]:
        trained = {name for part, mode in self.trainable.items() for name in parameters_to_train(model, part, mode)}
        checksums = {}
        for name, parameter in model.named_parameters():
            if name not in trained and not hasattr(parameter, "ds_id"):  # ZeRO stage 3 has it here only now and then
                values = torch.nan_to_num(whole_tensor(parameter).double())  # NaN differs from itself
                checksums[name] = (values.sum().item(), values.square().sum().item())
        return checksums


__all__ = [
    "FreezeCheckCallback",
    "count_parameters",
    "rest_frozen_parts",
    "set_trainable",
    "upcast_trained",
]
