"""Code beside a model's weights, with which `trust_remote_code=True` loads it where nobody imports vistok."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from ..modeling.atomic_folder import write_text_atomically
from ..modeling.divided_weights import original_class

STUB_NAME = "vistok_classes.py"
"""The module of two lines that loads vistok's own classes."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_AUTO_MODELS = {
    "AutoModel": AutoModel,
    "AutoModelForCausalLM": AutoModelForCausalLM,
    "AutoModelForImageClassification": AutoModelForImageClassification,
    "AutoModelForImageTextToText": AutoModelForImageTextToText,
    "AutoModelForPreTraining": AutoModelForPreTraining,
}


def is_ours(kind: Any) -> bool:
    """Whether a class is one of vistok's, and not of transformers or of a user."""
    return isinstance(kind, type) and kind.__module__.startswith("vistok.")


def auto_classes(model_type: str) -> dict[str, type]:
    """
    What the Auto classes of transformers make of a type of model.

    Args:
        model_type (`str`): as in a config.

    Returns:
        `dict[str, type]`: vistok's classes by the name of the Auto class, `AutoConfig` first and `AutoProcessor` last;
        empty for a type of model that is not vistok's.
    """
    if model_type not in CONFIG_MAPPING or not is_ours(config_class := CONFIG_MAPPING[model_type]):
        return {}
    found: dict[str, Any] = {"AutoConfig": config_class}
    for name, auto_class in _AUTO_MODELS.items():
        if config_class in (mapping := auto_class._model_mapping):
            found[name] = mapping[config_class]
    if config_class in PROCESSOR_MAPPING:
        found["AutoProcessor"] = PROCESSOR_MAPPING[config_class]
    return {name: kind for name, kind in found.items() if is_ours(kind)}


def model_types_within(config: PreTrainedConfig) -> list[str]:
    """
    The types of vistok's models that a model is made of, and those that its configs have by default, which comparing
    with the defaults makes.

    Args:
        config (`PreTrainedConfig`): of the model.

    Returns:
        `list[str]`: its own type first, the others in the order of the alphabet.
    """
    found: set[str] = set()
    waiting = [config.model_type, *_types_in(config.to_dict())]
    while waiting:
        model_type = waiting.pop()
        if model_type in found or not auto_classes(model_type):
            continue
        found.add(model_type)
        defaults = getattr(CONFIG_MAPPING[model_type], "sub_configs_defaults", {})
        waiting += [getattr(default, "model_type", None) or "" for default in defaults.values()]
    return [config.model_type, *sorted(found - {config.model_type})]


def _types_in(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        own = [value["model_type"]] if isinstance(value.get("model_type"), str) else []
        return own + [found for entry in value.values() for found in _types_in(entry)]
    return [found for entry in value for found in _types_in(entry)] if isinstance(value, list | tuple) else []


def stub_module(classes: Mapping[str, type]) -> str:
    """
    A module that loads classes from vistok. Where vistok is missing, transformers says what to install.

    Args:
        classes (`Mapping[str, type]`): from [`auto_classes`].
    """
    names = ", ".join(sorted({kind.__name__ for kind in classes.values()}))
    return f"# The code of this model is in the package vistok: pip install vistok\nfrom vistok import {names}\n"


def stub_files(folder: Path, config: PreTrainedConfig | None, processor: str | None = None) -> dict[str, str]:
    """
    What a folder needs to be loaded by `trust_remote_code=True` where vistok is installed and not imported.

    Args:
        folder (`Path`): of a model, a processor or both.
        config (`PreTrainedConfig`, *optional*): of the model.
        processor (`str`, *optional*): name of the class of the processor, where there is no model.

    Returns:
        `dict[str, str]`: files by name: the stub, and the configs that name it; empty where all is transformers' own.
    """
    classes = auto_classes(config.model_type) if config is not None else classes_around(processor)
    if not classes:
        return {}
    module = STUB_NAME.removesuffix(".py")
    references = {name: f"{module}.{kind.__name__}" for name, kind in classes.items()}
    return {STUB_NAME: stub_module(classes), **configs_naming_code(folder, references)}


def save_stub(saved: Any, folder: str | os.PathLike, published: bool = False) -> None:
    """
    Writes the stub beside a config or a processor that names code to load it with, and has the processor in the folder
    name it too: what `trust_remote_code=True` has loaded can be loaded again that way.

    Args:
        saved (`PreTrainedModel`, `PreTrainedConfig` or `ProcessorMixin`): that was just saved. A user's subclass is
            left alone, as is a model of a user's class.
        folder (`str`): where to.
        published (`bool`, *optional*, defaults to `False`): the folder goes to the Hub; the stub also where no code
            was named.
    """
    is_model = isinstance(saved, PreTrainedModel)
    config = saved.config if is_model else saved
    if not (is_ours(original_class(saved) if is_model else type(saved)) and is_ours(type(config))):
        return
    folder, files = Path(folder), {}
    if isinstance(config, PreTrainedConfig):
        named = (getattr(config, "auto_map", None) or {}).values()
        ours = {kind.__name__ for kind in auto_classes(config.model_type).values()}
        if (named or published) and all(str(reference).split(".")[-1] in ours for reference in named):
            files = stub_files(folder, config)
    elif published or getattr(saved, "auto_map", None) or (folder / STUB_NAME).is_file():
        files = stub_files(folder, None, type(saved).__name__)
        files = {name: text for name, text in files.items() if name in (STUB_NAME, *PROCESSOR_FILES)}
    for name, text in files.items():
        write_text_atomically(folder / name, text)


def classes_around(processor: str | None) -> dict[str, type]:
    """
    The classes of the model that a processor prepares the inputs of, its own among them.

    Args:
        processor (`str`, *optional*): name of its class.
    """
    for config_class, kind in PROCESSOR_MAPPING._extra_content.items():
        if is_ours(kind) and kind.__name__ == processor:
            return auto_classes(config_class.model_type)
    return {}


def configs_naming_code(folder: Path, references: Mapping[str, str]) -> dict[str, str]:
    """
    The configs of a folder, naming the code that loads them.

    Args:
        folder (`Path`): holds them; they stay as they are.
        references (`Mapping[str, str]`): `module.Class` by the name of the Auto class.

    Returns:
        `dict[str, str]`: text of `config.json`, and of the config of a processor of vistok's, by name.
    """
    files = {}
    models = {name: reference for name, reference in references.items() if name != "AutoProcessor"}
    if (folder / "config.json").is_file() and models:
        files["config.json"] = _with_auto_map(folder / "config.json", models)
    for name in PROCESSOR_FILES:
        if "AutoProcessor" in references and (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            if values.get("processor_class") == references["AutoProcessor"].split(".")[-1]:
                files[name] = _with_auto_map(folder / name, {"AutoProcessor": references["AutoProcessor"]})
                break
    return files


def _with_auto_map(path: Path, auto_map: Mapping[str, str]) -> str:
    values = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": dict(auto_map)}
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def processor_name(folder: Path) -> str | None:
    """
    The class of the processor in a folder.

    Args:
        folder (`Path`): of a model or a processor.
    """
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            return json.loads((folder / name).read_text(encoding="utf-8")).get("processor_class")
    return None


def load_config(folder: Path) -> PreTrainedConfig | None:
    """
    The config of a model's folder, read without running code from it.

    Args:
        folder (`Path`): of a model; or of a processor, which has none.

    Raises:
        ValueError: if the config is damaged or of an unknown type of model.
    """
    if not (folder / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


__all__ = [
    "PROCESSOR_FILES",
    "STUB_NAME",
    "auto_classes",
    "classes_around",
    "configs_naming_code",
    "is_ours",
    "load_config",
    "model_types_within",
    "processor_name",
    "save_stub",
    "stub_files",
    "stub_module",
]
