"""Credentials and folders of this machine in files that are about to be published."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import get_token

from .published_text import REMOVED, base_name, is_absolute, published_text, without_secrets

if TYPE_CHECKING:
    from .push_plan import PushedFile

# A vocabulary is no text: its tokens are pieces of other people's texts.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_PATH_KEYS = ("_name_or_path", "name_or_path")
_MOST_BYTES = 50_000_000
_SHORTEST_TOKEN = 8


def check_no_secrets(
    files: Iterable["PushedFile"], message: str | None = None, token: str | bool | None = None
) -> None:
    """
    Makes sure that no text among files holds a credential: what looks like one, or the token in use.

    Args:
        files (iterable of [`PushedFile`]): to be published.
        message (`str`, *optional*): of the commit.
        token (`str` or `bool`, *optional*): in use; by default that of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: names file and line of each, and not the credential.
    """
    used = token if isinstance(token, str) else get_token()
    texts = {file.path: text for file in files if (text := _text_of(file)) is not None}
    if message is not None:
        texts["the message of the commit"] = message
    found = [
        f"{name}, line {number}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if without_secrets(line) != line or (used and len(used) >= _SHORTEST_TOKEN and used in line)
    ]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"What looks like a credential (token, key or password) stands in {'; '.join(found[:5])}{more}: take it "
            "out. Nothing was pushed. If it was ever published, revoke it."
        )


def without_machine_paths(file: "PushedFile") -> "PushedFile":
    """
    A file without the folders that transformers writes into configs: where a checkpoint lay on this machine.

    Args:
        file ([`PushedFile`]): any; only configs are changed.
    """
    if not file.path.endswith("config.json") or (text := _text_of(file)) is None:
        return file
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file.path} is no valid JSON ({error}): repair it, nothing was pushed.") from error
    clean = _with_names_only(values)
    if clean == values:
        return file
    return type(file)(file.path, (json.dumps(clean, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def _with_names_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: base_name(entry)
            if key in _PATH_KEYS and isinstance(entry, str) and is_absolute(entry)
            else _with_names_only(entry)
            for key, entry in value.items()
        }
    return [_with_names_only(entry) for entry in value] if isinstance(value, list) else value


def _text_of(file: "PushedFile") -> str | None:
    name = Path(file.path).name
    if name in _VOCABULARIES or name.endswith(".safetensors") or file.size > _MOST_BYTES:
        return None
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def safe_message(error: BaseException, token: str | bool | None = None) -> str:
    """
    What an error says, without credentials.

    Args:
        error (`BaseException`): of any kind.
        token (`str`, *optional*): that was in use.
    """
    told = published_text(str(error))
    if isinstance(token, str) and token:
        told = told.replace(token, REMOVED)
    return re.sub(r"(?i)(bearer\s+)\S+", rf"\1{REMOVED}", told)


__all__ = ["check_no_secrets", "safe_message", "without_machine_paths"]
