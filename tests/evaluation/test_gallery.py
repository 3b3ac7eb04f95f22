"""A gallery shows what two models said to the same questions, and marks what is right."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from tests.tiny import calls, tiny_image
from vistok.evaluation.gallery import (
    choose_items,
    draw_gallery,
    gallery_command,
    printable,
    read_answers,
    wrap_text,
    write_gallery_page,
)
from vistok.evaluation.predictions import PredictionsFile
from vistok.evaluation.processes import Share


@pytest.fixture
def sides(tmp_path, make_question):
    """Predictions of two models to ten questions: the first is right about even ones, the second about every third."""
    examples = []
    for row in range(10):
        tiny_image(row, (30, 20)).save(tmp_path / f"{row}.png")
        image = {"path": str(tmp_path / f"{row}.png"), "bytes": None}
        examples.append(make_question(row, f"what is <{row}>?", f"thing {row}", image))
    files = []
    for name, step in (("first", 2), ("second", 3)):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "planted-test.predictions.jsonl")
        said = [f"thing {row}" if row % step == 0 else f"{name} & wrong" for row in range(10)]
        PredictionsFile(files[-1], {}).append("given", examples, said)
        PredictionsFile(files[-1], {}).append("blank", examples, ["grey"] * 10)
    return files


@pytest.fixture
def lines(sides):
    read = [[json.loads(line) for line in file.read_text("utf-8").splitlines()[1:]] for file in sides]
    return [[line for line in side if line["images"] == "given"] for side in read]


def test_items_are_the_same_question_to_both_and_what_is_right_is_known(lines):
    items = choose_items(*lines, num_shown=99)
    assert [item.question for item in items] == [f"what is <{row}>?" for row in range(10)]
    assert [item.right for item in items] == [(row % 2 == 0, row % 3 == 0) for row in range(10)]
    assert items[1].predictions == ("first & wrong", "second & wrong")
    assert items[4].predictions == ("thing 4", "second & wrong")


def test_the_choice_is_the_seed_s(lines):
    chosen = [[item.question for item in choose_items(*lines, num_shown=4, seed=seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 4


def test_disagreements_are_right_on_one_side_only(lines):
    items = choose_items(*lines, num_shown=99, disagreements=True)
    assert [item.question for item in items] == [f"what is <{row}>?" for row in (2, 3, 4, 8, 9)]
    with pytest.raises(ValueError, match="no question that one model answers rightly and the other one wrongly"):
        choose_items(lines[0], lines[0], disagreements=True)


def test_the_page_holds_its_images_and_marks_the_answers(lines, tmp_path):
    items = choose_items(*lines, num_shown=99)
    write_gallery_page(items, ("A <1>", "B"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == page.count("<article>") == 10
    with Image.open(io.BytesIO(base64.b64decode(images[3]))) as shown:
        assert shown.size == (30, 20)
    assert "http" not in page
    assert "what is &lt;4&gt;?" in page
    assert (
        '<p class="right">✓ <b>A &lt;1&gt;</b>: thing 4</p><p class="wrong">✗ <b>B</b>: second &amp; wrong</p>' in page
    )


def test_the_picture_has_each_image_and_both_answers(lines, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = calls(monkeypatch, Figure, "savefig")
    draw_gallery(choose_items(*lines, num_shown=4), ("A", "B"), tmp_path / "picture.png")
    axes = drawn[0][0][0].axes
    assert sum(bool(one.images) for one in axes) == 4
    texts = [text.get_text() for one in axes for text in one.texts]
    assert sum(text.startswith(("✓ A: ", "✗ A: ")) for text in texts) == 4
    assert sum(text.startswith(("✓ B: ", "✗ B: ")) for text in texts) == 4
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1000


def test_two_predictions_become_a_picture_and_a_page(sides, tmp_path):
    sides[0].with_name("planted-test.json").write_text('{"model": "/somewhere/model-a"}')
    files = gallery_command(tmp_path / "out" / "gallery", [], sides, num_shown=3)
    assert [file.name for file in files] == ["gallery.png", "gallery.html"]
    page = files[1].read_text("utf-8")
    assert "model-a" in page and "planted-test" in page and "/somewhere" not in page


def test_a_model_and_a_predictions_file_go_together(sides, tmp_path):
    files = gallery_command(tmp_path / "gallery", [("runs/b", lambda: sides[1:])], sides[:1])
    assert "<h1>b and planted-test</h1>" in files[1].read_text("utf-8")


def test_only_the_files_of_this_run_are_shown(sides, tmp_path):
    other = sides[1].with_name("another-test.predictions.jsonl")
    other.write_text(sides[1].read_text("utf-8").replace("second & wrong", "of another run"))
    gallery_command(tmp_path / "gallery", [("a", lambda: sides[:1]), ("b", lambda: sides[1:])], num_shown=10)
    assert "of another run" not in (tmp_path / "gallery.html").read_text("utf-8")


def test_of_several_processes_the_first_one_writes(sides, tmp_path):
    evaluated = []

    def evaluate():
        evaluated.append(True)
        return sides[:1]

    models = [("a", evaluate), ("b", evaluate)]
    assert gallery_command(tmp_path / "gallery", models, share=Share(1, 2)) == []
    assert len(evaluated) == 2 and list(tmp_path.glob("gallery*")) == []


def test_what_is_right_is_decided_by_the_mode_in_which_answers_are_read(tmp_path, make_question):
    image = {"path": str(tmp_path / "0.png"), "bytes": None}
    asked = [{**make_question(0, "Does cup exist?", "No.", image), "source": "coco_mci"}]
    file = tmp_path / "coco_mci-test.predictions.jsonl"
    PredictionsFile(file, {}).append("given", asked, ["I do not know"], lambda prediction, example: None)
    assert [read_answers(file, mode)[0]["right"] for mode in ("reference", "strict")] == [True, False]


@pytest.mark.parametrize("text", ["W" * 300, "word " * 80, "a " + "W" * 90 + " b", "国" * 120])
def test_lines_of_any_text_fit_below_their_image(text):
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    lines = wrap_text(text, 4)
    assert 2 <= len(lines) <= 4
    widths = [TextToPath().get_text_width_height_descent(line, FontProperties(size=9), False)[0] for line in lines]
    assert max(widths) < 4.2 * 72
    whole = "".join(lines).replace(" ", "")
    assert text.replace(" ", "").startswith(whole.removesuffix("…"))
    assert whole.endswith("…") or whole == text.replace(" ", "")


def test_control_characters_are_shown_and_do_nothing():
    assert printable("a\n\tb\x00c\u202ed\ud800e 👩\u200d🔬") == "a b�c�d�e 👩\u200d🔬"


def test_what_makes_no_gallery_is_told(sides, lines, tmp_path):
    with pytest.raises(ValueError, match="0 models and 1 predictions files were given"):
        gallery_command(tmp_path / "gallery", [], sides[:1])
    with pytest.raises(FileNotFoundError, match="no predictions file"):
        gallery_command(tmp_path / "gallery", [], [tmp_path / "none", sides[0]])
    (tmp_path / "other.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"other.jsonl is no predictions file"):
        gallery_command(tmp_path / "gallery", [], [tmp_path / "other.jsonl", sides[0]])
    with pytest.raises(ValueError, match="no question about an image file in common"):
        choose_items(lines[0], [{**line, "source": "other"} for line in lines[1]])
    with pytest.raises(ValueError, match="num_shown is 0"):
        choose_items(*lines, num_shown=0)
    assert list(tmp_path.glob("gallery*")) == []
