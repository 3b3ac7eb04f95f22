"""The demo, pushed to a Hub on this machine and used from there."""

import pytest
from PIL import Image, ImageDraw
from transformers import pipeline

from tests.hub_client import turned_to
from tests.hub_server import running_hub
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
