"""Data sources by the values of their columns."""

import json

import datasets
import pytest

from tests.tiny import tiny_image
from vistok.processing.images import BadSampleError
from vistok.trainer.data_sources import DataSource, load_data_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def record(index: int) -> dict:
    return {"id": f"s{index}", "question": f"q{index}?", "answer": "yes", "image": "good.png"}


@pytest.fixture
def write(tmp_path):
    """Writes records about one image, and describes the source."""

    def write_source(records, **fields):
        tiny_image(0).save(tmp_path / "good.png")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))
        return DataSource("json", name="rows", path=str(tmp_path / "rows.jsonl"), **fields)

    return write_source


@pytest.fixture
def rows(write):
    return lambda **fields: load_data_source(write([record(index) for index in range(12)], **fields))


def ids(dataset):
    return [example["id"] for example in dataset]


def test_only_examples_with_a_value_are_loaded_and_limited(rows):
    assert ids(rows(where={"id": "s3"})) == ["s3"]
    assert ids(rows(where={"row": [1, 4, 7, 9], "source": "rows"}, max_samples=3)) == ["s1", "s4", "s7"]


def test_a_stream_has_the_same_examples(rows):
    assert sorted(ids(rows(where={"row": [2, 5]}, streaming=True))) == ["s2", "s5"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"rwo": 1}, "unknown column in `where` of data source 'rows' 'rwo'.*Did you mean 'row'"),
        ({"row": 12}, "no example where {'row': 12}"),
        ("caption", "where of data source 'rows' must be a mapping, got 'caption'"),
    ],
)
def test_what_is_nowhere_is_said(rows, where, message):
    with pytest.raises(ValueError, match=message):
        rows(where=where)


def test_bad_samples_stay_bad(write):
    records = [record(0), {**record(1), "answer": ""}]
    with pytest.raises(BadSampleError):
        load_data_source(write(records, where={"row": 0}))
    left = load_data_source(write(records, where={"row": 0}, on_error="skip"))
    assert len(left) == 1 and left.skipped_samples.count == 1
