"""What GVTBench calls the classes of objects in its questions: COCO's 80 classes, their plurals, VCR's spelling."""

import re

COCO_CLASSES: tuple[str, ...] = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
    bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
    snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,
    fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,
    potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
    refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n    ", "").split(",")
)
"""The classes of COCO, in the order of their ids. Those of VCR are the same, spelt without spaces."""

# What the official files say, where it is not the singular with an ending.
_COCO_PLURALS = {
    "person": "people",
    "knife": "knives",
    "mouse": "mice",
    "sheep": "sheep",
    "scissors": "scissors",
    "skis": "ski",  # sic
}
# Plurals of last words of other data sets' classes.
_PLURALS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "ox": "oxen",
    "wife": "wives",
    "leaf": "leaves",
    "loaf": "loaves",
    "shelf": "shelves",
    "bookshelf": "bookshelves",
    "wolf": "wolves",
    "calf": "calves",
    "lens": "lenses",
    "fish": "fish",
    "deer": "deer",
    "aircraft": "aircraft",
}
NAMINGS = ("coco", "vcr")


def plural(name: str) -> str:
    """
    Several objects of a class, in the words of the official questions.

    COCO's classes are spelt as in the official files. For others: the usual irregular plurals, "-ies" after a
    consonant and y, "-es" after s, ch, sh, x and z, else "-s"; names that are plurals already ("sneakers") stay.

    Args:
        name (`str`): a class, e.g. `"wine glass"`.

    Returns:
        `str`: e.g. `"wine glasses"`.
    """
    if name in _COCO_PLURALS:
        return _COCO_PLURALS[name]
    head, space, word = name.rpartition(" ")
    if name not in _KNOWN:
        if irregular := (_PLURALS | _COCO_PLURALS).get(word):
            return head + space + irregular
        if re.search(r"[^aeious]s$|[^u]es$", word):
            return name
        if re.search(r"[^aeiou]y$", word):
            return f"{name[:-1]}ies"
        if re.search(r"[xz]$", word):
            return f"{name}es"
    return f"{name}es" if re.search(r"(s|ch|sh)$", name) else f"{name}s"


def class_name(category: str) -> str:
    """
    A category of any data set as words of a question: COCO's are kept; others in lower case, underscores as spaces.

    Args:
        category (`str`): e.g. `"Traffic_Light"`.

    Returns:
        `str`: e.g. `"traffic light"`.
    """
    return category if category in _KNOWN else " ".join(category.replace("_", " ").lower().split())


def counted_form(name: str, names: str = "coco") -> str:
    """
    A class in a question that counts: "How many … are there in the image?".

    Args:
        name (`str`): the class.
        names (`str`, *optional*, defaults to `"coco"`): `"coco"`: the plural ("traffic lights"); `"vcr"`: the plural
            without spaces ("trafficlights").
    """
    return plural(name) if check_naming(names) == "coco" else plural(name).replace(" ", "")


def identified_form(name: str, names: str = "coco") -> str:
    """
    A class in a question that identifies: "Does … exist in the image?".

    Args:
        name (`str`): the class.
        names (`str`, *optional*, defaults to `"coco"`): `"coco"`: the bare singular ("traffic light"); `"vcr"`: the
            plural without spaces ("trafficlights").
    """
    return name if check_naming(names) == "coco" else plural(name).replace(" ", "")


def check_naming(names: str) -> str:
    """Returns the name of a spelling of classes; raises a ValueError if there is none of that name."""
    if names not in NAMINGS:
        raise ValueError(f"names is {names!r}, expected {' or '.join(map(repr, NAMINGS))}.")
    return names


_KNOWN = {name for coco in COCO_CLASSES for name in (coco, coco.replace(" ", ""))}

__all__ = ["COCO_CLASSES", "NAMINGS", "check_naming", "class_name", "counted_form", "identified_form", "plural"]
