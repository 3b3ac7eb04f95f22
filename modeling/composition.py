"""Models composed of pretrained parts: of two checkpoints, or of these and what was trained on top."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .base_checkpoints import (
    hub_arguments,
    lasting_name,
    load_base_models,
    load_language_model,
    load_vision_tower,
    located_base_models,
)
from .base_weights import require_fetched, resolve_checkpoint
from .lora_adapters import add_lora, ordinary_model
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

IMAGE_TOKEN = "<image>"
FROM_CHECKPOINTS = ("vision_config", "text_config", "image_token_id", "base_models", "lora_config")


def add_image_token(tokenizer) -> int:
    """
    Makes sure that the tokenizer knows the image placeholder as a special token, kept when it is saved.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place.

    Returns:
        `int`: id of the placeholder.
    """
    if getattr(tokenizer, "image_token", None) is None:
        # What `from_pretrained(…, extra_special_tokens={"image_token": …})` does, for a tokenizer that exists already.
        tokenizer._set_model_specific_special_tokens({"image_token": IMAGE_TOKEN})
        tokenizer.add_special_tokens({"image_token": IMAGE_TOKEN})
    return tokenizer.convert_tokens_to_ids(tokenizer.image_token)


def grown_size(image_token_id: int) -> int:
    """Rows of embeddings that have got one for the placeholder: a multiple of eight, which matrix units want."""
    return -(-(image_token_id + 1) // 8) * 8


def grow_vocabulary(language_model: PreTrainedModel, image_token_id: int) -> None:
    """
    Gives the placeholder a row in the embeddings of a language model if it has none: the mean of the other rows, the
    same on every machine.

    Args:
        language_model (`PreTrainedModel`): changed in place.
        image_token_id (`int`): id of the placeholder.
    """
    num_rows = language_model.get_input_embeddings().weight.shape[0]
    if image_token_id < num_rows:
        return
    before = language_model.get_output_embeddings().weight
    was_tied = before is language_model.get_input_embeddings().weight
    language_model.resize_token_embeddings(grown_size(image_token_id), mean_resizing=False)
    embeddings, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    if head.weight is embeddings.weight and not was_tied:
        # Resizing ties what the config says is tied, and the config of Flan-T5 says so of a head of its own.
        head.weight = torch.nn.Parameter(torch.empty_like(embeddings.weight))
        head.weight.data[:num_rows] = before.data
    for embedding in (embeddings, head):
        weight = embedding.weight.data
        weight[num_rows:] = weight[:num_rows].float().mean(0).to(weight.dtype)


class ComposedPreTrainedModel(PreTrainedModel):
    """What every model of a vision tower, a visual tokenizer and a language model can do, whatever its tokenizer."""

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str,
        text: str,
        *,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | dict | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
        text_kwargs: Mapping[str, Any] | None = None,
        **overrides,
    ):
        """
        Composes a model from a vision and a language checkpoint; what lies between them is new and random.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            dtype (`torch.dtype` or `str`, *optional*): dtype of all weights; by default that of the language model.
            attn_implementation (`str` or `dict`, *optional*): as in `from_pretrained`.
            vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each checkpoint.
            overrides: fields of the model's config, or of the visual tokenizer's (`num_latents=16`).

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if an override is a field of neither config, or follows from the checkpoints.
            FetchError: if base weights of vistok are not in the cache; names the command for all of them.
            CheckpointError: if the vision checkpoint is no vision transformer, or weights are truncated or missing.
        """
        require_fetched([vision, text])
        rng_state = torch.get_rng_state()
        tower = load_vision_tower(vision, **(vision_kwargs or {}))
        language_model = load_language_model(text, **{"dtype": dtype or "auto", **(text_kwargs or {})})
        tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(text), **hub_arguments(text_kwargs or {}))
        image_token_id = add_image_token(tokenizer)
        grow_vocabulary(language_model, image_token_id)
        config = compose_config(cls.config_class, tower.config, language_model.config, overrides)
        config.image_token_id = image_token_id
        config.base_models = {"vision": lasting_name(vision), "text": lasting_name(text)}
        kwargs = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        state_dict = cls._base_state_dict(config, tower, language_model)
        generation_config = copy.deepcopy(language_model.generation_config)
        if not config.is_encoder_decoder:
            generation_config.suppress_tokens = [image_token_id]
        if generation_config.pad_token_id is None:
            pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            generation_config.pad_token_id = pad_token_id
        # The caller's seed alone decides on the new weights, whatever loading drew.
        torch.set_rng_state(rng_state)
        with _quiet_loading():
            model = super().from_pretrained(
                None, config=config, state_dict=state_dict, dtype=language_model.dtype, **kwargs
            )
        model.generation_config = generation_config
        model.added_weights = {name for name, _ in model.named_parameters()} - set(state_dict)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        `PreTrainedModel.from_pretrained`, for folders with all weights and for folders with only the trained ones
        (see [`save_trained_weights`]): these name their base models, which are loaded first. Fields of the config may
        be among the arguments.

        Raises:
            CheckpointError: if the checkpoint is of another kind of model, truncated or incomplete, or a base model of
                its trained weights cannot be loaded.
            FetchError: if base models are not in the cache; names the command for all of them.
        """
        name = pretrained_model_name_or_path
        if name is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        if not isinstance(config, PreTrainedConfig):
            overrides = {key: value for key, value in kwargs.items() if _is_override(cls.config_class, key)}
            kwargs = {key: value for key, value in kwargs.items() if key not in overrides}
            config = load_own_config(cls.config_class, config or name, **overrides, **hub_arguments(kwargs))
        trained = None
        if config.base_models is not None:
            trained = read_trained_weights(name, **hub_arguments(kwargs))
        if trained is not None:
            config = copy.deepcopy(config)
            config.base_models = located_base_models(config.base_models, name, **hub_arguments(kwargs))
            return cls._from_trained_weights(name, trained, config, *model_args, **kwargs)
        if config.base_models is not None:
            config = copy.deepcopy(config)
            config.base_models = None  # nothing has to complete a folder that holds all weights
        wants_info = kwargs.pop("output_loading_info", False)
        resize = kwargs.pop("ignore_mismatched_sizes", False)
        with one_checkpoint_error(name), _quiet_loading():
            model, info = super().from_pretrained(
                name, *model_args, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        mismatched = [f"{key} has shape {tuple(found)}" for key, found, _ in info["mismatched_keys"] if not resize]
        if problems := [f"{key} is missing" for key in sorted(info["missing_keys"])] + mismatched:
            raise CheckpointError(f"The weights of {name} do not fit its config: {_some_of(problems)}.")
        if info["unexpected_keys"]:
            logger.warning(f"{name} has weights without use: {_some_of(sorted(info['unexpected_keys']))}.")
        return (model, info) if wants_info else model

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
        tower, language_model = load_base_models(config.base_models, str(name))
        grow_vocabulary(language_model, config.image_token_id)
        expected = expected_shapes(cls, config)
        state_dict = cls._base_state_dict(config, tower, language_model, expected)
        trained = _own_names(cls, trained, expected)
        lora = {key: tensor for key, tensor in trained.items() if is_lora_weight(key)}
        if lora and not config.lora_config:
            raise CheckpointError(
                f"{name} holds adapters, but its config has no lora_config that says how to add them."
            )
        state_dict |= tied_names(state_dict, {key: tensor for key, tensor in trained.items() if key not in lora})
        check_weights(name, state_dict, expected, any_shape=kwargs.get("ignore_mismatched_sizes", False))
        where = hub_arguments(kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in HUB_ARGUMENTS}
        dtypes = (kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        kwargs["dtype"] = next((dtype for dtype in dtypes if dtype not in (None, "auto")), language_model.dtype)
        result = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        with contextlib.suppress(OSError):  # optional
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
        model.name_or_path = str(name)
        model.added_weights = set(trained)
        if lora:
            add_lora(model, config.lora_config)
            left_out = model.load_state_dict(lora, strict=False).unexpected_keys
            if left_out:
                raise CheckpointError(f"{name} holds adapters that its lora_config does not make: {left_out[:5]}.")
            model.eval()  # adapters come in training mode, with their dropout
        return result

    @classmethod
    def _base_state_dict(cls, config, tower, language_model, expected=None) -> dict[str, torch.Tensor]:
        """Weights of the two base models under the names that the composed model has for them."""
        state_dict = {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
        if config.is_encoder_decoder:
            decoder, head = language_model, {}
        else:
            decoder = getattr(language_model, language_model.base_model_prefix)
            head = language_model.get_output_embeddings().state_dict()
        state_dict |= {f"model.language_model.{name}": tensor for name, tensor in decoder.state_dict().items()}
        state_dict |= {f"lm_head.{name}": tensor for name, tensor in head.items()}
        expected = expected_shapes(cls, config) if expected is None else expected
        state_dict = _own_names(cls, state_dict, expected)
        # A pooler or a text tower of the checkpoint may be no part of the composed model.
        return {name: tensor for name, tensor in state_dict.items() if name in expected}


def compose_config(config_class, vision_config, text_config, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """
    The config of a composed model.

    Args:
        config_class (`type`): its class, e.g. [`GVTConfig`].
        vision_config, text_config (`PreTrainedConfig`): of the two checkpoints.
        overrides (`dict`): fields of the config, or of the visual tokenizer's.

    Raises:
        ValueError: if an override is a field of neither, or follows from the checkpoints.
    """
    if given_twice := [name for name in FROM_CHECKPOINTS if name in overrides]:
        raise ValueError(
            f"{', '.join(given_twice)} cannot be chosen: it follows from the two checkpoints. Leave it out. (The "
            "placeholder of images is the image_token of the language checkpoint's tokenizer.)"
        )
    fields = config_class.__dataclass_fields__
    (tokenizer_key,) = set(config_class.sub_configs_defaults) - {"vision_config", "text_config"}
    given = overrides.get(tokenizer_key) or {}
    given = given.to_dict() if isinstance(given, PreTrainedConfig) else dict(given)
    given |= {name: value for name, value in overrides.items() if name not in fields}
    config = config_class(
        vision_config=_without_path(vision_config),
        text_config=_without_path(text_config),
        **{tokenizer_key: given},
        **{name: value for name, value in overrides.items() if name in fields and name != tokenizer_key},
    )
    known = getattr(config, tokenizer_key).__dataclass_fields__
    if unknown := [name for name in overrides if name not in fields and name not in known]:
        raise ValueError(
            f"{', '.join(unknown)} is no field of {config_class.__name__} nor of "
            f"{type(getattr(config, tokenizer_key)).__name__}, whose own fields are: "
            f"{', '.join(sorted(set(known) - set(PreTrainedConfig.__dataclass_fields__)))}."
        )
    return config


def _without_path(config: PreTrainedConfig) -> dict[str, Any]:
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
            f"compose a new model with from_vision_text_pretrained."
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
        raise CheckpointError(f"The weights of {name} do not fit its config: {_some_of(problems)}.")


def _some_of(items: Sequence[str]) -> str:
    more = f" … and {len(items) - 5} more" if len(items) > 5 else ""
    return "; ".join(items[:5]) + more


def _own_names(cls, state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a model with a head, under the names that they have in `cls`, which may be the model without it."""
    prefix = f"{cls.base_model_prefix}."
    if any(name.startswith(prefix) for name in expected):
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
def _quiet_loading() -> Iterator[None]:
    """No table of what is new, missing or of another size: that is what composing is about, or becomes an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


__all__ = [
    "ComposedPreTrainedModel",
    "add_image_token",
    "check_weights",
    "compose_config",
    "expected_shapes",
    "grow_vocabulary",
    "grown_size",
    "load_own_config",
]
