"""Optional dependencies: imported where they are used, with an error that names the extra to install."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
        module (`str`): importable name, e.g. `"gguf"`.
        extra (`str`): the extra of vistok that installs it, e.g. `"convert"`.

    Returns:
        `ModuleType`: the imported module.

    Raises:
        ImportError: if the module is missing; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{module} is needed here and is not installed: run pip install "vistok[{extra}]".'
        ) from error
