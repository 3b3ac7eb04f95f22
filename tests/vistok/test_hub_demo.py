"""The demo, pushed to a Hub on this machine and used from there."""

import sys

import pytest
from PIL import Image, ImageDraw
from transformers import pipeline

from tests.hub_cards.test_flat_export import WITHOUT_VISTOK, last_line
from tests.hub_client import client_environment, turned_to
from tests.hub_folders import features_of
from tests.hub_server import running_hub
from vistok import SeTokForPreTraining
from vistok.cli import main
from vistok.configuration.shipped import shipped_path


@pytest.mark.real_weights
def test_the_demo_answers_from_the_hub_as_it_does_from_its_folder(tmp_path, monkeypatch):
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="red")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What color is the shape?"}]
    with running_hub() as hub, turned_to(hub, tmp_path / "cache", monkeypatch):
        assert main(["push", str(shipped_path("checkpoints/gvt-demo")), "org/gvt-demo", "--adapter-only"]) == 0
        ask = pipeline("image-text-to-text", model="org/gvt-demo")
        told = ask(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
    assert told[0]["generated_text"].strip() == "red"
    card = hub.files("org/gvt-demo")["README.md"].decode()
    assert 'model="org/gvt-demo"' in card


@pytest.mark.real_weights("dinov2-small")
def test_a_tokenizer_with_all_weights_and_its_code_loads_where_vistok_is_not_installed(tmp_path, monkeypatch):
    folder = shipped_path("checkpoints/setok-demo")
    with running_hub() as hub:
        with turned_to(hub, tmp_path / "cache", monkeypatch):
            assert main(["push", str(folder), "org/setok-demo", "--full", "--self-contained"]) == 0
        environment = {**client_environment(hub, tmp_path / "elsewhere"), "PYTHONPATH": ""}
        found = last_line([sys.executable, str(WITHOUT_VISTOK), "org/setok-demo"], environment, tmp_path)
    model = SeTokForPreTraining.from_pretrained(folder, detokenizer_config=None).eval()
    assert found["vistok"] is False
    assert found["setok-demo"]["model"] == "SeTokForPreTraining" and found["setok-demo"]["saved_again"]
    assert found["setok-demo"]["features"] == pytest.approx(features_of(model), abs=1e-3)
