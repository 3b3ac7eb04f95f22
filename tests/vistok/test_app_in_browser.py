"""`vistok app` in chromium: what a user sees, on a wide screen and on a phone, in light and in dark."""

import re
import socket
import threading

import pytest
from PIL import Image

from tests.conftest import chromium
from tests.tiny import tiny_image
from tests.vistok.commands import answer_of_generate
from vistok import app_systems
from vistok.app_systems import LoadedSystem, Look

pytestmark = pytest.mark.browser
QUESTION = "is there a dog in the image?"
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def address(adapter_folder):
    """Of the app, with a tiny model before the systems that ship, and one behind them that does not ship."""
    from vistok.app import build_page, serve

    unborn = app_systems._SHIPPED[0]._replace(name="Unborn", checkpoint="checkpoints/unborn", recipes="vistok train X")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_systems, "_SHIPPED", (*app_systems._SHIPPED, unborn))
        page = build_page([adapter_folder])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield serve(page, port=port, block=False)
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # Root, as in a container, has no sandbox.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Opens the app; what it asked for is in `requested`, what it complained of in `complaints`."""
    contexts = []

    def open_page(viewport=WIDE, color_scheme="light"):
        contexts.append(browser.new_context(viewport=viewport, color_scheme=color_scheme))
        page = contexts[-1].new_page()
        page.requested, page.complaints = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        page.locator("#question textarea").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def upload(page, file) -> None:
    page.locator("#image input[type=file]").set_input_files(str(file))
    page.locator("#image img").wait_for(state="attached")


def ask(page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.get_by_role("button", name="Ask").click()


def width_of(image) -> int:
    """Pixels of a picture once it was loaded; 0 of one that cannot be."""
    return image.evaluate("image => image.decode().then(() => image.naturalWidth, () => 0)")


def note(page, words: str) -> str:
    """The note, once it holds these words."""
    found = page.locator("#note").filter(has_text=re.compile(re.escape(words)))
    found.wait_for(timeout=240_000)  # the first answer loads a model, on whatever machine
    return found.inner_text()


def test_an_uploaded_image_is_answered_beside_a_picture_and_nothing_is_asked_of_others(
    opened, address, adapter_folder, tmp_path
):
    file = tmp_path / "photo.png"
    tiny_image(3, size=(40, 30)).save(file)
    page = opened()
    upload(page, file)
    ask(page, QUESTION)
    note(page, "queries look")
    picture = page.locator("#picture img")
    picture.wait_for()
    assert width_of(picture) > 1000
    expected = answer_of_generate(adapter_folder, Image.open(file), QUESTION, 32)
    said = [words.strip() for words in page.locator("#chat .message").all_inner_texts()]
    assert said[0] == QUESTION and said[-1] == expected.strip()
    assert page.locator("#question textarea").input_value() == ""

    page.locator("#system").get_by_text("SeTok", exact=True).click()
    page.locator("#about").filter(has_text="semantic tokens").wait_for()
    assert page.locator("#chat .message").count() == 0, "another system begins anew"
    assert page.complaints == []
    assert {url for url in page.requested if not url.startswith((address, "data:", "blob:"))} == set()


def test_an_example_is_a_question_about_its_image(opened):
    page = opened()
    page.get_by_text("What color is the circle?").click()
    page.locator("#image img").wait_for()
    assert page.locator("#question textarea").input_value() == "What color is the circle?"
    page.get_by_role("button", name="Ask").click()
    note(page, "queries look")
    assert page.locator("#chat .message").first.inner_text().strip() == "What color is the circle?"


def test_mistakes_are_told_where_they_were_made_and_the_question_stays(opened, tmp_path):
    page = opened()
    ask(page, QUESTION)
    assert "upload one" in note(page, "no image yet")
    (tmp_path / "broken.png").write_text("not a picture")
    upload(page, tmp_path / "broken.png")
    ask(page, QUESTION)
    assert "Give another one" in note(page, "This image cannot be used")
    assert page.locator("#question textarea").input_value() == QUESTION
    page.locator("#system").get_by_text("Unborn", exact=True).click()
    page.locator("#about").filter(has_text="vistok train X").wait_for()


def test_an_answer_that_comes_after_another_system_was_chosen_is_not_shown(opened, tmp_path, monkeypatch):
    begun, goes_on = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        begun.set()
        goes_on.wait(60)
        return "too late"

    monkeypatch.setattr(LoadedSystem, "answer", slow)
    monkeypatch.setattr(LoadedSystem, "look", lambda *args: Look(tiny_image(), "too late"))
    page = opened()
    tiny_image(3, size=(40, 30)).save(tmp_path / "photo.png")
    upload(page, tmp_path / "photo.png")
    ask(page, QUESTION)
    assert begun.wait(60)
    page.locator("#system").get_by_text("SeTok", exact=True).click()
    page.locator("#about").filter(has_text="semantic tokens").wait_for()
    goes_on.set()
    page.wait_for_timeout(3000)
    assert page.get_by_text("too late").count() == 0
    assert page.locator("#picture img").count() == 0


def test_a_file_that_is_too_large_is_refused(opened, tmp_path):
    page = opened()
    (tmp_path / "vast.png").write_bytes(bytes(21_000_000))
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "vast.png"))
    refused = page.get_by_text(re.compile("size", re.IGNORECASE)).filter(has_text=re.compile("exceed|maximum|limit"))
    refused.first.wait_for(timeout=30_000)
    assert page.locator("#image img").count() == 0


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_in_dark(opened, color_scheme):
    page = opened(PHONE, color_scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    assert (page.evaluate(brightness) < 200) == (color_scheme == "dark")
    for name in ("#image", "#system", "#chat", "#question", "#picture"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
