"""Captions of the built-in world: which there are, what they mean, and which are kept out of training.

A caption names one thing, two things ("on", "next to"), or a stack of three (never in training):

    thing     = a COLOR PRIMITIVE [with a COLOR dot] | a [COLOR] COMPOSITE [with a COLOR PART]
    patterned = a COLOR and COLOR (striped | checked | dotted) NOUN
    caption   = thing | thing on thing | thing next to thing | thing on thing on thing
              | a clay model of (things without colors)
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corrdream.blocks.vocabulary import (
    COLORS,
    COMPOSITES,
    FUNCTION_WORDS,
    HELD_OUT_PAIRS,
    KINDS_OF_WORDS,
    MARKED_PRIMITIVES,
    NOUNS,
    PART_WORDS,
    PATTERNS,
    PLURAL_PARTS,
    PRIMITIVES,
    PatternName,
)
from corrdream.words import near

MAX_TOKENS = 24
Relation = Literal["alone", "on", "next to"]
Split = Literal["train", "held_out_pairs", "held_out_composition"]
_FORMS = (
    "'a red sphere', 'a red and white striped sphere', 'a blue cube with a yellow dot', 'a snowman', "
    "'a white house with a blue roof', 'THING on THING', 'THING next to THING', 'a clay model of a chair'"
)


class CaptionError(ValueError):
    """A caption that this world cannot draw: says which word or which form, and what is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One noun and what is said of it; no color means the composite's own, or clay."""

    noun: str
    color: str | None = None
    second_color: str | None = None  # of the pattern
    pattern: PatternName | None = None
    part: str | None = None
    part_color: str | None = None
    dot_color: str | None = None  # of the disk on the front

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (color, noun) that this thing's words put together, colors that go without saying included."""
        default = COMPOSITES[self.noun].color if self.noun in COMPOSITES else None
        first = self.color or default
        found = [(color, self.noun) for color in (first, self.second_color) if color]
        found += [(self.part_color, self.part)] if self.part and self.part_color else []
        found += [(self.dot_color, "dot")] if self.dot_color else []
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a caption means: things from left to right of the caption (a stack: from top to bottom)."""

    caption: str
    things: tuple[Thing, ...]
    relation: Relation
    clay: bool

    def is_held_out_pair(self) -> bool:
        """Whether some color meets a noun that it never meets in training."""
        return any(pair in HELD_OUT_PAIRS for thing in self.things for pair in thing.pairs())

    def is_held_out_composition(self) -> bool:
        """Whether it is a stack of three."""
        return len(self.things) > 2


@functools.cache
def words() -> tuple[str, ...]:
    """The whole vocabulary, sorted; "next to" and "ice cream" count as two words each."""
    nouns = {word for noun in NOUNS for word in noun.split()}
    return tuple(sorted({*FUNCTION_WORDS, *COLORS, *PATTERNS, *PART_WORDS, *nouns}))


def parse_caption(caption: str) -> Description:
    """The meaning of a caption; case and a/an do not matter.

    Raises CaptionError, one line: an unknown word with its near matches, or the sentence forms that are accepted.
    """
    tokens = caption.lower().replace(".", " ").replace(",", " ").split()
    _check_words(caption, tokens)
    parser = _Parser(caption=caption, tokens=["a" if token == "an" else token for token in tokens])
    return parser.description()


def _check_words(caption: str, tokens: list[str]) -> None:
    vocabulary = words()
    for token in tokens:
        if token not in vocabulary:
            meant = near(token, vocabulary)
            hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"{KINDS_OF_WORDS}."
            raise CaptionError(f"the built-in world has no word {token!r} (in {caption!r}); {hint}")
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise CaptionError(f"a caption has 1 to {MAX_TOKENS} words, got {len(tokens)}: {caption!r}.")


class _Parser:
    """Recursive descent over the tokens of one caption."""

    def __init__(self, caption: str, tokens: list[str]) -> None:
        self._caption = caption
        self._tokens = tokens
        self._position = 0

    def description(self) -> Description:
        clay = self._take("a", "clay", "model", "of")
        things = [self._thing(clay)]
        relation: Relation = "alone"
        if self._take("next", "to"):
            relation = "next to"
            things.append(self._thing(clay))
        while relation != "next to" and len(things) < 3 and self._take("on"):
            relation = "on"
            things.append(self._thing(clay))
        if self._position < len(self._tokens):
            raise self._error(f"cannot go on at {' '.join(self._tokens[self._position :])!r}")
        if sum(thing.noun in COMPOSITES for thing in things) > 1:
            raise self._error(f"at most one thing may be other than {', '.join(PRIMITIVES)}")
        return Description(caption=self._caption, things=tuple(things), relation=relation, clay=clay)

    def _thing(self, clay: bool) -> Thing:
        self._take("a")
        color, second, pattern = self._colors()
        noun = self._noun()
        part, part_color, dot_color = self._with(noun)
        if clay and (color or part or dot_color):
            raise self._error("a clay model has no colors")
        if not clay and color is None and noun in PRIMITIVES:
            raise self._error(f"{noun!r} needs a color, as in 'a red {noun}'")
        if dot_color and pattern:
            raise self._error("a thing has a pattern or a dot, not both")
        return Thing(
            noun=noun,
            color=color,
            second_color=second,
            pattern=pattern,
            part=part,
            part_color=part_color,
            dot_color=dot_color,
        )

    def _colors(self) -> tuple[str | None, str | None, PatternName | None]:
        color = self._one_of(COLORS)
        if color is None or not self._take("and"):
            return color, None, None
        second = self._one_of(COLORS)
        pattern = next((name for name in PATTERNS if self._take(name)), None)
        if second is None or pattern is None or second == color:
            raise self._error(f"'{color} and' needs another color and one of {', '.join(PATTERNS)}")
        return color, second, pattern

    def _noun(self) -> str:
        noun = next((noun for noun in NOUNS if self._take(*noun.split())), None)
        if noun is None:
            found = self._tokens[self._position] if self._position < len(self._tokens) else "the end"
            raise self._error(f"expected a noun, found {found!r}")
        return noun

    def _with(self, noun: str) -> tuple[str | None, str | None, str | None]:
        """Part, its color, and the dot's color, after "with"."""
        if not self._take("with"):
            return None, None, None
        self._take("a")
        color = self._one_of(COLORS)
        accepted = COMPOSITES[noun].parts if noun in COMPOSITES else ("dot",) if noun in MARKED_PRIMITIVES else ()
        part = self._one_of(accepted)
        if color is None or part is None:
            raise self._error(f"{noun!r} can be 'with' a color and one of: {', '.join(accepted) or 'nothing'}")
        return (None, None, color) if part == "dot" else (part, color, None)

    def _take(self, *expected: str) -> bool:
        end = self._position + len(expected)
        if tuple(self._tokens[self._position : end]) != expected:
            return False
        self._position = end
        return True

    def _one_of(self, options: Iterable[str]) -> str | None:
        return next((option for option in options if self._take(option)), None)

    def _error(self, what: str) -> CaptionError:
        return CaptionError(f"cannot read {self._caption!r}: {what}; accepted are {_FORMS}.")


def sample_caption(random: np.random.Generator, split: Split) -> str:
    """A random caption of a split; shares of the train split: 40% patterned or marked, 40% plain, 20% of one color.

    `held_out_pairs` always has a pair that training never shows; `held_out_composition` is a stack of three, without.
    """
    share = random.random()  # before rejection, which would favor the kinds with fewer colors
    while True:
        caption = _draw_caption(random, split, share)
        if _split_of(parse_caption(caption)) == split:
            return caption


def _split_of(description: Description) -> Split:
    if description.is_held_out_pair():
        return "held_out_pairs"
    return "held_out_composition" if description.is_held_out_composition() else "train"


def _draw_caption(random: np.random.Generator, split: Split, share: float) -> str:
    if split == "held_out_composition":
        return " on ".join(_draw_primitive(random) for _ in range(3))
    pair = sorted(HELD_OUT_PAIRS)[random.integers(len(HELD_OUT_PAIRS))] if split == "held_out_pairs" else None
    if share < 0.10 and pair is None:
        return f"a clay model of {_join(random, [_article(noun) for noun in _draw_nouns(random)])}"
    if share < 0.40:
        return _draw_patterned(random, pair)
    if share < 0.50:
        return _draw_marked(random, pair)
    if share < 0.60:
        return _draw_primitive(random, pair) if pair is None or pair[1] in PRIMITIVES else _draw_composite(random, pair)
    if share < 0.80:
        first = _draw_thing(random, pair)
        return _join(random, [first, _draw_primitive(random)])
    return _draw_composite(random, pair)


def _draw_patterned(random: np.random.Generator, pair: tuple[str, str] | None) -> str:
    """One patterned thing, sometimes beside or on another one."""
    color, noun = pair or (
        _choice(random, tuple(COLORS)),
        _choice(random, NOUNS if random.random() < 0.4 else PRIMITIVES),
    )
    second = _choice(random, tuple(name for name in COLORS if name != color))
    first = _article(f"{color} and {second} {_choice(random, PATTERNS)} {noun}")
    if random.random() < 0.7:
        return first
    return _join(random, [first, _draw_primitive(random)], shuffle=True)


def _draw_marked(random: np.random.Generator, pair: tuple[str, str] | None) -> str:
    color, noun = pair if pair and pair[1] in MARKED_PRIMITIVES else (None, _choice(random, MARKED_PRIMITIVES))
    color = color or _choice(random, tuple(COLORS))
    dot = _choice(random, tuple(name for name in COLORS if name != color))
    return f"{_article(f'{color} {noun}')} with {_article(f'{dot} dot')}"


def _draw_thing(random: np.random.Generator, pair: tuple[str, str] | None = None) -> str:
    """A plain primitive, or a composite a third of the time."""
    is_composite = pair[1] in COMPOSITES if pair else random.random() < 0.33
    return _draw_composite(random, pair) if is_composite else _draw_primitive(random, pair)


def _draw_primitive(random: np.random.Generator, pair: tuple[str, str] | None = None) -> str:
    if pair and pair[1] in PRIMITIVES:
        return _article(f"{pair[0]} {pair[1]}")
    return _article(f"{_choice(random, tuple(COLORS))} {_choice(random, PRIMITIVES)}")


def _draw_composite(random: np.random.Generator, pair: tuple[str, str] | None = None) -> str:
    """A composite in its own color or another, half the time with one part's color said."""
    noun = pair[1] if pair and pair[1] in COMPOSITES else _choice(random, tuple(COMPOSITES))
    color = pair[0] if pair and pair[1] == noun else (_choice(random, tuple(COLORS)) if random.random() < 0.6 else "")
    thing = _article(f"{color} {noun}".strip())
    if random.random() < 0.5:
        return thing
    part = _choice(random, tuple(COMPOSITES[noun].parts))
    words_of_part = f"{_choice(random, tuple(COLORS))} {part}"
    return f"{thing} with {words_of_part if part in PLURAL_PARTS else _article(words_of_part)}"


def _draw_nouns(random: np.random.Generator) -> list[str]:
    if random.random() < 0.7:
        return [_choice(random, NOUNS)]
    return [_choice(random, PRIMITIVES), _choice(random, PRIMITIVES)]


def _join(random: np.random.Generator, things: list[str], shuffle: bool = False) -> str:
    if shuffle and random.random() < 0.5:
        things = things[::-1]
    return (" on " if random.random() < 0.6 else " next to ").join(things)


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _choice(random: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(random.integers(len(options)))]
