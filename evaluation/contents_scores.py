"""How far an image shows what a caption asks for, as a probe reads it: classes, counts and colours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .contents_probe import ContentsReading
from .measures import Metric

Contents = Sequence[Mapping[str, Any]]
"""Objects of one class and colour together: `{"name", "color", "count"}`, where the colour may be `None`."""


def check_contents(contents: Any, classes: Sequence[str] | None = None) -> None:
    """
    Refuses what are no contents.

    Args:
        contents (`list[dict]`): of a caption.
        classes (`list[str]`, *optional*): that a probe reads.

    Raises:
        ValueError: if it is no such list, or a class is another; names it.
    """
    if not isinstance(contents, Sequence) or isinstance(contents, str):
        raise ValueError(f"contents are {contents!r}, expected a list of name, color and count")
    for entry in contents:
        if not isinstance(entry, Mapping) or not {"name", "color", "count"} <= entry.keys():
            raise ValueError(f"contents hold {entry!r}, expected name, color and count")
        if classes is not None and entry["name"] not in classes:
            raise ValueError(
                f"contents name {entry['name']!r}, which the probe was not trained on ({', '.join(classes)}): train "
                "it on scenes of the same classes"
            )


def check_asked(examples: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """
    Refuses captions whose contents a probe cannot read.

    Args:
        examples (`list[dict]`): with `id` and `contents`.
        classes (`list[str]`): that the probe reads.

    Raises:
        ValueError: names the caption, and what is wrong as [`check_contents`].
    """
    for example in examples:
        try:
            check_contents(example["contents"], classes)
        except ValueError as error:
            raise ValueError(f"Caption {example['id']}: {error}.") from error


def contents_score(reading: ContentsReading, contents: Contents) -> dict[str, int]:
    """
    Compares what a probe reads in an image with what there is to be.

    Args:
        reading ([`ContentsReading`]): of the image.
        contents (`list[dict]`): of the caption, with classes that the probe knows.

    Returns:
        `dict[str, int]`: `found`, `missing` and `extra` classes; `counts`, classes of the right number (a missing
        one has none), of `counted`; `colors`, colours that are right (among those that rank first for the class, as
        many as there are), of `colored`; `exact`, 1 if there is nothing to object to.
    """
    asked = Counter[str]()
    colors: dict[str, list[str]] = {}
    for entry in contents:
        asked[entry["name"]] += entry["count"]
        if entry["color"] is not None:
            colors.setdefault(entry["name"], []).append(entry["color"])
    shown = set(reading.shown)
    score = {
        "found": len(asked.keys() & shown),
        "missing": len(asked.keys() - shown),
        "extra": len(shown - asked.keys()),
        "counts": sum(reading.whole_count(name) == number for name, number in asked.items()),
        "counted": len(asked),
        "colors": sum(
            color in reading.ranked_colors(name)[: len(of_name)]
            for name, of_name in colors.items()
            if name in shown
            for color in of_name
        ),
        "colored": sum(map(len, colors.values())),
    }
    is_exact = not score["missing"] and not score["extra"]
    is_exact &= score["counts"] == score["counted"] and score["colors"] == score["colored"]
    return {**score, "exact": int(is_exact)}


def _columns(*names: str):
    def values(records: Sequence[Any], examples: Any) -> np.ndarray:
        return np.array([[record[name] for name in names] for record in records], dtype=np.float64)

    return values


def _f1(means: np.ndarray) -> np.ndarray:
    found, missing, extra = means[..., 0], means[..., 1], means[..., 2]
    return 2 * found / np.maximum(2 * found + missing + extra, 1e-12)


def _share(means: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return means[..., 0] / means[..., 1]


CONTENTS_METRICS = (
    Metric("class_f1", "classes, F1", _columns("found", "missing", "extra"), _f1),
    Metric("count_accuracy", "count right", _columns("counts", "counted"), _share),
    Metric("color_accuracy", "colour right", _columns("colors", "colored"), _share),
    Metric("exact", "all of it right", _columns("exact")),
)
"""Of records of [`contents_score`]: F1 of the classes of all images, the shares of classes whose number and of colours
that are right (those of classes that are missing are wrong), and of images of which all is."""

TOKEN_METRICS = (
    Metric("token_class_f1", "classes by tokens, F1", _columns("token_found", "token_missing", "token_extra"), _f1),
    Metric("token_count_accuracy", "count right by tokens", _columns("token_counts", "token_counted"), _share),
    Metric("token_color_accuracy", "colour right by tokens", _columns("token_colors", "token_colored"), _share),
)
"""The same, of what a probe reads in tokens. Of records that are not numbers, as those of images without tokens, there
is no value."""


__all__ = ["CONTENTS_METRICS", "TOKEN_METRICS", "Contents", "check_asked", "check_contents", "contents_score"]
