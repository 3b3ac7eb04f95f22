"""Folders and files that are either complete or absent, however many processes write them and wherever they die."""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

logger = logging.get_logger(__name__)

SOURCE_FILE = "SOURCE.json"
"""Written into every folder of the cache: which archive it came from, and the size of each file. A folder without it
is not complete."""

_IDENTITY = ("sha256", "revision")
_REPLACED = "replaced"
_WRITER_LOCK = "writer.lock"  # held as long as its writer lives
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class FetchError(RuntimeError):
    """Something could not be downloaded, checked, unpacked, converted or stored; the message says what to do."""


def cache_dir() -> Path:
    """The folder that keeps converted base weights and unpacked data packages.

    Returns:
        `Path`: the value of the environment variable `VISTOK_CACHE`; without it `vistok` under `XDG_CACHE_HOME`, or
        `~/.cache/vistok`. It need not exist yet.
    """
    if chosen := os.environ.get("VISTOK_CACHE"):
        return Path(chosen).expanduser().absolute()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(user_cache).expanduser() / "vistok").absolute()


def is_complete(folder: Path, source: Mapping[str, Any]) -> bool:
    """Tells whether a folder was built, completely, from the given source.

    Args:
        folder (`Path`): a folder of the cache.
        source (`Mapping`): what `build_folder_once` was, or would be, given.

    Returns:
        `bool`: whether the folder's `SOURCE.json` records the same archive and the same revision of vistok's
        conversion, and every file has the size that it records. Folders of earlier versions record no sizes.
    """
    try:
        recorded = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        if not isinstance(recorded, dict) or any(recorded.get(key) != source[key] for key in _IDENTITY):
            return False
        return all((folder / path).stat().st_size == size for path, size in recorded.get("files", {}).items())
    except (OSError, ValueError):
        return False


def build_folder_once(
    folder: Path,
    source: Mapping[str, Any],
    build: Callable[[Path, Path], None],
    needed_bytes: int = 0,
    force: bool = False,
) -> Path:
    """Builds a folder of the cache unless it is complete already: whole or not at all, and by one process at a time.

    The content is written in a work folder beside it, flushed to disk and moved into place by a rename, so an
    interruption at any point leaves the old state. Work folders of processes that were killed are removed by the
    next build of the same folder, which first puts back a folder that such a process had moved aside.

    Args:
        folder (`Path`): where the result goes; its name is also the name of the lock.
        source (`Mapping`): recorded as `SOURCE.json`; `"sha256"` and `"revision"` decide whether an existing folder
            is up to date.
        build (`Callable`): called with an empty folder to fill and a scratch folder that is removed afterwards.
        needed_bytes (`int`, *optional*, defaults to 0): disk space, in bytes, that must be free before starting.
        force (`bool`, *optional*, defaults to `False`): build again even if the folder is complete. The old one stays
            in place until the new one is.

    Returns:
        `Path`: `folder`.

    Raises:
        FetchError: if the cache cannot be written or is too small.
    """
    if not force and is_complete(folder, source):
        return folder
    with _explained_disk_errors(folder), _exclusive(folder.name):
        # The lock is held: whatever lies in the work folder belonged to a process that was killed.
        _clear_work(folder)
        if not force and is_complete(folder, source):
            return folder
        # Not tempfile.mkdtemp, whose 0700 would survive the rename and lock others out of a shared cache.
        work = _work_of(folder) / uuid.uuid4().hex
        work.mkdir(parents=True)
        try:
            _require_space(needed_bytes)
            content, scratch = work / "content", work / "scratch"
            content.mkdir()
            scratch.mkdir()
            build(content, scratch)
            recorded = {**source, "files": _sizes(content)}
            (content / SOURCE_FILE).write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")
            _flush_to_disk(content)
            _move_into_place(content, folder, aside=work / _REPLACED)
        finally:
            _clear_work(folder)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(f"Another process is preparing {name}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS or not _is_written(error.filename, folder):
            raise
        raise FetchError(
            f"Cannot write to the cache {cache_dir()}: {error}. Make it writable, free some space, or set the "
            "environment variable VISTOK_CACHE to another folder; nothing half-made was left behind."
        ) from error


def _require_space(needed_bytes: int) -> None:
    free = shutil.disk_usage(cache_dir()).free
    if free < needed_bytes:
        raise FetchError(
            f"The cache {cache_dir()} has {free / 1e6:.0f} MB free and {needed_bytes / 1e6:.0f} MB are needed: free "
            "some space, or set the environment variable VISTOK_CACHE to another folder."
        )


def _is_written(filename: Any, folder: Path) -> bool:
    """Whether a failed access was to what building a folder writes, not to what it reads. A full disk has no name."""
    if filename is None:
        return True
    failed = Path(str(filename))
    places = (cache_dir() / "work", cache_dir() / "locks", folder.parent)
    return any(failed.is_relative_to(place) or place.is_relative_to(failed) for place in places)


def _work_of(folder: Path) -> Path:
    return cache_dir() / "work" / folder.name


def _clear_work(folder: Path) -> None:
    """Removes what builds of a folder left behind; an old folder that was moved aside for nothing goes back first."""
    for replaced in _work_of(folder).glob(f"*/{_REPLACED}"):
        if not folder.exists():
            os.replace(replaced, folder)
    shutil.rmtree(_work_of(folder), ignore_errors=True)


def _flush_to_disk(folder: Path) -> None:
    """Makes names and contents durable before the rename: else a power cut could leave a complete-looking folder."""
    ordinary_mode = (folder / SOURCE_FILE).stat().st_mode
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(ordinary_mode)  # safetensors writes files that only their owner may read
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(content: Path, folder: Path, aside: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.replace(folder, aside)
    os.replace(content, folder)
    _fsync(folder.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """
    Writes a text file whole or not at all.

    Args:
        path (`Path`): in a folder that exists.
        text (`str`): written as UTF-8 with plain line feeds.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """
    Writes a file whole or not at all.

    Args:
        path (`Path`): in a folder that exists.
        content (`bytes`): of the file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Writes a folder whole or not at all: the block fills an empty one beside it, which takes its place at the end, or
    is removed where the block raises. What a killed process has left is removed when the same folder is written again.

    Args:
        folder (`str` or `Path`): where the result goes. Its parents are made; it may exist if it is empty.

    Returns:
        A context that gives the folder to fill.

    Raises:
        FileExistsError: if there is something in the folder, or it is a file.
    """
    folder = Path(folder).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and would be overwritten: choose another folder, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead_writers(folder)
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    content, lock = work / "content", FileLock(work / _WRITER_LOCK)
    work.mkdir()
    try:
        lock.acquire()
        content.mkdir(parents=True)
        yield content
        for path in sorted(content.rglob("*"), reverse=True):
            if path.is_file():
                path.chmod(0o666 & content.stat().st_mode)  # safetensors writes files that only their owner may read
            _fsync(path)
        if folder.is_dir():
            folder.rmdir()
        os.replace(content, folder)
        _fsync(folder.parent)
    finally:
        lock.release()  # before its file is removed, which Windows refuses otherwise
        shutil.rmtree(work, ignore_errors=True)


def _remove_dead_writers(folder: Path) -> None:
    """Removes the work folders of writers of a folder that were killed: nobody holds their locks any more."""
    hidden = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{32}}")
    for work in [path for path in folder.parent.iterdir() if hidden.fullmatch(path.name)]:
        # Without this file it is not ours, or a writer that has not got to its lock yet.
        if not (work / _WRITER_LOCK).is_file():
            continue
        lock = FileLock(work / _WRITER_LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        logger.info(f"Removing {work}, which a process left behind that was killed while it wrote {folder}.")
        shutil.rmtree(work / "content", ignore_errors=True)
        lock.release()
        shutil.rmtree(work, ignore_errors=True)
