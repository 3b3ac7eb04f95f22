"""The guarantees that tests/conftest.py gives to every other test."""

import socket
from pathlib import Path

import pytest
import torch


@pytest.fixture
def set_up(request, monkeypatch, tmp_path):
    """Sets up a test with the given marker as conftest does, while the cache is empty."""
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("VISTOK_REQUIRE_WEIGHTS", raising=False)
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))

    def set_up_with(marker):
        request.node.add_marker(marker)
        conftest.pytest_runtest_setup(request.node)

    return set_up_with


def test_no_test_reaches_beyond_this_machine():
    # 192.0.2.0/24 is reserved for documentation: nothing answers there, wherever this runs.
    with socket.socket() as connection, pytest.raises(OSError, match="unit tests use no network"):
        connection.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_starts_from_the_same_random_state(attempt):
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generator))


@pytest.mark.parametrize(
    ("marker", "named"),
    [
        (pytest.mark.real_weights, "dinov2-small, smollm2-135m"),
        (pytest.mark.real_weights("smollm2-135m"), "lacks smollm2-135m"),
        (pytest.mark.real_data("easy-vqa"), "vistok fetch easy-vqa"),
    ],
)
def test_what_was_not_fetched_skips_a_test_and_is_named(set_up, marker, named):
    with pytest.raises(pytest.skip.Exception, match=named):
        set_up(marker)


def test_required_weights_fail_where_they_would_be_skipped(set_up, monkeypatch):
    monkeypatch.setenv("VISTOK_REQUIRE_WEIGHTS", "1")
    with pytest.raises(pytest.fail.Exception, match="lacks dinov2-small"):
        set_up(pytest.mark.real_weights("dinov2-small"))


def test_required_weights_do_not_require_data_packages(set_up, monkeypatch):
    monkeypatch.setenv("VISTOK_REQUIRE_WEIGHTS", "1")
    with pytest.raises(pytest.skip.Exception):
        set_up(pytest.mark.real_data("easy-vqa"))
