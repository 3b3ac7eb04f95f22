"""Unpacking of wheels, npm tarballs and Debian packages: wanted members only, and never outside the target folder."""

import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import IO

from transformers.utils import logging

from .atomic_folder import FetchError

logger = logging.get_logger(__name__)

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_CHUNK = 1 << 20
_UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, FileExistsError)


def unpack(archive: Path, folder: Path, keep: Sequence[str], scratch: Path) -> int:
    """Unpacks the wanted members of an archive under their own paths.

    Args:
        archive (`Path`): a wheel (`.whl`), an npm tarball (`.tgz`) or a Debian package (`.deb`).
        folder (`Path`): an existing folder that receives the members.
        keep (`Sequence[str]`): shell patterns over the members' paths, in which `*` also matches `/`. Every pattern
            must match at least one file.
        scratch (`Path`): an existing folder for intermediate files; the caller removes it.

    Returns:
        `int`: the number of files written.

    Raises:
        FetchError: if the archive cannot be read, has a member that points outside the folder, holds a link where a
            file was expected, or lacks what a pattern asks for.
    """
    matched = dict.fromkeys(keep, 0)
    written = 0
    try:
        for path, content in logging.tqdm(
            _files(archive, keep, scratch), desc=f"Unpacking {archive.name}", unit="file", mininterval=1
        ):
            for pattern in keep:
                matched[pattern] += fnmatchcase(str(path), pattern)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
            written += 1
    except _UNREADABLE as error:
        raise FetchError(f"{archive} is not a readable archive: {error}. Delete it and fetch again.") from error
    missing = [pattern for pattern, count in matched.items() if not count]
    if missing:
        raise FetchError(f"{archive.name} holds no file that matches {', '.join(missing)}.")
    return written


def _files(archive: Path, keep: Sequence[str], scratch: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    if archive.suffix in (".whl", ".zip"):
        yield from _zip_files(archive, keep)
    elif archive.suffix == ".deb":
        yield from _tar_files(_data_of_debian_package(archive, scratch), keep)
    else:
        yield from _tar_files(archive, keep)


def _zip_files(archive: Path, keep: Sequence[str]) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path = _inside(member.filename, archive)
            if member.is_dir() or not _wanted(path, keep):
                continue
            if S_ISLNK(member.external_attr >> 16):
                raise FetchError(
                    f"{archive.name}: member {member.filename!r} is a link; only plain files are unpacked."
                )
            with opened.open(member) as content:
                yield path, content


def _tar_files(archive: Path, keep: Sequence[str]) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            path = _inside(member.name, archive)
            if member.isdir() or not _wanted(path, keep):
                continue
            content = opened.extractfile(member) if member.isreg() else None
            if content is None:
                raise FetchError(
                    f"{archive.name}: member {member.name!r} is a link or a device; only plain files are unpacked."
                )
            with content:
                yield path, content


def _wanted(path: PurePosixPath, keep: Sequence[str]) -> bool:
    return any(fnmatchcase(str(path), pattern) for pattern in keep)


def _inside(name: str, archive: Path) -> PurePosixPath:
    # Backslashes and drive letters are harmless on POSIX only; refusing them everywhere keeps one rule.
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise FetchError(f"{archive.name}: member {name!r} points outside the folder it is unpacked into; refused.")
    return path


def _data_of_debian_package(archive: Path, scratch: Path) -> Path:
    """Copies `data.tar.*` out of the `ar` container; returns a tar that `tarfile` can read."""
    with open(archive, "rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise FetchError(f"{archive.name} is not a Debian package: it does not begin with {_AR_MAGIC!r}.")
        while len(header := file.read(_AR_HEADER)) == _AR_HEADER:
            name, size = _ar_member(header, archive)
            if name.startswith("data.tar"):
                target = scratch / Path(name).name
                _copy_exactly(file, target, size, archive)
                return _without_zstandard(target)
            file.seek(size + size % 2, 1)  # members begin at even offsets
    raise FetchError(f"{archive.name} holds no data.tar; it is truncated or not a Debian package.")


def _ar_member(header: bytes, archive: Path) -> tuple[str, int]:
    name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
    if header[58:] != b"`\n" or not size.isdigit():
        raise FetchError(f"{archive.name} has a damaged member header {header!r}; delete it and fetch again.")
    return name, int(size)


def _copy_exactly(file: IO[bytes], target: Path, size: int, archive: Path) -> None:
    with open(target, "wb") as copy:
        while size:
            chunk = file.read(min(size, _CHUNK))
            if not chunk:
                raise FetchError(f"{archive.name} is truncated: {size} bytes of {target.name} are missing.")
            copy.write(chunk)
            size -= len(chunk)


def _without_zstandard(tar: Path) -> Path:
    if tar.suffix != ".zst" or "zst" in tarfile.TarFile.OPEN_METH:  # tarfile reads zstandard from Python 3.14 on
        return tar
    program = shutil.which("zstd")
    if program is None:
        raise FetchError(f"{tar.name} is compressed with zstandard: install the program zstd, or use Python 3.14.")
    plain = tar.with_suffix("")
    done = subprocess.run([program, "-d", "-q", str(tar), "-o", str(plain)], capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"zstd could not decompress {tar.name}: {done.stderr.strip()}")
    return plain
