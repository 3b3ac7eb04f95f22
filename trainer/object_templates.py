"""Wordings of object-centric questions and answers, and the forms that the names of classes take in them."""

import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluation.gvtbench_names import class_name, counted_form, identified_form
from .data_formats import known
from .scene_questions import TEMPLATES, with_article
from .scene_text import count_phrase, enumeration

OBJECT_KINDS = ("existence", "counting", "listing")
# What a template may hold, by kind of question.
FIELDS = {
    "existence": ("noun", "nouns", "a_noun", "is_there", "official_noun", "official_nouns"),
    "counting": ("noun", "nouns", "a_noun", "official_noun", "official_nouns", "count", "number"),
    "listing": ("names", "counted"),
}
_PARTS = {
    "existence": ("question", "yes", "no"),
    "counting": ("question", "answer"),
    "listing": ("question", "answer"),
}
_DEFAULT_ANSWERS = {
    "existence": {"yes": "yes", "no": "no"},
    "counting": {"answer": "{count}"},
    "listing": {"answer": "{names}"},
}
_LISTING = (
    "What objects are in the image?",
    "List the objects in the image.",
    "Which objects does the image show?",
)
TEMPLATE_SETS: dict[str, dict[str, list[Any]]] = {
    "vistok": {
        "existence": ["{is_there} in the image?", *TEMPLATES["existence"][1:]],
        "counting": list(TEMPLATES["counting"]),
        "listing": list(_LISTING),
    },
    # As the official questions on COCO are worded.
    "gvtbench": {
        "existence": [{"question": "Does {official_noun} exist in the image?", "yes": "Yes.", "no": "No."}],
        "counting": ["How many {official_nouns} are there in the image?"],
        "listing": ["What objects are in the image?"],
    },
    # The same questions, answered with how many there are of each.
    "counted-lists": {
        "existence": ["{is_there} in the image?"],
        "counting": list(TEMPLATES["counting"]),
        "listing": [{"question": question, "answer": "{counted}"} for question in _LISTING],
    },
}

_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "goose": "geese",
    "ox": "oxen",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "shelf": "shelves",
    "scarf": "scarves",
    "wolf": "wolves",
    "calf": "calves",
    "half": "halves",
    "bus": "buses",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
}
_SAME_IN_PLURAL = {"sheep", "fish", "deer", "shrimp", "aircraft", "offspring", "bison", "salmon", "squid", "jellyfish"}
_SINGULAR_IN_S = {"lens", "canvas", "gas", "atlas", "tennis", "grass", "chess", "sunglass", "mess"}
_PLURAL_IN_IS = {"skis"}


def is_plural(name: str) -> bool:
    """Whether the name of a class is a plural already, such as `"scissors"` or `"leather shoes"`.

    Args:
        name (`str`): lower-case name.

    Returns:
        `bool`: whether it is.
    """
    word = name.split()[-1] if name.split() else name
    if word in _PLURAL_IN_IS or word in {*_IRREGULAR.values()} - {"buses"}:
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _SINGULAR_IN_S


def plural(name: str) -> str:
    """The plural of a noun phrase in English.

    Args:
        name (`str`): e.g. `"traffic light"`.

    Returns:
        `str`: e.g. `"traffic lights"`.
    """
    *others, word = name.split() or [name]
    lower = word.lower()
    if is_plural(name.lower()) or lower in _SAME_IN_PLURAL:
        return name
    if lower in _IRREGULAR:
        word = _IRREGULAR[lower]
    elif lower.endswith("man") and lower not in ("human", "caiman", "ottoman", "talisman"):
        word = word[:-3] + "men"
    elif lower.endswith("y") and lower[-2:-1] not in ("", *"aeiou"):
        word = word[:-1] + "ies"
    elif lower.endswith(("s", "x", "z", "ch", "sh")):
        word += "es"
    else:
        word += "s"
    return " ".join([*others, word])


@dataclass(frozen=True)
class SpokenClass:
    """The name of a class as it is said.

    Args:
        noun (`str`): singular, e.g. `"cabinet or shelf"`.
        nouns (`str`): plural, e.g. `"cabinets or shelves"`.
        a_noun (`str`): with an article, e.g. `"a cabinet or shelf"`, `"any scissors"`.
        is_there (`str`): e.g. `"Is there a cabinet or shelf"`, `"Are there any scissors"`.
        official_noun (`str`): as GVTBench's questions identify it, e.g. `"cabinet/shelf"`.
        official_nouns (`str`): as GVTBench's questions count it.
    """

    noun: str
    nouns: str
    a_noun: str
    is_there: str
    official_noun: str
    official_nouns: str


def spoken_classes(classes: Collection[str]) -> dict[str, SpokenClass]:
    """Makes phrases of the names of classes.

    `"Cabinet/shelf"` becomes "cabinet or shelf", `"traffic_light"` "traffic light" and `"bow_(weapon)"` "bow", unless
    two classes then had one name. Words in capitals stay so ("TV").

    Args:
        classes (collection of `str`): names as an annotation file spells them.

    Returns:
        `dict[str, SpokenClass]`: phrases by name; classes of what is left over ("Other Shoes") are missing: nobody can
        say whether such a thing is there.
    """
    short = {name: _alternatives(name.split("(")[0].strip(" _") or name) for name in classes}
    written = [tuple(parts) for parts in short.values()]
    spoken = {}
    for name, parts in short.items():
        if written.count(tuple(parts)) > 1:
            parts = _alternatives(name)
        if parts[0] != "other" and not parts[0].startswith("other "):
            spoken[name] = _spoken(parts, class_name(name))
    return spoken


def _alternatives(name: str) -> list[str]:
    parts = [" ".join(part.split()) for part in name.replace("_", " ").replace(",", "/").split("/")]
    return [" ".join(word if _is_acronym(word) else word.lower() for word in part.split()) for part in parts if part]


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _spoken(parts: list[str], official: str) -> SpokenClass:
    noun, nouns = " or ".join(parts), " or ".join(plural(part) for part in parts)
    if is_plural(parts[0].lower()):
        a_noun, is_there = f"any {noun}", f"Are there any {noun}"
    else:
        a_noun = with_article(noun)
        is_there = f"Is there {a_noun}"
    return SpokenClass(noun, nouns, a_noun, is_there, identified_form(official), counted_form(official))


def check_templates(templates: str | Mapping[str, Any], kinds: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Checks the templates of a recipe, and completes them.

    Args:
        templates (`str` or `Mapping`): a key of `TEMPLATE_SETS`; or, by kind of question, a list of wordings: a
            question, or `{"question", "answer"}`, of existence questions `{"question", "yes", "no"}`. A kind that is
            missing is worded as in the set `"vistok"`. Fields: see `FIELDS`.
        kinds (iterable of `str`): the kinds that are asked.

    Returns:
        `dict[str, list[dict[str, str]]]`: by kind, question and answers of each wording.

    Raises:
        ValueError: if a set, kind, part or field is unknown or there is no wording.
    """
    if isinstance(templates, str):
        given: Mapping[str, Any] = TEMPLATE_SETS[known("set of templates", templates, TEMPLATE_SETS)]
    elif isinstance(templates, Mapping):
        given = templates
    else:
        raise ValueError(f"templates must be one of {', '.join(TEMPLATE_SETS)} or a mapping, got {templates!r}.")
    for kind in given:
        known("kind of question in templates", kind, OBJECT_KINDS)
    checked = {}
    for kind in kinds:
        wordings = given.get(kind, TEMPLATE_SETS["vistok"][kind])
        wordings = [wordings] if isinstance(wordings, (str, Mapping)) else wordings
        if not isinstance(wordings, list) or not wordings:
            raise ValueError(f"templates of {kind} questions must be a list of wordings, got {wordings!r}.")
        checked[kind] = [_check_wording(kind, wording) for wording in wordings]
    return checked


def _check_wording(kind: str, wording: Any) -> dict[str, str]:
    parts = {"question": wording} if isinstance(wording, str) else wording
    if not isinstance(parts, Mapping) or "question" not in parts:
        raise ValueError(f"a template of {kind} questions must be a question or have one, got {wording!r}.")
    for part, text in parts.items():
        known(f"part of a template of {kind} questions", part, _PARTS[kind])
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(str(text)) if name is not None}
        except ValueError as error:
            raise ValueError(f"{text!r} is not a template ({error}): write {{{{ and }}}} for braces.") from error
        answers = {"counting": ("count", "number"), "listing": ("names", "counted")}.get(kind, ())
        allowed = [name for name in FIELDS[kind] if part != "question" or name not in answers]
        for name in fields:
            known(f"field of the template {text!r}", name, allowed)
    return {**_DEFAULT_ANSWERS[kind], **{part: str(text) for part, text in parts.items()}}


def listed(counts: Mapping[str, int], spoken: Mapping[str, SpokenClass], doubtful: Collection[str]) -> dict[str, str]:
    """The objects of an image as a list, most numerous first, in both ways that a template may say it.

    Args:
        counts (`Mapping[str, int]`): number by class.
        spoken (`Mapping[str, SpokenClass]`): phrases; classes without one are left out.
        doubtful (collection of `str`): classes whose number is not known.

    Returns:
        `dict[str, str]`: `names`, e.g. `"dog, apple"`, and `counted`, e.g. `"two dogs and an apple"`.
    """
    named = [name for name in sorted(counts, key=lambda name: -counts[name]) if name in spoken]
    phrases = []
    for name in named:
        noun, nouns = spoken[name].noun, spoken[name].nouns
        if name in doubtful:
            phrases.append(f"several {nouns}")
        else:
            phrases.append(noun if noun == nouns and is_plural(noun) else count_phrase(noun, counts[name], nouns))
    return {"names": ", ".join(spoken[name].noun for name in named), "counted": enumeration(phrases or [""])}


__all__ = [
    "FIELDS",
    "OBJECT_KINDS",
    "TEMPLATE_SETS",
    "SpokenClass",
    "check_templates",
    "listed",
    "plural",
    "spoken_classes",
]
