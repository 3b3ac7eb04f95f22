"""Weights from the Hub, whole and as they were published: compared with their hash once they have been downloaded."""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..configuration.hub_pushing import PushedToHub

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLOCK_SLACK = 2.0  # seconds: what file systems round times of files to
_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")
_PLACES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_OTHER_FORMATS = ("variant", "gguf_file", "state_dict", "from_tf", "from_flax")


class DownloadError(OSError):
    """A file of the Hub that did not arrive whole, or not as it was published. It is not in the cache."""


def download_weights_file(name_or_path: str | os.PathLike, filename: str, **where: Any) -> str | None:
    """
    The path of a file of weights, which is downloaded if need be. The Hub's client compares sizes of what it
    downloads, not hashes: that is done here, once, for what has just arrived.

    Args:
        name_or_path (`str`): folder or Hub id.
        filename (`str`): of the file there.
        where: `revision`, `token`, … as in `from_pretrained`.

    Returns:
        `str`, or `None` where there is no such file.

    Raises:
        DownloadError: if the download broke off, or its content is not what the Hub has; the cache is without it.
        OSError: if there is no such model, or the Hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    started = time.time()
    with told_download_errors(name, filename):
        path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **where)
    if path is not None and not os.path.isdir(name):
        _check_hash(name, filename, Path(path), started)
    return path


@contextlib.contextmanager
def told_download_errors(name: str, filename: str) -> Iterator[None]:
    """
    Whatever breaks a download off is one kind of error, which names the file.

    Args:
        name (`str`): Hub id.
        filename (`str`): of the file there.

    Raises:
        DownloadError: in place of an error of the network, or of a file that is too short.
    """
    try:
        yield
    except Exception as error:
        broke_off = type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES
        if not broke_off and "Consistency check failed" not in str(error):
            raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"The download of {filename} of {name} broke off ({told[0]}). Nothing of it is in the cache: load it "
            "again."
        ) from error


def _check_hash(name: str, filename: str, path: Path, started: float) -> None:
    """Blobs of the cache have the name of their hash, where links to them can be made."""
    blob = path.resolve()
    if blob == path or not _SHA256.fullmatch(blob.name) or blob.stat().st_mtime < started - _CLOCK_SLACK:
        return
    digest = hashlib.sha256()
    with open(blob, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() == blob.name:
        return
    path.unlink()
    blob.unlink()
    raise DownloadError(
        f"{filename} of {name} has the sha256 {digest.hexdigest()[:12]}… and was published with {blob.name[:12]}…: it "
        "was damaged on its way, and has been taken out of the cache. Load it again."
    )


def download_weights(name_or_path: str | os.PathLike, **where: Any) -> None:
    """
    Makes sure that the weights of a model of the Hub are in the cache, whole and as they were published.

    Args:
        name_or_path (`str`): Hub id; of a folder nothing is done.
        where: `revision`, `token`, … as in `from_pretrained`.

    Raises:
        DownloadError: see [`download_weights_file`].
    """
    if os.path.isdir(name_or_path) or download_weights_file(name_or_path, SAFE_WEIGHTS_NAME, **where) is not None:
        return
    index = cached_file(
        os.fspath(name_or_path), SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **where
    )
    if index is not None:
        for filename in sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())):
            download_weights_file(name_or_path, filename, **where)


class DownloadedPreTrainedModel(PushedToHub, PreTrainedModel):
    """A model whose weights are compared with their hashes when they come from the Hub, and that goes there."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        `PreTrainedModel.from_pretrained`.

        Raises:
            DownloadError: if weights did not arrive from the Hub as they were published.
        """
        named = pretrained_model_name_or_path is not None
        if named and not any(kwargs.get(name) for name in _OTHER_FORMATS):
            where = {name: kwargs[name] for name in _PLACES if kwargs.get(name) is not None}
            download_weights(pretrained_model_name_or_path, **where)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


__all__ = ["DownloadError", "DownloadedPreTrainedModel", "download_weights", "download_weights_file"]
