"""The VT-LMM that ships: it reads a drawn image as words, and answers a question about it."""

import html
import math

import pytest
from PIL import Image, ImageDraw

from vistok import cli
from vistok.answering import answer_question, load_pipeline
from vistok.cli_words import SHIPPED_MODEL
from vistok.configuration.shipped import shipped_path
from vistok.evaluation.word_map import WordMap, read_word_map

pytestmark = pytest.mark.real_weights


@pytest.fixture(scope="module")
def reader():
    return load_pipeline(shipped_path(SHIPPED_MODEL))


@pytest.fixture
def circle():
    """Draws one as easy-VQA does."""

    def draw(color: str) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((14, 14, 50, 50), fill=color)
        return image

    return draw


def read(reader, image: Image.Image) -> WordMap:
    return read_word_map(reader.model, reader.processor, image)


def test_its_words_are_learnt_and_say_what_an_image_shows(reader, circle):
    red, blue = read(reader, circle("red")), read(reader, circle("blue"))
    assert red.grid_size == (8, 8) and reader.model.config.vm_head_trained
    # A head that has learnt nothing spreads over the whole vocabulary.
    assert red.entropy.mean() < math.log(reader.model.config.text_config.vocab_size) - 2
    inside = (slice(2, 6), slice(2, 6))
    assert len({tuple(words) for words in red.words.reshape(-1, red.words.shape[-1])}) > 1
    assert (red.words[inside] != blue.words[inside]).any()


def test_it_answers_a_question(reader, circle):
    assert answer_question(reader, circle("red"), "What color is the shape?", 4) == "red"


def test_without_a_model_the_command_takes_it(reader, circle, tmp_path):
    picture, page = tmp_path / "words.png", tmp_path / "words.html"
    circle("red").save(tmp_path / "circle.png")
    named = ["--output", str(picture), "--html", str(page)]
    assert cli.main(["words", str(tmp_path / "circle.png"), "--device", "cpu", *named]) == 0
    with Image.open(picture) as drawn:
        assert drawn.size == (1600, 1600)
    text = html.unescape(page.read_text(encoding="utf-8"))
    first = read(reader, tmp_path / "circle.png").words[0, 0, 0]
    assert "Images as words: vtlmm-demo" in text and f"row 1, column 1: {first} " in text
