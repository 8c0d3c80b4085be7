"""The objects of the scenes: a hand-checked table of things that are recognizable in OpenMoji's drawings.

Every noun is correct English after "a" or "an". No noun is a kind of another noun (there is "owl" but no "bird", and
"cap" but no "hat"), so a caption that names the wrong thing is false. If things look alike at 20 pixels, the table has
only one of them: dog instead of cat and tiger, swan instead of goose, horse instead of donkey, hammer instead of axe.
The book is open because a closed book would be a square.
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

# Nouns that the font has in several colors; these nouns never appear without a color.
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
        color: The color in captions; None if captions name no color.
        glyph: The emoji.
        tint: The RGB color that the drawing is tinted with; None keeps the original colors.
    """

    noun: str
    color: str | None
    glyph: str
    tint: RGB | None = None

    @cached_property
    def phrase(self) -> str:
        """The noun phrase in captions, with its article: "a red car"."""
        words = self.noun if self.color is None else f"{self.color} {self.noun}"
        return f"{article(words)} {words}"


def article(words: str) -> str:
    """Return the indefinite article of `words`: "a" or "an"."""
    if words.startswith("hour"):
        return "an"
    return "an" if words[0] in "aeiou" and not words.startswith("uni") else "a"


def _pairs(table: str) -> list[tuple[str, str]]:
    """Return the (name, glyph) pairs of one of the tables above."""
    return [(name, glyph) for name, glyph in (row.strip().rsplit(" ", 1) for row in table.split(","))]


def _plain(table: str) -> list[Concept]:
    return [Concept(noun, None, glyph) for noun, glyph in _pairs(table)]


def _tinted(table: str) -> list[list[Concept]]:
    return [[Concept(n, color, glyph, rgb) for color, rgb in TINTS.items()] for n, glyph in _pairs(table)]


def _families() -> list[list[Concept]]:
    return [[Concept(noun, color, glyph) for color, glyph in _pairs(row)] for noun, row in _FAMILIES.items()]


def _latin_square(colored: list[list[Concept]]) -> list[Concept]:
    """Return one colored concept per noun that has nine colors, cycling through the colors."""
    return [colors[i % 9] for i, colors in enumerate(colored) if len(colors) == 9]


_COLORED = _tinted(_TINTABLE) + _families()

# Combinations of noun and color that training never shows; it shows each of these nouns in eight other colors.
UNSEEN_COMBINATIONS: list[Concept] = _latin_square(_COLORED)

# Nouns that training never shows in any color.
UNSEEN_CONCEPTS: list[Concept] = [
    *_plain(_PLAIN_UNSEEN),
    *_plain(_TINTABLE_UNSEEN),
    *(concept for colors in _tinted(_TINTABLE_UNSEEN) for concept in colors),
]

TRAINING_CONCEPTS: list[Concept] = [
    *_plain(_PLAIN),
    *_plain(_TINTABLE),
    *(concept for colors in _COLORED for concept in colors if concept not in UNSEEN_COMBINATIONS),
]

CONCEPTS: list[Concept] = TRAINING_CONCEPTS + UNSEEN_COMBINATIONS + UNSEEN_CONCEPTS
