"""A folder as a training leaves it."""

import shutil

import pytest

from tests.hub_folders import save_kind


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny GVT as a training leaves it, with what is to stay there."""
    folder = tmp_path_factory.mktemp("runs") / "gvt-tiny"
    save_kind("gvt", folder)
    for name in ("checkpoint-3/optimizer.pt", "runs/events.1", "training_args.bin", ".cache/x", "optimizer.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04pickle")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "gvt-tiny")
