"""Planted cut-outs: squares whose number, places and colours a test can find again in the pixels."""

from PIL import Image, ImageDraw

from vistok.trainer.cutout_vocabulary import NOUNS, Noun
from vistok.trainer.cutouts import Cutout, CutoutLibrary

COLORS = {"apple": (255, 0, 0), "bird": (0, 255, 0), "cow": (0, 0, 255)}
NOUNS_OF_COLORS = [
    Noun("apple", "apples", "food"),
    Noun("bird", "birds", "animal"),
    Noun("cow", "cows", "animal"),
]


def planted_cutouts(folder):
    """Each noun is a square of its own colour, with a black dot in the middle and a transparent margin."""
    cutouts = []
    for name, color in COLORS.items():
        picture = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((5, 5, 54, 54), fill=(*color, 255))
        draw.ellipse((22, 22, 37, 37), fill=(0, 0, 0, 255))
        picture.save(folder / f"{name}.png")
        category = next(noun.category for noun in NOUNS_OF_COLORS if noun.name == name)
        cutouts.append(Cutout(name, category, folder / f"{name}.png", "planted", "train", f"planted/{name}"))
    return CutoutLibrary(cutouts, NOUNS_OF_COLORS)


def unseen_library(nouns=NOUNS):
    """Every noun with a picture that is never opened: enough to choose and to ask."""
    return CutoutLibrary([Cutout(n.name, n.category, "none", "x", "train", f"x/{n.name}") for n in nouns], nouns)
