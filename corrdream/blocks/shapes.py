"""Captions to shapes: painted solids in canonical pose (front +x, z up), normalized into the unit sphere.

Without a generator a shape is canonical: the ground truth that runs are graded against. With one, its lengths, colors
and patterns are varied a little, as the prior's training wants.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrdream.blocks.bounds import bounding_box, half_size, largest_norm
from corrdream.blocks.distance import (
    PackedShapes,
    outward_normal,
    pack_parts,
    signed_distance,
    surface_attributes,
)
from corrdream.blocks.grammar import Description, Thing, parse_caption
from corrdream.blocks.household import HOUSEHOLD_SKETCHES
from corrdream.blocks.outdoors import OUTDOOR_SKETCHES
from corrdream.blocks.patterns import pattern_lattice
from corrdream.blocks.primitives import PRIMITIVE_SKETCHES
from corrdream.blocks.sketch import MAX_PARTS, Part, PatternKind, Sketch, Solid
from corrdream.blocks.vocabulary import CLAY, COLORS, COMPOSITES, CONVEX_PRIMITIVES, PRIMITIVES, Rgb

__all__ = [
    "HALF_EXTENT",
    "LARGEST_NORM",
    "PackedShapes",
    "Shape",
    "build_shape",
    "outward_normal",
    "pack_shapes",
    "signed_distance",
    "surface_attributes",
]

HALF_EXTENT = 0.66  # of the longest side of a shape's box
LARGEST_NORM = 0.84  # no point of a shape is farther from the origin
COLOR_SPREAD = 0.05  # added to each channel in training
SINK = 0.03  # how deep a thing stands in the one below, in units of that thing's normalized size
POINTED_SINK = 0.16  # the same, on a thing that has no flat top
POINTED = frozenset({"sphere", "cone", "pyramid", "egg", "capsule", "prism", "ring"})
BROAD = 0.16  # second largest half size of a part that shows a pattern well
GAP = 0.08  # between things next to each other

SKETCHES = {**PRIMITIVE_SKETCHES, **HOUSEHOLD_SKETCHES, **OUTDOOR_SKETCHES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A caption's geometry and paint. `named_colors`: (part name, color name) for every color that the caption says."""

    caption: str
    parts: tuple[Part, ...]
    textured: bool  # some part has a pattern or a marker
    homogeneous: bool  # one color all over
    convex: bool
    has_marker: bool
    named_colors: tuple[tuple[str, str], ...]


def build_shape(caption: str, random: np.random.Generator | None = None) -> Shape:
    """The caption's shape: canonical, or varied by a generator. Raises CaptionError if it cannot be read."""
    return shape_of(parse_caption(caption), random)


def shape_of(description: Description, random: np.random.Generator | None = None) -> Shape:
    """The shape of a parsed caption."""
    names = _thing_names(description.things)
    sketches = [_sketch(thing, random) for thing in description.things]
    solids = _normalize(_arrange(description, sketches))
    painter = _Painter(random)
    parts = tuple(
        painter.part(solid, thing, names[index], clay=description.clay)
        for index, thing in enumerate(description.things)
        for solid in solids[index]
    )
    assert len(parts) <= MAX_PARTS, f"{description.caption!r} has {len(parts)} parts"
    first = description.things[0]
    return Shape(
        caption=description.caption,
        parts=parts,
        textured=any(part.pattern != "plain" for part in parts),
        homogeneous=all(part.pattern == "plain" and part.color == parts[0].color for part in parts),
        convex=len(parts) == 1 and first.noun in CONVEX_PRIMITIVES,
        has_marker=any(part.pattern == "marker" for part in parts),
        named_colors=tuple(
            pair for index, thing in enumerate(description.things) for pair in _named(thing, names[index])
        ),
    )


def pack_shapes(shapes: Sequence[Shape]) -> PackedShapes:
    """Shapes as tensors on the CPU, padded to MAX_PARTS parts."""
    return pack_parts([shape.parts for shape in shapes])


def _thing_names(things: tuple[Thing, ...]) -> list[str]:
    """What each thing's main parts are called: its noun, numbered where the caption has it twice."""
    nouns = [thing.noun for thing in things]
    return [noun if nouns.count(noun) == 1 else f"{noun} {nouns[:i].count(noun) + 1}" for i, noun in enumerate(nouns)]


def _named(thing: Thing, name: str) -> list[tuple[str, str]]:
    said = [(name, color) for color in (thing.color, thing.second_color) if color]
    if thing.part and thing.part_color:
        said.append((_part_name(thing, thing.part, name), thing.part_color))
    return [*said, *([(name, thing.dot_color)] if thing.dot_color else [])]


def _part_name(thing: Thing, part: str, name: str) -> str:
    """A part's name in its shape: its own, with the thing's number if that has one."""
    return name if part == thing.noun else part + name.removeprefix(thing.noun)


def _sketch(thing: Thing, random: np.random.Generator | None) -> list[Solid]:
    sketch = Sketch(random)
    SKETCHES[thing.noun](sketch)
    return sketch.solids


def _arrange(description: Description, sketches: list[list[Solid]]) -> list[list[Solid]]:
    """Each thing normalized, then stacked from the last to the first, or side by side on the ground."""
    if description.relation == "alone":
        return sketches
    sized = [_normalize([solids])[0] for solids in sketches]
    if description.relation == "next to":
        return _side_by_side(sized)
    stacked: list[list[Solid]] = []
    height = 0.0
    for index in range(len(sized) - 1, -1, -1):
        scale = 1.0 if index == len(sized) - 1 else 0.85
        low, high = bounding_box(sized[index])
        stacked.insert(0, [solid.moved(scale, (0.0, 0.0, height - scale * low[2])) for solid in sized[index]])
        sink = POINTED_SINK if description.things[index].noun in POINTED else SINK
        height += scale * (high[2] - low[2]) - sink
    return stacked


def _side_by_side(sized: list[list[Solid]]) -> list[list[Solid]]:
    """The first thing on the left as seen from the front, which is -y."""
    placed: list[list[Solid]] = []
    edge = 0.0
    for solids in sized:
        low, high = bounding_box(solids)
        placed.append([solid.moved(1.0, (0.0, edge - low[1], -low[2])) for solid in solids])
        edge += high[1] - low[1] + GAP
    return placed


def _normalize(things: list[list[Solid]]) -> list[list[Solid]]:
    """The things together, centered on their box and scaled to HALF_EXTENT, or less for LARGEST_NORM."""
    every = [solid for solids in things for solid in solids]
    low, high = bounding_box(every)
    middle = tuple(-(a + b) / 2 for a, b in zip(low, high, strict=True))
    centered = [[solid.moved(1.0, (middle[0], middle[1], middle[2])) for solid in solids] for solids in things]
    half = max(b - a for a, b in zip(low, high, strict=True)) / 2
    norm = largest_norm([solid for solids in centered for solid in solids])
    scale = min(HALF_EXTENT / half, LARGEST_NORM / norm)
    return [[solid.moved(scale, (0.0, 0.0, 0.0)) for solid in solids] for solids in centered]


class _Painter:
    """Turns solids into parts; remembers the shade it drew for each color, so that equal colors stay equal."""

    def __init__(self, random: np.random.Generator | None) -> None:
        self._random = random
        self._shades: dict[str | Rgb, Rgb] = {}

    def part(self, solid: Solid, thing: Thing, name: str, *, clay: bool) -> Part:
        """The solid in its colors."""
        is_main = solid.name == thing.noun or self._wears_main_pattern(solid, thing)
        pattern: PatternKind = "plain"
        color, second = self._shade(self._color(solid, thing, clay)), CLAY
        if is_main and thing.pattern and thing.second_color:
            pattern, second = thing.pattern, self._shade(thing.second_color)
        elif is_main and thing.dot_color:
            pattern, second = "marker", self._shade(thing.dot_color)
        scale, phase = pattern_lattice(solid, pattern, self._random)
        return Part(
            kind=solid.kind,
            name=_part_name(thing, solid.name, name),
            rotation=solid.rotation,
            center=solid.center,
            size=solid.size,
            color=color,
            second_color=second,
            pattern=pattern,
            pattern_scale=scale,
            pattern_phase=phase,
        )

    def _wears_main_pattern(self, solid: Solid, thing: Thing) -> bool:
        """Whether it is a broad part in the main color, such as a chair's seat."""
        follows = thing.noun in COMPOSITES and COMPOSITES[thing.noun].parts.get(solid.name, "own") is None
        return follows and solid.name != thing.part and sorted(half_size(solid))[1] > BROAD

    def _color(self, solid: Solid, thing: Thing, clay: bool) -> str | Rgb:
        if clay:
            return CLAY
        if thing.noun in PRIMITIVES:
            return thing.color or CLAY
        composite = COMPOSITES[thing.noun]
        main = thing.color or composite.color
        if solid.name == thing.part and thing.part_color:
            return thing.part_color
        if solid.name in composite.parts:
            return composite.parts[solid.name] or main
        return solid.color or main

    def _shade(self, color: str | Rgb) -> Rgb:
        if color not in self._shades:
            red, green, blue = COLORS[color] if isinstance(color, str) else color
            if self._random is not None:
                shift = self._random.uniform(-COLOR_SPREAD, COLOR_SPREAD, 3).tolist()
                shift = [shift[0]] * 3 if color == CLAY else shift  # clay stays gray
                red, green, blue = (_clip(value + d) for value, d in zip((red, green, blue), shift, strict=True))
            self._shades[color] = (red, green, blue)
        return self._shades[color]


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
