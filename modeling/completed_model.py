"""Models that are saved without their base models: what was trained is put on top of these when it is loaded."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .adapter_folders import adapter_and_model
from .base_checkpoints import hub_arguments, located_base_models
from .lora_adapters import adapted_modules, add_lora, ordinary_model
from .quantized_weights import QuantizablePreTrainedModel
from .trained_weights import (
    HUB_ARGUMENTS,
    TRAINED_WEIGHTS_NAME,
    CheckpointError,
    is_lora_weight,
    one_checkpoint_error,
    read_trained_weights,
    tied_names,
)

logger = logging.get_logger(__name__)


class CompletedPreTrainedModel(QuantizablePreTrainedModel):
    """
    A model whose `config.base_models` may name the checkpoints of its frozen parts. A folder of it holds all weights,
    or only those that these checkpoints lack.

    Class attributes:
        optional_parts (`dict[str, str]`): parts that a folder may be loaded without, though it holds them: the field
            of the config that is `None` then (`"setok_config.detokenizer_config"` where it is one of a part's), and
            the prefix of the names of their weights.
    """

    optional_parts: ClassVar[dict[str, str]] = {}

    @classmethod
    def _completing_weights(
        cls, config: PreTrainedConfig, name: str, expected: Mapping[str, torch.Size]
    ) -> tuple[dict[str, torch.Tensor], torch.dtype]:
        """
        Loads what completes a folder of trained weights.

        Args:
            config (`PreTrainedConfig`): of the model; its `base_models` name the checkpoints.
            name (`str`): folder or Hub id of the trained weights, for errors.
            expected (`dict[str, torch.Size]`): names and shapes of the model's weights.

        Returns:
            `tuple[dict[str, torch.Tensor], torch.dtype]`: weights of the base models by the names that they have in
            the model, and the dtype of the whole where none is asked for.
        """
        raise NotImplementedError(f"{cls.__name__} does not say how its base models are loaded.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        `PreTrainedModel.from_pretrained`, for folders with all weights and for folders with only the trained ones
        (see [`save_trained_weights`]): these name their base models, which are loaded first. Fields of the config may
        be among the arguments. Where the folder's own config has one of the `optional_parts` and this one is without
        (`detokenizer_config=None`), its weights are passed over. A folder that peft wrote names the model that its
        adapter is for, which is loaded with the adapter. Weights are quantised as a `quantization_config` says (see
        [`QuantizablePreTrainedModel`]).

        Raises:
            CheckpointError: if the checkpoint is of another kind of model, truncated or incomplete, or a base model of
                its trained weights cannot be loaded.
            FetchError: if base models are not in the cache; names the command for all of them.
            DownloadError: if weights did not arrive from the Hub as they were published.
            ImportError: if what quantises is not installed.
        """
        name = pretrained_model_name_or_path
        if name is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        where = {**hub_arguments(kwargs), **(kwargs.get("adapter_kwargs") or {})}
        adapter, name, kwargs = adapter_and_model(name, kwargs)
        adapter_name = kwargs.pop("adapter_name", None)
        result = cls._load_model(name, *model_args, config=config, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        # One that lies beside all weights transformers has loaded with them.
        is_there = getattr(model, "_hf_peft_config_loaded", False) and model.config.lora_config is None
        if adapter is not None and not is_there:
            where.pop("_adapter_model_path", None)
            model.load_adapter(adapter, adapter_name=adapter_name, adapter_kwargs=where)
        return result

    @classmethod
    def _load_model(cls, name, *model_args, config=None, **kwargs):
        """A model from where it lies itself, with all weights or with trained ones."""
        if not isinstance(config, PreTrainedConfig):
            overrides = {key: value for key, value in kwargs.items() if _is_override(cls.config_class, key)}
            kwargs = {key: value for key, value in kwargs.items() if key not in overrides}
            config = load_own_config(cls.config_class, config or name, **overrides, **hub_arguments(kwargs))
        left_out = cls._left_out(name, config, **hub_arguments(kwargs))
        trained = None
        if config.base_models is not None:
            trained = read_trained_weights(name, **hub_arguments(kwargs))
        if trained is not None:
            trained = {key: tensor for key, tensor in trained.items() if not key.startswith(left_out)}
            config = copy.deepcopy(config)
            config.base_models = located_base_models(config.base_models, name, **hub_arguments(kwargs))
            return cls._from_trained_weights(name, trained, config, *model_args, **kwargs)
        if config.base_models is not None:
            config = copy.deepcopy(config)
            config.base_models = None  # nothing has to complete a folder that holds all weights
        wants_info = kwargs.pop("output_loading_info", False)
        resize = kwargs.pop("ignore_mismatched_sizes", False)
        with one_checkpoint_error(name), quiet_loading():
            model, info = super().from_pretrained(
                name, *model_args, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        mismatched = [f"{key} has shape {tuple(found)}" for key, found, _ in info["mismatched_keys"] if not resize]
        if problems := [f"{key} is missing" for key in sorted(info["missing_keys"])] + mismatched:
            raise CheckpointError(f"The weights of {name} do not fit its config: {some_of(problems)}.")
        info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not key.startswith(left_out)}
        if info["unexpected_keys"]:
            logger.warning(f"{name} has weights without use: {some_of(sorted(info['unexpected_keys']))}.")
        return (model, info) if wants_info else model

    @classmethod
    def _left_out(cls, name, config: PreTrainedConfig, **where) -> tuple[str, ...]:
        """
        Prefixes of the weights of those `optional_parts` that the folder's own config has, and `config` is without. A
        folder that is said to be without them has no such weights, or they are as foreign to it as any other.
        """
        asked = [field for field in cls.optional_parts if _field(config, field) is None]
        if not asked:
            return ()
        try:
            own, _ = cls.config_class.get_config_dict(name, **where)
        except OSError:  # its config was given
            return ()
        prefixes = [cls.optional_parts[field] for field in asked if _field(own, field) is not None]
        return tuple({kind for prefix in prefixes for kind in (prefix, cls._own_name(prefix))})

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, *args, **kwargs):
        """
        `PreTrainedModel.save_pretrained`, of all weights. LoRA adapters are merged into those that are saved, and stay
        as they are in this model. Trained weights that were saved there alone, and are older, go.

        Raises:
            ValueError: if the model has adapters and its weights are given as a `state_dict`.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            if state_dict is not None:
                raise ValueError(
                    "The adapters in a state_dict are not merged: leave state_dict out, or save only what was trained "
                    "with save_trained_weights(model, folder, state_dict)."
                )
            ordinary_model(self).save_pretrained(save_directory, is_main_process, None, *args, **kwargs)
            return
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)
        folder = Path(save_directory)
        if is_main_process and any((folder / name).exists() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            (folder / TRAINED_WEIGHTS_NAME).unlink(missing_ok=True)

    @classmethod
    def _from_trained_weights(cls, name, trained, config, *model_args, **kwargs):
        expected = expected_shapes(cls, config)
        state_dict, dtype = cls._completing_weights(config, str(name), expected)
        adapters = {key for key in trained if is_lora_weight(key)}
        trained = own_names(cls, trained, expected)
        lora = {key: tensor for key, tensor in trained.items() if is_lora_weight(key)}
        if lora and not config.lora_config:
            raise CheckpointError(
                f"{name} holds adapters, but its config has no lora_config that says how to add them."
            )
        state_dict |= tied_names(state_dict, {key: tensor for key, tensor in trained.items() if key not in lora})
        check_weights(name, state_dict, expected, any_shape=kwargs.get("ignore_mismatched_sizes", False))
        where = hub_arguments(kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in HUB_ARGUMENTS}
        asked = (kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        kwargs["dtype"] = next((wanted for wanted in asked if wanted not in (None, "auto")), dtype)
        result = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        with contextlib.suppress(OSError):  # optional
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
        model.name_or_path = str(name)
        model.added_weights = set(trained)
        if lora:
            # Without its head a model has other names than the pattern of the adapters knows.
            names = {"target_modules": adapted_modules(lora)} if adapters != set(lora) else {}
            add_lora(model, {**config.lora_config, **names})
            left_out = model.load_state_dict(lora, strict=False).unexpected_keys
            if left_out:
                raise CheckpointError(f"{name} holds adapters that its lora_config does not make: {left_out[:5]}.")
            model.eval()  # adapters come in training mode, with their dropout
        return result


def _field(config: Any, field: str) -> Any:
    """A field of a config, or of what `config.json` holds; `part.field` is that of a part."""
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return config


def without_path(config: PreTrainedConfig) -> dict[str, Any]:
    """Where a checkpoint lay on this machine is nobody's business: `base_models` says what it is."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def _is_override(config_class, name: str) -> bool:
    # The dtype of a model is that of its weights, which the config only repeats.
    return hasattr(config_class, name) and name not in ("dtype", "torch_dtype")


def load_own_config(config_class, name_or_path: str, **kwargs) -> PreTrainedConfig:
    """
    Loads a config and makes sure that it is of the right kind.

    Args:
        config_class (`type`): its class, e.g. [`GVTConfig`].
        name_or_path (`str`): folder or Hub id.
        kwargs: `revision`, `token`, … as in `from_pretrained`, and fields of the config that are to be otherwise.

    Raises:
        CheckpointError: if the folder holds another kind of model.
    """
    values, _ = config_class.get_config_dict(name_or_path, **kwargs)
    found = values.get("model_type")
    if found != config_class.model_type:
        raise CheckpointError(
            f"{name_or_path} holds a model of type {found}, not {config_class.model_type}: load it with AutoModel, or "
            f"compose a new {config_class.model_type} of pretrained parts."
        )
    return config_class.from_pretrained(name_or_path, **kwargs)


def check_weights(
    name: str, state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], any_shape: bool = False
) -> None:
    """
    Compares names and shapes of weights with those that a model has.

    Args:
        name (`str`): folder or Hub id of the weights.
        state_dict (`dict[str, torch.Tensor]`): the weights.
        expected (`dict[str, torch.Size]`): shapes of the model's.
        any_shape (`bool`, *optional*, defaults to `False`): compare names only.

    Raises:
        CheckpointError: lists weights that are missing, unknown or of another shape.
    """
    problems = [f"{key} is missing" for key in expected if key not in state_dict]
    problems += [f"{key} is unknown" for key in state_dict if key not in expected]
    problems += [
        f"{key} has shape {tuple(state_dict[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in state_dict and state_dict[key].shape != shape and not any_shape
    ]
    if problems:
        raise CheckpointError(f"The weights of {name} do not fit its config: {some_of(problems)}.")


def some_of(items: Sequence[str]) -> str:
    """The first five of several things in words, and how many more there are."""
    more = f" … and {len(items) - 5} more" if len(items) > 5 else ""
    return "; ".join(items[:5]) + more


def own_names(cls, state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    Weights of a model with a head, under the names that they have in `cls`, which may be the model without it.

    Args:
        cls (`type`): class of the model.
        state_dict (`dict[str, torch.Tensor]`): the weights.
        expected (`dict`): whose keys are the names of the model's weights.
    """
    prefix = f"{cls.base_model_prefix}."
    if not cls.base_model_prefix or any(name.startswith(prefix) for name in expected):
        return dict(state_dict)
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def expected_shapes(cls, config: PreTrainedConfig) -> dict[str, torch.Size]:
    """
    Names and shapes of the weights of a model, which is not built for it.

    Args:
        cls (`type`): class of the model.
        config (`PreTrainedConfig`): its configuration.
    """
    with torch.device("meta"):
        skeleton = cls._from_config(copy.deepcopy(config))
    return {name: tensor.shape for name, tensor in skeleton.state_dict().items()}


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No table of what is new, missing or of another size: that is what composing is about, or becomes an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


__all__ = [
    "CompletedPreTrainedModel",
    "check_weights",
    "expected_shapes",
    "load_own_config",
    "own_names",
    "quiet_loading",
    "some_of",
    "without_path",
]
