"""Classes whose code is in this package and goes nowhere else."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin

SaveStub = Callable[..., None]


def keep_code_in_package(classes: Iterable[Any], save_stub: SaveStub) -> None:
    """
    Lets models, configs and processors be saved after `trust_remote_code=True` has found their classes here.
    transformers marks what it has loaded that way and copies its modules beside the weights, which it cannot do with
    those of a package: beside them goes the stub that loads them from it, and always so with
    `save_pretrained(…, push_to_hub=True)`. A user's subclass is marked and copied as ever.

    Args:
        classes (iterable of `type`): changed in place; those of other packages are passed over.
        save_stub (`Callable`): takes a model, a config or a processor, the folder that it was just saved to, and
            `published`, whether the folder goes to the Hub.
    """
    ours = [kind for kind in classes if isinstance(kind, type) and _is_ours(kind)]
    for kind in ours:
        if hasattr(kind, "_auto_class"):
            setattr(kind, "register_for_auto_class", classmethod(_unless_ours(kind)))  # noqa: B010
        inherits = any(base in ours for base in kind.__mro__[1:])
        if inherits:
            continue
        if issubclass(kind, PreTrainedConfig | ProcessorMixin):
            setattr(kind, "save_pretrained", _with_stub(kind, save_stub))  # noqa: B010
        if issubclass(kind, ProcessorMixin):
            setattr(kind, "from_args_and_dict", classmethod(_naming_code(kind)))  # noqa: B010
        if hasattr(kind, "_upload_modified_files"):
            setattr(kind, "_upload_modified_files", _with_stub_sent(kind, save_stub))  # noqa: B010


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("vistok.")


def _unless_ours(kind: Any):
    mark = kind.register_for_auto_class.__func__

    def register_for_auto_class(cls, *args, **kwargs) -> None:
        """`register_for_auto_class` of transformers, for subclasses in other packages and scripts."""
        if not _is_ours(cls):
            mark(cls, *args, **kwargs)

    return register_for_auto_class


def _with_stub(kind: Any, save_stub: SaveStub):
    save = kind.save_pretrained

    @functools.wraps(save)
    def save_pretrained(self, save_directory, *args, **kwargs):
        saved = save(self, save_directory, *args, **kwargs)
        save_stub(self, save_directory)
        return saved

    return save_pretrained


def _with_stub_sent(kind: Any, save_stub: SaveStub):
    upload = kind._upload_modified_files

    @functools.wraps(upload)
    def _upload_modified_files(self, working_dir, *args, **kwargs):
        save_stub(self, working_dir, published=True)
        return upload(self, working_dir, *args, **kwargs)

    return _upload_modified_files


def _naming_code(kind: Any):
    make = kind.from_args_and_dict.__func__

    @functools.wraps(make)
    def from_args_and_dict(cls, args, processor_dict, **kwargs):
        made = make(cls, args, processor_dict, **kwargs)
        named = (processor_dict.get("auto_map") or {}).get("AutoProcessor", "")
        if _is_ours(cls) and named.split(".")[-1] == cls.__name__:
            # As configs do, the processor keeps what its folder said, which transformers writes again.
            (made[0] if isinstance(made, tuple) else made).auto_map = {"AutoProcessor": named}
        return made

    return from_args_and_dict


__all__ = ["keep_code_in_package"]
