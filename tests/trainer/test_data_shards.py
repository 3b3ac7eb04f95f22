"""Formats that bring their images along yield the canonical example: webdataset shards, Parquet, Hub data sets."""

import io
import json
import tarfile

import datasets
import pytest

from tests.trainer.planted_data import (
    assert_canonical,
    assistant,
    colour,
    colours,
    image_part,
    png,
    user,
    write_images,
)
from vistok.processing.images import BadSampleError
from vistok.trainer.data_sources import load_data_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


GREETING = [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi."}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["parquet", "hub"])
def test_tables_with_embedded_images(tmp_path, form, streaming, monkeypatch):
    features = {"picture": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    rows = [{"picture": {"path": f"{i}.png", "bytes": png(i)}, "question": f"q{i}", "answer": f"a{i}"} for i in (3, 1)]
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-0.parquet")
    # files of the same names lie in the working directory and hold other images
    write_images(tmp_path / "work")
    for index in (1, 3):
        (tmp_path / "work" / f"{index}.png").write_bytes(png(0))
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "data" if form == "hub" else tmp_path / "data" / "*.parquet"
    source = {"format": form, "path": str(path), "options": {"columns": {"images": "picture"}}, "streaming": streaming}
    examples = assert_canonical(load_data_source(source))
    assert [example["messages"] for example in examples] == [
        [user(image_part(), "q3"), assistant("a3")],
        [user(image_part(), "q1"), assistant("a1")],
    ]
    assert [colours(example) for example in examples] == [[colour(3)], [colour(1)]]


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


SHARD = {
    "a.png": png(1),
    "a.txt": b"A green thing.",
    "b.0.png": png(2),
    "b.1.png": png(3),
    "b.json": json.dumps({"question": "Same?", "answer": "no"}).encode(),
    "c.json": json.dumps({"conversations": GREETING}).encode(),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_reads_captions_questions_and_several_images(tmp_path, streaming):
    write_shard(tmp_path / "shard-0.tar", SHARD)
    write_shard(tmp_path / "shard-1.tar", {"a.jpg": png(0), "a.txt": b"Other."})
    examples = assert_canonical(
        load_data_source({"format": "webdataset", "path": str(tmp_path), "streaming": streaming})
    )
    assert [example["id"] for example in examples] == ["shard-0/a", "shard-0/b", "shard-0/c", "shard-1/a"]
    assert [example["row"] for example in examples] == [0, 1, 2, 0]
    assert [example["messages"] for example in examples] == [
        [user(image_part(), "what does the image describe?"), assistant("A green thing.")],
        [user(image_part(), image_part(), "Same?"), assistant("no")],
        [user("Say hi."), assistant("Hi.")],
        [user(image_part(), "what does the image describe?"), assistant("Other.")],
    ]
    assert [colours(example) for example in examples] == [[colour(1)], [colour(2), colour(3)], [], [colour(0)]]


METADATA = {"key": "a", "width": 8, "status": "success"}


@pytest.mark.parametrize(
    ("record", "columns", "answer"),
    [
        (METADATA, {}, "A green thing."),
        ({**METADATA, "caption": None, "question": "Never answered?"}, {}, "A green thing."),
        ({**METADATA, "caption": "Of the JSON."}, {"caption": "title"}, "A green thing."),
        ({**METADATA, "caption": "Of the JSON."}, {}, "Of the JSON."),
        ({**METADATA, "title": "Of the JSON."}, {"caption": "title"}, "Of the JSON."),
    ],
)
def test_the_text_is_the_caption_where_the_json_beside_it_holds_none(tmp_path, record, columns, answer):
    members = {"a.png": png(1), "a.txt": b"A green thing.", "a.json": json.dumps(record).encode()}
    path = write_shard(tmp_path / "shard.tar", members)
    (example,) = load_data_source({"format": "webdataset", "path": str(path), "options": {"columns": columns}})
    assert example["messages"] == [user(image_part(), "what does the image describe?"), assistant(answer)]


BAD_SHARDS = {
    "it needs a .json or .txt member; it has png": {"x.png": png(0)},
    "it needs an image member; it has txt": {"x.txt": b"A caption."},
    "its text cannot be read": {"x.png": png(0), "x.json": b"{'not': json}"},
    "its .json must hold an object, got list": {"x.png": png(0), "x.json": b"[1]"},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("reason", BAD_SHARDS)
def test_a_shard_sample_that_lacks_a_member_names_file_and_key(tmp_path, reason, streaming):
    path = write_shard(tmp_path / "shard.tar", {"a.png": png(1), "a.txt": b"Fine.", **BAD_SHARDS[reason]})
    with pytest.raises(BadSampleError) as raised:
        list(load_data_source({"format": "webdataset", "path": str(path), "streaming": streaming}))
    error = raised.value
    assert (error.file, error.row) == (str(path), 1)
    assert error.reason.startswith(f"sample 'x': {reason}")


def test_a_damaged_shard_is_one_bad_sample_and_the_next_shard_is_read(tmp_path):
    first = write_shard(tmp_path / "0.tar", {"a.png": png(1), "a.txt": b"Fine.", "b.png": png(2), "b.txt": b"Lost."})
    first.write_bytes(first.read_bytes()[:2600])  # four blocks of the first sample, a header, and 40 bytes of an image
    write_shard(tmp_path / "1.tar", {"a.png": png(1), "a.txt": b"Fine."})
    source = {"format": "webdataset", "path": str(tmp_path), "streaming": True, "on_error": "skip"}
    dataset = load_data_source(source)
    examples = [example["id"] for example in dataset]
    (error,) = dataset.skipped_samples.errors()
    assert "the shard cannot be read after sample" in error.reason
    assert error.file == str(first)
    assert examples == ["0/a", "1/a"]


def test_a_changed_shard_is_not_served_from_the_cache(tmp_path):
    path = write_shard(tmp_path / "s.tar", {"a.png": png(1), "a.txt": b"Old."})
    source = {"format": "webdataset", "path": str(path)}
    assert load_data_source(source)[0]["messages"][1] == assistant("Old.")
    write_shard(path, {"a.png": png(1), "a.txt": b"New and longer.", "b.png": png(2), "b.txt": b"More."})
    assert [example["messages"][1] for example in load_data_source(source)] == [
        assistant("New and longer."),
        assistant("More."),
    ]
