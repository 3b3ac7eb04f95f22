"""Unpacking takes the wanted files of wheels, npm tarballs and Debian packages, and nothing outside the folder."""

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vistok.modeling.atomic_folder import FetchError
from vistok.modeling.safe_archives import unpack

FILES = {"data/a.txt": b"first", "data/deep/b.txt": b"second" * 1000, "sound.ogg": b"unwanted"}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_bytes(files: dict[str, bytes], compression: str, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        folder = tarfile.TarInfo("data")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def make_tgz(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar_bytes(files, "gz"))
    return path


def make_deb(path: Path, files: dict[str, bytes], compression: str = "xz", data: bytes | None = None) -> Path:
    dotted = {name if name.startswith("/") else f"./{name}": content for name, content in files.items()}
    data = tar_bytes(dotted, compression) if data is None else data
    members = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", f"data.tar.{compression}": data}
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


MAKERS = {"tiny.whl": make_zip, "tiny.tgz": make_tgz, "tiny.deb": make_deb}


@pytest.fixture(params=MAKERS)
def make(request, tmp_path):
    return lambda files: MAKERS[request.param](tmp_path / request.param, files)


@pytest.fixture
def folders(tmp_path):
    folder, scratch = tmp_path / "out", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    return folder, scratch


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_wanted_members_are_unpacked(make, folders):
    folder, scratch = folders
    assert unpack(make(FILES), folder, ["data/*.txt"], scratch) == 2
    assert contents(folder) == {name: content for name, content in FILES.items() if name.startswith("data/")}


@pytest.mark.parametrize(
    "name", ["../escaped.txt", "data/../../escaped.txt", "{folder}/escaped.txt", "..\\escaped.txt", "C:escaped.txt"]
)
def test_member_that_points_outside_is_refused(make, folders, tmp_path, name):
    folder, scratch = folders
    with pytest.raises(FetchError, match="outside"):
        unpack(make({name.format(folder=tmp_path): b"evil"}), folder, ["*"], scratch)
    assert contents(folder) == {}
    assert list(tmp_path.rglob("*escaped.txt")) == []


def test_links_are_refused_in_tarballs(tmp_path, folders):
    archive = tmp_path / "tiny.tgz"
    archive.write_bytes(tar_bytes({}, "gz", links={"data/a.txt": "/etc/passwd"}))
    with pytest.raises(FetchError, match=r"data/a\.txt.*link"):
        unpack(archive, folders[0], ["*"], folders[1])
    assert contents(folders[0]) == {}


def test_links_are_refused_in_wheels(tmp_path, folders):
    link = zipfile.ZipInfo("data/a.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(FetchError, match=r"data/a\.txt.*link"):
        unpack(tmp_path / "tiny.whl", folders[0], ["*"], folders[1])


def test_pattern_without_a_match_is_named(make, folders):
    with pytest.raises(FetchError, match=r"no file that matches \*\.png"):
        unpack(make(FILES), folders[0], ["data/*.txt", "*.png"], folders[1])


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_debian_packages_of_every_usual_compression(tmp_path, folders, compression):
    archive = make_deb(tmp_path / "tiny.deb", FILES, compression)
    assert unpack(archive, folders[0], ["data/a.txt"], folders[1]) == 1
    assert contents(folders[0]) == {"data/a.txt": b"first"}


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the program zstd")
def test_debian_package_compressed_with_zstandard(tmp_path, folders):
    plain = tar_bytes(FILES, "")
    data = subprocess.run(["zstd", "-q", "-c"], input=plain, capture_output=True, check=True).stdout
    unpack(make_deb(tmp_path / "tiny.deb", {}, "zst", data), folders[0], ["data/a.txt"], folders[1])
    assert contents(folders[0]) == {"data/a.txt": b"first"}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="tarfile reads zstandard itself")
def test_zstandard_without_a_program_says_what_to_install(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match="install the program zstd"):
        unpack(make_deb(tmp_path / "tiny.deb", {}, "zst", b"anything"), folders[0], ["*"], folders[1])


@pytest.mark.parametrize("kept", [4, 100, 180, 300])
def test_truncated_debian_package_is_said_to_be_damaged(tmp_path, folders, kept):
    archive = make_deb(tmp_path / "tiny.deb", FILES)
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(FetchError, match=r"tiny\.deb"):
        unpack(archive, folders[0], ["*"], folders[1])


@pytest.mark.parametrize("name", ["tiny.whl", "tiny.tgz"])
def test_file_that_is_no_archive_is_said_to_be_unreadable(tmp_path, folders, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(FetchError, match="not a readable archive"):
        unpack(tmp_path / name, folders[0], ["*"], folders[1])
