"""What may leave this machine: text and values without its folders, without credentials, and valid as JSON."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

REMOVED = "[removed]"

# Absolute, and of two components at least: `/srv/models` tells of a machine; `</Img>`, `[/INST]` and `and/or` do not.
_START = r"(?:~[\w.-]*[\\/]|[A-Za-z]:[\\/]|/[\w.@~+-]+/)"
_PATH = re.compile(rf"(?:file://|(?<![\w./\\~$}}-])){_START}[^\s'\"`,;:|()\[\]{{}}<>]*")
_QUOTED_PATH = re.compile(r"""(?<=['"])(?:~[\w.-]*[\\/]|[A-Za-z]:[\\/]|/[^/'"\n]+/)[^'"\n]*(?=['"])""")
# Fields of a recipe that hold a path: only there does a space not end it.
_PATH_FIELD = re.compile(r"(?:^|_)(?:dir|path|folder|file|images|vision|text|checkpoint)$")

_SECRET = r"(?:(?:hub|auth|access|api|hf)[_-]?(?:token|key)|password|secret)"
_SECRET_FIELD = re.compile(rf"^token$|{_SECRET}$", re.IGNORECASE)
# As a shell, Python, YAML or JSON has it, also JSON in a text; a field without a value tells nothing.
_QUOTES = r"[\\'\"]*"
_NO_VALUE = r"(?:null|none|true|false)\b"
_ASSIGNED_SECRET = re.compile(
    rf"(?<!\w)((?:--[\w.-]*{_SECRET}[=\s]|\w*{_SECRET}{_QUOTES}\s*[=:])\s*{_QUOTES})(?!{_NO_VALUE})[^\s'\"\\,}}]+",
    re.IGNORECASE,
)
# A field `token` may be one of a tokenizer: only long ones of letters and digits count.
_ASSIGNED_TOKEN = re.compile(rf"(?<![\w-])(token{_QUOTES}\s*[=:]\s*{_QUOTES})(?=[\w-]*\d)[\w-]{{20,}}", re.IGNORECASE)
_KNOWN_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"\bxox[abeoprs]-[\w-]{10,}"),  # Slack
    re.compile(r"\bAIza[\w-]{30,}"),  # Google
    re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),  # JSON web tokens
    re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|glpat|pypi|sk)[_-][\w-]{16,}"),  # Hub, GitHub, GitLab, PyPI, OpenAI
    re.compile(r"\bAKIA[A-Z0-9]{16}\b"),
    re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"),  # https://user:password@host
)


def base_name(path: str) -> str:
    """
    The last component of a path.

    Args:
        path (`str`): with slashes or backslashes.
    """
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def published_text(text: str) -> str:
    """
    Makes text fit to be published: of an absolute path only the last component stays, credentials are removed.

    Args:
        text (`str`): prose, a command line, a URL …; relative paths and URLs stay as they are.
    """
    text = without_secrets(text)
    text = _QUOTED_PATH.sub(lambda match: base_name(match[0]), text)
    return _PATH.sub(lambda match: base_name(match[0]), text)


def without_secrets(text: str) -> str:
    """
    Text without credentials.

    Args:
        text (`str`): prose, a command line, a URL …
    """
    for assigned in (_ASSIGNED_SECRET, _ASSIGNED_TOKEN):
        text = assigned.sub(lambda match: match[1] + REMOVED, text)
    for secret in _KNOWN_SECRETS:
        text = secret.sub(REMOVED, text)
    return text


def published_values(value: Any, field: str = "") -> Any:
    """
    Makes nested values fit to be published (see [`published_text`]) as JSON.

    Args:
        value: dictionaries, sequences, numbers (also of numpy and torch), strings, paths; anything else by its `str`.
        field (`str`): the key that the value stands under.

    Returns:
        dictionaries with string keys, lists, strings, finite numbers, booleans and `None`, which also stands for
        numbers that JSON does not have.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            str(key): REMOVED
            if entry is not None and _SECRET_FIELD.search(str(key))
            else published_values(entry, str(key))
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [published_values(entry, field) for entry in value]
    if callable(getattr(value, "tolist", None)):  # arrays, tensors and their scalars
        return published_values(value.tolist(), field)
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if _PATH_FIELD.search(field) and is_absolute(text):
        return base_name(text)
    return published_text(text)


def is_absolute(path: str) -> bool:
    """Whether text is an absolute path of any system, or one from a home folder."""
    return re.match(_START, path) is not None


__all__ = ["REMOVED", "base_name", "is_absolute", "published_text", "published_values", "without_secrets"]
