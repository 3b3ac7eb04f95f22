"""Sending a model's files to the Hub in one commit, and what can go wrong on the way."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers.utils import logging

from .flat_export import MANIFEST_NAME, PARTS_NAME
from .published_text import without_secrets
from .push_plan import ADAPTER_NAMES, PushPlan
from .remote_code import STUB_NAME
from .secret_scan import check_no_secrets, safe_message

logger = logging.get_logger(__name__)

_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
_HINTS = {
    401: "The Hub does not know who you are: log in with `hf auth login`, or set HF_TOKEN.",
    403: "You may not write there: choose another owner, or a token that may write.",
    404: "There is no such repository or branch, or you may not see it.",
    413: "The Hub takes no files of that size.",
    422: "What arrived is not what was sent (its hash or size differs).",
}


class PushError(OSError):
    """Something could not be sent to the Hub; the message says what, and that nothing half-made is there."""


@dataclass(frozen=True)
class Pushed:
    """
    What was sent.

    Args:
        url (`str`): of the repository.
        commit (`str`): its commit.
    """

    url: str
    commit: str


def send(
    plan: PushPlan,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    replaced: Sequence[str] = ("weights", "code"),
) -> Pushed:
    """
    Sends files to the Hub, all in one commit: readers see the former state or the new one. What has arrived of an
    upload that was interrupted is not sent again. Weights and code of a former push that are not among the files go:
    they would be loaded in place of the new ones.

    Args:
        plan ([`PushPlan`]): the files.
        private (`bool`, *optional*): of a repository that does not exist yet; by default as its owner has it.
        revision (`str`, *optional*): branch, made if there is none; by default `main`.
        message (`str`, *optional*): of the commit.
        token (`str` or `bool`, *optional*): by default that of `hf auth login` or `HF_TOKEN`.
        create_pr (`bool`, *optional*, defaults to `False`): proposes the commit instead of making it.
        replaced (`Sequence[str]`, *optional*, defaults to `("weights", "code")`): what of a former push goes.

    Returns:
        [`Pushed`].

    Raises:
        PushError: if the Hub cannot be reached or refuses, or the upload is cut: no commit was made.
        ValueError: if a credential stands in the message.
    """
    check_no_secrets([], message, token)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    branch = revision or constants.DEFAULT_REVISION
    with told_push_errors(plan.repo_id, token):
        url = api.create_repo(plan.repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(plan.repo_id).private:
            raise PushError(
                f"{plan.repo_id} exists and everybody can read it: make it private on the Hub first, choose another "
                "name, or leave private out. Nothing was committed."
            )
        if revision and not revision.startswith("refs/pr/"):
            api.create_branch(plan.repo_id, branch=revision, exist_ok=True)
        sent = {file.path for file in plan.files}
        stale = [name for name in _former_files(api, plan.repo_id, branch, replaced) if name not in sent]
        operations: list[Any] = [CommitOperationAdd(file.path, _content(file.content)) for file in plan.files]
        operations += [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(
            plan.repo_id,
            operations,
            commit_message=message or "Upload with vistok",
            revision=branch,
            create_pr=create_pr,
        )
    if stale:
        logger.info(f"Taken out of {plan.repo_id}, as of a former push: {', '.join(stale)}.")
    return Pushed(str(url), str(commit.oid))


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _former_files(api: HfApi, repo_id: str, branch: str, kinds: Sequence[str]) -> list[str]:
    """Weights and code that a repository has, below no folder."""
    names = [name for name in api.list_repo_files(repo_id, revision=branch) if "/" not in name] if kinds else []
    exported = MANIFEST_NAME in names
    return [name for name in names if _kind(name, exported) in kinds]


def _kind(name: str, exported: bool) -> str:
    if name.endswith((".safetensors", ".safetensors.index.json")) or name in ADAPTER_NAMES:
        return "weights"
    is_code = name in (STUB_NAME, PARTS_NAME, MANIFEST_NAME) or (exported and name.endswith(".py"))
    return "code" if is_code else ""


@contextmanager
def told_push_errors(repo_id: str, token: str | bool | None = None) -> Iterator[None]:
    """
    Whatever goes wrong on the way is one kind of error, which names the repository and no credential.

    Args:
        repo_id (`str`): `owner/name`.
        token (`str` or `bool`, *optional*): in use.

    Raises:
        PushError: in place of errors of the network and of the Hub.
    """
    nothing = "Nothing was committed."
    again = "Run the same again: what has arrived is not sent twice."
    endpoint = without_secrets(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    try:
        yield
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise PushError(
            f"{repo_id} cannot be pushed: {safe_message(error, token)} Log in with `hf auth login`, or set HF_TOKEN; "
            "unset HF_HUB_OFFLINE."
        ) from None
    except UnicodeEncodeError:
        raise PushError(
            f"{repo_id} cannot be pushed: the token has characters that are none of a token. Log in with `hf auth "
            "login`, or set HF_TOKEN."
        ) from None
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise
        told = safe_message(cause, token).strip() or type(cause).__name__
        if isinstance(cause, HfHubHTTPError):
            hint = _HINTS.get(getattr(cause.response, "status_code", 0), "")
            raise PushError(f"The Hub refused the push to {repo_id}. {hint} {nothing} {again} ({told})") from None
        raise PushError(
            f"The push to {repo_id} was cut, or the Hub ({endpoint}) cannot be reached: {told}. {nothing} {again}"
        ) from None


def _cause(error: BaseException | None) -> BaseException | None:
    """The error of the network or of the Hub that is behind another one, which threads of an upload wrap it in."""
    while error is not None:
        package = type(error).__module__.partition(".")[0]
        if package in _NETWORK_PACKAGES or isinstance(error, HfHubHTTPError | ConnectionError | TimeoutError):
            return error
        error = error.__cause__
    return None


__all__ = ["PushError", "Pushed", "send", "told_push_errors"]
