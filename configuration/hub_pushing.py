"""`push_to_hub` of models and processors: what the package publishes with, where there is a package."""

from collections.abc import Callable
from typing import Any

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
