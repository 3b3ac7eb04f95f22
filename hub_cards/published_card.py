"""The card of a model as it goes to the Hub: of the name that it has there, and checked with what lies beside it."""

import re
from collections.abc import Mapping
from pathlib import Path

from .card import CARD_NAME, render_card
from .card_check import check_complete
from .card_header import validate_card
from .eval_result_files import eval_result_files
from .run_results import read_results

_USE = re.compile(r"^## Use\n.*?(?=^## )", re.MULTILINE | re.DOTALL)


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
    text = there if present in (None, here) else _made_to_fit(present or "", here, there)
    text = text.replace(f'"{folder.resolve().name}"', f'"{repo_id}"')
    try:
        validate_card(text, folder)
        check_complete(text, folder)
    except ValueError as error:
        raise ValueError(f"The card of {repo_id} is not fit to be published: {error}") from error
    return {CARD_NAME: text, **eval_result_files(results.get("evaluation") or [], {**known, **(benchmarks or {})})}


def _made_to_fit(text: str, here: str, there: str) -> str:
    """A card that is not ours any more, with our section on how to use the model where it still has it."""
    of_here, of_there = _USE.search(here), _USE.search(there)
    return text.replace(of_here[0], of_there[0]) if of_here and of_there else text


__all__ = ["CARD_NAME", "published_card"]
