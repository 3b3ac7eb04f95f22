"""The table of everyday nouns and of the pictures that show them, chosen by eye from three collections.

Emoji are named by their code points and exist in two renderings, `fluent-emoji` (3-D) and `noto-emoji` (flat): two
different pictures. Photographs are named by their path in `tuxpaint-stamps`, without `.png`, and so are the drawings
among the stamps. Pictures joined by `=` are variants of one picture (another colour, another expression of the same
face, the same drawing once more): the split keeps them on one side. A picture that shows several objects, or whose
object a passer-by would not call so, is left out, and so is a noun with fewer than four pictures.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """One class of objects.

    Args:
        name (`str`): singular, e.g. `"dog"`.
        plural (`str`): plural, e.g. `"dogs"`.
        category (`str`): a key of `CATEGORIES`, or `"thing"`.
        emoji (`str`): code points as in the file names of the emoji collections, separated by spaces, variants of one
            picture joined by `=`.
        photographs (`str`): paths of photographs in `tuxpaint-stamps` without suffix, written in the same way.
        drawings (`str`): paths of drawings in `tuxpaint-stamps`, written in the same way.
        related (`tuple[str, ...]`): nouns that could be said of the same object (a duck is a bird): they are never
            put into one scene, nor asked for as absent where this noun is present. The relation holds both ways.
    """

    name: str
    plural: str
    category: str
    emoji: str = ""
    photographs: str = ""
    drawings: str = ""
    related: tuple[str, ...] = ()


# What the category question offers. Of the rest ("thing") nobody says a common name: it is not asked about.
CATEGORIES = {
    "animal": "an animal",
    "food": "food",
    "plant": "a plant",
    "vehicle": "a vehicle",
    "clothing": "clothing",
    "instrument": "a musical instrument",
    "tool": "a tool",
}

_MAMMALS = "animals/mammals"
_BIRDS = "animals/birds"

# fmt: off
NOUNS = (
    # Animals
    Noun("bear", "bears", "animal", "1f43b=1f43b-200d-2744-fe0f",
         f"{_MAMMALS}/bears/bear {_MAMMALS}/bears/european-bear", related=("teddy bear",)),
    Noun("bee", "bees", "animal", "1f41d", "animals/insects/hoverfly animals/insects/hornet"),
    Noun("bird", "birds", "animal", "1f426=1f426-200d-2b1b 1f54a-fe0f 1f99c 1f985",
         " ".join(f"{_BIRDS}/{bird}" for bird in (
             "adelaide-rosella", "blackbird", "crow", "cuckoo", "lark", "magpie", "pigeon", "quetzal",
             "rainbow-lorikeet", "seagull", "silver-gull", "tucan", "vulture")),
         related=("chicken", "duck", "penguin")),
    Noun("butterfly", "butterflies", "animal", "1f98b",
         drawings="animals/insects/cartoon/butterfly seasonal/easter/butterfly"),
    Noun("camel", "camels", "animal", "1f42a=1f42b", f"{_MAMMALS}/camel/camel {_MAMMALS}/camel/dromedary"),
    Noun("cat", "cats", "animal", "1f408=1f408-200d-2b1b 1f431=1f63a=1f638"),
    Noun("chicken", "chickens", "animal", "1f413 1f414",
         f"{_BIRDS}/chicken_profile {_BIRDS}/hen {_BIRDS}/rooster"),
    Noun("cow", "cows", "animal", "1f404 1f42e 1f402",
         " ".join(f"{_MAMMALS}/bovines/{cow}" for cow in ("bull", "cow", "cow_white", "zebu"))),
    Noun("deer", "deer", "animal", "1f98c",
         " ".join(f"{_MAMMALS}/deer/{deer}" for deer in ("caribou", "deer", "doe", "wapiti"))),
    Noun("dinosaur", "dinosaurs", "animal", "1f995 1f996", drawings="animals/dinosaur/cartoon/dinosaurSings"),
    Noun("dog", "dogs", "animal", "1f415=1f9ae=1f415-200d-1f9ba 1f429 1f436",
         f"{_MAMMALS}/dogs/dingo {_MAMMALS}/dogs/dog"),
    Noun("duck", "ducks", "animal", "1f986", f"{_BIRDS}/drake {_BIRDS}/duck"),
    Noun("fish", "fish", "animal", "1f41f 1f420 1f421",
         " ".join(f"animals/fish/{fish}" for fish in (
             "bluegroper", "butterflyfish", "clownfish", "coraltrout", "dolphinfish", "moonwrasse", "stripedfish"))),
    Noun("frog", "frogs", "animal", "1f438", "animals/amphibians/frog animals/amphibians/frog-1"),
    Noun("horse", "horses", "animal", "1f40e 1f434", f"{_MAMMALS}/equines/horse"),
    Noun("lion", "lions", "animal", "1f981", f"{_MAMMALS}/cats/lion {_MAMMALS}/cats/lion-2"),
    Noun("monkey", "monkeys", "animal", "1f412 1f435=1f648=1f649=1f64a",
         f"{_MAMMALS}/apes/tamarin_emperor {_MAMMALS}/apes/chimp"),
    Noun("mouse", "mice", "animal", "1f401 1f42d", f"{_MAMMALS}/rodents/mouse"),
    Noun("penguin", "penguins", "animal", "1f427",
         f"{_BIRDS}/little-penguin {_BIRDS}/magellanic_penguin {_BIRDS}/penguin",
         f"{_BIRDS}/cartoon/tux={_BIRDS}/cartoon/pengwin"),
    Noun("pig", "pigs", "animal", "1f416 1f437",
         f"{_MAMMALS}/pig {_MAMMALS}/pig_golden {_MAMMALS}/pig_golden2"),
    Noun("rabbit", "rabbits", "animal", "1f407 1f430",
         f"{_MAMMALS}/rabbit_little {_MAMMALS}/rodents/rabbit {_MAMMALS}/rodents/rabbit-2",
         "seasonal/easter/bunny-head"),
    Noun("sheep", "sheep", "animal", "1f40f=1f411",
         f"{_MAMMALS}/bovines/ram {_MAMMALS}/bovines/sheep {_MAMMALS}/bovines/sheep_lamb"),
    Noun("snail", "snails", "animal", "1f40c",
         drawings="animals/insects/cartoon/snail animals/insects/cartoon/snail2"),
    Noun("tiger", "tigers", "animal", "1f405 1f42f", f"{_MAMMALS}/cats/tiger {_MAMMALS}/cats/tiger_sumatran"),
    Noun("whale", "whales", "animal", "1f40b=1f433", f"{_MAMMALS}/aquatic/whale {_MAMMALS}/aquatic/orca",
         related=("fish",)),
    # Food
    Noun("apple", "apples", "food", "1f34e=1f34f",
         "food/fruit/apple_fuji food/fruit/apple_granny_smith food/fruit/apple_green=food/fruit/apple_red "
         "food/fruit/apple_sierra_beauty", "food/fruit/cartoon/apple"),
    Noun("banana", "bananas", "food", "1f34c", "food/fruit/banana", "food/fruit/cartoon/banana"),
    Noun("bell pepper", "bell peppers", "food", "1fad1", "food/vegetables/pepper food/vegetables/yellowpepper"),
    Noun("cake", "cakes", "food", "1f370 1f382",
         drawings="food/dessert/cartoon/birthday_cake food/dessert/cartoon/pink_cake"),
    Noun("ice cream", "ice creams", "food", "1f366 1f368"),
    Noun("lemon", "lemons", "food", "1f34b", "food/fruit/lemon", "food/fruit/cartoon/lemon"),
    Noun("mushroom", "mushrooms", "food", "1f344",
         "food/vegetables/mushroom plants/mushrooms/cep plants/mushrooms/cep-1"),
    Noun("orange", "oranges", "food", "1f34a",
         "food/fruit/mandarine food/fruit/orange food/fruit/orange_seville food/fruit/sliced_orange",
         "food/fruit/cartoon/orange"),
    Noun("pear", "pears", "food", "1f350", "food/fruit/pear", "food/fruit/cartoon/pear"),
    Noun("pineapple", "pineapples", "food", "1f34d", "food/fruit/pineapple", "food/fruit/cartoon/pineapple"),
    Noun("pumpkin", "pumpkins", "food", "1f383", "food/vegetables/pumpkin_small",
         "seasonal/halloween/jackolantern_mean"),
    Noun("strawberry", "strawberries", "food", "1f353", "food/fruit/strawberry food/fruit/Strawberry2",
         "food/fruit/cartoon/strawberry"),
    # Plants
    Noun("flower", "flowers", "plant", "1f337 1f338 1f339 1f33a 1f33b 1f33c",
         " ".join(f"plants/flowers/{flower}" for flower in (
             "adeenia", "anemone_red", "bolsom", "chemparathi=plants/flowers/flower10", "daffodil", "flower1",
             "flower2", "flower3", "flower5", "flower6", "flower8", "flower9", "iris", "marigold", "pigface",
             "plastic/chuvanna_plastic_poo", "red-gazania", "rose", "whitestar-petunia", "yellow-flower"))),
    Noun("tree", "trees", "plant", "1f332 1f333 1f334 1f384",
         "plants/trees/birch plants/trees/holm_oak plants/trees/liberia-palm plants/trees/tree336 "
         "seasonal/christmas/Christmas_Tree_photo", "seasonal/christmas/tree"),
    # Vehicles
    Noun("airplane", "airplanes", "vehicle", "2708-fe0f 1f6e9-fe0f 1f6eb=1f6ec",
         "vehicles/flight/planes/747 military/vehicles/f22_raptor",
         "vehicles/flight/planes/cartoon/plane"),
    Noun("boat", "boats", "vehicle", "26f5 1f6a4 1f6e5-fe0f 1f6f6",
         "vehicles/ship/chineseJunk vehicles/ship/walnutBoat",
         "vehicles/ship/cartoon/tugboat=vehicles/ship/cartoon/tugboat_mirror"),
    Noun("bus", "buses", "vehicle", "1f68c=1f68e 1f68d", "vehicles/masstransit/green_korean_bus",
         "vehicles/masstransit/cartoon/double_decker_bus"),
    Noun("car", "cars", "vehicle", "1f697=1f699=1f695=1f693 1f698=1f696=1f694 1f3ce-fe0f",
         "vehicles/auto/beetle vehicles/auto/sedan vehicles/auto/sportscar2 vehicles/race/indycar"),
    Noun("motorcycle", "motorcycles", "vehicle", "1f3cd-fe0f 1f6f5"),
    Noun("train", "trains", "vehicle", "1f682 1f683 1f684=1f685=1f688 1f686 1f687 1f68a",
         drawings="vehicles/locomotive/cartoon/toy_train"),
    Noun("truck", "trucks", "vehicle", "1f69a 1f69b 1f6fb 1f692",
         "vehicles/auto/truck vehicles/emergency/firetruck vehicles/garbagetruck",
         "vehicles/construction/cartoon/terex vehicles/emergency/cartoon/fire_engine", related=("car",)),
    # Clothing
    Noun("hat", "hats", "clothing", "1f3a9 1f452 1f9e2", "",
         "clothes/hats/blue_fedora=clothes/hats/green_fedora clothes/hats/feathered_hat clothes/hats/sombrero "
         "clothes/hats/tophat clothes/t_baseballcap"),
    Noun("shirt", "shirts", "clothing", "1f455 1f45a", "",
         "clothes/t_poloshirt=clothes/t_tshirt clothes/t_shirt"),
    Noun("shoe", "shoes", "clothing", "1f45e 1f45f 1f460 1f97e 1f97f"),
    # Musical instruments
    Noun("drum", "drums", "instrument", "1f941 1fa98", "hobbies/music/percussion/drum_tomtom_floor"),
    Noun("guitar", "guitars", "instrument", "1f3b8",
         " ".join(f"hobbies/music/string/{guitar}" for guitar in (
             "guitar2", "guitar_classical", "guitar_electric", "guitar_electric_bass"))),
    # Tools
    Noun("hammer", "hammers", "tool", "1f528", "household/tools/hammer household/tools/mallet_metal"),
    Noun("wrench", "wrenches", "tool", "1f527",
         "household/tools/wrench household/tools/wrench_adjustable household/tools/wrench_plumbers"),
    # Things of the household and others
    Noun("bag", "bags", "thing", "1f392 1f45c 1f4bc"),
    Noun("ball", "balls", "thing", "26bd 1f3c0 1f3d0 26be=1f94e 1f3c8 1f3c9",
         " ".join(f"sports/{ball}" for ball in (
             "australian_rules_football", "basketball", "cricketball", "football", "soccer", "tennis_ball")),
         "sports/cartoon/volleyball"),
    Noun("book", "books", "thing", "1f4d4=1f4d5=1f4d7=1f4d8=1f4d9 1f4d6"),
    Noun("bottle", "bottles", "thing", "1f37c 1f37e 1f9f4"),
    Noun("camera", "cameras", "thing", "1f4f7=1f4f8 1f4f9 1f3a5", "hobbies/camera_35mm"),
    Noun("candle", "candles", "thing", "1f56f-fe0f", "seasonal/candle", "seasonal/hanukkah/holiday_candle"),
    Noun("castle", "castles", "thing", "1f3ef 1f3f0",
         drawings="town/houses/cartoon/fairytale_castle town/houses/cartoon/fortress", related=("house",)),
    Noun("chair", "chairs", "thing", "1fa91 1f4ba"),
    Noun("clock", "clocks", "thing", "23f0 1f570-fe0f 1f550=1f553=1f557", drawings="symbols/clockface"),
    Noun("computer", "computers", "thing", "1f4bb 1f5a5-fe0f"),
    Noun("cup", "cups", "thing", "2615 1f375", "household/dishes/mug", related=("glass",)),
    Noun("glass", "glasses", "thing", "1f377 1f378 1f943 1f95b", "household/dishes/glass"),
    Noun("house", "houses", "thing", "1f3e0=1f3e1 1f3da-fe0f",
         drawings="town/houses/cartoon/pinkhome town/houses/cartoon/swisshome town/houses/cartoon/wooden_cottage"),
    Noun("key", "keys", "thing", "1f511 1f5dd-fe0f", "household/key"),
    Noun("mailbox", "mailboxes", "thing", "1f4ea=1f4eb=1f4ec=1f4ed 1f4ee", "town/uk_post_box town/usps_mailbox"),
    Noun("planet", "planets", "thing", "1fa90 1f30d=1f30e=1f30f",
         " ".join(f"space/planets/{planet}" for planet in (
             "2_venus", "3_earth", "4_mars", "5_jupiter", "6_saturn", "7_uranus=space/planets/8_neptune"))),
    Noun("teddy bear", "teddy bears", "thing", "1f9f8", f"{_MAMMALS}/bears/toys/edward_bear",
         f"{_MAMMALS}/bears/cartoon/teddy_bear"),
    Noun("phone", "phones", "thing", "260e-fe0f 1f4de 1f4f1"),
    Noun("tent", "tents", "thing", "26fa 1f3aa",
         drawings="town/houses/cartoon/circus town/houses/cartoon/medieval_tent town/houses/cartoon/tent "
         "town/houses/cartoon/tepee", related=("house",)),
    Noun("traffic light", "traffic lights", "thing", "1f6a5 1f6a6",
         drawings="town/roadsigns/stoplight_01_red=town/roadsigns/stoplight_02_yellow="
         "town/roadsigns/stoplight_03_green"),
    Noun("trash can", "trash cans", "thing", "1f5d1-fe0f",
         "household/garbagecan household/home_compost_bin household/wheelie_bin"),
    Noun("umbrella", "umbrellas", "thing", "2602-fe0f=2614 1f302 26f1-fe0f"),
)
# fmt: on
