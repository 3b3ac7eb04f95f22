"""Folders that peft wrote: an adapter, and the name of the model that it adapts."""

import json
import os
from collections.abc import Mapping
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from .base_checkpoints import hub_arguments
from .trained_weights import CheckpointError


def adapter_and_model(
    name_or_path: str | os.PathLike, kwargs: Mapping[str, Any]
) -> tuple[str | None, str | os.PathLike, dict[str, Any]]:
    """
    What is to be loaded where a name may be that of an adapter of peft.

    Args:
        name_or_path (`str`): folder or Hub id.
        kwargs (`dict`): of `from_pretrained`. Auto classes have looked already: they give the name of the model, and
            that of the adapter in `adapter_kwargs`.

    Returns:
        `tuple`: where the adapter lies, `None` if there is none; where the model lies; and the arguments to load the
        model with.

    Raises:
        CheckpointError: if the adapter does not say which model it adapts.
    """
    rest = dict(kwargs)
    options = dict(rest.pop("adapter_kwargs", None) or {})
    found = options.pop("_adapter_model_path", None)
    if found is not None:
        return str(found), name_or_path, rest
    file = find_adapter_config_file(name_or_path, **{**hub_arguments(kwargs), **options})
    if file is None:
        return None, name_or_path, rest
    if os.path.isfile(os.path.join(name_or_path, CONFIG_NAME)):
        return str(name_or_path), name_or_path, rest
    with open(file, encoding="utf-8") as stream:
        model = json.load(stream).get("base_model_name_or_path")
    if not model:
        raise CheckpointError(
            f"{name_or_path} holds an adapter, and its adapter_config.json has no base_model_name_or_path: load its "
            f"model and then model.load_adapter({str(name_or_path)!r}), or write there which model it adapts."
        )
    return str(name_or_path), model, {name: value for name, value in rest.items() if name != "revision"}


__all__ = ["adapter_and_model"]
