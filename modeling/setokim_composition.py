"""How a Setokim comes about: from a vision tower or a trained SeTok, and a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..configuration.configuration_setok import SeTokConfig
from ..configuration.configuration_setok_vision import SeTokVisionConfig
from ..configuration.configuration_setokim import SetokimConfig
from .base_checkpoints import hub_arguments, load_vision_tower
from .base_weights import resolve_checkpoint
from .completed_model import without_path
from .composition import FROM_CHECKPOINTS, add_image_token, add_special_token, grow_vocabulary
from .modeling_setok import SeTokForPreTraining
from .modeling_setok_vision import SeTokVisionModel
from .multimodal_model import MultimodalPreTrainedModel
from .token_bank import TokenBank
from .token_rows import TokenRows
from .trained_setok import without_detokenizer
from .trained_weights import one_checkpoint_error

IMAGE_START_TOKEN, IMAGE_END_TOKEN = "[Img]", "[/Img]"
OF_CHOICES = ("token_bank.query", "token_bank.key_up", "token_bank.key_down")  # all but the tokens, which are data
TOKEN_IDS = ("image_token_id", "image_start_token_id", "image_end_token_id")


def _inside(prefixes: str | Sequence[str]) -> str | tuple[str, ...]:
    if isinstance(prefixes, str):
        return f"model.setok.{prefixes}"
    return tuple(f"model.setok.{prefix}" for prefix in prefixes)


def add_image_brackets(tokenizer) -> dict[str, int]:
    """
    Makes sure that a tokenizer knows `[Img]` and `[/Img]`, as its `image_start_token` and `image_end_token`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place.

    Returns:
        `dict[str, int]`: `image_start_token_id` and `image_end_token_id`.
    """
    start = add_special_token(tokenizer, "image_start_token", IMAGE_START_TOKEN)
    end = add_special_token(tokenizer, "image_end_token", IMAGE_END_TOKEN)
    return {"image_start_token_id": start, "image_end_token_id": end}


class SetokimPreTrainedModel(MultimodalPreTrainedModel):
    config: SetokimConfig
    config_class = SetokimConfig
    _no_split_modules = ["SegmentLayer"]
    _can_compile_fullgraph = False  # rows are as long as their images have tokens
    trainable_parts = {
        **{part: _inside(prefixes) for part, prefixes in SeTokForPreTraining.trainable_parts.items()},
        "projections": ("model.input_projection", "output_projection", *OF_CHOICES),
        "token_rows": ("model.token_rows", "head_rows"),
        "llm": ("model.language_model", "lm_head"),
    }
    optional_parts = {"setok_config.detokenizer_config": "model.setok.detokenizer."}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TokenRows):
            init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, TokenBank):
            module.reset_parameters()

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str, **kwargs):
        """
        Composes a model from a vision and a language checkpoint. The vision checkpoint is a tower, around which SeTok
        is new and random, or a SeTok: its tokenizer alone ([`SeTokVisionModel`]), or with its decoders
        ([`SeTokForPreTraining`]). The projections are new and random.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder (of SeTok too) or a Hub id.
            text (`str`): causal language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id. Its embeddings
                get rows for the placeholder, `[Img]` and `[/Img]`.
            kwargs: as in [`ComposedPreTrainedModel.from_vision_text_pretrained`]: `dtype`, `attn_implementation`, …,
                and fields of [`SetokimConfig`], [`SeTokConfig`] or [`SeTokVisionConfig`] (`max_tokens=32`).

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if an override is a field of none of these, follows from the checkpoints, or changes the shape
                of a trained SeTok; or if the language model is an encoder-decoder.
            FetchError: if base weights of vistok are not in the cache; names the command for all of them.
            CheckpointError: if the vision checkpoint is neither tower nor SeTok, or weights are truncated or missing.
        """
        return super().from_vision_text_pretrained(vision, text, **kwargs)

    @classmethod
    def _load_vision(cls, vision: str, **kwargs) -> PreTrainedModel:
        path = resolve_checkpoint(vision)
        model_type = AutoConfig.from_pretrained(path, **hub_arguments(kwargs)).model_type
        kinds: dict[str, Any] = {"setok": SeTokForPreTraining, "setok_vision": SeTokVisionModel}
        if model_type not in kinds:
            return load_vision_tower(vision, **kwargs)
        with one_checkpoint_error(path):
            return kinds[model_type].from_pretrained(path, **kwargs)

    @classmethod
    def _load_vision_for(cls, config: PreTrainedConfig, vision: str) -> PreTrainedModel:
        setok_config: Any = config.setok_config
        draws = setok_config.detokenizer_config is not None
        return cls._load_vision(vision, **({} if draws else without_detokenizer(resolve_checkpoint(vision))))

    @classmethod
    def _vision_weights(cls, vision_model: PreTrainedModel) -> dict[str, torch.Tensor]:
        prefix = "model.setok."
        if not isinstance(vision_model, SeTokForPreTraining):
            prefix += "vision_model." if isinstance(vision_model, SeTokVisionModel) else "vision_model.vision_tower."
        return {f"{prefix}{name}": tensor for name, tensor in vision_model.state_dict().items()}

    @classmethod
    def _add_tokens(cls, tokenizer) -> dict[str, int]:
        return {"image_token_id": add_image_token(tokenizer), **add_image_brackets(tokenizer)}

    @classmethod
    def _token_ids(cls, config: PreTrainedConfig) -> dict[str, int]:
        return {name: getattr(config, name) for name in TOKEN_IDS}

    @classmethod
    def _grow_vocabulary(cls, language_model: PreTrainedModel, token_ids: Mapping[str, int]) -> None:
        num_rows = language_model.get_input_embeddings().weight.shape[0]
        grow_vocabulary(language_model, max(token_ids.values()))
        new = sorted(token_id for token_id in token_ids.values() if token_id >= num_rows)
        _tell_apart(language_model, new, num_rows)

    @classmethod
    def _compose_config(cls, vision_config, text_config, overrides: Mapping[str, Any]) -> SetokimConfig:
        if given_twice := [name for name in (*FROM_CHECKPOINTS, *TOKEN_IDS[1:]) if name in overrides]:
            raise ValueError(
                f"{', '.join(given_twice)} cannot be chosen: it follows from the two checkpoints. Leave it out."
            )
        classes: tuple[Any, ...] = (SetokimConfig, SeTokConfig, SeTokVisionConfig)
        chosen: list[dict[str, Any]] = [{}, {}, {}]
        for name, value in overrides.items():
            owner = next((index for index, kind in enumerate(classes) if name in kind.__dataclass_fields__), None)
            if owner is None:
                raise ValueError(
                    f"{name} is no field of {', '.join(kind.__name__ for kind in classes[:2])} nor "
                    f"{classes[2].__name__}."
                )
            chosen[owner][name] = value
        own, of_setok, of_vision = chosen
        values: dict[str, Any] = without_path(vision_config)
        setok: dict[str, Any] = dict(_values(own.pop("setok_config", None)))
        if vision_config.model_type == "setok":
            setok = {**values, **setok, "base_models": None, "lora_config": None}
        elif vision_config.model_type == "setok_vision":
            setok["vision_config"] = values
        else:
            setok["vision_config"] = {**_values(setok.get("vision_config")), "vision_config": values}
        setok |= of_setok
        setok["vision_config"] = {**_values(setok["vision_config"]), **of_vision}
        return SetokimConfig(setok_config=setok, text_config=without_path(text_config), **own)


def _values(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    return config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config)


@torch.no_grad()
def _tell_apart(language_model: PreTrainedModel, token_ids: list[int], num_rows: int) -> None:
    """Moves new rows, which are all the mean of the others, a tenth of their spread apart: the same way everywhere."""
    embeddings, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    weights = [embeddings.weight] if head.weight is embeddings.weight else [embeddings.weight, head.weight]
    for number, weight in enumerate(weights):
        spread = weight[:num_rows].float().std(0)
        for token_id in token_ids:
            generator = torch.Generator().manual_seed(2 * token_id + number)
            noise = torch.randn(weight.shape[1], generator=generator).to(spread.device)
            weight[token_id] += (0.1 * spread * noise).to(weight.dtype)


__all__ = ["SetokimPreTrainedModel", "add_image_brackets"]
