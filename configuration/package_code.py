"""Classes whose code is in this package and goes nowhere else."""

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin


def keep_code_in_package(classes: Iterable[Any], save_stub: Callable[[Any, str | os.PathLike], None]) -> None:
    """
    Lets models, configs and processors be saved after `trust_remote_code=True` has found their classes here.
    transformers marks what it has loaded that way and copies its modules beside the weights, which it cannot do with
    those of a package: beside them goes the stub that loads them from it. A user's subclass is marked and copied as
    ever.

    Args:
        classes (iterable of `type`): changed in place; those of other packages are passed over.
        save_stub (`Callable`): takes a config or a processor and the folder that it was just saved to.
    """
    ours = [kind for kind in classes if isinstance(kind, type) and _is_ours(kind)]
    for kind in ours:
        if hasattr(kind, "_auto_class"):
            setattr(kind, "register_for_auto_class", classmethod(_unless_ours(kind)))  # noqa: B010
        inherits = any(base in ours for base in kind.__mro__[1:])
        if issubclass(kind, PreTrainedConfig | ProcessorMixin) and not inherits:
            setattr(kind, "save_pretrained", _with_stub(kind, save_stub))  # noqa: B010


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("vistok.")


def _unless_ours(kind: Any):
    mark = kind.register_for_auto_class.__func__

    def register_for_auto_class(cls, *args, **kwargs) -> None:
        """`register_for_auto_class` of transformers, for subclasses in other packages and scripts."""
        if not _is_ours(cls):
            mark(cls, *args, **kwargs)

    return register_for_auto_class


def _with_stub(kind: Any, save_stub: Callable[[Any, str | os.PathLike], None]):
    save = kind.save_pretrained

    @functools.wraps(save)
    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = save(self, save_directory, *args, **kwargs)
        save_stub(self, save_directory)
        return saved

    return save_pretrained


__all__ = ["keep_code_in_package"]
