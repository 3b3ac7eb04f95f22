"""Large JSON objects are read piece by piece, as `json` reads them whole."""

import json
import random
from collections import defaultdict

import pytest

from vistok.trainer import json_arrays
from vistok.trainer.json_arrays import json_members

DOCUMENT = {
    "info": {"text": 'quotes "inside", braces }] and \u00e9\U0001f600', "nothing": None},
    "numbers": [0, -1.5e3, 12345, 7],
    "empty": [],
    "number": 123456,
    "images": [{"id": n, "name": "x" * (n % 50), "nested": [[n], {"a": []}]} for n in range(200)],
    "last": True,
}


@pytest.mark.parametrize("block", [1, 2, 7, 100, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_members_are_those_of_the_whole_document(tmp_path, monkeypatch, block, layout):
    monkeypatch.setattr(json_arrays, "_BLOCK", block)
    (tmp_path / "x.json").write_text(json.dumps(DOCUMENT, **layout), encoding="utf-8")
    arrays, values = defaultdict(list), {}
    for name, value in json_members(tmp_path / "x.json"):
        if isinstance(DOCUMENT[name], list):
            arrays[name].append(value)
        else:
            values[name] = value
    assert {**values, **arrays, "empty": []} == DOCUMENT


def test_a_truncated_document_is_refused_wherever_it_ends(tmp_path):
    text = json.dumps(DOCUMENT)
    for end in random.Random(0).sample(range(len(text)), 60):
        (tmp_path / "x.json").write_text(text[:end])
        with pytest.raises(ValueError, match="not a whole JSON object"):
            list(json_members(tmp_path / "x.json"))


@pytest.mark.parametrize("text", ["", "[1]", '{"a" 1}', '{"a": [1 2]}', '{"a": 1,}', "nonsense"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="not a whole JSON object"):
        list(json_members(tmp_path / "x.json"))
