"""Parts of shapes: what a part is, and how a sketch puts solids down. Pure Python, fast enough for training.

A part is a primitive solid in its own frame (axis z), then turned by `rotation` (its columns are the part's axes in the
shape's frame) and moved to `center`. `size` by kind, all half lengths:

    ellipsoid  radii x, y, z                    box      half x, y, z (rounding included), rounding radius
    frustum    bottom, top radius, half height  torus    ring, tube radius, sin and cos of the half aperture about +y
    capsule    radius, half length of the axis  taper    bottom half x, y, top half x, y, half height
    cup        radius, half height, wall, floor (0: open at both ends)
    bowl       radius, height of the rim above the center, half thickness; open towards +z
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from corrdream.blocks.vocabulary import Rgb

Vector = tuple[float, float, float]
Rotation = tuple[float, float, float, float, float, float, float, float, float]  # row-major
PartKind = Literal["ellipsoid", "box", "frustum", "torus", "capsule", "taper", "cup", "bowl"]
PatternKind = Literal["plain", "striped", "checked", "dotted", "marker"]
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
PATTERN_KINDS: tuple[PatternKind, ...] = get_args(PatternKind)
MAX_PARTS = 16
NUM_SIZES = 5

IDENTITY: Rotation = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Solid:
    """A part's geometry and its name, before it is painted."""

    kind: PartKind
    name: str
    center: Vector
    size: tuple[float, ...]
    rotation: Rotation = IDENTITY
    color: str | Rgb | None = None  # of parts that no caption names

    def moved(self, scale: float, shift: Vector) -> "Solid":
        """The same solid scaled about the origin, then shifted."""
        num_lengths = 2 if self.kind == "torus" else len(self.size)
        size = tuple(value * scale if i < num_lengths else value for i, value in enumerate(self.size))
        x, y, z = self.center
        center = (x * scale + shift[0], y * scale + shift[1], z * scale + shift[2])
        return Solid(self.kind, self.name, center, size, self.rotation, self.color)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A painted solid of a shape; see patterns.py for what scale and phase of a pattern mean."""

    kind: PartKind
    name: str
    rotation: Rotation
    center: Vector
    size: tuple[float, ...]
    color: Rgb
    second_color: Rgb
    pattern: PatternKind
    pattern_scale: Vector
    pattern_phase: Vector


class Sketch:
    """Collects the solids of one thing; lengths are varied with a generator, canonical without one."""

    def __init__(self, random: np.random.Generator | None, spread: float = 0.13) -> None:
        self.solids: list[Solid] = []
        self._spread = spread
        self._draws = random.uniform(-spread, spread, 64).tolist() if random is not None else None

    def vary(self, length: float) -> float:
        """The length, times a factor near 1 where shapes are jittered."""
        return length * (1.0 + self._draws.pop()) if self._draws else length

    def ball(self, name: str, center: Vector, radius: float, color: str | Rgb | None = None) -> None:
        """A sphere."""
        self.solids.append(Solid("ellipsoid", name, center, (radius, radius, radius), IDENTITY, color))

    def ellipsoid(
        self,
        name: str,
        center: Vector,
        radii: Vector,
        rotation: Rotation = IDENTITY,
        color: str | Rgb | None = None,
    ) -> None:
        """An ellipsoid with axes along the part's own."""
        self.solids.append(Solid("ellipsoid", name, center, radii, rotation, color))

    def box(
        self,
        name: str,
        center: Vector,
        half: Vector,
        rounding: float = 0.0,
        rotation: Rotation = IDENTITY,
        color: str | Rgb | None = None,
    ) -> None:
        """A box with rounded edges."""
        self.solids.append(Solid("box", name, center, (*half, rounding), rotation, color))

    def frustum(
        self,
        name: str,
        start: Vector,
        end: Vector,
        radii: tuple[float, float],
        color: str | Rgb | None = None,
    ) -> None:
        """A cylinder, cone or truncated cone between two points, with a radius at each."""
        center, half, rotation = _segment(start, end)
        self.solids.append(Solid("frustum", name, center, (*radii, half), rotation, color))

    def rod(self, name: str, start: Vector, end: Vector, radius: float, color: str | Rgb | None = None) -> None:
        """A capsule around the segment between two points."""
        center, half, rotation = _segment(start, end)
        self.solids.append(Solid("capsule", name, center, (radius, half), rotation, color))

    def torus(
        self,
        name: str,
        center: Vector,
        radii: tuple[float, float],
        rotation: Rotation = IDENTITY,
        half_aperture: float = math.pi,
    ) -> None:
        """A ring about the part's z, or its arc within an angle of the part's +y."""
        full = half_aperture >= math.pi
        arc = (0.0, -1.0) if full else (math.sin(half_aperture), math.cos(half_aperture))
        self.solids.append(Solid("torus", name, center, (*radii, *arc), rotation))

    def taper(
        self,
        name: str,
        center: Vector,
        bottom: tuple[float, float],
        top: tuple[float, float],
        half_height: float,
        rotation: Rotation = IDENTITY,
        color: str | Rgb | None = None,
    ) -> None:
        """A pyramid, prism, wedge or truncated pyramid."""
        self.solids.append(Solid("taper", name, center, (*bottom, *top, half_height), rotation, color))

    def cup(self, name: str, center: Vector, size: tuple[float, float, float, float]) -> None:
        """A hollow cylinder, open on top: radius, half height, wall, floor."""
        self.solids.append(Solid("cup", name, center, size))

    def bowl(self, name: str, center: Vector, size: tuple[float, float, float], rotation: Rotation = IDENTITY) -> None:
        """A hollow part of a sphere: radius, rim height, half thickness."""
        self.solids.append(Solid("bowl", name, center, size, rotation))


def toward(direction: Vector, hint: Vector | None = None) -> Rotation:
    """The rotation that takes the part's z axis to a direction, and its x axis as near to the hint as can be."""
    length = math.hypot(*direction)
    zx, zy, zz = (value / length for value in direction)
    if hint is None:
        hint = (1.0, 0.0, 0.0) if abs(zx) < 0.9 else (0.0, 0.0, -zx)
    along = hint[0] * zx + hint[1] * zy + hint[2] * zz
    xx, xy, xz = hint[0] - along * zx, hint[1] - along * zy, hint[2] - along * zz
    norm = math.hypot(xx, xy, xz)
    xx, xy, xz = xx / norm, xy / norm, xz / norm
    yx, yy, yz = zy * xz - zz * xy, zz * xx - zx * xz, zx * xy - zy * xx
    return (xx, yx, zx, xy, yy, zy, xz, yz, zz)


def turn(axis: Literal["x", "y", "z"], degrees: float) -> Rotation:
    """The right-handed rotation about one of the shape's axes."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    match axis:
        case "x":
            return (1.0, 0.0, 0.0, 0.0, c, -s, 0.0, s, c)
        case "y":
            return (c, 0.0, s, 0.0, 1.0, 0.0, -s, 0.0, c)
        case "z":
            return (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)


def _segment(start: Vector, end: Vector) -> tuple[Vector, float, Rotation]:
    """Center, half length and rotation of the axis from start to end."""
    (ax, ay, az), (bx, by, bz) = start, end
    direction = (bx - ax, by - ay, bz - az)
    center = ((ax + bx) / 2, (ay + by) / 2, (az + bz) / 2)
    rotation = IDENTITY if direction[0] == direction[1] == 0.0 and direction[2] > 0.0 else toward(direction)
    return center, math.hypot(*direction) / 2, rotation
