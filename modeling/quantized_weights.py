"""Quantised weights: which modules stay in high precision, how they are loaded, and what they are in plain numbers."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from ..configuration.optional import require
from .hub_weights import DownloadedPreTrainedModel

QUANTIZED_PARTS = ("vision", "llm")
"""The parts whose linear layers are quantised; all that lies between and behind them stays in high precision."""

EXTRA = "quantization"
HEAD = "lm_head"
_SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert")  # by the config of bitsandbytes, and of the others
_QUANTIZED_TYPES = ("Params4bit", "Int8Params")
_CAST_MESSAGE = "inputs will be cast"


class QuantizablePreTrainedModel(DownloadedPreTrainedModel):
    """
    A model that can be loaded with a `quantization_config`. By default the linear layers of the vision tower and of
    the language model are quantised, and everything else stays in the dtype of the model: the visual tokenizer,
    projectors and projections, adapter, decoders, rows of tokens and every head.

    Class attributes:
        trainable_parts (`dict[str, str | tuple[str, ...]]`): the parts that a training recipe may freeze, train or
            adapt, by the name it uses for them: prefixes of the names of their weights.
    """

    trainable_parts: ClassVar[dict[str, str | tuple[str, ...]]] = {}

    @classmethod
    def high_precision_modules(cls, *parts: str) -> list[str]:
        """
        The modules that are not quantised unless a `quantization_config` has a list of its own.

        Args:
            parts (`str`): further parts of the model to leave in high precision, such as `"vision"`.

        Returns:
            `list[str]`: prefixes of names of modules, as `BitsAndBytesConfig(llm_int8_skip_modules=…)` takes them.
        """
        kept = [part for part in cls.trainable_parts if part in parts or part not in QUANTIZED_PARTS]
        values = [cls.trainable_parts[part] for part in kept]
        prefixes = [prefix for value in values for prefix in ([value] if isinstance(value, str) else value)]
        return sorted({HEAD, *map(cls._own_name, prefixes)})

    @classmethod
    def _own_name(cls, name: str) -> str:
        """What a module of the model with a head is called in this one, which may be without."""
        return name

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        `PreTrainedModel.from_pretrained`. A `quantization_config` that does not say which modules it skips skips those
        of [`high_precision_modules`].

        Raises:
            ImportError: if bitsandbytes is to quantise and is not installed; names the extra.
            DownloadError: if weights did not arrive from the Hub as they were published.
        """
        stored = getattr(kwargs.get("config"), "quantization_config", None)
        given = kwargs.get("quantization_config")
        if given is not None or stored is not None:
            require_quantizer(stored if given is None else given)
        if given is not None and cls.trainable_parts:
            kwargs["quantization_config"] = with_skipped(given, cls.high_precision_modules())
        result = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        prepare_quantized_layers(result[0] if isinstance(result, tuple) else result)
        return result


def require_quantizer(quantization_config: QuantizationConfigMixin | Mapping[str, Any]) -> None:
    """
    Makes sure that what quantises is installed.

    Args:
        quantization_config (`QuantizationConfigMixin` or `dict`): of a model.

    Raises:
        ImportError: if it is bitsandbytes, and is not; names the extra.
    """
    if isinstance(quantization_config, Mapping):
        method = quantization_config.get("quant_method")
        is_bitsandbytes = any(quantization_config.get(name) for name in ("load_in_4bit", "load_in_8bit"))
    else:
        method, is_bitsandbytes = quantization_config.quant_method, False
    if is_bitsandbytes or method == QuantizationMethod.BITS_AND_BYTES:
        require("bitsandbytes", EXTRA)


def with_skipped(
    quantization_config: QuantizationConfigMixin | Mapping[str, Any], modules: list[str]
) -> QuantizationConfigMixin:
    """
    A quantisation that leaves modules out, unless it says itself which it leaves out.

    Args:
        quantization_config (`QuantizationConfigMixin` or `dict`): stays as it is.
        modules (`list[str]`): prefixes of their names.
    """
    if isinstance(quantization_config, Mapping):
        quantization_config = AutoQuantizationConfig.from_dict(dict(quantization_config))
    changed = copy.deepcopy(quantization_config)
    for name in _SKIPPED:
        if hasattr(changed, name) and getattr(changed, name) is None:
            setattr(changed, name, list(modules))
    return changed


def is_quantized_weight(weight: Any) -> bool:
    """Whether bitsandbytes holds a weight in 4 or 8 bits."""
    return type(weight).__name__ in _QUANTIZED_TYPES


def is_quantized(layer: nn.Module) -> bool:
    """Whether bitsandbytes holds the weight of a linear layer in 4 or 8 bits."""
    return is_quantized_weight(getattr(layer, "weight", None))


def prepare_quantized_layers(model: nn.Module) -> None:
    """
    Makes layers of bitsandbytes compute the same in training and in evaluation. On CPUs with AVX512-BF16, 4-bit layers
    would otherwise pack their weights anew in evaluation: what is packed has no gradient, rounds its scales to
    bfloat16, asks for multiples of 32 rows, and cannot be merged with adapters.

    Args:
        model (`nn.Module`): changed in place.
    """
    layers: list[Any] = [module for module in model.modules() if is_quantized(module)]
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        else:
            _tell_of_casts_once()


def _tell_of_casts_once() -> None:
    """8-bit layers say in every call, a line for each layer and token, that they quantise what they read."""
    messages = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(found, _Once) for found in messages.filters):
        messages.addFilter(_Once())


class _Once(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if _CAST_MESSAGE not in record.getMessage():
            return True
        first, self.told = not self.told, True
        return first


@torch.no_grad()
def dequantized_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """
    The numbers that a quantised linear layer multiplies with.

    Args:
        layer (`nn.Module`): a layer of bitsandbytes.
        dtype (`torch.dtype`): of the result.

    Returns:
        `torch.Tensor` of shape `(out_features, in_features)`.
    """
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(layer.weight, getattr(layer, "state", None)).to(dtype)


def num_elements(weight: torch.Tensor) -> int:
    """How many numbers a weight stands for: in 4 bits, two or more in each that is kept."""
    shape = getattr(getattr(weight, "quant_state", None), "shape", None)
    return weight.numel() if shape is None else torch.Size(shape).numel()


def num_weight_bytes(model: nn.Module) -> int:
    """
    Memory of the weights of a model, with what quantisation keeps beside them; weights that are tied count once.

    Args:
        model (`nn.Module`): quantised or not.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.state_dict().values(), *model.parameters()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextlib.contextmanager
def without_quantization(config: Any) -> Iterator[None]:
    """
    Within, a config says nothing of quantisation: what is saved then is of plain weights.

    Args:
        config (`PreTrainedConfig`): as it was in the end.
    """
    quantization = vars(config).pop("quantization_config", None)
    try:
        yield
    finally:
        if quantization is not None:
            config.quantization_config = quantization


__all__ = [
    "EXTRA",
    "QUANTIZED_PARTS",
    "QuantizablePreTrainedModel",
    "dequantized_weight",
    "is_quantized",
    "is_quantized_weight",
    "num_elements",
    "num_weight_bytes",
    "prepare_quantized_layers",
    "require_quantizer",
    "with_skipped",
    "without_quantization",
]
