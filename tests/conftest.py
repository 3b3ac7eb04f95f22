"""What every test runs under: no network, a seed, caches of its own, and real weights where they have been fetched."""

import contextlib
import gc
import importlib.util
import ipaddress
import os
import random
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

# torch's compiler imports it in several threads at once, where it may fail (its own replacement of distutils).
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# Before torch and transformers are imported: tests neither read nor fill the user's caches of the Hub, and tiny models
# are faster on one thread.
_HUB_CACHE = tempfile.mkdtemp(prefix="vistok-tests-")
os.environ.update(HF_HOME=_HUB_CACHE, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

BASE_MODELS = ("dinov2-small", "smollm2-135m")


def pytest_addoption(parser):
    parser.addoption(
        "--outside-data",
        metavar="FOLDER",
        default=os.environ.get("VISTOK_OUTSIDE_DATA"),
        help="folder of data sets that do not come with vistok, which holds gvtbench/coco_oc.json, for instance; by "
        "default VISTOK_OUTSIDE_DATA; tests that need what it lacks are skipped",
    )


def pytest_unconfigure():
    shutil.rmtree(_HUB_CACHE, ignore_errors=True)


def pytest_runtest_setup(item):
    """Skips tests on what was not fetched; with VISTOK_REQUIRE_WEIGHTS=1, as in CI, a lack of base weights fails."""
    if marker := item.get_closest_marker("real_weights"):
        missing = [name for name in marker.args or BASE_MODELS if not _has_base_model(name)]
        if missing and os.environ.get("VISTOK_REQUIRE_WEIGHTS") == "1":
            pytest.fail(f"VISTOK_REQUIRE_WEIGHTS=1, but {_not_fetched(missing)}", pytrace=False)
        if missing:
            pytest.skip(_not_fetched(missing))
    if marker := item.get_closest_marker("real_data"):
        missing = [name for name in marker.args if not _has_package(name)]
        if missing:
            pytest.skip(_not_fetched(missing))
    if item.get_closest_marker("browser") and (lacking := _lacking_of_browser()):
        pytest.skip(f"a test in a browser needs {lacking}")


def chromium() -> str | None:
    """Where a browser is that tests can drive, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _lacking_of_browser() -> str | None:
    for module in ("gradio", "playwright"):
        if importlib.util.find_spec(module) is None:
            return f"{module}: pip install {module}"
    return None if chromium() else "chromium: apt-get install chromium"


def _not_fetched(names: list[str]) -> str:
    return f"the cache lacks {', '.join(names)}: run `vistok fetch {' '.join(names)}`"


def _has_base_model(name: str) -> bool:
    from vistok.modeling.base_weights import is_fetched

    return is_fetched(name)


def _has_package(name: str) -> bool:
    from vistok.modeling.atomic_folder import is_complete
    from vistok.modeling.registry_packages import DATA_PACKAGES, package_folder

    return is_complete(package_folder(DATA_PACKAGES[name]), DATA_PACKAGES[name].source)


@pytest.fixture(autouse=True, scope="module")
def collections_pass_over_what_stays():
    """Every training collects garbage, and among all that torch and transformers are made of that takes longest."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def outside_data(request):
    """Finds a file or folder by its path in the folder of --outside-data, and skips the test, visibly, without it."""
    folder = request.config.getoption("--outside-data")

    def find(name: str) -> Path:
        path = Path(folder or "", name)
        if folder is None or not path.exists():
            pytest.skip(f"no {name}: name the folder that holds it with --outside-data or VISTOK_OUTSIDE_DATA")
        return path

    return find


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, alone or after others."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches beyond this machine fails at once, instead of where there is no network only."""
    connect = socket.socket.connect

    def connect_on_this_machine(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise OSError(f"a test tried to reach {address[0]}: unit tests use no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_on_this_machine)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
