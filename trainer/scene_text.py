"""What can be said and asked about scenes over photographs, so that the question alone tells little."""

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .cutout_vocabulary import CATEGORIES, Noun
from .cutouts import CutoutLibrary
from .scene_layout import PhotographScene, PlacedObject
from .scene_questions import draw_options, with_article

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CLEARLY_LARGER = 1.5  # in visible area
_CLEARLY_ASIDE = 0.12  # between middles of objects, in sides of the image
_CLEARLY_NEARER = 1.4
_NUM_ANSWERS = 10
SIDES = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
EXTREMES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "lowest": (1, 1)}
SIZES = {"largest": 1, "smallest": -1}


class SceneQuestion(NamedTuple):
    """A question about a scene.

    Args:
        kind (`str`): a key of `QUESTION_KINDS`.
        question (`str`): its wording.
        answer (`str`): the answer.
        answers (`tuple[str, ...]`): what ten people would say: the answer and, where there is one, its synonym.
    """

    kind: str
    question: str
    answer: str
    answers: tuple[str, ...]


def count_phrase(name: str, count: int, plural: str) -> str:
    """Says how many objects of a class there are.

    Args:
        name (`str`): singular.
        count (`int`): at least 1.
        plural (`str`): plural.

    Returns:
        `str`: e.g. `"an apple"`, `"two dogs"`.
    """
    if count == 1:
        return with_article(name)
    return f"{NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else count} {plural}"


def enumeration(parts: list[str]) -> str:
    """Joins parts of a sentence.

    Args:
        parts (`list[str]`): at least one.

    Returns:
        `str`: e.g. `"a dog, two cats and an apple"`.
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def scene_captions(scene: PhotographScene, nouns: Mapping[str, Noun], number: int, rng: random.Random) -> list[str]:
    """Says in several ways what a scene holds: classes, numbers, and where it is plain place, size or category.

    Args:
        scene (`PhotographScene`): the scene.
        nouns (`Mapping[str, Noun]`): the vocabulary.
        number (`int`): how many captions.
        rng (`random.Random`): random numbers.

    Returns:
        `list[str]`: captions; they differ as long as there are enough.
    """
    counts = scene.counts
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    phrases = [count_phrase(name, counts[name], nouns[name].plural) for name in ordered]
    said, reverse = enumeration(phrases), enumeration(phrases[::-1])
    be = "is" if counts[ordered[0]] == 1 else "are"
    be_reverse = "is" if counts[ordered[-1]] == 1 else "are"
    captions = [
        f"{_capital(said)}.",
        f"A picture of {said}.",
        f"There {be} {said} in the image.",
        f"An image of {said}.",
        f"{_capital(reverse)} can be seen.",
        f"There {be_reverse} {reverse} in this picture.",
        *_captions_of_places(scene, nouns, counts, ordered),
    ]
    captions = list(dict.fromkeys(captions))
    rng.shuffle(captions)
    return [captions[index % len(captions)] for index in range(number)]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _captions_of_places(
    scene: PhotographScene, nouns: Mapping[str, Noun], counts: Mapping[str, int], ordered: list[str]
) -> list[str]:
    captions = []
    if len(ordered) == 2:
        first, second = ([item for item in scene.objects if item.name == name] for name in ordered)
        for side in SIDES:
            if all(_is_aside(a, b, side, scene.image.width) for a in first for b in second):
                phrases = [count_phrase(name, counts[name], nouns[name].plural) for name in ordered]
                captions.append(f"{_capital(phrases[0])} {side} {phrases[1]}.")
    categories = {nouns[name].category for name in ordered}
    if len(ordered) > 1 and len(categories) == 1 and categories == {"animal"}:
        total = sum(counts.values())
        phrases = [count_phrase(name, counts[name], nouns[name].plural) for name in ordered]
        captions.append(f"{_capital(count_phrase('animal', total, 'animals'))}: {enumeration(phrases)}.")
    largest = _extreme(scene.objects, lambda item: item.area, 1, _CLEARLY_LARGER)
    if largest is not None and len(ordered) > 1:
        phrases = [count_phrase(name, counts[name], nouns[name].plural) for name in ordered]
        captions.append(f"{_capital(enumeration(phrases))}; the largest object is {with_article(largest.name)}.")
    return captions


def _is_aside(item: PlacedObject, other: PlacedObject, side: str, size: int) -> bool:
    axis, sign = SIDES[side]
    return sign * (item.center[axis] - other.center[axis]) >= _CLEARLY_ASIDE * size


def _extreme(
    objects: list[PlacedObject], measure: Callable[[PlacedObject], float], sign: int, ratio: float
) -> PlacedObject | None:
    """The object with the largest (smallest) measure, if all of other names are clearly smaller (larger)."""
    chosen = max(objects, key=lambda item: sign * measure(item))
    others = [measure(item) for item in objects if item.name != chosen.name]
    clear = all(measure(chosen) >= ratio * o if sign > 0 else measure(chosen) * ratio <= o for o in others)
    return chosen if others and clear else None


def _outermost(scene: PhotographScene, place: str) -> PlacedObject | None:
    """The leftmost (rightmost, topmost, lowest) object, if those of other names are clearly further in."""
    axis, sign = EXTREMES[place]
    chosen = max(scene.objects, key=lambda item: sign * item.center[axis])
    others = [item for item in scene.objects if item.name != chosen.name]
    margin = _CLEARLY_ASIDE * scene.image.width
    clear = all(sign * (chosen.center[axis] - item.center[axis]) >= margin for item in others)
    return chosen if others and clear else None


# What a kind of question yields: wordings, and the answer with its synonym if it has one.
_Asked = list[tuple[str, tuple[str, ...]]]


def _ask_naming(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    (name, count), *others = scene.counts.items()
    if others:
        return []
    answers = (name,) if count == 1 or vocabulary.nouns[name].plural == name else (name, vocabulary.nouns[name].plural)
    templates = ("What kind of object is in the image?", "What does the image show?")
    return [(rng.choice(templates), answers)]


def _ask_size(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    found: _Asked = []
    for word, sign in SIZES.items():
        chosen = _extreme(scene.objects, lambda item: item.area, sign, _CLEARLY_LARGER)
        if chosen is not None:
            templates = (f"What is the {word} object in the image?", f"Which object is the {word}?")
            found.append((rng.choice(templates), (chosen.name,)))
    return found


def _ask_place(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    found: _Asked = []
    for place in EXTREMES:
        chosen = _outermost(scene, place)
        if chosen is not None:
            templates = (f"What is the {place} object?", f"Which object is {place} in the image?")
            found.append((rng.choice(templates), (chosen.name,)))
    return found


def _ask_relation(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    """ "Is the dog above the cat?": both sides of a pair are plain, so that yes and no are equally likely."""
    single = [item for item in scene.objects if scene.counts[item.name] == 1]
    found: _Asked = []
    for side, (axis, sign) in SIDES.items():
        for item in single:
            for other in single:
                distance = sign * (item.center[axis] - other.center[axis])
                if item is not other and abs(distance) >= _CLEARLY_ASIDE * scene.image.width:
                    found.append((f"Is the {item.name} {side} the {other.name}?", ("yes" if distance > 0 else "no",)))
    return found


def _ask_what_is_aside(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    """ "What is above the dog?" where all that is above it, plainly or not, is of one name."""
    found: _Asked = []
    for item in (item for item in scene.objects if scene.counts[item.name] == 1):
        for side, (axis, sign) in SIDES.items():
            others = [other for other in scene.objects if other is not item]
            plain = {other.name for other in others if _is_aside(other, item, side, scene.image.width)}
            perhaps = {other.name for other in others if sign * (other.center[axis] - item.center[axis]) > 0}
            if len(plain) == 1 and plain == perhaps:
                (name,) = plain
                found.append((f"What is {side} the {item.name}?", _singular_or_plural(scene, vocabulary, name)))
    return found


def _ask_next_to(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    found: _Asked = []
    if len(scene.counts) < 3:
        return found
    for item in (item for item in scene.objects if scene.counts[item.name] == 1):
        nearest: dict[str, float] = {}
        for other in scene.objects:
            if other is not item:
                gap = sum((a - b) * (a - b) for a, b in zip(item.center, other.center))
                nearest[other.name] = min(gap, nearest.get(other.name, gap))
        (name, gap), (_, second), *_ = sorted(nearest.items(), key=lambda entry: entry[1])
        if gap * _CLEARLY_NEARER * _CLEARLY_NEARER <= second:  # squared distances
            templates = (f"What is nearest to the {item.name}?", f"Which object is closest to the {item.name}?")
            found.append((rng.choice(templates), (name,)))
    return found


def _ask_category(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    """Which of three categories the only kind of object, the largest or an outermost one belongs to."""
    subjects: list[tuple[str, PlacedObject]] = []
    if len(scene.objects) == 1:
        subjects.append(("object", scene.objects[0]))
    else:
        marked: list[tuple[str, PlacedObject | None]] = [
            (f"{word} object", _extreme(scene.objects, lambda item: item.area, sign, _CLEARLY_LARGER))
            for word, sign in SIZES.items()
        ]
        marked += [(f"{place} object", _outermost(scene, place)) for place in EXTREMES]
        subjects += [(subject, item) for subject, item in marked if item is not None]
    found: _Asked = []
    for subject, item in subjects:
        category = vocabulary.nouns[item.name].category
        options = draw_options(category, vocabulary, rng)
        if options:
            *first, last = [CATEGORIES[option] for option in options]
            found.append((f"Is the {subject} {', '.join(first)} or {last}?", (category,)))
    return found


def _ask_comparison(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    found: _Asked = []
    counts = scene.counts
    for name in counts:
        for other in counts:
            if name != other and counts[name] != counts[other]:
                first, second = vocabulary.nouns[name].plural, vocabulary.nouns[other].plural
                more = name if counts[name] > counts[other] else other
                found.append((f"Are there more {first} than {second}?", ("yes" if more == name else "no",)))
                answers = tuple(dict.fromkeys((vocabulary.nouns[more].plural, more)))
                found.append((f"Which are there more of, {first} or {second}?", answers))
    return found


def _ask_location(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    """In which half of the image an object is that is plainly in one."""
    found: _Asked = []
    for item in (item for item in scene.objects if scene.counts[item.name] == 1):
        for axis, halves in enumerate((["left", "right"], ["upper", "lower"])):
            distance = item.center[axis] - scene.image.width / 2
            if abs(distance) >= _CLEARLY_ASIDE * scene.image.width:
                answer = halves[distance > 0]
                rng.shuffle(halves)
                found.append(
                    (f"Is the {item.name} in the {halves[0]} or the {halves[1]} half of the image?", (answer,))
                )
    return found


def _ask_threshold(scene: PhotographScene, vocabulary: CutoutLibrary, rng: random.Random) -> _Asked:
    """ "Are there more than three dogs?", where there are three (no) or four (yes)."""
    found: _Asked = []
    if len(scene.counts) > 1:  # of these there is enough to ask that is no counting
        return found
    for name, count in scene.counts.items():
        more = rng.random() < 0.5
        limit = count - 1 if more else count
        if 0 < limit < len(NUMBER_WORDS):
            noun = count_phrase(name, limit, vocabulary.nouns[name].plural) if limit > 1 else f"one {name}"
            be = "Are" if limit > 1 else "Is"
            found.append((f"{be} there more than {noun}?", ("yes" if more else "no",)))
    return found


def _singular_or_plural(scene: PhotographScene, vocabulary: CutoutLibrary, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, vocabulary.nouns[name].plural))) if scene.counts[name] > 1 else (name,)


QUESTION_KINDS: dict[str, Callable[[PhotographScene, CutoutLibrary, random.Random], _Asked]] = {
    "naming": _ask_naming,
    "size": _ask_size,
    "place": _ask_place,
    "location": _ask_location,
    "relation": _ask_relation,
    "what is aside": _ask_what_is_aside,
    "nearest": _ask_next_to,
    "category": _ask_category,
    "comparison": _ask_comparison,
    "threshold": _ask_threshold,
}


def scene_vqa(
    scene: PhotographScene, vocabulary: CutoutLibrary, number: int, rng: random.Random
) -> list[SceneQuestion]:
    """Asks about names, sizes, places, relations, categories and comparisons, wherever the answer is plain.

    The same question has each of its answers about equally often over many scenes.

    Args:
        scene (`PhotographScene`): the scene.
        vocabulary (`CutoutLibrary`): the classes.
        number (`int`): at most so many questions.
        rng (`random.Random`): random numbers.

    Returns:
        `list[SceneQuestion]`: questions of different kinds as far as possible.
    """
    pools = []
    for kind, ask in QUESTION_KINDS.items():
        pool = ask(scene, vocabulary, rng)
        if pool:
            rng.shuffle(pool)
            pools.append((kind, pool))
    rng.shuffle(pools)
    questions: list[SceneQuestion] = []
    while pools and len(questions) < number:
        kind, pool = pools.pop(0)
        question, answers = pool.pop()
        questions.append(SceneQuestion(kind, question, answers[0], _ten(answers)))
        if pool:
            pools.append((kind, pool))
    return questions


def _ten(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Ten annotators: most say the answer, four of them its synonym."""
    if len(answers) == 1:
        return answers * _NUM_ANSWERS
    return (answers[0],) * 6 + (answers[1],) * 4


__all__ = ["NUMBER_WORDS", "SceneQuestion", "count_phrase", "enumeration", "scene_captions", "scene_vqa"]
