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
from .word_map import DistinctiveWords, WordMap
from .word_map_picture import quoted_mark, two_lines

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
.map { padding-right: 19rem; margin-top: .5rem; min-height: var(--panel) }
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
  text-shadow: .05em .05em .04em #000, -.05em .05em .04em #000, .05em -.05em .04em #000, -.05em -.05em .04em #000,
    0 0 .2em #000, 0 0 .3em #000 }
.cell:hover, .cell:focus-visible { outline: 3px solid #ffd400; outline-offset: -3px; z-index: 1 }
.panel { display: none; position: absolute; left: calc(100% + 1rem); top: 0; width: 18rem; box-sizing: border-box;
  padding: .8rem 1rem; background: #f6f6f6; border: 1px solid #d0d0d0;
  border-radius: 8px; cursor: auto; z-index: 2; max-height: max(100%, var(--panel)); overflow: auto }
.cell:hover > .panel, .cell:focus > .panel { display: block }
.cells:hover .cell:focus:not(:hover) > .panel { display: none }
.panel b { display: block; margin-bottom: .4rem }
.panel h3 { font-size: .95rem; font-weight: 600; margin: .7rem 0 .2rem; color: #505050 }
.bar { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .6rem; margin: .3rem 0; font-size: .95rem }
.bar .token { overflow-wrap: anywhere; white-space: pre-wrap }
.bar .share { grid-column: 1 / 3; height: .4rem; border-radius: .2rem; background: #dcdcdc; overflow: hidden }
.bar .share i { display: block; height: 100%; background: #1f6fb4; width: var(--width) }
.note { color: #505050; font-size: .9rem }
.hint { position: absolute; left: calc(100% + 1rem); top: 0; width: 18rem; margin: 0; color: #505050 }
.code { color: #707070; font-size: .8em; margin-left: .5em }
.hide-words:checked ~ .map .word { visibility: hidden }
.shade:checked ~ .map .frame img { filter: grayscale(1) }
.shade:checked ~ .map .cell { background: rgb(255 140 0 / calc(var(--score) * .7)) }
details { margin-top: 1rem } summary { cursor: pointer }
table { border-collapse: collapse; font-size: .9rem; display: block; max-height: 60vh; overflow: auto }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #e0e0e0; text-align: left; white-space: nowrap }
th { position: sticky; top: 0; background: #fff } td.number { text-align: right; font-variant-numeric: tabular-nums }
@media (max-width: 800px) {
  .map { padding-right: 0; padding-bottom: 17rem; min-height: 0 } .hint { top: calc(100% + .6rem) }
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
    under the pointer or with the focus shows its words, their scores and its entropy, and above them its distinctive
    words, if the map has such. The arrow keys move over the patches; without scripts the tabulator does. A table of
    everything is below each image.

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
    size, explained = 0, ""
    for number, word_map in enumerate(word_maps, start=1):
        section = _section(word_map, number)
        if sections and size + len(section) > page_bytes:
            pages.write(sections, explained, is_last=False)
            sections, size = [], 0
        sections.append(section)
        size, explained = size + len(section), _explained(word_map)
    if not sections:
        raise ValueError("A page of words needs at least one image.")
    pages.write(sections, explained, is_last=True)
    return pages.files


@dataclass
class _Pages:
    """Pages one after the other, which are linked to their neighbours."""

    path: Path
    title: str
    files: list[Path] = field(default_factory=list)
    num_images: int = 0

    def write(self, sections: list[str], explained: str, is_last: bool) -> None:
        number = len(self.files) + 1
        is_only = is_last and number == 1
        page = _PAGE.format(
            title=html.escape(self.title if is_only else f"{self.title}, page {number}"),
            links="" if is_only else self._links(number, len(sections), is_last),
            explained=explained,
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


def _explained(word_map: WordMap) -> str:
    if word_map.distinctive is not None:
        what = (
            "its distinctive words, those with the largest P' log(P' / P̄): P' is its visual-token distribution, and P̄ "
            "is told above the image. Below them are its most probable words"
        )
    elif word_map.measure == "probability":
        what = "the most probable words of its visual-token distribution"
    else:
        what = "the words whose embeddings are closest to its visual token, with their cosine similarity"
    return (
        f"Each patch of an image shows {what}. Point at a patch, or go there with the tabulator and arrow keys: the "
        f"longest bar is that of the highest {word_map.shown.measure} in the image. "
        "“·” marks a piece that joins on to another one, “␣” a space, “↵” a new line."
    )


def _section(word_map: WordMap, number: int) -> str:
    rows, columns = word_map.grid_size
    name = html.escape(word_map.name or f"image {number}")
    reference = ""
    if word_map.distinctive is not None:
        reference = f'<p class="note">P̄: {html.escape(word_map.distinctive.reference)}</p>\n'
    cells = "".join(
        '<div role="row" class="row">' + "".join(_cell(word_map, row, column) for column in range(columns)) + "</div>"
        for row in range(rows)
    )
    return (
        f"<section><h2>{name}</h2>\n{reference}"
        f'<input type="checkbox" class="hide-words" id="hide-{number}"> '
        f'<label for="hide-{number}">hide words</label>\n'
        f'<input type="checkbox" class="shade" id="shade-{number}"> '
        f'<label for="shade-{number}">shade by {word_map.shown.measure}</label>\n'
        f'<div class="map" style="--panel: {_panel_height(word_map):g}rem">'
        f'<div class="frame" style="--aspect: {word_map.image.width / word_map.image.height:.4f}">'
        f'<img alt="{name}" decoding="async" src="{_data_uri(word_map.image)}">\n'
        f'<div class="cells" role="grid" aria-label="words of {name}" data-columns="{columns}" '
        f'style="--columns: {columns}; --rows: {rows}">{cells}</div>\n'
        '<p class="hint">Point at a patch to see its words.</p></div></div>\n'
        f"<details><summary>All {rows} × {columns} patches as a table</summary>\n"
        f"{_table(word_map)}</details></section>"
    )


def _cell(word_map: WordMap, row: int, column: int) -> str:
    place = f"row {row + 1}, column {column + 1}"
    first, score = str(word_map.shown.words[row, column, 0]), float(word_map.shown.scores[row, column, 0])
    described, panel = [], ""
    for ranked in _rankings(word_map):
        words = list(zip(ranked.words[row, column], ranked.scores[row, column]))
        title = "" if word_map.distinctive is None else f"{_title(ranked)}: "
        described.append(title + "; ".join(f"{word} {_number(ranked, score)}" for word, score in words))
        panel += f"<h3>{_title(ranked)}</h3>" if title else ""
        highest = _highest(ranked)
        for number, (word, of_word) in enumerate(words):
            panel += _bar(ranked, str(word), float(of_word), highest, _beside(ranked, row, column, number))
        notes = _notes(ranked, row, column)
        described += notes
        panel += f'<span class="note">{"<br>".join(notes)}</span>' if notes else ""
    label = html.escape("; ".join([f"{place}: {described[0]}", *described[1:]]))
    return (
        f'<div class="cell" role="gridcell" tabindex="0" aria-label="{label}" '
        f'style="--score: {max(score, 0) / _highest(word_map.shown):.3f}; --letters: {_width(first):g}">'
        f'<bdi class="word" aria-hidden="true">{_breakable(quoted_mark(first))}</bdi>'
        f'<div class="panel" aria-hidden="true"><b>{place}</b>{panel}</div></div>\n'
    )


def _panel_height(word_map: WordMap) -> float:
    """About how high what is shown beside the image is, which may be higher than a wide image."""
    return 4 + sum(5 + 2.1 * ranked.words.shape[2] for ranked in _rankings(word_map))


def _rankings(word_map: WordMap) -> list[WordMap | DistinctiveWords]:
    """Words of patches in the orders in which they are told."""
    return [word_map] if word_map.distinctive is None else [word_map.distinctive, word_map]


def _title(ranked: WordMap | DistinctiveWords) -> str:
    return "distinctive words" if isinstance(ranked, DistinctiveWords) else "most probable words"


def _highest(ranked: WordMap | DistinctiveWords) -> float:
    return max(float(ranked.scores[..., 0].max()), 1e-12)


def _beside(ranked: WordMap | DistinctiveWords, row: int, column: int, number: int) -> str:
    """Of a distinctive word its probability, and how many times that is the one of the reference."""
    if not isinstance(ranked, DistinctiveWords):
        return ""
    probability, score = ranked.probabilities[row, column, number], ranked.scores[row, column, number]
    times = f", {np.exp(score / probability):.3g} × P̄" if probability > 0 else ""
    return f"{_percent(float(probability))}{times}"


def _notes(ranked: WordMap | DistinctiveWords, row: int, column: int) -> list[str]:
    """What all words of a patch have together."""
    if isinstance(ranked, DistinctiveWords):
        return [f"all words together {ranked.divergence[row, column]:.2g} nats"]
    others = max(0.0, 1.0 - float(ranked.scores[row, column].sum()))
    notes = [f"all other words {_percent(others)}"] if ranked.measure == "probability" else []
    notes += [] if ranked.entropy is None else [f"entropy {ranked.entropy[row, column]:.2f} nats"]
    return notes


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


def _bar(ranked: WordMap | DistinctiveWords, word: str, score: float, highest: float, beside: str) -> str:
    width = 100 * min(max(score, 0.0) / highest, 1.0)
    noted = f'<span class="code">{beside}</span>' if beside else ""
    return (
        f'<div class="bar"><span class="token">{_word(word)}{noted}</span><span>{_number(ranked, score)}</span>'
        f'<span class="share"><i style="--width: {width:.1f}%"></i></span></div>'
    )


def _number(ranked: WordMap | DistinctiveWords, score: float) -> str:
    if isinstance(ranked, DistinctiveWords):
        return f"{score:.2g} nats"
    return _percent(score) if ranked.measure == "probability" else f"{score:.3f}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"


def _table(word_map: WordMap) -> str:
    rows, columns = word_map.grid_size
    rankings = _rankings(word_map)
    heads = ["row", "column"]
    for ranked in rankings:
        kind = "distinctive word" if isinstance(ranked, DistinctiveWords) else "word"
        heads += [f"{place}. {kind}" for place in range(1, ranked.words.shape[2] + 1)]
    numbers: list[tuple[str, np.ndarray]] = []
    if word_map.distinctive is not None:
        numbers.append(("KL divergence", word_map.distinctive.divergence))
    if word_map.entropy is not None:
        numbers.append(("entropy", word_map.entropy))
    heads += [f"{name} (nats)" for name, _ in numbers]
    lines = ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for row in range(rows):
        for column in range(columns):
            fields = [f'<td class="number">{number + 1}</td>' for number in (row, column)]
            for ranked in rankings:
                for word, score in zip(ranked.words[row, column], ranked.scores[row, column]):
                    fields.append(f"<td>{_word(str(word))} ({_number(ranked, float(score))})</td>")
            fields += [f'<td class="number">{values[row, column]:.3f}</td>' for _, values in numbers]
            lines.append("<tr>" + "".join(fields) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _data_uri(image: Image.Image) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


__all__ = ["write_word_page"]
