"""What scores on a card have to rise above, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

# Columns of what a model without eyes reaches, in the order in which they are shown.
FLOORS = {
    "majority": "majority answer",
    "question_only_prior": "question only",
    "blank_images": "blank images",
    "shuffled_images": "shuffled images",
}

IN_WORDS = {
    "majority": "the most frequent answer, always",
    "question_only_prior": "the most frequent answer to the same question",
    "blank_images": "this model with blank images",
    "shuffled_images": "this model with the images of others",
    "shuffled_captions": "this model with the captions of others",
    "shuffled_expressions": "this model with the expressions of others",
    "grid": "a grid of as many tokens in place of clusters",
    "whole_image": "the whole image as the mask, always",
    "largest_cluster": "the largest cluster as the mask, always",
    "copied_source": "the image that is to be edited, as it is",
}
"""What each floor is."""


def floor_name(name: str) -> str:
    """How a floor is called in a table."""
    return FLOORS.get(name, name.replace("_", " "))


def floors_in_words(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    What the floors of reports are, each in a line.

    Args:
        reports (`Sequence[Mapping]`): normalised reports.
    """
    names = dict.fromkeys(name for report in reports for name in report["floors"])
    return [f"{floor_name(name)}: {IN_WORDS[name]}" for name in (*IN_WORDS,) if name in names]


__all__ = ["FLOORS", "IN_WORDS", "floor_name", "floors_in_words"]
