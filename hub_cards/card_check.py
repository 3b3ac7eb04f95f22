"""What a card must not have when it is published: fields that nobody filled, files that are not there."""

import re
from pathlib import Path

from huggingface_hub import ModelCard

_FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_UNFILLED = (
    (re.compile(r"\[More Information Needed\]|\[needs? more information\]", re.IGNORECASE), "a field of a template"),
    (re.compile(r"\{\{|\{%|%\}|\}\}"), "a field of a template"),
    (re.compile(r"\b(?:TODO|FIXME|TBD|XXX)\b"), "a note to fill in"),
    (re.compile(r"<(?:your|insert|fill)[ _-][^>\n]*>", re.IGNORECASE), "a placeholder"),
)


def check_complete(text: str, folder: Path) -> None:
    """
    Makes sure that a card says what it begins to say, and names no file that is not there.

    Args:
        text (`str`): the card, which [`validate_card`] has passed.
        folder (`Path`): where the files that it links to must lie.

    Raises:
        ValueError: if a field is not filled, a section has no text, a file that it links to is missing, or results in
            its header are no numbers.
    """
    card = ModelCard(text)
    prose = _CODE.sub("", _FENCE.sub("```", card.text))
    for pattern, what in _UNFILLED:
        if match := pattern.search(prose):
            line = next(line for line in prose.splitlines() if match[0] in line)
            raise ValueError(f"The card holds {what} that nobody filled: {line.strip()!r}. Write it, or take it out.")
    for title in _empty_sections(prose):
        raise ValueError(f"The section {title!r} of the card has no text: write it, or take it out.")
    for name in _LINK.findall(prose):
        target = name.partition("#")[0]
        if target and "://" not in target and not target.startswith("mailto:") and not (folder / target).is_file():
            raise ValueError(f"The card links to {name}, which is not in {folder}: put it there, or take it out.")
    for result in getattr(card.data, "eval_results", None) or []:
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(f"{result.metric_name} on {result.dataset_name} is {value!r}, expected a number.")


def _empty_sections(prose: str) -> list[str]:
    """Headings with nothing between them and the next one that is no deeper, or the end."""
    lines = [line.strip() for line in prose.splitlines() if line.strip()]
    headings = [
        (number, len(match[1]), match[2])
        for number, line in enumerate(lines)
        if (match := re.fullmatch(r"(#+)\s+(.*)", line))
    ]
    empty = []
    for (number, depth, title), following in zip(headings, [*headings[1:], (len(lines), 0, "")]):
        if following[0] == number + 1 and following[1] <= depth:
            empty.append(title)
    return empty


__all__ = ["check_complete"]
