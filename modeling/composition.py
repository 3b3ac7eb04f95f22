"""Models composed of pretrained parts: of two checkpoints, or of these and what was trained on top."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from .base_checkpoints import (
    hub_arguments,
    lasting_name,
    load_base_models,
    load_language_model,
)
from .base_weights import require_fetched, resolve_checkpoint
from .completed_model import CompletedPreTrainedModel, expected_shapes, own_names, quiet_loading, without_path
from .trained_setok import as_parts, load_tower_or_setok, vision_weights

IMAGE_TOKEN = "<image>"
_OUTPUT = ".merger.output_projection."
FROM_CHECKPOINTS = ("vision_config", "text_config", "image_token_id", "base_models", "lora_config")


def add_image_token(tokenizer) -> int:
    """
    Makes sure that the tokenizer knows the image placeholder as a special token, kept when it is saved.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place.

    Returns:
        `int`: id of the placeholder.
    """
    return add_special_token(tokenizer, "image_token", IMAGE_TOKEN)


def add_special_token(tokenizer, name: str, text: str) -> int:
    """
    Makes sure that the tokenizer knows a special token by a name of its own, kept when it is saved.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place.
        name (`str`): attribute of the tokenizer that holds it.
        text (`str`): how it is written, where the tokenizer has none of this name.

    Returns:
        `int`: its id.
    """
    if getattr(tokenizer, name, None) is None:
        # What `from_pretrained(…, extra_special_tokens={name: …})` does, for a tokenizer that exists already.
        tokenizer._set_model_specific_special_tokens({name: text})
        tokenizer.add_special_tokens({name: text})
    return tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))


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


class ComposedPreTrainedModel(CompletedPreTrainedModel):
    """
    What every model of a vision tower, a visual tokenizer and a language model can do, whatever its tokenizer. One
    that is composed otherwise says so in the methods with an underscore.
    """

    @classmethod
    def _load_vision(cls, vision: str, **kwargs) -> PreTrainedModel:
        """What a vision checkpoint holds that the model is composed of: a tower, or a SeTok."""
        return load_tower_or_setok(vision, **kwargs)

    @classmethod
    def _load_vision_for(cls, config: PreTrainedConfig, vision: str) -> PreTrainedModel:
        """As [`_load_vision`], of what a config has, for a folder that it completes."""
        return cls._load_vision(vision)

    @classmethod
    def _add_tokens(cls, tokenizer) -> dict[str, int]:
        """Gives a tokenizer the special tokens of images; their ids by the fields of the config that hold them."""
        return {"image_token_id": add_image_token(tokenizer)}

    @classmethod
    def _token_ids(cls, config: PreTrainedConfig) -> dict[str, int]:
        """The ids that [`_add_tokens`] found, from a config."""
        return {"image_token_id": config.image_token_id}

    @classmethod
    def _grow_vocabulary(cls, language_model: PreTrainedModel, token_ids: Mapping[str, int]) -> None:
        """Gives the special tokens of images rows in the embeddings of a language model."""
        grow_vocabulary(language_model, max(token_ids.values()))

    @classmethod
    def _compose_config(cls, vision_config, text_config, overrides: Mapping[str, Any]) -> PreTrainedConfig:
        vision_config, overrides = as_parts(vision_config, overrides, tokenizer_key(cls.config_class))
        return compose_config(cls.config_class, vision_config, text_config, overrides)

    @classmethod
    def _vision_weights(cls, vision_model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Weights of what [`_load_vision`] returned, under the names that the composed model has for them."""
        return vision_weights(vision_model, tokenizer_key(cls.config_class).removesuffix("_config"))

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
        quantization_config: Any = None,
        device_map: Any = None,
        **overrides,
    ):
        """
        Composes a model from a vision and a language checkpoint; what lies between them is new and random.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id. That of a SeTok gives its
                tower and its tokenizer, whose last layer is new where the model asks for another width.
            text (`str`): language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            dtype (`torch.dtype` or `str`, *optional*): dtype of all weights; by default that of the language model.
            attn_implementation (`str` or `dict`, *optional*): as in `from_pretrained`.
            vision_kwargs, text_kwargs (`dict`, *optional*): for the `from_pretrained` of each checkpoint.
            quantization_config, device_map (*optional*): as in `from_pretrained` of the whole, once it is composed in
                the memory of the CPU. See [`QuantizablePreTrainedModel`].
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
        tower = cls._load_vision(vision, **(vision_kwargs or {}))
        language_model = load_language_model(text, **{"dtype": dtype or "auto", **(text_kwargs or {})})
        tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(text), **hub_arguments(text_kwargs or {}))
        token_ids = cls._add_tokens(tokenizer)
        cls._grow_vocabulary(language_model, token_ids)
        config = cls._compose_config(tower.config, language_model.config, {**overrides})
        for field, token_id in token_ids.items():
            setattr(config, field, token_id)
        config.base_models = {"vision": lasting_name(vision), "text": lasting_name(text)}
        options = {"quantization_config": quantization_config, "device_map": device_map}
        options |= {"attn_implementation": attn_implementation}
        kwargs = {name: value for name, value in options.items() if value is not None}
        state_dict = cls._base_state_dict(config, tower, language_model)
        generation_config = copy.deepcopy(language_model.generation_config)
        if not config.is_encoder_decoder:
            generation_config.suppress_tokens = [config.image_token_id]
        if generation_config.pad_token_id is None:
            pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            generation_config.pad_token_id = pad_token_id
        # The caller's seed alone decides on the new weights, whatever loading drew.
        torch.set_rng_state(rng_state)
        with quiet_loading():
            model = super().from_pretrained(
                None, config=config, state_dict=state_dict, dtype=language_model.dtype, **kwargs
            )
        model.name_or_path = ""  # it lies nowhere yet, which adapters of peft are to say of it
        model.generation_config = generation_config
        model.added_weights = {name for name, _ in model.named_parameters()} - set(state_dict)
        return model.eval()

    @classmethod
    def _completing_weights(cls, config, name, expected):
        load_vision = functools.partial(cls._load_vision_for, config)
        tower, language_model = load_base_models(config.base_models, name, load_vision)
        cls._grow_vocabulary(language_model, cls._token_ids(config))
        return cls._base_state_dict(config, tower, language_model, expected), language_model.dtype

    @classmethod
    def _base_state_dict(cls, config, tower, language_model, expected=None) -> dict[str, torch.Tensor]:
        """Weights of the two base models under the names that the composed model has for them."""
        state_dict = cls._vision_weights(tower)
        if config.is_encoder_decoder:
            decoder, head = language_model, {}
        else:
            decoder = getattr(language_model, language_model.base_model_prefix)
            head = language_model.get_output_embeddings().state_dict()
        state_dict |= {f"model.language_model.{name}": tensor for name, tensor in decoder.state_dict().items()}
        state_dict |= {f"lm_head.{name}": tensor for name, tensor in head.items()}
        expected = expected_shapes(cls, config) if expected is None else expected
        state_dict = own_names(cls, state_dict, expected)
        # A pooler or a text tower of the checkpoint may be no part of the composed model.
        return {
            name: tensor
            for name, tensor in state_dict.items()
            if name in expected and not (_OUTPUT in name and tensor.shape != expected[name])
        }


def tokenizer_key(config_class) -> str:
    """The field of a composed model's config that holds its visual tokenizer's."""
    (key,) = set(config_class.sub_configs_defaults) - {"vision_config", "text_config"}
    return key


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
    key = tokenizer_key(config_class)
    given = overrides.get(key) or {}
    given = given.to_dict() if isinstance(given, PreTrainedConfig) else dict(given)
    given |= {name: value for name, value in overrides.items() if name not in fields}
    config = config_class(
        vision_config=without_path(vision_config),
        text_config=without_path(text_config),
        **{key: given},
        **{name: value for name, value in overrides.items() if name in fields and name != key},
    )
    known = getattr(config, key).__dataclass_fields__
    if unknown := [name for name in overrides if name not in fields and name not in known]:
        raise ValueError(
            f"{', '.join(unknown)} is no field of {config_class.__name__} nor of "
            f"{type(getattr(config, key)).__name__}, whose own fields are: "
            f"{', '.join(sorted(set(known) - set(PreTrainedConfig.__dataclass_fields__)))}."
        )
    return config


__all__ = [
    "ComposedPreTrainedModel",
    "add_image_token",
    "add_special_token",
    "compose_config",
    "grow_vocabulary",
    "grown_size",
]
