"""The built-in world's words: colors, primitives, composites with their parts, patterns. Plain data.

A composite has a main color, worn by the parts that its own noun names, and named parts with colors of their own, which
a caption may change: "a house" has a red roof, "a white house with a blue roof" has a blue one.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Rgb = tuple[float, float, float]
PatternName = Literal["striped", "checked", "dotted"]

COLORS: dict[str, Rgb] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.05),
    "yellow": (0.97, 0.88, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.52, 0.16, 0.70),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.47, 0.28, 0.13),
    "white": (0.95, 0.95, 0.95),
    "black": (0.07, 0.07, 0.07),
}
CLAY: Rgb = (0.72, 0.72, 0.72)  # every surface of "a clay model of ..."

PATTERNS: tuple[PatternName, ...] = get_args(PatternName)
PRIMITIVES: tuple[str, ...] = (
    "sphere",
    "cube",
    "cylinder",
    "cone",
    "torus",
    "capsule",
    "pyramid",
    "egg",
    "prism",
    "bowl",
    "tube",
    "ring",
)
CONVEX_PRIMITIVES = frozenset({"sphere", "cube", "cylinder", "cone", "capsule", "pyramid", "egg", "prism"})
MARKED_PRIMITIVES = ("sphere", "cube", "cylinder", "cone", "capsule", "pyramid", "egg", "torus")  # may wear a dot


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """A noun's default colors: of what the noun names, and of the parts that a caption may name (None: the same)."""

    color: str
    parts: dict[str, str | None]


def _composite(color: str, **parts: str | None) -> Composite:
    return Composite(color=color, parts=parts)


COMPOSITES: dict[str, Composite] = {
    "airplane": _composite("white", wings="blue", tail="red"),
    "boat": _composite("brown", sail="white", flag="red"),
    "bottle": _composite("green", label="white", cap="red"),
    "cactus": _composite("green", pot="orange", flower="pink"),
    "candle": _composite("white", flame="orange", plate="yellow"),
    "car": _composite("red", wheels="black", roof="white"),
    "chair": _composite("brown", seat=None, legs=None),
    "dog": _composite("brown", ears="black", collar="red"),
    "duck": _composite("yellow", beak="orange", wings=None),
    "dumbbell": _composite("black", handle="white"),
    "hammer": _composite("black", handle="orange"),
    "house": _composite("white", roof="red", door="brown"),
    "ice cream": _composite("pink", cone="brown", cherry="red"),
    "lamp": _composite("yellow", stand="black"),
    "mug": _composite("blue", handle=None),
    "mushroom": _composite("red", stem="white"),
    "pine": _composite("green", trunk="brown", star="yellow"),
    "robot": _composite("blue", head="white", eyes="red"),
    "rocket": _composite("white", fins="red", nose="red"),
    "snowman": _composite("white", hat="black", nose="orange", scarf="red"),
    "sofa": _composite("purple", cushions="pink"),
    "sword": _composite("white", handle="brown", guard="yellow"),
    "table": _composite("brown", legs=None),
    "tower": _composite("orange", roof="blue", flag="red"),
    "tree": _composite("green", trunk="brown"),
    "umbrella": _composite("purple", handle="brown"),
}

PART_WORDS: tuple[str, ...] = tuple(sorted({word for composite in COMPOSITES.values() for word in composite.parts}))
PLURAL_PARTS = frozenset({"wings", "wheels", "legs", "ears", "cushions", "fins", "eyes"})  # take no article
NOUNS: tuple[str, ...] = (*PRIMITIVES, *COMPOSITES)
KINDS_OF_WORDS = f"colors: {', '.join(COLORS)}; nouns: {', '.join(NOUNS)}"
FUNCTION_WORDS = ("a", "an", "and", "clay", "dot", "model", "next", "of", "on", "to", "with")

# Never together in a training caption, in any position: what generalization is measured on.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("purple", "torus"),
        ("black", "sphere"),
        ("yellow", "cone"),
        ("white", "cylinder"),
        ("blue", "capsule"),
        ("brown", "pyramid"),
        ("pink", "rocket"),
        ("green", "mug"),
        ("orange", "house"),
        ("purple", "chair"),
        ("blue", "duck"),
        ("pink", "car"),
        ("red", "lamp"),
        ("yellow", "robot"),
    }
)
