"""Each image of training examples becomes a row, once, wherever it lies and however many ask about it."""

import pytest
from datasets import Dataset, Features, Image, List

from tests.tiny import image_bytes, tiny_image
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.distinct_images import distinct_images


def rows_of(*lists, features=FEATURES):
    rows = [
        {"id": str(row), "source": "planted", "row": row, "images": images, "messages": []}
        for row, images in enumerate(lists)
    ]
    return Dataset.from_list(rows, features=features)


def test_images_in_files_are_known_by_their_path_and_others_by_their_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        tiny_image(0).save(tmp_path / name)
    a, b = ({"path": str(tmp_path / name), "bytes": None} for name in ("a.png", "b.png"))
    named = {**image_bytes(1), "path": "the name it had in an archive"}
    found = distinct_images(rows_of([a], [b], [a], [image_bytes(1)], [named], [image_bytes(2)]))
    assert found["row"] == [0, 1, 3, 5] and set(found.column_names) == {"id", "source", "row", "images"}


def test_all_images_of_an_example_count_and_examples_without_any_do_not():
    one, two, three = (image_bytes(seed) for seed in range(3))
    found = distinct_images(rows_of([one, two], [], [two, three], [one]))
    assert found["row"] == [0, 0, 2] and [len(images) for images in found["images"]] == [1, 1, 1]
    assert [images[0]["bytes"] for images in found["images"]] == [image["bytes"] for image in (one, two, three)]
    with pytest.raises(ValueError, match="no images"):
        distinct_images(rows_of([], []))


def test_decoded_images_are_known_by_their_files_and_pillow_images_by_their_pixels():
    features = Features({"images": List(Image())})
    rows = [{"images": [tiny_image(seed)]} for seed in (*range(60), 3, 4)]
    found = distinct_images(Dataset.from_list(rows, features=features))
    assert len(found) == 60 and isinstance(found[0]["images"][0], dict)  # for data loader workers to decode


def test_a_column_of_single_images_is_taken_as_it_is():
    data = Dataset.from_dict({"image": [image_bytes(seed) for seed in (0, 1, 0)], "label": [1, 2, 3]})
    found = distinct_images(data.cast_column("image", Image()))
    assert found.column_names == ["image"] and [row["image"]["bytes"] for row in found] == [
        image_bytes(seed)["bytes"] for seed in (0, 1)
    ]
    stream = distinct_images(data.to_iterable_dataset())
    assert len(list(stream)) == 3
    with pytest.raises(ValueError, match="has the columns label, and its images are looked for in"):
        distinct_images(data.select_columns("label"))


def test_of_a_stream_the_first_image_of_each_example_is_taken():
    one, two, three = (image_bytes(seed) for seed in range(3))
    stream = rows_of([one, two], [], [three], [one]).to_iterable_dataset()
    found = list(distinct_images(stream))
    assert [row["row"] for row in found] == [0, 2, 3] and all(len(row["images"]) == 1 for row in found)
