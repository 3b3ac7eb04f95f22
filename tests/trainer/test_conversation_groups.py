"""Conversations about the same images come together, in rows of bounded length, and keep their order."""

import pytest
from datasets import Dataset

from tests.tiny import tiny_image
from tests.trainer.tiny_training import question
from vistok.processing import images as images_module
from vistok.trainer.conversation_groups import group_by_images
from vistok.trainer.data_examples import FEATURES


def dataset(rows) -> Dataset:
    return Dataset.from_list(rows, features=FEATURES)


def asked(row) -> list[str]:
    return [messages[0]["content"][-1]["text"] for messages in row["conversations"]]


def test_conversations_about_one_image_share_rows_of_bounded_length():
    order = [(0, "a"), (1, "b"), (0, "c"), (0, "d"), (1, "e"), (0, "f")]
    grouped = group_by_images(dataset([question(i, image, text) for i, (image, text) in enumerate(order)]), 3)
    assert [asked(row) for row in grouped] == [["a", "c", "d"], ["f"], ["b", "e"]]
    # A row is called after its first conversation.
    assert [(row["id"], row["row"], row["source"]) for row in grouped] == [
        ("q0", 0, "planted"),
        ("q5", 5, "planted"),
        ("q1", 1, "planted"),
    ]
    assert [row["rows"] for row in grouped] == [[0, 2, 3], [5], [1, 4]]
    assert [row["sources"] for row in grouped] == [["planted"] * 3, ["planted"], ["planted"] * 2]
    assert "messages" not in grouped.column_names
    assert [row["images"] for row in grouped] == [question(0, image)["images"] for image in (0, 0, 1)]


def test_nothing_of_a_conversation_is_lost():
    row = question(0, 0)
    row["messages"] += [
        {"role": "user", "content": [{"type": "text", "text": "and now?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]
    (grouped,) = group_by_images(dataset([row, question(1, 0)]), 2)
    assert grouped["conversations"] == [row["messages"], question(1, 0)["messages"]]


def test_an_image_is_known_by_its_content_wherever_it_lies(tmp_path):
    rows = []
    for index, (name, seed) in enumerate([("a.png", 0), ("copy of a.png", 0), ("b.png", 1)]):
        tiny_image(seed).save(tmp_path / name)
        row = question(index, 0, str(index))
        row["images"] = [{"path": str(tmp_path / name), "bytes": None}]
        rows.append(row)
    assert [asked(row) for row in group_by_images(dataset(rows), 5)] == [["0", "1"], ["2"]]


def test_a_file_is_read_once_however_many_questions_are_about_it(tmp_path, monkeypatch):
    tiny_image(0).save(tmp_path / "a.png")
    rows = [question(index, 0) for index in range(4)]
    for row in rows:
        row["images"] = [{"path": str(tmp_path / "a.png"), "bytes": None}]
    read = []
    original = images_module._read_bytes
    monkeypatch.setattr(images_module, "_read_bytes", lambda image: read.append(image) or original(image))
    images_module._file_hash.cache_clear()
    group_by_images(dataset(rows), 4)
    assert len(read) == 1


def test_text_alone_shares_nothing_and_pairs_of_images_are_told_apart_by_order():
    def pair(index, *seeds):
        row = question(index, seeds[0], str(index))
        row["images"] = [question(0, seed)["images"][0] for seed in seeds]
        row["messages"][0]["content"].insert(0, {"type": "image", "text": None})
        return row

    rows = [question(0, None, "0"), pair(1, 0, 1), question(2, None, "2"), pair(3, 1, 0), pair(4, 0, 1)]
    assert [asked(row) for row in group_by_images(dataset(rows), 9)] == [["0"], ["1", "4"], ["2"], ["3"]]


def test_an_example_that_is_repeated_never_meets_itself_in_a_row():
    order = [0, 1, 0, 2, 0, 1]  # as a weighted mixture repeats them; all about one image
    grouped = group_by_images(dataset([question(index, 0, str(index)) for index in order]), 3)
    assert [asked(row) for row in grouped] == [["0", "1", "2"], ["0", "1"], ["0"]]


def test_rows_hold_at_least_one_conversation():
    with pytest.raises(ValueError, match="max_conversations is 0, expected at least 1"):
        group_by_images(dataset([question(0, 0)]), 0)
