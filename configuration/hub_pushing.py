"""`push_to_hub` of models and processors: what the package publishes with, where there is a package."""

import inspect
import os
from collections.abc import Callable
from typing import Any

_OF_PUSH = ("commit_message", "private", "token", "revision", "create_pr", "self_contained", "adapter_only")
_publishers: list[Callable[..., str]] = []


def publish_with(publisher: Callable[..., str]) -> None:
    """
    Says what `push_to_hub` calls. The package does so when it is imported; a model that was exported with its code has
    transformers' own `push_to_hub`.

    Args:
        publisher (`Callable`): takes the object, the name of the repository and the options of `push_to_hub`.
    """
    _publishers[:] = [publisher]


class PushedToHub:
    """Models and processors that are published with what loads them, and models with a card."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **options: Any) -> Any:
        """
        `save_pretrained` of transformers. With `push_to_hub=True` what was saved is published too, as [`push_to_hub`]
        does it and with its options.

        Args:
            save_directory (`str`): folder.
            push_to_hub (`bool`, *optional*, defaults to `False`): whether it is published too.
            repo_id (`str`, *optional*): of the repository; by default the folder's name.
            args, options: as in transformers, or of [`push_to_hub`].

        Raises:
            PushError, ValueError: as [`push_to_hub`]. The folder is there then.
        """
        save: Any = super().save_pretrained  # type: ignore[misc]
        bound = inspect.signature(save).bind(save_directory, *args, **options).arguments
        given = {**bound.pop("kwargs", {}), **bound}
        if not given.pop("push_to_hub", False) or not _publishers:
            return save(save_directory, *args, **options)
        repo_id = given.pop("repo_id", None)
        of_push = {name: given.pop(name) for name in _OF_PUSH if name in given}
        saved = save(**given)
        if given.pop("is_main_process", True):
            of_saving = {name: value for name, value in given.items() if name != "save_directory"}
            repo_id = repo_id or os.path.basename(os.path.abspath(save_directory))
            _publishers[0](self, repo_id, of_saving=of_saving, **of_push)
        return saved

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """
        Publishes this on the Hub, in one commit: safetensors, configs, what `trust_remote_code=True` needs and, of a
        model, a checked card, unless the repository has one. Of what a repository holds only weights are replaced.

        Args:
            repo_id (`str`): `owner/name`; made if there is none.
            commit_message (`str`, *optional*): of the commit.
            private (`bool`, *optional*): of a new repository.
            token (`str` or `bool`, *optional*): by default that of `hf auth login` or `HF_TOKEN`.
            revision (`str`, *optional*): branch, made if there is none.
            create_pr (`bool`, *optional*, defaults to `False`): proposes the commit instead of making it.
            max_shard_size (`str`, *optional*): of a file of weights.
            self_contained (`bool`, *optional*, defaults to `False`): with the code, to load where vistok is not
                installed.
            adapter_only (`bool`, *optional*, defaults to `False`): of a model, only what was trained.

        Returns:
            `str`: URL of the repository.

        Raises:
            PushError: if the Hub cannot be reached or refuses; nothing was committed.
            ValueError: if something is not fit to be published.
        """
        if not _publishers:
            return super().push_to_hub(repo_id, **options)  # type: ignore[misc]
        return _publishers[0](self, repo_id, **options)


__all__ = ["PushedToHub", "publish_with"]
