"""The model of a recipe without its weights: tensors that have shapes and types, and take no memory."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..configuration.optional import require
from ..modeling.base_weights import shipped_checkpoint
from ..modeling.diffusion_parts import EXTRA
from ..modeling.lora_adapters import add_lora
from ..modeling.modeling_setok_llava import plugged_config
from ..modeling.vision_features import feature_grid
from ..processing.square_images import prepared_side
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
        llava = architecture(recipe.llava)
        return plugged_config(llava.config, recipe.setok), one_side(
            recipe.image_size or llava.image_size, recipe.llava
        )
    if recipe.checkpoint is not None:
        config, side = checkpoint_config(recipe, earlier)
        for name in kind.switches:
            if name in recipe.config:
                setattr(config, name, recipe.config[name])
        return config, side
    vision, text = _vision(recipe, earlier), architecture(str(recipe.text))
    text_config, token_ids = text.with_tokens(kind.model_class._add_tokens)
    overrides = {**recipe.config, f"{kind.tokenizer}_config": getattr(recipe, kind.tokenizer)}
    config = kind.model_class._compose_config(vision[0], text_config, overrides)
    for field, token_id in token_ids.items():
        setattr(config, field, token_id)
    config.base_models = {"vision": str(recipe.vision), "text": str(recipe.text)}
    side = one_side(recipe.image_size or vision[1], str(recipe.vision))
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


def one_side(side: int | None, name: str) -> int:
    """
    The side of images, in pixels.

    Args:
        side (`int`, *optional*): as far as it is known.
        name (`str`): of the model that reads them.

    Raises:
        ValueError: if it is not.
    """
    if side is None:
        raise ValueError(f"The images of {name} have no one size: set model.image_size.")
    return side


def checkpoint_config(recipe: Any, earlier: Mapping[str, PreTrainedConfig]) -> tuple[Any, int]:
    """
    The configuration of the model that a recipe starts from.

    Args:
        recipe ([`ModelRecipe`] or [`SeTokModelRecipe`]): with a `checkpoint`.
        earlier (`dict[str, PreTrainedConfig]`): as in [`planned_config`].

    Returns:
        `tuple`: a copy of the configuration, and the side of the images in pixels.

    Raises:
        FileNotFoundError: if the checkpoint is not there.
        ValueError: if images have no one size.
    """
    folder = os.path.normpath(shipped_checkpoint(str(recipe.checkpoint)) or str(recipe.checkpoint))
    if folder in earlier:
        config: Any = copy.deepcopy(earlier[folder])
        return config, recipe.image_size or config.planned_image_size
    if os.path.isdir(folder):
        config = AutoConfig.from_pretrained(folder)
        return config, one_side(recipe.image_size or _prepared(folder, config), folder)
    raise FileNotFoundError(
        f"model.checkpoint is {recipe.checkpoint}, which is not here: give the recipe that leaves this folder "
        "before this one (vistok plan FIRST.yaml SECOND.yaml), or say what it is composed of (--model.checkpoint "
        "null --model.vision …)."
    )


def _prepared(folder: str, config: Any) -> int | None:
    side = prepared_side(AutoImageProcessor.from_pretrained(folder))
    return side or getattr(config.vision_config, "image_size", None)


def weights_dtype(recipe: Any, config: Any) -> torch.dtype:
    """
    In which a recipe's model is loaded.

    Args:
        recipe ([`ModelRecipe`] or [`SeTokModelRecipe`]): which may say so.
        config (`PreTrainedConfig`): of what does otherwise.
    """
    dtype = recipe.dtype or getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


@contextlib.contextmanager
def without_weights(setok_config: Any = None) -> Iterator[None]:
    """
    Within, models that are built lie on the device `meta`, and nothing is drawn for them.

    Args:
        setok_config ([`SeTokConfig`], *optional*): of a SeTok among them.

    Raises:
        ImportError: if it has a detokenizer and the extra `generation` is not installed.
    """
    if getattr(setok_config, "detokenizer_config", None) is not None:
        # diffusers notes torch's init functions when it is imported, and puts them back later: the real ones.
        _ = require("diffusers", EXTRA).UNet2DConditionModel
    with torch.device("meta"), no_init_weights():
        yield


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
    dtype = weights_dtype(recipe.model, config.text_config)
    with without_weights(getattr(config, "setok_config", None)):
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


__all__ = [
    "checkpoint_config",
    "make_fake",
    "one_side",
    "planned_config",
    "planned_model",
    "weights_dtype",
    "without_weights",
]
