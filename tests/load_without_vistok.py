"""
Loads folders of models where vistok is not installed, and prints as JSON what they make of an image. Run by the tests
as a program of its own, because `import vistok` cannot be taken back: python load_without_vistok.py FOLDER …
"""

import json
import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path


class NoVistok(MetaPathFinder):
    """An environment that vistok is installed in behaves as one that it is not."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "vistok":
            raise ModuleNotFoundError("No module named 'vistok'", name="vistok")
        return None


sys.meta_path.insert(0, NoVistok())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

TRUST = {"trust_remote_code": True}
LANGUAGE_MODELS = ("gvt", "vtlmm", "setokim", "setok_llava")


def features_of(model):
    image = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(image).pooler_output[0]
        elif hasattr(model, "vision_model"):
            found = model.vision_model(image).tokens
        else:
            found = model(image).last_hidden_state
    return [round(value, 4) for value in found.flatten()[:8].tolist()]


def load(folder):
    """What every Auto class makes of a folder."""
    config = AutoConfig.from_pretrained(folder, **TRUST)
    model = AutoModel.from_pretrained(folder, **TRUST).eval()
    found = {"config": type(config).__name__, "model": type(model).__name__, "features": features_of(model)}
    found["image_processor"] = type(AutoImageProcessor.from_pretrained(folder, **TRUST)).__name__
    if config.model_type in LANGUAGE_MODELS:
        found["whole"] = type(AutoModelForImageTextToText.from_pretrained(folder, **TRUST)).__name__
        found["processor"] = type(AutoProcessor.from_pretrained(folder, **TRUST)).__name__
        ask = pipeline("image-text-to-text", model=folder, **TRUST)
        content = [
            {"type": "image", "image": Image.new("RGB", (24, 24), "red")},
            {"type": "text", "text": "how many?"},
        ]
        told = ask(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
        found["answer"] = told[0]["generated_text"]
    return found, model


def main(folders):
    found = {}
    for folder in folders:
        try:
            found[Path(folder).name], model = load(folder)
        except Exception as error:
            if os.environ.get("SHOW"):
                raise
            found[Path(folder).name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        with tempfile.TemporaryDirectory() as saved:  # what was loaded with its code is saved with its code
            model.save_pretrained(saved)
            again = AutoModel.from_pretrained(saved, **TRUST).eval()
            found[Path(folder).name]["saved_again"] = features_of(again) == found[Path(folder).name]["features"]
    found["vistok"] = "vistok" in sys.modules
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
