"""The checkpoints that a model is composed of: their towers and language models, and what they are called."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from .base_weights import require_fetched, resolve_checkpoint
from .trained_weights import HUB_ARGUMENTS, CheckpointError, one_checkpoint_error
from .vision_features import vision_tower_class


def load_vision_tower(name_or_path: str, **kwargs) -> PreTrainedModel:
    """
    Loads a vision tower; of a checkpoint with text and vision (CLIP, SigLIP, OWL-ViT) its vision part.

    Args:
        name_or_path (`str`): name of a base model of vistok, folder, or Hub id.
        kwargs: passed to `from_pretrained`.

    Raises:
        CheckpointError: if it is no vision transformer, or its weights are truncated or missing.
    """
    path = resolve_checkpoint(name_or_path)
    config = AutoConfig.from_pretrained(path, **hub_arguments(kwargs))
    vision_config = getattr(config, "vision_config", config)
    if getattr(vision_config, "patch_size", None) is None and not getattr(vision_config, "hidden_sizes", None):
        raise CheckpointError(
            f"{name_or_path} holds a model of type {config.model_type}, which has no patch_size: the vision "
            "checkpoint has to be a vision transformer, such as DINOv2, CLIP or SigLIP, or a ConvNeXt."
        )
    with one_checkpoint_error(path):
        tower, found = vision_tower_class(vision_config).from_pretrained(
            path, config=vision_config, output_loading_info=True, **kwargs
        )
    if {name for name, _ in tower.named_parameters()} <= set(found["missing_keys"]):
        raise CheckpointError(
            f"{name_or_path} holds a model of type {config.model_type} and no weights of {type(tower).__name__} by "
            "the names that this has: give the vision checkpoint that its tower is from."
        )
    return tower


def load_language_model(name_or_path: str, **kwargs) -> PreTrainedModel:
    """
    Loads a causal or encoder-decoder language model with its head.

    Args:
        name_or_path (`str`): name of a base model of vistok, folder, or Hub id.
        kwargs: passed to `from_pretrained`.
    """
    path = resolve_checkpoint(name_or_path)
    config = AutoConfig.from_pretrained(path, **hub_arguments(kwargs))
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with one_checkpoint_error(path):
        return auto_class.from_pretrained(path, **kwargs)


def load_base_models(
    base_models: Mapping[str, str], folder: str, load_vision: Callable[[str], PreTrainedModel] = load_vision_tower
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """
    Loads what completes a folder of trained weights.

    Args:
        base_models (`dict[str, str]`): of its config, `{"vision": …, "text": …}`.
        folder (`str`): folder or Hub id of the trained weights, for errors.
        load_vision (`Callable`, *optional*): loads the vision checkpoint; by default the tower of it.

    Returns:
        What the vision checkpoint holds, and the language model.

    Raises:
        CheckpointError: if one of them cannot be loaded; names the entry of the config that says where it lies.
        FetchError: if base models of vistok are not in the cache; names the command for all of them.
    """
    require_fetched(base_models.values())
    with naming_entry(base_models, "vision", folder):
        tower = load_vision(base_models["vision"])
    with naming_entry(base_models, "text", folder):
        language_model = load_language_model(base_models["text"], dtype="auto")
    return tower, language_model


def located_base_models(base_models: Mapping[str, str], name_or_path: str, **where) -> dict[str, str]:
    """
    Base models by names that are good anywhere. One that begins with `./` lies in the folder of the trained weights
    that it completes; on the Hub it is downloaded with them.

    Args:
        base_models (`dict[str, str]`): of a config, `{"vision": …, "text": …}`.
        name_or_path (`str`): folder or Hub id of the trained weights.
        where: `revision`, `token`, … as in `from_pretrained`.
    """
    inside = {part: name for part, name in base_models.items() if name.startswith("./")}
    if not inside:
        return dict(base_models)
    folder = str(name_or_path)
    if not os.path.isdir(folder):
        known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options: dict[str, Any] = {name: where[name] for name in known if name in where}
        root = f"{where['subfolder']}/" if where.get("subfolder") else ""
        patterns = [f"{root}{name.removeprefix('./')}/*" for name in inside.values()]
        folder = os.path.join(snapshot_download(folder, allow_patterns=patterns, **options), root)
    return {**base_models, **{part: os.path.abspath(os.path.join(folder, name)) for part, name in inside.items()}}


@contextlib.contextmanager
def naming_entry(base_models: Mapping[str, str], part: str, folder: str) -> Iterator[None]:
    """
    Errors of a base model that is loaded in this context name the entry of the config that says where it lies.

    Args:
        base_models (`dict[str, str]`): of the config of a folder of trained weights.
        part (`str`): its key, e.g. `"vision"`.
        folder (`str`): folder or Hub id of the trained weights.

    Raises:
        CheckpointError: instead of what was raised.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is completed by base_models.{part} = {base_models[part]!r}, which cannot be loaded: put it "
            f"there, or write where it lies as base_models.{part} into the config.json of {folder}. ({error})"
        ) from error


def lasting_name(name_or_path: str | os.PathLike) -> str:
    """
    What a checkpoint is called wherever the name is read: a folder by its absolute path, all else as it is.

    Args:
        name_or_path (`str`): name of a base model of vistok, folder, or Hub id.
    """
    return os.path.abspath(name_or_path) if os.path.isdir(name_or_path) else str(name_or_path)


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say where a checkpoint comes from."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}


__all__ = [
    "hub_arguments",
    "lasting_name",
    "load_base_models",
    "load_language_model",
    "load_vision_tower",
    "located_base_models",
    "naming_entry",
]
