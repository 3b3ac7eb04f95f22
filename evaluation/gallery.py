"""A gallery: questions about images with the answers of two models side by side (Figure 4 of the GVT paper)."""

import base64
import html
import io
import json
import os
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically, write_text_atomically
from ..processing.images import load_image
from .prediction_checks import check_positive
from .predictions import read_predictions
from .processes import Share
from .tasks import TASKS

COLUMNS = 3
COLUMN_WIDTH = 4.2  # inches
TEXT_WIDTH, TEXT_SIZE = 0.92 * 72 * COLUMN_WIDTH, 9  # points
JOINER = "\u200d"  # of emoji
IMAGE_SIDE = 420  # pixels, at most
RIGHT, WRONG, UNKNOWN = "#1a7f37", "#b42318", "#404040"
MARKS = {True: "✓", False: "✗", None: "·"}
COLOURS = {True: RIGHT, False: WRONG, None: UNKNOWN}

Line = Mapping[str, Any]


@dataclass(frozen=True)
class GalleryItem:
    """
    A question with two answers.

    Args:
        image (`str`): file.
        question (`str`): what was asked.
        answer (`str`): what is right.
        predictions (`tuple[str, str]`): what the models said.
        right (`tuple[bool | None, bool | None]`): whether that is right; `None` where it is a matter of degrees.
    """

    image: str
    question: str
    answer: str
    predictions: tuple[str, str]
    right: tuple[bool | None, bool | None]


def choose_items(
    first: Sequence[Line],
    second: Sequence[Line],
    num_shown: int = 12,
    disagreements: bool = False,
    seed: int = 0,
) -> list[GalleryItem]:
    """
    A random choice of the questions that two models were both asked.

    Args:
        first, second (`list[dict]`): from [`read_predictions`].
        num_shown (`int`, *optional*, defaults to 12): how many.
        disagreements (`bool`, *optional*, defaults to `False`): only questions that one model answers rightly and the
            other one wrongly.
        seed (`int`, *optional*, defaults to 0): of the choice.

    Returns:
        `list[GalleryItem]`: in the order of the first.

    Raises:
        ValueError: if `num_shown` is less than 1, or there is no such question.
    """
    if num_shown < 1:
        raise ValueError(f"num_shown is {num_shown}, expected at least 1.")
    of_second = {(line["source"], line["id"], line["question"]): line for line in second}
    pairs = [
        (line, other)
        for line in first
        if (other := of_second.get((line["source"], line["id"], line["question"]))) is not None
        and (line.get("files") or other.get("files"))
    ]
    if not pairs:
        raise ValueError(
            "The two predictions have no question about an image file in common: evaluate both models on the same "
            "questions, with the same --max-questions, --seed and --prompt-style."
        )
    if disagreements:
        pairs = [(line, other) for line, other in pairs if {line.get("right"), other.get("right")} == {True, False}]
        if not pairs:
            raise ValueError("There is no question that one model answers rightly and the other one wrongly.")
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), min(num_shown, len(pairs))))
    return [_item(*pairs[index]) for index in chosen]


def _item(line: Line, other: Line) -> GalleryItem:
    files = line.get("files") or other["files"]
    return GalleryItem(
        files[-1],
        printable(line["question"]),
        printable(line["answer"]),
        (printable(line["prediction"]), printable(other["prediction"])),
        (line.get("right"), other.get("right")),
    )


def draw_gallery(items: Sequence[GalleryItem], names: Sequence[str], path: str | os.PathLike) -> None:
    """
    Draws a gallery as one picture, three questions in a row.

    Args:
        items (`list[GalleryItem]`): from [`choose_items`].
        names (`tuple[str, str]`): of the models.
        path (`str`): PNG file.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
        BadSampleError: if an image is gone.
    """
    figure_module = require("matplotlib.figure", "draw")
    num_rows = -(-len(items) // COLUMNS)
    texts = [_cell_lines(item, names) for item in items]
    longest = max(len(lines) for lines in texts)
    heights = [2.6, 0.2 * longest + 0.2] * num_rows
    figure = figure_module.Figure(figsize=(COLUMN_WIDTH * COLUMNS, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2 * num_rows, COLUMNS, height_ratios=heights)
    for place, (item, lines) in enumerate(zip(items, texts)):
        row, column = divmod(place, COLUMNS)
        axes = figure.add_subplot(grid[2 * row, column])
        axes.imshow(_thumbnail(item.image))
        axes.set_axis_off()
        words = figure.add_subplot(grid[2 * row + 1, column])
        words.set_axis_off()
        for number, (text, colour, bold) in enumerate(lines):
            words.text(
                0.02, 1 - number / longest, text, color=colour, fontweight="bold" if bold else "normal", va="top",
                fontsize=TEXT_SIZE, transform=words.transAxes, parse_math=False,
            )  # fmt: skip
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes_atomically(Path(path), drawn.getvalue())


def _cell_lines(item: GalleryItem, names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Lines of text below an image, with colour and whether they are bold."""
    lines = [(text, "#000000", True) for text in wrap_text(item.question, 6, bold=True)]
    lines += [(text, UNKNOWN, False) for text in wrap_text(f"right: {item.answer}", 2)]
    for name, prediction, right in zip(names, item.predictions, item.right):
        said = f"{MARKS[right]} {name}: {prediction or '(no answer)'}"
        lines += [(text, COLOURS[right], False) for text in wrap_text(said, 4)]
    return lines


def wrap_text(text: str, most: int, bold: bool = False) -> list[str]:
    """
    Breaks a text into lines that fit below an image, within words where they are longer than a line.

    Args:
        text (`str`): of one paragraph.
        most (`int`): how many lines; "…" stands for what is left out.
        bold (`bool`, *optional*, defaults to `False`): whether it is printed in bold.

    Returns:
        `list[str]`: lines as wide as they are printed, not as they have characters.
    """
    measure = require("matplotlib.textpath", "draw").TextToPath().get_text_width_height_descent
    font = require("matplotlib.font_manager", "draw").FontProperties(
        size=TEXT_SIZE, weight="bold" if bold else "normal"
    )

    def fits(line: str) -> bool:
        return measure(line, font, ismath=False)[0] <= TEXT_WIDTH

    lines: list[str] = []
    rest = text[: 200 * most].strip()  # longer ones are cut in any case
    while rest and len(lines) < most:
        low, high = 1, len(rest)
        while low < high:  # the most characters that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(rest[:middle]) else (low, middle - 1)
        end = low if low == len(rest) else (rest.rfind(" ", 0, low + 1) if " " in rest[1 : low + 1] else low)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest or len(text.strip()) > 200 * most:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines


def printable(text: str) -> str:
    """
    A text on one line that shows itself: without control characters, marks of direction and lone surrogates, for each
    of which "�" stands.

    Args:
        text (`str`): what a model said.
    """
    on_one_line = " ".join(text.split())
    return "".join(
        "�" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter != JOINER else letter
        for letter in on_one_line
    )


def _thumbnail(file: str) -> Image.Image:
    image = load_image(file)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return image


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #202020 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1.5rem }}
article {{ border: 1px solid #ddd; border-radius: 8px; overflow: hidden }}
img {{ width: 100%; height: 240px; object-fit: contain; background: #f4f4f4; display: block }}
div {{ padding: .7rem .9rem }}
h2 {{ font-size: 1rem; margin: 0 0 .4rem }}
p {{ margin: .25rem 0; overflow-wrap: anywhere }}
.answer {{ color: {unknown} }} .right {{ color: {right} }} .wrong {{ color: {wrong} }}
</style></head><body>
<h1>{title}</h1>
<p>{explained}</p>
<main>
{articles}
</main></body></html>
"""


def write_gallery_page(items: Sequence[GalleryItem], names: Sequence[str], path: str | os.PathLike) -> None:
    """
    Writes a gallery as one HTML file that holds its images.

    Args:
        items (`list[GalleryItem]`): from [`choose_items`].
        names (`tuple[str, str]`): of the models.
        path (`str`): HTML file.

    Raises:
        BadSampleError: if an image is gone.
    """
    page = _PAGE.format(
        title=html.escape(" and ".join(names)),
        explained="Right answers are marked ✓, wrong ones ✗.",
        articles="\n".join(_article(item, names) for item in items),
        right=RIGHT,
        wrong=WRONG,
        unknown=UNKNOWN,
    )
    write_text_atomically(Path(path), page)


def _article(item: GalleryItem, names: Sequence[str]) -> str:
    stream = io.BytesIO()
    _thumbnail(item.image).save(stream, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    answers = []
    for name, prediction, right in zip(names, item.predictions, item.right):
        kind = {True: "right", False: "wrong", None: "answer"}[right]
        said = html.escape(prediction) or "<em>no answer</em>"
        answers.append(f'<p class="{kind}">{MARKS[right]} <b>{html.escape(name)}</b>: {said}</p>')
    return (
        f'<article><img alt="" src="{source}"><div><h2>{html.escape(item.question)}</h2>'
        f'<p class="answer">right: {html.escape(item.answer)}</p>{"".join(answers)}</div></article>'
    )


def gallery_command(
    output: str | os.PathLike,
    models: Sequence[tuple[str, Callable[[], Sequence[str | os.PathLike]]]],
    predictions: Sequence[str | os.PathLike] = (),
    num_shown: int = 12,
    disagreements: bool = False,
    seed: int = 0,
    mode: str = "reference",
    share: Share = Share(),  # noqa: B008
) -> list[Path]:
    """
    Writes a gallery of two models, as PNG and HTML.

    Args:
        output (`str`): the files without their endings.
        models (`list[tuple[str, Callable]]`): for each model its name and what evaluates it and returns the
            predictions files that it wrote.
        predictions (`list[str]`, *optional*): predictions files of earlier evaluations. Models and these are two.
        num_shown, disagreements, seed: see [`choose_items`].
        mode (`str`, *optional*, defaults to `"reference"`): what is right of GVTBench, see [`Task.asked`].
        share ([`Share`], *optional*): of several processes, which evaluate together; the first one writes.

    Returns:
        `list[Path]`: the files; none in other processes than the first.

    Raises:
        ValueError: if there are not two, or they have no question in common.
        ImportError: if matplotlib is not installed; at once, before anything is asked.
    """
    if len(models) + len(predictions) != 2:
        raise ValueError(
            f"A gallery shows two models, {len(models)} models and {len(predictions)} predictions files were given: "
            "give --model twice, --predictions twice, or each once."
        )
    check_positive(num_shown=num_shown)
    require("matplotlib.figure", "draw")
    sides: list[tuple[str, list[dict[str, Any]]]] = []
    for name, evaluate in models:
        files = evaluate()
        if share.is_first:
            sides.append((_short(name), [line for file in files for line in read_answers(file, mode)]))
    if not share.is_first:
        return []
    sides += [(_name_of(Path(file)), read_answers(file, mode)) for file in predictions]
    (first, lines), (second, others) = sides
    names = (first, second) if first != second else (f"{first} (1)", f"{second} (2)")
    items = choose_items(lines, others, num_shown, disagreements, seed)
    written = [Path(f"{os.fspath(output)}{ending}") for ending in (".png", ".html")]
    written[0].parent.mkdir(parents=True, exist_ok=True)
    draw_gallery(items, names, written[0])
    write_gallery_page(items, names, written[1])
    return written


def read_answers(path: str | os.PathLike, mode: str = "reference") -> list[dict[str, Any]]:
    """
    Reads what was answered about the given images, and whether it is right: of tasks with two ways of scoring, as the
    mode says, whatever the mode was when the questions were asked.

    Args:
        path (`str`): a predictions file.
        mode (`str`, *optional*, defaults to `"reference"`): `"reference"` or `"strict"`.

    Returns:
        `list[dict]`: see [`read_predictions`].

    Raises:
        FileNotFoundError, ValueError: see [`read_predictions`].
    """
    lines = read_predictions(path)
    protocols = {name: TASKS[name].asked(mode=mode) for name in {line["source"] for line in lines} & set(TASKS)}
    for line in lines:
        protocol = protocols.get(line["source"])
        if protocol is not None and "mode" in protocol.recorded:
            content = [{"type": "text", "text": line["answer"]}]
            line["right"] = protocol.is_right(
                line["prediction"], {"messages": [{"role": "assistant", "content": content}]}
            )
    return lines


def _short(name: str) -> str:
    return Path(name).name or name


def _name_of(file: Path) -> str:
    """The model that a report beside a predictions file names, or the file's own name."""
    report = file.with_name(file.name.replace(".predictions.jsonl", ".json"))
    if report != file and report.is_file():
        return _short(str(json.loads(report.read_text(encoding="utf-8")).get("model") or file.stem))
    return file.name.removesuffix(".jsonl").removesuffix(".predictions")


__all__ = [
    "GalleryItem",
    "choose_items",
    "draw_gallery",
    "gallery_command",
    "printable",
    "read_answers",
    "wrap_text",
    "write_gallery_page",
]
