"""The Hub's own client, turned to a server on this machine."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

from tests.hub_server import TOKEN, HubServer


def client_environment(server: HubServer, home: Path) -> dict[str, str]:
    """What a program of its own has to be started with."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return {**keep, **settings, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@contextmanager
def turned_to(server: HubServer, cache: Path, monkeypatch):
    """This process pushes to a server and loads from it, with an empty cache and without waiting between attempts."""
    import huggingface_hub.hf_api
    import transformers.utils.hub
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.endpoint)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setattr(time, "sleep", lambda seconds: None)
        yield
