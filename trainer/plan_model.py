"""The model of a recipe without its weights: tensors that have shapes and types, and take no memory."""

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..modeling.base_weights import shipped_checkpoint
from ..modeling.lora_adapters import add_lora
from ..modeling.vision_features import feature_grid
from .freezing import set_trainable, upcast_trained
from .known_architectures import architecture
from .model_recipe import KINDS, ModelRecipe
from .setokim_config import LORA as SETOKIM_LORA
from .visual_language_recipe import VisualLanguageRecipe


def planned_config(recipe: ModelRecipe, earlier: Mapping[str, PreTrainedConfig]) -> tuple[PreTrainedConfig, int]:
    """
    The configuration of a recipe's model.

    Args:
        recipe ([`ModelRecipe`]): what is trained.
        earlier (`dict[str, PreTrainedConfig]`): of the models that earlier recipes leave, by their output folders.

    Returns:
        `tuple`: the configuration, and the side of its images in pixels.

    Raises:
        FileNotFoundError: if it starts from a folder that is not there, or from what nobody here knows.
        ValueError: if a field is unknown, or images have no one size.
    """
    kind = KINDS[recipe.kind]
    if recipe.llava is not None:
        raise ValueError("A SeTok that is plugged into a LLaVA is not planned: name its vision and text instead.")
    if recipe.checkpoint is not None:
        return _of_checkpoint(recipe, earlier)
    vision, text = _vision(recipe, earlier), architecture(str(recipe.text))
    text_config, token_ids = text.with_tokens(kind.model_class._add_tokens)
    overrides = {**recipe.config, f"{kind.tokenizer}_config": getattr(recipe, kind.tokenizer)}
    config = kind.model_class._compose_config(vision[0], text_config, overrides)
    for field, token_id in token_ids.items():
        setattr(config, field, token_id)
    config.base_models = {"vision": str(recipe.vision), "text": str(recipe.text)}
    side = recipe.image_size or vision[1]
    if side is None:
        raise ValueError(f"The images of {recipe.vision} have no one size: set model.image_size.")
    if hasattr(getattr(config, f"{kind.tokenizer}_config"), "num_tokens"):
        height, width = feature_grid(config.vision_config, (side, side), config.vision_feature_layer)
        getattr(config, f"{kind.tokenizer}_config").num_tokens = height * width
    return config, side


def _vision(recipe: ModelRecipe, earlier: Mapping[str, PreTrainedConfig]) -> tuple[PreTrainedConfig, int | None]:
    folder = os.path.normpath(str(recipe.vision))
    if folder in earlier:
        config: Any = earlier[folder]
        return config, getattr(config, "planned_image_size", None)
    found = architecture(str(recipe.vision))
    config = found.config if found.config.model_type in ("setok", "setok_vision") else found.vision_config
    return getattr(config, "setok_vision_config", config), found.image_size


def _of_checkpoint(recipe: ModelRecipe, earlier: Mapping[str, PreTrainedConfig]) -> tuple[PreTrainedConfig, int]:
    folder = os.path.normpath(shipped_checkpoint(str(recipe.checkpoint)) or str(recipe.checkpoint))
    config: Any
    if folder in earlier:
        config = copy.deepcopy(earlier[folder])
        side = recipe.image_size or config.planned_image_size
    elif os.path.isdir(folder):
        config = AutoConfig.from_pretrained(folder)
        side = recipe.image_size or _prepared(folder, config)
    else:
        raise FileNotFoundError(
            f"model.checkpoint is {recipe.checkpoint}, which is not here: give the recipe that leaves this folder "
            "before this one (vistok plan FIRST.yaml SECOND.yaml), or say what it is composed of (--model.checkpoint "
            "null --model.vision … --model.text …)."
        )
    for name in KINDS[recipe.kind].switches:
        if name in recipe.config:
            setattr(config, name, recipe.config[name])
    return config, side


def _prepared(folder: str, config: Any) -> int:
    from transformers import AutoProcessor

    from ..processing.square_images import prepared_side

    side = prepared_side(AutoProcessor.from_pretrained(folder).image_processor)
    return side or config.vision_config.image_size


def planned_model(recipe: VisualLanguageRecipe, config: PreTrainedConfig, uses_deepspeed: bool) -> PreTrainedModel:
    """
    The model of a recipe as its trainer freezes and opens it, on the device `meta`.

    Args:
        recipe ([`VisualLanguageRecipe`]): with the sections `model`, `trainable` and `lora`.
        config (`PreTrainedConfig`): of [`planned_config`].
        uses_deepspeed (`bool`): it keeps weights that are trained as they are, and a copy in float32.
    """
    config = copy.deepcopy(config)
    options: dict[str, Any] = {}
    if recipe.model.attn_implementation is not None:
        options["attn_implementation"] = recipe.model.attn_implementation
    dtype = getattr(torch, recipe.model.dtype) if recipe.model.dtype else _dtype_of(config.text_config)
    with torch.device("meta"), no_init_weights():
        model = KINDS[recipe.model.kind].model_class._from_config(config, dtype=dtype, **options)
    model.tie_weights()
    with torch.device("meta"):
        _open(model, recipe)
        if not uses_deepspeed:
            upcast_trained(model)
    return model


def _open(model: Any, recipe: VisualLanguageRecipe) -> None:
    lora, trainable = recipe.lora, dict(recipe.trainable)
    if model.config.lora_config is not None:
        add_lora(model, model.config.lora_config)
    if recipe.model.kind == "setokim":
        if trainable["llm"] == "full":
            model.merge_token_rows()
        elif trainable["token_rows"] == "full":
            model.add_token_rows()
        if size := recipe.training.get("token_bank_size"):
            model.add_token_bank(size)
        lora = lora or (dict(SETOKIM_LORA) if trainable["llm"] == "lora" and not model.config.lora_config else None)
    set_trainable(model, trainable, lora)


def make_fake(model: torch.nn.Module) -> None:
    """
    Gives a model of the device `meta` tensors of a CPU; called where these are fake, and hold nothing.

    Args:
        model (`nn.Module`): changed in place.
    """
    made: dict[int, Any] = {}  # of what is tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def _dtype_of(text_config: Any) -> torch.dtype:
    dtype = getattr(text_config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


__all__ = ["make_fake", "planned_config", "planned_model"]
