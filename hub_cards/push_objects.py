"""Publishing models and processors that lie in memory, and the folder of a training."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling.trained_weights import save_trained_weights
from .card import CARD_NAME
from .push import send, told_push_errors
from .push_plan import Weights, check_repo_id, planned_push

logger = logging.get_logger(__name__)


def push_object(
    published: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    self_contained: bool = False,
    adapter_only: bool = False,
    of_saving: Mapping[str, Any] | None = None,
    **others: Any,
) -> str:
    """
    What [`PushedToHub.push_to_hub`] does.

    Args:
        published (`PreTrainedModel` or `ProcessorMixin`): with `save_pretrained`.
        repo_id, commit_message, private, token, revision, create_pr, max_shard_size, self_contained, adapter_only:
            see there.
        of_saving (`Mapping`, *optional*): further arguments of `save_pretrained`, such as the `state_dict` of a model
            whose weights are divided among processes.
        others: none.

    Returns:
        `str`: URL of the repository.

    Raises:
        PushError: if the Hub cannot be reached or refuses.
        ValueError: if something is not fit to be published.
        TypeError: for an option that there is not.
    """
    if unknown := [name for name, value in others.items() if value is not None]:
        raise TypeError(
            f"push_to_hub of vistok's models takes no {unknown[0]}: see its documentation for what it takes."
        )
    check_repo_id(repo_id)
    is_model = isinstance(published, PreTrainedModel)
    if adapter_only and not is_model:
        raise ValueError(f"adapter_only is for models, not for a {type(published).__name__}: leave it out.")
    if adapter_only and of_saving:
        raise ValueError(f"adapter_only does not go with {', '.join(of_saving)} of save_pretrained: leave one out.")
    with TemporaryDirectory(prefix="vistok-push-") as temporary:
        folder = Path(temporary) / repo_id.split("/")[-1]
        if adapter_only:
            save_trained_weights(published, folder)
        elif is_model:
            published.save_pretrained(folder, **{"max_shard_size": max_shard_size, **(of_saving or {})})
        else:
            published.save_pretrained(folder, **(of_saving or {}))
        card = _card_of(repo_id, revision, token) if is_model else None
        weights: Weights = "adapter" if adapter_only else "as they are"
        with planned_push(
            folder, repo_id, weights, self_contained, with_card=is_model, card_there=card, token=token
        ) as plan:
            for note in plan.notes:
                logger.warning(f"{repo_id}: {note}.")
            kind = "model" if is_model else "processor"
            sent = send(
                plan,
                private=private,
                revision=revision,
                message=commit_message or f"Upload {kind} with vistok",
                token=token,
                create_pr=create_pr,
                replaced=("weights",) if is_model else (),
            )
    return sent.url


def _card_of(repo_id: str, revision: str | None, token: str | bool | None) -> str | None:
    """The card that a repository has; `None` if it has none, or is not there."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with told_push_errors(repo_id, token), TemporaryDirectory(prefix="vistok-card-") as temporary:
        if not api.file_exists(repo_id, CARD_NAME, revision=revision):
            return None
        return Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision, local_dir=temporary)).read_text("utf-8")


__all__ = ["push_object"]
