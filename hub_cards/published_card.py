"""The card of a model as it goes to the Hub: of the name that it has there, and checked with what lies beside it."""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard

from .card import CARD_NAME, render_card
from .card_check import check_complete
from .card_facts import is_hub_id
from .card_header import validate_card
from .eval_result_files import eval_result_files
from .run_results import read_results

_USE = re.compile(r"^## Use\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
# What a card says of trained weights alone.
_OF_WEIGHTS = re.compile(
    r"^(?:Needs vistok and the base weights, once: `[^`\n]*`\.|This folder holds what was trained; [^\n]*)\n\n",
    re.MULTILINE,
)
_LOADED = re.compile(r"(?:\bmodel=|from_pretrained\()\"([^\"\n]+)\"")
_CODES = ("package", "stub", "self-contained")


def published_card(
    folder: Path, repo_id: str, code: str, complete: bool = False, benchmarks: Mapping[str, str] | None = None
) -> dict[str, str]:
    """
    The card of a folder's model, and the files of its results. A card that was written by hand, or changed, stays as
    it is, save for what loads the model; one that vistok wrote is written for its name on the Hub.

    Args:
        folder (`Path`): of the model; stays as it is.
        repo_id (`str`): `owner/name`.
        code (`str`): what loads the model: `"package"`, `"stub"` or `"self-contained"`.
        complete (`bool`, *optional*, defaults to `False`): whether all weights go, whatever the folder holds.
        benchmarks (`Mapping[str, str]`, *optional*): see [`eval_result_files`]; added to those of the card's fields.

    Returns:
        `dict[str, str]`: text by the path of its file.

    Raises:
        ValueError: if the card does not hold, or there is none and no template for one.
    """
    results = read_results(folder)
    known = (results.get("card") or {}).get("benchmarks") or {}
    written = folder / CARD_NAME
    present = written.read_text(encoding="utf-8") if written.is_file() else None
    try:
        here = render_card(folder, results)
        there = render_card(folder, results, name=repo_id, code=code, complete=complete)
    except ValueError as error:
        if present is None:
            raise ValueError(f"{error} Write a card, {written}, by hand.") from error
        here = there = ""
    if present is None or present == here:
        text = there
    else:
        text = _made_to_fit(present, folder, there) if there else present
    text = text.replace(f'"{folder.resolve().name}"', f'"{repo_id}"')
    try:
        validate_card(text, folder)
        check_complete(text, folder)
    except ValueError as error:
        raise ValueError(f"The card of {repo_id} is not fit to be published: {error}") from error
    return {CARD_NAME: text, **eval_result_files(results.get("evaluation") or [], {**known, **(benchmarks or {})})}


def refitted_card(text: str, folder: Path, repo_id: str, code: str) -> dict[str, str]:
    """
    The card that a repository has, with how the model is used from now on.

    Args:
        text (`str`): the card.
        folder, repo_id, code: as in [`published_card`].

    Returns:
        `dict[str, str]`: text by the path of its file; empty if nothing changes, or the card is none of ours.
    """
    try:
        there = render_card(folder, read_results(folder), name=repo_id, code=code)
    except ValueError:  # of a kind for which there is no card of ours
        return {}
    fitted = _made_to_fit(text, folder, there)
    return {} if fitted == text else {CARD_NAME: fitted}


def _made_to_fit(text: str, folder: Path, there: str) -> str:
    """
    A card that is not ours any more, or of another name or form, with our section on how to use the model as it has to
    be, if that section is still as we wrote it.
    """
    present, wanted = _USE.search(text), _USE.search(there)
    loaded = _LOADED.search(present[0]) if present else None
    if present is None or wanted is None or loaded is None:
        return text
    results = read_results(folder)
    ours = (render_card(folder, results, name=loaded[1], code=code, complete=True) for code in _CODES)
    known = {section[0] for card in ours if (section := _USE.search(card))}
    return text.replace(present[0], wanted[0]) if _OF_WEIGHTS.sub("", present[0]) in known else text


def card_notes(text: str, repo_id: str) -> list[str]:
    """
    What whoever publishes a card should know of it.

    Args:
        text (`str`): the card.
        repo_id (`str`): what the model is called on the Hub.

    Returns:
        `list[str]`: sentences.
    """
    notes = []
    if not ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("license"):
        notes.append("the card names no licence: write license: into its header, or card.license into the recipe")
    for name in dict.fromkeys(_LOADED.findall(text)):
        if not is_hub_id(name):
            notes.append(f"the card loads {name!r}, which nobody else has: on the Hub the model is {repo_id}")
    return notes


__all__ = ["CARD_NAME", "card_notes", "published_card", "refitted_card"]
