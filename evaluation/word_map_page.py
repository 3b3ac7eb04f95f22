"""A page of images as words: whatever the pointer or the keyboard is on shows its distribution over the vocabulary."""

import base64
import html
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ..modeling.atomic_folder import write_text_atomically
from ..processing.token_labels import SIGNS
from .word_map import WordMap
from .word_map_picture import two_lines

IMAGE_SIDE = 1200  # pixels, at most
PAGE_BYTES = 16_000_000
"""About how large a page may be, unless it is of one image: browsers open that at once. It is some 15 images of 576
patches, or 50 of 64."""
BREAKABLE = 8  # letters
FAMILIAR = 0x0530  # Latin, Greek and Cyrillic, which every font has, come before

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{style}
</style></head><body>
<h1>{title}</h1>
{links}<p>{explained}</p>
<main>
{maps}
</main>
{links}<script>
{script}
</script></body></html>
"""

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #202020;
  background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; overflow-wrap: anywhere }
section { margin: 2.5rem 0; content-visibility: auto; contain-intrinsic-size: auto 60rem }
nav a { margin-right: 1.2rem }
section > label { margin-right: 1.2rem; white-space: nowrap }
.map { padding-right: 19rem; margin-top: .5rem }
.frame { position: relative; container-type: inline-size; width: min(100%, calc(88vh * var(--aspect)));
  aspect-ratio: var(--aspect) }
.frame img { display: block; width: 100%; height: 100% }
.cells { position: absolute; inset: 0; display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
  grid-template-rows: repeat(var(--rows), minmax(0, 1fr)) }
.row { display: contents }
.cell { display: flex; align-items: center; justify-content: center; overflow: hidden; cursor: crosshair;
  outline: 1px solid rgb(255 255 255 / .25); outline-offset: -1px; --side: calc(100cqw / var(--columns)) }
.word { color: #fff; line-height: 1; text-align: center; overflow-wrap: anywhere; max-width: 100%;
  pointer-events: none;
  font-size: max(calc(var(--side) * .19), min(calc(var(--side) * .28), calc(var(--side) * 1.45 / var(--letters))));
  text-shadow: 0 0 .12em #000, 0 0 .12em #000, 0 0 .2em #000, 0 0 .3em #000 }
.cell:hover, .cell:focus-visible { outline: 3px solid #ffd400; outline-offset: -3px; z-index: 1 }
.panel { display: none; position: absolute; left: calc(100% + 1rem); top: 0; width: 18rem; box-sizing: border-box;
  padding: .8rem 1rem; background: #f6f6f6; border: 1px solid #d0d0d0;
  border-radius: 8px; cursor: auto; z-index: 2; max-height: 100%; overflow: auto }
.cell:hover > .panel, .cell:focus > .panel { display: block }
.cells:hover .cell:focus:not(:hover) > .panel { display: none }
.panel b { display: block; margin-bottom: .4rem }
.bar { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .6rem; margin: .3rem 0; font-size: .95rem }
.bar .token { overflow-wrap: anywhere; white-space: pre-wrap }
.bar .share { grid-column: 1 / 3; height: .4rem; border-radius: .2rem; background: #dcdcdc; overflow: hidden }
.bar .share i { display: block; height: 100%; background: #1f6fb4; width: var(--width) }
.note { color: #505050; font-size: .9rem }
.hint { position: absolute; left: calc(100% + 1rem); top: 0; width: 18rem; margin: 0; color: #505050 }
.code { color: #707070; font-size: .8em; margin-left: .5em }
.hide-words:checked ~ .map .word { visibility: hidden }
.shade:checked ~ .map .cell { background: rgb(31 111 180 / calc(var(--score) * .6)) }
details { margin-top: 1rem } summary { cursor: pointer }
table { border-collapse: collapse; font-size: .9rem; display: block; max-height: 60vh; overflow: auto }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #e0e0e0; text-align: left; white-space: nowrap }
th { position: sticky; top: 0; background: #fff } td.number { text-align: right; font-variant-numeric: tabular-nums }
@media (max-width: 800px) {
  .map { padding-right: 0; padding-bottom: 17rem } .hint { top: calc(100% + .6rem) }
  .panel { left: 0; top: calc(100% + .6rem); width: 100%; max-height: 16rem }
}
@media print { .panel, .hint, section > input, section > label, script { display: none } }
""".strip()

# Without it every patch is a stop of the tabulator key; with it a map is one, and arrow keys move within.
_SCRIPT = """
for (const cells of document.querySelectorAll(".cells")) {
  const all = [...cells.querySelectorAll(".cell")];
  const columns = Number(cells.dataset.columns);
  const go = (number) => {
    for (const cell of all) cell.tabIndex = -1;
    all[number].tabIndex = 0;
    return all[number];
  };
  go(0);
  cells.addEventListener("focusin", (event) => {
    const number = all.indexOf(event.target.closest(".cell"));
    if (number >= 0) go(number);
  });
  cells.addEventListener("keydown", (event) => {
    const number = all.indexOf(document.activeElement);
    if (number < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const column = number % columns;
    const target = {
      ArrowRight: column + 1 < columns ? number + 1 : number,
      ArrowLeft: column > 0 ? number - 1 : number,
      ArrowDown: Math.min(number + columns, all.length - columns + column),
      ArrowUp: Math.max(number - columns, column),
      Home: number - column,
      End: number - column + columns - 1,
    }[event.key];
    if (event.key === "Escape") document.activeElement.blur();
    if (target === undefined) return;
    event.preventDefault();
    go(target).focus();
  });
}
""".strip()


def write_word_page(
    word_maps: Iterable[WordMap],
    path: str | os.PathLike,
    title: str = "Images as words",
    page_bytes: int = PAGE_BYTES,
) -> list[Path]:
    """
    Writes images as words into an HTML file that needs no network: each image with its patches, of which the one
    under the pointer or with the focus shows its words, their scores and its entropy. The arrow keys move over the
    patches; without scripts the tabulator does. A table of everything is below each image.

    Images that are too many for one page go on to others beside it, `words-2.html` and so on, which are linked to one
    another. No more than a page is held in memory.

    Args:
        word_maps (`list[WordMap]`): from [`read_word_map`], or what reads one after the other.
        path (`str`): HTML file. Its folder is made if need be.
        title (`str`, *optional*): heading.
        page_bytes (`int`, *optional*, defaults to 16 MB): about how large a page of several images may be.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: if there is no map.
    """
    pages = _Pages(Path(path), title)
    sections: list[str] = []
    size, measure = 0, ""
    for number, word_map in enumerate(word_maps, start=1):
        section = _section(word_map, number)
        if sections and size + len(section) > page_bytes:
            pages.write(sections, measure, is_last=False)
            sections, size = [], 0
        sections.append(section)
        size, measure = size + len(section), word_map.measure
    if not sections:
        raise ValueError("A page of words needs at least one image.")
    pages.write(sections, measure, is_last=True)
    return pages.files


@dataclass
class _Pages:
    """Pages one after the other, which are linked to their neighbours."""

    path: Path
    title: str
    files: list[Path] = field(default_factory=list)
    num_images: int = 0

    def write(self, sections: list[str], measure: str, is_last: bool) -> None:
        number = len(self.files) + 1
        is_only = is_last and number == 1
        page = _PAGE.format(
            title=html.escape(self.title if is_only else f"{self.title}, page {number}"),
            links="" if is_only else self._links(number, len(sections), is_last),
            explained=_explained(measure),
            style=_STYLE,
            script=_SCRIPT,
            maps="\n".join(sections),
        )
        file = self._file(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, page)
        self.files.append(file)
        self.num_images += len(sections)

    def _file(self, number: int) -> Path:
        return self.path if number == 1 else self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")

    def _links(self, number: int, num_images: int, is_last: bool) -> str:
        shown = [f"images {self.num_images + 1} to {self.num_images + num_images}"]
        others = [] if number == 1 else [(number - 1, "← page")]
        others += [] if is_last else [(number + 1, "page →")]
        for other, label in others:
            file = html.escape(quote(self._file(other).name))
            shown.append(f'<a href="{file}">{label.replace("page", f"page {other}")}</a>')
        return f'<nav aria-label="pages">{" · ".join(shown)}</nav>\n'


def _explained(measure: str) -> str:
    what = (
        "the most probable words of its visual-token distribution"
        if measure == "probability"
        else "the words whose embeddings are closest to its visual token, with their cosine similarity"
    )
    return (
        f"Each patch of an image shows {what}. Point at a patch, or go there with the tabulator and arrow keys: the "
        f"longest bar is that of the highest {measure} in the image. "
        "“·” marks a piece that joins on to another one, “␣” a space, “↵” a new line."
    )


def _section(word_map: WordMap, number: int) -> str:
    rows, columns = word_map.grid_size
    highest = max(float(word_map.scores[..., 0].max()), 1e-12)
    name = html.escape(word_map.name or f"image {number}")
    cells = "".join(
        '<div role="row" class="row">'
        + "".join(_cell(word_map, row, column, highest) for column in range(columns))
        + "</div>"
        for row in range(rows)
    )
    return (
        f"<section><h2>{name}</h2>\n"
        f'<input type="checkbox" class="hide-words" id="hide-{number}"> '
        f'<label for="hide-{number}">hide words</label>\n'
        f'<input type="checkbox" class="shade" id="shade-{number}"> '
        f'<label for="shade-{number}">shade by {word_map.measure}</label>\n'
        f'<div class="map"><div class="frame" style="--aspect: {word_map.image.width / word_map.image.height:.4f}">'
        f'<img alt="{name}" decoding="async" src="{_data_uri(word_map.image)}">\n'
        f'<div class="cells" role="grid" aria-label="words of {name}" data-columns="{columns}" '
        f'style="--columns: {columns}; --rows: {rows}">{cells}</div>\n'
        '<p class="hint">Point at a patch to see its words.</p></div></div>\n'
        f"<details><summary>All {rows} × {columns} patches as a table</summary>\n"
        f"{_table(word_map)}</details></section>"
    )


def _cell(word_map: WordMap, row: int, column: int, highest: float) -> str:
    words, scores = word_map.words[row, column], word_map.scores[row, column]
    place = f"row {row + 1}, column {column + 1}"
    first = str(words[0])
    described = "; ".join(f"{word} {_number(word_map, score)}" for word, score in zip(words, scores))
    entropy = "" if word_map.entropy is None else f"entropy {word_map.entropy[row, column]:.2f} nats"
    label = html.escape(f"{place}: {described}" + (f"; {entropy}" if entropy else ""))
    bars = "".join(_bar(word_map, str(word), float(score), highest) for word, score in zip(words, scores))
    notes = [_others(word_map, scores), entropy]
    note = f'<span class="note">{"<br>".join(filter(None, notes))}</span>' if any(notes) else ""
    return (
        f'<div class="cell" role="gridcell" tabindex="0" aria-label="{label}" '
        f'style="--score: {max(float(scores[0]), 0) / highest:.3f}; --letters: {_width(first):g}">'
        f'<bdi class="word" aria-hidden="true">{_breakable(first)}</bdi>'
        f'<div class="panel" aria-hidden="true"><b>{place}</b>{bars}{note}</div></div>\n'
    )


def _others(word_map: WordMap, scores: np.ndarray) -> str:
    """What the words that are not shown have together, of a distribution."""
    if word_map.measure != "probability":
        return ""
    return f"all other words {_number(word_map, max(0.0, 1.0 - float(scores.sum())))}"


def _width(word: str) -> float:
    """About how many small letters wide a word is."""
    return max(3.0, sum(1.0 if letter.islower() else 1.25 for letter in word))


def _breakable(word: str) -> str:
    """A word that may be broken in two, as it is in the picture."""
    if len(word) < BREAKABLE:
        return html.escape(word)
    first, second = two_lines(word)
    between = "&shy;" if first.endswith("-") and not word.startswith(first) else "<wbr>"
    return html.escape(first.removesuffix("-") if between == "&shy;" else first) + between + html.escape(second)


def _word(word: str) -> str:
    """A word, and its code points where the reader's fonts may lack it."""
    codes = [f"U+{ord(letter):04X}" for letter in word if ord(letter) >= FAMILIAR and letter not in SIGNS]
    noted = f'<span class="code">{" ".join(codes)}</span>' if codes else ""
    return f"<bdi>{html.escape(word)}</bdi>{noted}"


def _bar(word_map: WordMap, word: str, score: float, highest: float) -> str:
    width = 100 * min(max(score, 0.0) / highest, 1.0)
    return (
        f'<div class="bar"><span class="token">{_word(word)}</span><span>{_number(word_map, score)}</span>'
        f'<span class="share"><i style="--width: {width:.1f}%"></i></span></div>'
    )


def _number(word_map: WordMap, score: float) -> str:
    if word_map.measure != "probability":
        return f"{score:.3f}"
    return f"{score:.1%}" if score >= 0.001 else f"{100 * score:.2g}%"


def _table(word_map: WordMap) -> str:
    rows, columns = word_map.grid_size
    top_k = word_map.words.shape[2]
    heads = ["row", "column", *(f"{place}. word" for place in range(1, top_k + 1))]
    heads += [] if word_map.entropy is None else ["entropy (nats)"]
    lines = ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for row in range(rows):
        for column in range(columns):
            pairs = zip(word_map.words[row, column], word_map.scores[row, column])
            fields = [f'<td class="number">{number + 1}</td>' for number in (row, column)]
            fields += [f"<td>{_word(str(word))} ({_number(word_map, float(score))})</td>" for word, score in pairs]
            if word_map.entropy is not None:
                fields.append(f'<td class="number">{word_map.entropy[row, column]:.3f}</td>')
            lines.append("<tr>" + "".join(fields) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _data_uri(image: Image.Image) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


__all__ = ["write_word_page"]
