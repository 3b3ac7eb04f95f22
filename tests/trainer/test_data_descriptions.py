"""Descriptions of data sources are checked, by name; formats are added to the registry by name."""

import math

import datasets
import pytest

from vistok.trainer.data_examples import FEATURES
from vistok.trainer.data_formats import data_formats
from vistok.trainer.data_sources import load_data_source, register_data_format


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def turn(role):
    return {"role": role, "content": [{"type": "text", "text": "a word"}]}


def test_a_registered_format_is_loaded_by_name_with_its_options():
    @register_data_format("counting-test")
    def counting(source, count=1):
        talk = [turn("user"), turn("assistant")]
        rows = [{"id": str(i), "source": "x", "row": i, "images": [], "messages": talk} for i in range(count)]
        return datasets.Dataset.from_list(rows, features=FEATURES)

    assert "counting-test" in data_formats()
    assert len(load_data_source({"format": "counting-test", "options": {"count": 3}})) == 3
    assert len(list(load_data_source({"format": "counting-test", "streaming": True, "options": {"count": 3}}))) == 3
    with pytest.raises(ValueError, match="unknown option of data format 'counting-test' 'cuont'; known: 'count'"):
        load_data_source({"format": "counting-test", "options": {"cuont": 3}})
    with pytest.raises(ValueError, match="already registered"):
        register_data_format("counting-test")(lambda source: None)


def test_a_format_that_yields_something_else_is_refused():
    @register_data_format("wrong-test")
    def wrong(source):
        return datasets.Dataset.from_list([{"id": "0", "messages": []}])

    with pytest.raises(ValueError, match=r"'wrong-test' lacks the columns \['source', 'row', 'images'\]"):
        load_data_source({"format": "wrong-test"})


TYPOS = {
    "unknown data format 'lava'; known: .*Did you mean 'llava'": {"format": "lava"},
    "unknown split of easy-vqa 'trian'; known: 'train', 'test'": {"format": "easy-vqa", "split": "trian"},
    "unknown field of a data source 'spilt'; known: .*'split'": {"format": "llava", "spilt": "test"},
    "unknown on_error 'skp'; known: 'raise', 'skip'": {"format": "llava", "on_error": "skp"},
    r"holds the unknown field \['questoin'\]; the only one is {question}": {
        "format": "llava",
        "prompt": "Q: {questoin}",
    },
    "prompt 'Q: {' is not a template": {"format": "llava", "prompt": "Q: {"},
    "max_samples of data source 'llava' must be a positive whole number, got 0": {"format": "llava", "max_samples": 0},
    "weight of data source 'llava' must be a positive number, got '2'": {"format": "llava", "weight": "2"},
    "weight of data source 'llava' must be a positive number, got inf": {"format": "llava", "weight": math.inf},
    "weight of data source 'llava' must be a positive number, got nan": {"format": "llava", "weight": math.nan},
    "options of data source 'llava' must be a mapping, got 'x'": {"format": "llava", "options": "x"},
    "a data source needs a format": {"path": "x.json"},
    "needs one annotation file as `path`, got None": {"format": "llava"},
    "has no splits, got split='train'": {"format": "llava", "path": "x.json", "split": "train"},
}


@pytest.mark.parametrize("message", TYPOS)
def test_a_wrong_description_names_the_value_and_the_known_ones(message):
    with pytest.raises(ValueError, match=message):
        load_data_source(TYPOS[message])


def test_a_broken_json_document_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('[{"id": 1}')
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        load_data_source({"format": "llava", "path": str(path)})
    path.write_text('{"id": 1}')
    with pytest.raises(ValueError, match="must hold a JSON list of records, got a dict"):
        load_data_source({"format": "llava", "path": str(path)})
