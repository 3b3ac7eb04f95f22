"""A model's code as one flat folder of modules, which loads where vistok is not installed."""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedConfig

from .remote_code import auto_classes, classes_around, configs_naming_code, model_types_within

PARTS_NAME = "vistok_parts.py"
MANIFEST_NAME = "vistok_code.json"

# Modules that have another content in an export, and the module whose content that is.
_STANDS_FOR = {"base_weights": "unfetched_base_weights"}
_ROOMS = ("configuration", "modeling", "processing", "hub_cards")
_PACKAGE = Path(__file__).absolute().parents[1]
# Where transformers runs, these are installed.
_ALWAYS_THERE = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "PIL", *sys.stdlib_module_names}
_HEADER = """\
# Copyright The vistok authors. SPDX-License-Identifier: Apache-2.0
# {source} of vistok {version}, flattened by `vistok push --self-contained`: not to be edited here.
"""
_PARTS = '''\
{header}
"""The parts of this model, which transformers finds by their type once this module is imported."""

from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

{imports}

PARTS = (
{parts}
)


def _add(config_class, model_class):
    kind = config_class.model_type
    if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].__module__.startswith("vistok."):
        return  # vistok itself goes first where it is imported
    AutoConfig.register(kind, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)


for _part in PARTS:
    _add(*_part)
'''


class ExportError(ValueError):
    """Code that does not load as a flat folder; the message names the module and what is wrong with it."""


def flat_files(folder: Path, config: PreTrainedConfig | None, processor: str | None = None) -> dict[str, str]:
    """
    What a folder needs to be loaded by `trust_remote_code=True` where vistok is not installed.

    Args:
        folder (`Path`): of a model, a processor or both.
        config (`PreTrainedConfig`, *optional*): of the model.
        processor (`str`, *optional*): name of the class of the processor, where there is no model.

    Returns:
        `dict[str, str]`: files by name: modules, a manifest of them, and the configs that name them; empty where all
        is transformers' own. The same model and version give the same bytes.

    Raises:
        ExportError: if a module imports what cannot be flattened.
    """
    classes = auto_classes(config.model_type) if config is not None else classes_around(processor)
    if config is None:
        classes = {name: kind for name, kind in classes.items() if name == "AutoProcessor"}
    if not classes:
        return {}
    modules = _modules_of(classes, model_types_within(config) if config is not None else [])
    references = {name: f"{_stem(kind)}.{kind.__name__}" for name, kind in classes.items()}
    return {**modules, MANIFEST_NAME: _manifest(modules), **configs_naming_code(folder, references)}


def _modules_of(classes: Mapping[str, type], model_types: list[str]) -> dict[str, str]:
    """All modules that some classes and the parts of their model need, by name of file."""
    parts = [auto_classes(model_type) for model_type in model_types[1:]]
    in_parts = sorted({_stem(kind) for part in parts for kind in (part["AutoConfig"], part["AutoModel"])})
    needed = closure([*(_stem(kind) for kind in classes.values()), *in_parts])
    modules = {f"{name}.py": flat_source(name) for name in needed}
    if parts:
        config_module = _stem(classes["AutoConfig"])
        if config_module in closure(in_parts):
            raise ExportError(f"A part of the model imports {config_module}, which has to import the parts.")
        modules[f"{config_module}.py"] += f"\nfrom .{PARTS_NAME.removesuffix('.py')} import PARTS as PARTS  # noqa\n"
        modules[PARTS_NAME] = _parts_module(parts)
    return dict(sorted(modules.items()))


def _stem(kind: type) -> str:
    return kind.__module__.rpartition(".")[2]


def closure(names: Iterable[str]) -> list[str]:
    """
    The modules that modules import, at their top or anywhere below, and those that these import.

    Args:
        names (iterable of `str`): of modules, without their rooms: names of files are unique across these.

    Returns:
        `list[str]`: names, in the order of the alphabet.

    Raises:
        ExportError: if one imports a whole module, or one that is in no room of an export.
    """
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [target for _, target in _relative_imports(name)]
    return sorted(found)


def _path_of(name: str) -> Path:
    name = _STANDS_FOR.get(name, name)
    for room in _ROOMS:
        if (path := _PACKAGE / room / f"{name}.py").is_file():
            return path
    raise ExportError(f"There is no module {name}.py in {', '.join(_ROOMS)}.")


def _relative_imports(name: str) -> list[tuple[ast.ImportFrom, str]]:
    path = _path_of(name)
    imports = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = (node.module or "").rpartition(".")[2]
            if not target or target in _ROOMS:
                raise ExportError(
                    f"{path.name}, line {node.lineno}, imports a module as a whole, which cannot be flattened: import "
                    "names from it."
                )
            imports.append((node, target))
    return imports


def flat_source(name: str) -> str:
    """
    A module as it stands in a flat folder: with a header that says where it is from, with imports from the modules
    beside it, and with packages that not everybody has imported where they are needed, so that loading the module does
    not ask for them.

    Args:
        name (`str`): of the module, without its room.

    Returns:
        `str`: Python.

    Raises:
        ExportError: see [`closure`].
    """
    path = _path_of(name)
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node, target in _relative_imports(name):
        before = lines[node.lineno - 1]
        lines[node.lineno - 1] = re.sub(r"from\s+\.+[\w.]*\s+import", f"from .{target} import", before, count=1)
    for optional in _imports_of_optional_packages(ast.parse(source)):
        span = slice(optional.lineno - 1, optional.end_lineno)
        lines[span] = _guarded(optional, lines[span])
    return _header(f"{path.parent.name}/{path.name}") + "\n".join(lines) + "\n"


def _imports_of_optional_packages(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """Those below the top of a module, the last one first: transformers takes them for what the module needs."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages = {(node.module or "").partition(".")[0]}
        else:
            continue
        if packages - _ALWAYS_THERE and node.col_offset:
            found.append(node)
    return sorted(found, key=lambda node: -node.lineno)


def _guarded(node: ast.Import | ast.ImportFrom, lines: list[str]) -> list[str]:
    """An import in a `try`, where transformers does not look for what a module needs."""
    package = (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name or "") or ""
    package = package.partition(".")[0]
    indent = " " * node.col_offset
    told = f'"{package} is needed here and is not installed: run pip install {package}."'
    return [
        f"{indent}try:",
        *(f"    {line}" for line in lines),
        f"{indent}except ImportError as error:",
        f"{indent}    raise ImportError({told}) from error",
    ]


def _parts_module(parts: list[dict[str, type]]) -> str:
    pairs = [(part["AutoConfig"], part["AutoModel"]) for part in parts]
    imports = sorted({f"from .{_stem(kind)} import {kind.__name__}" for pair in pairs for kind in pair})
    listed = [f"    ({config_class.__name__}, {model_class.__name__})," for config_class, model_class in pairs]
    return _PARTS.format(header=_header("The parts"), imports="\n".join(imports), parts="\n".join(listed))


def _header(source: str) -> str:
    return _HEADER.format(source=source, version=_version())


def _version() -> str:
    return str(getattr(sys.modules["vistok"], "__version__", ""))


def _manifest(modules: Mapping[str, str]) -> str:
    files = {name: hashlib.sha256(text.encode("utf-8")).hexdigest() for name, text in modules.items()}
    return json.dumps({"license": "Apache-2.0", "sha256": files, "vistok": _version()}, indent=2) + "\n"


__all__ = ["MANIFEST_NAME", "PARTS_NAME", "ExportError", "closure", "flat_files", "flat_source"]
