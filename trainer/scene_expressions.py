"""Expressions that refer to one object of a scene and to no other, and captions with colours to draw scenes from."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .cutout_vocabulary import Noun
from .scene_colors import color_name, colors_apart
from .scene_layers import PhotographScene, PlacedObject
from .scene_text import count_phrase, enumeration

_CLEARLY_ASIDE = 0.12  # between middles of objects, in sides of the image
_CLEARLY_LARGER = 1.5  # in visible area
# Wordings, and along which axis, in which direction, the object is further than all others.
_EXTREMES = {
    ("the leftmost {}", "the {} on the left"): (0, -1),
    ("the rightmost {}", "the {} on the right"): (0, 1),
    ("the topmost {}", "the {} at the top"): (1, -1),
    ("the lowest {}", "the {} at the bottom"): (1, 1),
}
_SIZES = {("the largest {}", "the biggest {}"): 1, ("the smallest {}",): -1}


class Expression(NamedTuple):
    """An expression that refers to one object of a scene.

    Args:
        kind (`str`): what tells the object from the others: a key of `EXPRESSION_KINDS`.
        number (`int`): index of the object in the scene.
        text (`str`): e.g. `"the red apple"`.
    """

    kind: str
    number: int
    text: str


def object_color(scene: PhotographScene, item: PlacedObject) -> str | None:
    """The colour of what is visible of an object; see [`color_name`].

    Args:
        scene (`PhotographScene`): the scene.
        item (`PlacedObject`): one of its objects.

    Returns:
        `str` or `None`: the name of the colour, if there is one; `None` of an orange orange, which nobody calls so.
    """
    color = color_name(np.asarray(scene.image)[item.mask])
    return None if color == item.name else color


def scene_expressions(scene: PhotographScene, number: int, rng: random.Random) -> list[Expression]:
    """Refers to objects by noun, colour, place and size, wherever that is plain.

    Args:
        scene (`PhotographScene`): the scene.
        number (`int`): at most so many expressions.
        rng (`random.Random`): random numbers.

    Returns:
        `list[Expression]`: of different texts, and of different kinds as far as possible.
    """
    pools = []
    for kind, refer in EXPRESSION_KINDS.items():
        pool = [Expression(kind, index, rng.choice(texts)) for index, texts in refer(scene)]
        if pool:
            rng.shuffle(pool)
            pools.append(pool)
    rng.shuffle(pools)
    expressions: dict[str, Expression] = {}
    while pools and len(expressions) < number:
        pool = pools.pop(0)
        expression = pool.pop()
        expressions.setdefault(expression.text, expression)
        if pool:
            pools.append(pool)
    return list(expressions.values())


# What a kind of expression yields: the index of an object, and wordings.
_Referred = list[tuple[int, Sequence[str]]]


def _by_noun(scene: PhotographScene) -> _Referred:
    counts = scene.counts
    return [(index, (f"the {item.name}",)) for index, item in enumerate(scene.objects) if counts[item.name] == 1]


def _by_color(scene: PhotographScene) -> _Referred:
    """Of one noun too: then the colour says more than is needed, as people do."""
    colors = [object_color(scene, item) for item in scene.objects]
    found: _Referred = []
    for index, item in enumerate(scene.objects):
        others = [colors[other] for other in _alike(scene, index)]
        if colors_apart(colors[index], others):
            found.append((index, (f"the {colors[index]} {item.name}",)))
    return found


def _by_place(scene: PhotographScene) -> _Referred:
    found: _Referred = []
    for index, item in enumerate(scene.objects):
        others = [scene.objects[other] for other in _alike(scene, index)]
        found += _extremes(scene, index, others, item.name) if others else []
    return found


def _by_place_among_all(scene: PhotographScene) -> _Referred:
    found: _Referred = []
    for index in range(len(scene.objects)):
        others = [other for number, other in enumerate(scene.objects) if number != index]
        found += _extremes(scene, index, others, "object") if others else []
    return found


def _by_size(scene: PhotographScene) -> _Referred:
    found: _Referred = []
    for index, item in enumerate(scene.objects):
        others = [scene.objects[other] for other in _alike(scene, index)]
        found += _outsized(index, item, others, item.name) if others else []
    return found


def _by_size_among_all(scene: PhotographScene) -> _Referred:
    found: _Referred = []
    for index, item in enumerate(scene.objects):
        others = [other for number, other in enumerate(scene.objects) if number != index]
        found += _outsized(index, item, others, "object") if others else []
    return found


EXPRESSION_KINDS: dict[str, Callable[[PhotographScene], _Referred]] = {
    "noun": _by_noun,
    "color": _by_color,
    "place": _by_place,
    "place among all": _by_place_among_all,
    "size": _by_size,
    "size among all": _by_size_among_all,
}


def _alike(scene: PhotographScene, index: int) -> list[int]:
    """The other objects of the same noun."""
    name = scene.objects[index].name
    return [other for other, item in enumerate(scene.objects) if other != index and item.name == name]


def _extremes(scene: PhotographScene, index: int, others: Sequence[PlacedObject], noun: str) -> _Referred:
    center, margin = scene.objects[index].center, _CLEARLY_ASIDE * scene.image.width
    return [
        (index, [wording.format(noun) for wording in wordings])
        for wordings, (axis, sign) in _EXTREMES.items()
        if all(sign * (center[axis] - other.center[axis]) >= margin for other in others)
    ]


def _outsized(index: int, item: PlacedObject, others: Sequence[PlacedObject], noun: str) -> _Referred:
    found: _Referred = []
    for wordings, sign in _SIZES.items():
        ratios = [item.area / other.area if sign > 0 else other.area / item.area for other in others]
        if min(ratios) >= _CLEARLY_LARGER:
            found.append((index, [wording.format(noun) for wording in wordings]))
    return found


def scene_contents(scene: PhotographScene) -> list[dict[str, Any]]:
    """What a probe can look for in an image of a scene: classes, numbers and colours.

    Args:
        scene (`PhotographScene`): the scene.

    Returns:
        `list[dict]`: `{"name", "color", "count"}`, objects of one noun and one colour together; the colour is `None`
        for all objects of a noun unless each of them has one that has a name.
    """
    colors: dict[str, list[str | None]] = {}
    for item in scene.objects:
        colors.setdefault(item.name, []).append(object_color(scene, item))
    contents = []
    for name in sorted(colors, key=lambda name: (-len(colors[name]), name)):
        known_colors = colors[name] if None not in colors[name] else [None] * len(colors[name])
        counted = Counter(known_colors).items()
        for color, count in sorted(counted, key=lambda entry: (-entry[1], str(entry[0]))):
            contents.append({"name": name, "color": color, "count": count})
    return contents


def drawing_captions(
    contents: Sequence[Mapping[str, Any]], nouns: Mapping[str, Noun], number: int, rng: random.Random
) -> list[str]:
    """Says what is to be drawn: classes, numbers and colours, nothing that could be left open.

    Args:
        contents (sequence of `Mapping`): of [`scene_contents`].
        nouns (`Mapping[str, Noun]`): the vocabulary.
        number (`int`): how many captions.
        rng (`random.Random`): random numbers.

    Returns:
        `list[str]`: e.g. `"Two red apples and a dog."`; they differ as long as there are enough.
    """
    phrases = []
    for entry in contents:
        color = f"{entry['color']} " if entry["color"] else ""
        phrases.append(count_phrase(color + entry["name"], entry["count"], color + nouns[entry["name"]].plural))
    said, reverse = enumeration(phrases) if phrases else "no object", enumeration(phrases[::-1] or ["no object"])
    captions = [f"{said[0].upper()}{said[1:]}.", f"A picture of {said}.", f"An image with {reverse}."]
    captions += [f"A photograph with {said} in it.", f"{reverse[0].upper()}{reverse[1:]} over a photograph."]
    captions = list(dict.fromkeys(captions))
    rng.shuffle(captions)
    return [captions[index % len(captions)] for index in range(number)]


__all__ = [
    "EXPRESSION_KINDS",
    "Expression",
    "drawing_captions",
    "object_color",
    "scene_contents",
    "scene_expressions",
]
