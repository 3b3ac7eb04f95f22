"""Base weights where vistok is not installed: what stands in the place of `base_weights.py` in an exported model."""

import os
from collections.abc import Iterable

PREFIX = "vistok:"


def require_fetched(checkpoints: Iterable[str | os.PathLike]) -> None:
    """
    Makes sure that no checkpoint is one that only vistok knows.

    Args:
        checkpoints (iterable of `str`): folders and Hub ids; others are refused.

    Raises:
        ValueError: for a name of vistok's.
    """
    for checkpoint in checkpoints:
        if str(checkpoint).startswith(PREFIX):
            raise ValueError(
                f"{checkpoint} is a name of vistok's: `pip install vistok`, then `vistok fetch` for base weights, and "
                "import vistok before loading; or name a folder or a Hub id instead."
            )


def resolve_checkpoint(name_or_path: str | os.PathLike) -> str:
    """
    What `from_pretrained` takes for a checkpoint.

    Args:
        name_or_path (`str` or `os.PathLike`): a folder or a Hub id.

    Raises:
        ValueError: for a name of vistok's.
    """
    require_fetched([name_or_path])
    return os.fspath(name_or_path)


__all__ = ["require_fetched", "resolve_checkpoint"]
