"""The guarantees that tests/conftest.py gives to every other test."""

import socket

import pytest
import torch


def test_no_test_reaches_beyond_this_machine():
    # 192.0.2.0/24 is reserved for documentation: nothing answers there, wherever this runs.
    with socket.socket() as connection, pytest.raises(OSError, match="unit tests use no network"):
        connection.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_starts_from_the_same_random_state(attempt):
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=generator))
