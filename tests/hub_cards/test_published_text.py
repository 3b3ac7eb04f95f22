"""What may be published: no folders of a machine, no credentials, valid JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vistok.hub_cards.published_text import REMOVED, published_text, published_values


class TestText:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("vistok train /srv/ada/recipes/demo.yaml --seed 0", "vistok train demo.yaml --seed 0"),
            ("/srv/ada/.venv/bin/vistok train demo.yaml", "vistok train demo.yaml"),
            ("--model.vision=/srv/ada/clip/ --x 1", "--model.vision=clip --x 1"),
            ("--path '/srv/Ada L/my data/a.json' --x 1", "--path 'a.json' --x 1"),
            ("see ~/models/tower, or ~ada/models/tower.", "see tower, or tower."),
            (r"C:\Users\Ada\tower and D:/data/train.json", "tower and train.json"),
            ("file:///srv/ada/photo.jpg", "photo.jpg"),
            ("PYTHONPATH=/srv/a/lib:/srv/b/lib run", "PYTHONPATH=lib:lib run"),
            ("error in /srv/ada/train.py:12", "error in train.py:12"),
            ("[/srv/ada/a.json,/srv/ada/b.json]", "[a.json,b.json]"),
        ],
    )
    def test_of_an_absolute_path_only_the_last_component_stays(self, text, expected):
        assert published_text(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "https://huggingface.co/docs/hub/model-cards and http://localhost:8000/a/b",
            "recipes/gvt/demo.yaml, ./runs/gvt-demo, ../data/train.json, data/cc3m/*.tar",
            "<Img> … </Img>, [INST] [/INST], and/or, 24 questions/s, 1/2, a / b",
            r"(model\.language_model)\.(.*\.)?(q_proj|v_proj)",
            "facebook/dinov2-small, vistok:smollm2-135m, $HOME/models/a, ${HOME}/models/a",
            "eos_token_id: 2, num_image_tokens=16, the secret of the password is long",
        ],
    )
    def test_everything_else_stays(self, text):
        assert published_text(text) == text

    @pytest.mark.parametrize(
        ("text", "secret"),
        [
            ("vistok push x --training.hub_token abcdef", "abcdef"),
            ("HF_TOKEN=abcdef vistok train demo.yaml", "abcdef"),
            ("with hf_" + "a1B2" * 8 + " in it", "a1B2a1B2"),
            ("https://ada:pass99@example.org/data.tar", "pass99"),
            ('{"api_key": 1, "password": "x"} password=letmein', "letmein"),
        ],
    )
    def test_credentials_are_removed(self, text, secret):
        assert secret in text
        assert secret not in published_text(text)
        assert REMOVED in published_text(text)


class TestValues:
    def test_a_path_with_spaces_in_a_field_of_a_path_keeps_its_last_component(self):
        recipe = {"model": {"vision": "/srv/Ada L/clip base"}, "training": {"output_dir": Path("/srv/Ada L/my run")}}
        assert published_values(recipe) == {"model": {"vision": "clip base"}, "training": {"output_dir": "my run"}}

    def test_secret_fields_are_removed_and_token_ids_are_not(self):
        values = {"hub_token": "abc", "token": "x", "eos_token": "</s>", "image_token_id": 7, "api_key": None}
        expected = {"hub_token": REMOVED, "token": REMOVED, "eos_token": "</s>", "image_token_id": 7, "api_key": None}
        assert published_values(values) == expected

    def test_numbers_of_numpy_and_torch_become_plain_ones(self):
        values = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor([1, 2]), "d": (1, None), 5: True}
        assert published_values(values) == {"a": 0.5, "b": 3, "c": [1, 2], "d": [1, None], "5": True}

    def test_what_json_has_no_number_for_becomes_null(self):
        values = published_values({"loss": float("nan"), "other": [float("inf"), np.float64("nan"), 1.0]})
        assert json.loads(json.dumps(values, allow_nan=False)) == {"loss": None, "other": [None, None, 1.0]}
