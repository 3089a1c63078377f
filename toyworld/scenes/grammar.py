"""What a caption of the second toy world may say, and how it is written and read.

    a [small|large] [striped|dotted] COLOUR SHAPE MOTION [and ...] on a COLOUR [striped|checkered|dotted] background

with one to three objects. A video caption gives every object a motion, a picture caption gives none; there an object may have a place
instead. What is not named is the middle: neither small nor large, neither slow nor quick, plain. So every caption has one text and one meaning.
"""

import re
from dataclasses import dataclass

from ..world import COLOURS, ORBITS, SHAPES, STRAIGHT

GROUNDS = {  # dark: every object is brighter, even in the shaded part of its pattern
    "grey": (0.26, 0.26, 0.26),
    "black": (0.03, 0.03, 0.03),
    "brown": (0.26, 0.15, 0.06),
    "green": (0.05, 0.23, 0.09),
    "blue": (0.08, 0.11, 0.29),
    "purple": (0.20, 0.07, 0.24),
}
SIZES = ("small", "", "large")  # "" is neither
TEXTURES = ("plain", "striped", "dotted")
GROUND_TEXTURES = ("plain", "striped", "checkered", "dotted")
SPEEDS = ("slowly", "", "quickly")  # "" is neither
SCALINGS = {"growing": 1.0, "shrinking": -1.0}
MOTIONS = (*STRAIGHT, "still", *ORBITS, "bouncing", *SCALINGS)
WITH_SPEED = (*STRAIGHT, *ORBITS, "bouncing")  # motions that may be slow or quick
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "centre": "in the centre"}
MOST = 3  # objects of a scene
# Every word a caption can hold, for a word-level text encoder.
WORDS = tuple(
    dict.fromkeys(
        ["a", "and", "on", "background", "moving", "standing", "orbiting"]
        + [word for group in (COLOURS, GROUNDS, SHAPES, SIZES, TEXTURES[1:], GROUND_TEXTURES[1:], SPEEDS, MOTIONS) for word in group if word]
        + " ".join(PLACES.values()).split()
    )
)
LONGEST = 9 * MOST + 5  # words: "a small striped red circle orbiting quickly clockwise and" three times, the last "and" is "on"; then the ground's


def _or(words, optional: bool = False) -> str:
    """A pattern that matches one of the words; an optional one brings its own blank."""
    group = "|".join(word for word in words if word)
    return f"(?:({group}) )?" if optional else f"({group})"


_DOES = f" (?:moving {_or(SPEEDS, True)}{_or(STRAIGHT)}|standing (still)|orbiting {_or(SPEEDS, True)}{_or(ORBITS)}|(bouncing)(?: (slowly|quickly))?|{_or(SCALINGS)})"
_THING = re.compile(f"a {_or(SIZES, True)}{_or(TEXTURES[1:], True)}{_or(COLOURS)} {_or(SHAPES)}(?:{_DOES}|(?: {_or(PLACES.values())}))?")
_GROUND = re.compile(f"(.+) on a {_or(GROUNDS)}(?: {_or(GROUND_TEXTURES[1:])})? background")


@dataclass(frozen=True)
class Thing:
    """One object as a caption names it; "" is what the caption leaves out. In a picture `motion` is ""."""

    colour: str
    shape: str
    size: str = ""
    texture: str = "plain"
    motion: str = ""
    speed: str = ""
    place: str = ""

    def __post_init__(self):
        known = (self.colour in COLOURS, self.shape in SHAPES, self.size in SIZES, self.texture in TEXTURES, self.motion in ("", *MOTIONS))
        if not all(known) or self.speed not in SPEEDS or self.place not in ("", *PLACES):
            raise ValueError(f"{self!r} has a word that the grammar does not know.")
        if self.speed and self.motion not in WITH_SPEED:
            raise ValueError(f"A thing that is {self.motion or 'in a picture'} has no speed; only {', '.join(WITH_SPEED)} may be {SPEEDS[0]} or {SPEEDS[2]}.")
        if self.size and self.motion in SCALINGS:
            raise ValueError(f"A {self.motion} thing changes its size, so it cannot be called {self.size}.")
        if self.motion and self.place:
            raise ValueError(f"A thing has a motion (in a clip) or a place (in a picture), not {self.motion!r} and {self.place!r}.")

    def __str__(self) -> str:
        words = ["a", self.size, "" if self.texture == "plain" else self.texture, self.colour, self.shape]
        if self.motion in STRAIGHT:
            words += ["moving", self.speed, self.motion]
        elif self.motion in ORBITS:
            words += ["orbiting", self.speed, self.motion]
        elif self.motion == "still":
            words += ["standing still"]
        else:
            words += [self.motion, self.speed, PLACES.get(self.place, "")]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Ground:
    """The background: one of GROUNDS and one of GROUND_TEXTURES."""

    colour: str = "grey"
    texture: str = "plain"

    def __post_init__(self):
        if self.colour not in GROUNDS or self.texture not in GROUND_TEXTURES:
            raise ValueError(f"{self!r} is not a background; colours are {', '.join(GROUNDS)}, textures {', '.join(GROUND_TEXTURES)}.")

    def __str__(self) -> str:
        return f"a {self.colour} background" if self.texture == "plain" else f"a {self.colour} {self.texture} background"


@dataclass(frozen=True)
class Caption:
    """One to three things on a ground. `str()` gives the caption, `Caption.parse` reads one; a contradiction is a ValueError.

    Example: `str(Caption((Thing("red", "circle", motion="right"),), Ground("green", "striped")))` is
    "a red circle moving right on a green striped background".
    """

    things: tuple[Thing, ...]
    ground: Ground = Ground()

    def __post_init__(self):
        things = self.things
        if not 1 <= len(things) <= MOST:
            raise ValueError(f"A scene has 1 to {MOST} objects, not {len(things)}.")
        if len({(thing.colour, thing.shape) for thing in things}) < len(things):
            raise ValueError("Two objects of one caption must differ in colour or shape.")
        if any(thing.colour == self.ground.colour for thing in things):
            raise ValueError(f"An object of the background's colour ({self.ground.colour}) would not be seen.")
        if len({bool(thing.motion) for thing in things}) > 1:
            raise ValueError("Either every object has a motion (a clip) or none has (a picture).")
        places = [thing.place for thing in things if thing.place]
        if len(set(places)) < len(places):
            raise ValueError("Two objects cannot have the same place.")

    @property
    def moving(self) -> bool:
        """Whether this is the caption of a clip; otherwise it is that of a picture."""
        return bool(self.things[0].motion)

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.things))} on {self.ground}"

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Read a caption; a ValueError says which part does not fit and what would."""
        whole = _GROUND.fullmatch(text.strip())
        if whole is None:
            raise ValueError(f"{text!r} is not a caption of the second toy world: it must end in 'on a <{'|'.join(GROUNDS)}> [{'|'.join(GROUND_TEXTURES[1:])}] background'.")
        things = tuple(_parse_thing(part, text) for part in whole[1].split(" and "))
        return cls(things, Ground(whole[2], whole[3] or "plain"))


def _parse_thing(part: str, text: str) -> Thing:
    found = _THING.fullmatch(part)
    if found is None:
        raise ValueError(
            f"{text!r} is not a caption of the second toy world: {part!r} should be 'a [small|large] [striped|dotted] <{'|'.join(COLOURS)}> <{'|'.join(SHAPES)}>', then "
            "'moving [slowly|quickly] right|left|up|down', 'standing still', 'orbiting [slowly|quickly] clockwise|counterclockwise', 'bouncing [slowly|quickly]', "
            f"'growing', 'shrinking' or, in a picture, nothing or {', '.join(map(repr, PLACES.values()))}."
        )
    size, texture, colour, shape, fast, straight, still, turning, orbit, bouncing, hopping, scaling, place = found.groups()
    motion = straight or still or orbit or bouncing or scaling or ""
    named = next((key for key, words in PLACES.items() if words == place), "")
    return Thing(colour, shape, size or "", texture or "plain", motion, fast or turning or hopping or "", named)
