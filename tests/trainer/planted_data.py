"""Tiny images and files with planted content, for the tests of data formats."""

import io
import json

from PIL import Image

from vistok.processing.images import load_example_images
from vistok.trainer.data_examples import FEATURES


def colour(index):
    """The colour planted in the image of this index."""
    return (10 * index % 256, 200, 30)


def png(index):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour(index)).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(png(index))
    return folder


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def image_part():
    return {"type": "image", "text": None}


def text_part(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": [text_part(part) if isinstance(part, str) else part for part in parts]}


def assistant(text):
    return {"role": "assistant", "content": [text_part(text)]}


def colours(example):
    """The colours of an example's images, as they are read for training."""
    return [image.getpixel((0, 0)) for image in load_example_images(example)]


def assert_canonical(dataset):
    """Types and consistency that every example has, whatever its format."""
    for name, feature in FEATURES.items():
        assert dataset.features[name] == feature
    assert "problem" not in dataset.column_names
    examples = list(dataset)
    assert len({example["id"] for example in examples}) == len(examples)
    for example in examples:
        parts = [part["type"] for message in example["messages"] for part in message["content"]]
        assert parts.count("image") == len(example["images"])
        assert all(set(image) == {"path", "bytes"} for image in example["images"])
    return examples
