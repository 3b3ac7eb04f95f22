"""Classes whose code is in this package and goes nowhere else."""

from collections.abc import Iterable
from typing import Any


def keep_code_in_package(classes: Iterable[Any]) -> None:
    """
    Lets models, configs and processors be saved after `trust_remote_code=True` has found their classes here.
    transformers marks what it has loaded that way and copies its modules beside the weights, which it cannot do with
    those of a package. A user's subclass is marked and copied as ever.

    Args:
        classes (iterable of `type`): changed in place; those of other packages are passed over.
    """
    for kind in classes:
        if isinstance(kind, type) and kind.__module__.startswith("vistok.") and hasattr(kind, "_auto_class"):
            setattr(kind, "register_for_auto_class", classmethod(_unless_ours(kind)))  # noqa: B010


def _unless_ours(kind: Any):
    mark = kind.register_for_auto_class.__func__

    def register_for_auto_class(cls, *args, **kwargs) -> None:
        """`register_for_auto_class` of transformers, for subclasses in other packages and scripts."""
        if not cls.__module__.startswith("vistok."):
            mark(cls, *args, **kwargs)

    return register_for_auto_class


__all__ = ["keep_code_in_package"]
