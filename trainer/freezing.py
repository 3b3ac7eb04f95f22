"""Which parts of a model are trained: said by name, applied, and checked while training runs."""

from collections.abc import Mapping

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, TrainerCallback

from ..modeling.composition import add_lora

MODES = ("frozen", "full", "lora")


def part_prefixes(model: PreTrainedModel, part: str) -> tuple[str, ...]:
    """
    Prefixes of the parameter names that a part of a model consists of.

    Args:
        model (`PreTrainedModel`): a composed model of vistok.
        part (`str`): `"vision"`, `"resampler"`, `"llm"` …: a key of the model's `trainable_parts`.

    Raises:
        ValueError: if the model has no such part.
    """
    parts = type(model).trainable_parts
    if part not in parts:
        raise ValueError(f"{part!r} is no part of {type(model).__name__}, which has: {', '.join(parts)}.")
    prefixes = parts[part]
    return (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)


def set_trainable(
    model: PreTrainedModel, trainable: Mapping[str, str], lora: Mapping[str, object] | None = None
) -> None:
    """
    Freezes a model and then opens what is to be trained.

    Args:
        model (`PreTrainedModel`): changed in place.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"` or `"lora"`; parts left out are frozen.
        lora (`dict`, *optional*): fields of `peft.LoraConfig` (`r`, `lora_alpha`, `target_modules` …). By default the
            attention and feed-forward projections of the part, with rank 16.

    Raises:
        ValueError: if a part or a mode is unknown, or nothing would be trained.
    """
    for part, mode in trainable.items():
        part_prefixes(model, part)
        if mode not in MODES:
            raise ValueError(f"{part} is to be {mode!r}: choose {', '.join(MODES)}.")
    model.requires_grad_(False)
    lora_parts = [part for part, mode in trainable.items() if mode == "lora"]
    if lora_parts and getattr(model.config, "lora_config", None) is None:
        _inject_lora(model, lora_parts, dict(lora or {}))
    for part, mode in trainable.items():
        prefixes = part_prefixes(model, part)
        for name, parameter in model.named_parameters():
            is_lora = ".lora_" in name
            if name.startswith(prefixes) and ((mode == "full" and not is_lora) or (mode == "lora" and is_lora)):
                parameter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"Nothing is trained: {dict(trainable)} freezes every part.")


def _inject_lora(model: PreTrainedModel, parts: list[str], fields: dict) -> None:
    if "target_modules" not in fields:
        prefixes = [prefix.replace(".", r"\.") for part in parts for prefix in part_prefixes(model, part)]
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
        ]
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
        fields["target_modules"] = rf"({'|'.join(prefixes)})\.(.*\.)?({'|'.join(kinds)})"
    fields = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, **fields}
    LoraConfig(**fields)  # a wrong field is an error here, not at the end of the run
    add_lora(model, fields)
    model.config.lora_config = fields


def upcast_trained(model: PreTrainedModel) -> None:
    """Keeps trained weights in float32, where small updates are not lost; frozen ones stay as they are."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Number of `"trained"` and of `"all"` parameters."""
    parameters = list(model.parameters())
    return {
        "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "all": sum(parameter.numel() for parameter in parameters),
    }


class FreezeCheckCallback(TrainerCallback):
    """
    Checks, around the first step of a run, that what should be frozen has not moved and that what should be trained
    gets gradients.

    Args:
        trainable (`dict[str, str]`): as in [`set_trainable`].
    """

    def __init__(self, trainable: Mapping[str, str]):
        self.trainable = dict(trainable)
        self.checksums: dict[str, float] = {}
        self.done = False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.done = False
        self.checksums = _checksums(model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        for part, mode in self.trainable.items():
            if mode == "frozen":
                continue
            prefixes = part_prefixes(model, part)
            opened = [p for name, p in model.named_parameters() if name.startswith(prefixes) and p.requires_grad]
            if not any(parameter.grad is not None for parameter in opened):
                raise RuntimeError(
                    f"{part} is to be trained ({mode}), but none of its {len(opened)} trainable parameters got a "
                    "gradient in the first step: is it part of the loss?"
                )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.done:
            return
        self.done = True
        moved = [name for name, value in _checksums(model).items() if value != self.checksums[name]]
        self.checksums = {}
        if moved:
            raise RuntimeError(f"{len(moved)} frozen parameters changed in the first step, among them {moved[:3]}.")


def _checksums(model) -> dict[str, float]:
    return {
        name: parameter.detach().double().sum().item() + parameter.detach().double().square().sum().item()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


__all__ = ["FreezeCheckCallback", "count_parameters", "part_prefixes", "set_trainable", "upcast_trained"]
