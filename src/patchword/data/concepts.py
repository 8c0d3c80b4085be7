"""What a scene can show: a hand-checked table of things that OpenMoji draws recognisably.

Every noun reads as English after "a" or "an", and none is a kind of another (no "bird" beside "owl", no "hat"
beside "cap"), so that a caption that names the wrong thing is false. Of things that look alike at 20 pixels one is
kept: dog for cat and tiger, swan for goose, horse for donkey, hammer for axe. The open book stands for the closed
one, which would be a square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

RGB = tuple[int, int, int]

TINTS: dict[str, RGB] = {
    "red": (226, 38, 38),
    "orange": (247, 138, 22),
    "yellow": (250, 218, 36),
    "green": (58, 172, 58),
    "blue": (46, 110, 222),
    "purple": (138, 70, 188),
    "pink": (250, 140, 190),
    "brown": (140, 88, 46),
    "gray": (150, 150, 150),
}

_PLAIN = """
    dog 🐕, horse 🐎, cow 🐄, pig 🐖, sheep 🐑, camel 🐪, elephant 🐘, giraffe 🦒, kangaroo 🦘, mouse 🐁, rabbit 🐇,
    hedgehog 🦔, squirrel 🐿, monkey 🐒, lion 🦁, panda 🐼, fox 🦊, bat 🦇, unicorn 🦄, dragon 🐉, dinosaur 🦕,
    penguin 🐧, duck 🦆, swan 🦢, owl 🦉, peacock 🦚, rooster 🐓, frog 🐸, crocodile 🐊, snake 🐍, shrimp 🦐, bee 🐝,
    ladybug 🐞, spider 🕷, caterpillar 🐛, palm tree 🌴, pine tree 🌲, maple leaf 🍁, clover ☘, sunflower 🌻,
    banana 🍌, pear 🍐, strawberry 🍓, lemon 🍋, slice of watermelon 🍉, avocado 🥑, eggplant 🍆, ear of corn 🌽,
    chili pepper 🌶, bunch of grapes 🍇, pair of cherries 🍒, pumpkin 🎃, croissant 🥐, baguette 🥖, pretzel 🥨,
    wedge of cheese 🧀, bag of fries 🍟, slice of pizza 🍕, taco 🌮, bowl of salad 🥗, doughnut 🍩, cookie 🍪,
    birthday cake 🎂, cupcake 🧁, ice cream cone 🍦, bar of chocolate 🍫, lollipop 🍭, glass of wine 🍷,
    mug of beer 🍺, airplane ✈, rocket 🚀, ambulance 🚑, fire engine 🚒, motorcycle 🏍, bicycle 🚲, tram 🚊,
    tractor 🚜, canoe 🛶, parachute 🪂, flying saucer 🛸, traffic light 🚦, stop sign 🛑, castle 🏰, volcano 🌋,
    cloud ☁, sun ☀, rainbow 🌈, globe 🌍, ghost 👻, skull 💀, teddy bear 🧸, soccer ball ⚽, basketball 🏀,
    trophy 🏆, dartboard 🎯, die 🎲, boxing glove 🥊, trumpet 🎺, accordion 🪗, microphone 🎤, camera 📷,
    alarm clock ⏰, candle 🕯, magnifying glass 🔍, hammer 🔨, saw 🪚, wrench 🔧, gear ⚙, magnet 🧲, ladder 🪜,
    pencil ✏, envelope ✉, calendar 📅, shopping cart 🛒, broom 🧹, bathtub 🛁, pill 💊, thermometer 🌡,
    microscope 🔬, pair of glasses 👓, bone 🦴, tooth 🦷, fire extinguisher 🧯
"""
_PLAIN_UNSEEN = """
    zebra 🦓, flamingo 🦩, snail 🐌, crab 🦀, pineapple 🍍, carrot 🥕, hamburger 🍔, cactus 🌵, helicopter 🚁,
    anchor ⚓, hourglass ⌛, snowman ⛄, saxophone 🎷, pair of scissors ✂, robot 🤖
"""
_TINTABLE = """
    car 🚗, bus 🚌, balloon 🎈, tulip 🌷, fish 🐟, butterfly 🦋, key 🔑, book 📖, boot 👢, dress 👗, shirt 👕,
    scarf 🧣, sock 🧦, handbag 👜, backpack 🎒, umbrella ☂, kite 🪁, crown 👑, gift 🎁, guitar 🎸, chair 🪑,
    padlock 🔒, bell 🔔, feather 🪶, mushroom 🍄, star ⭐, moon 🌙, octopus 🐙, turtle 🐢, telephone ☎, teapot 🫖,
    house 🏠
"""
_TINTABLE_UNSEEN = "bucket 🪣, jellyfish 🪼, cap 🧢"

# Nouns that the font itself has in several colours; they never appear without one.
_FAMILIES = {
    "heart": "red ❤, orange 🧡, yellow 💛, green 💚, blue 💙, purple 💜, brown 🤎, black 🖤, white 🤍",
    "circle": "red 🔴, orange 🟠, yellow 🟡, green 🟢, blue 🔵, purple 🟣, brown 🟤, black ⚫, white ⚪",
    "square": "red 🟥, orange 🟧, yellow 🟨, green 🟩, blue 🟦, purple 🟪, brown 🟫, black ⬛, white ⬜",
    "apple": "red 🍎, green 🍏",
    "diamond": "orange 🔶, blue 🔷",
}


@dataclass(frozen=True)
class Concept:
    """One kind of object.

    Attributes:
        noun: A noun or noun phrase that can follow "a" or "an".
        colour: The colour that a caption names; None where it names none.
        glyph: The emoji that shows it.
        tint: The colour to dye the drawing with; None keeps the drawing's own colours.
    """

    noun: str
    colour: str | None
    glyph: str
    tint: RGB | None = None

    @cached_property
    def phrase(self) -> str:
        """What captions call it, with its article: "a red car"."""
        words = self.noun if self.colour is None else f"{self.colour} {self.noun}"
        return f"{article(words)} {words}"


def article(words: str) -> str:
    """The indefinite article, "a" or "an", that `words` take."""
    if words.startswith("hour"):
        return "an"
    return "an" if words[0] in "aeiou" and not words.startswith("uni") else "a"


def _pairs(table: str) -> list[tuple[str, str]]:
    """The (name, glyph) rows of a table above."""
    return [(name, glyph) for name, glyph in (row.strip().rsplit(" ", 1) for row in table.split(","))]


def _plain(table: str) -> list[Concept]:
    return [Concept(noun, None, glyph) for noun, glyph in _pairs(table)]


def _tinted(table: str) -> list[list[Concept]]:
    return [[Concept(n, colour, glyph, rgb) for colour, rgb in TINTS.items()] for n, glyph in _pairs(table)]


def _families() -> list[list[Concept]]:
    return [[Concept(noun, colour, glyph) for colour, glyph in _pairs(row)] for noun, row in _FAMILIES.items()]


def _latin_square(coloured: list[list[Concept]]) -> list[Concept]:
    """One colour of every noun that has nine, each colour as often as any other."""
    return [colours[i % 9] for i, colours in enumerate(coloured) if len(colours) == 9]


_COLOURED = _tinted(_TINTABLE) + _families()

# Combinations of a noun and a colour that training never shows; it shows the noun in eight other colours.
UNSEEN_COMBINATIONS: list[Concept] = _latin_square(_COLOURED)

# Nouns that training never shows in any colour.
UNSEEN_CONCEPTS: list[Concept] = [
    *_plain(_PLAIN_UNSEEN),
    *_plain(_TINTABLE_UNSEEN),
    *(concept for colours in _tinted(_TINTABLE_UNSEEN) for concept in colours),
]

TRAINING_CONCEPTS: list[Concept] = [
    *_plain(_PLAIN),
    *_plain(_TINTABLE),
    *(concept for colours in _COLOURED for concept in colours if concept not in UNSEEN_COMBINATIONS),
]

CONCEPTS: list[Concept] = TRAINING_CONCEPTS + UNSEEN_COMBINATIONS + UNSEEN_CONCEPTS
