"""Where a part's pattern lies: `q = scale * p + phase` takes points of the part's frame to the pattern's lattice.

striped: the second color where floor(q_x + q_y + q_z) is odd. checked: where the sum of the rounded coordinates is odd.
dotted: within DOT_RADIUS of a lattice point. marker: the disk q_y^2 + q_z^2 < 1, on the side q_x > 0.
Cells fit the part, so that its faces lie in the middle of a cell, where no rounding can flip the color.
"""

import numpy as np

from corrdream.blocks.bounds import half_size
from corrdream.blocks.sketch import IDENTITY, PatternKind, Solid, Vector

CELL = 0.27  # side of a check, distance of dots; world units, about 10 pixels at 64 x 64
STRIPE = 0.2  # width of a stripe
STRIPE_NORMAL = (0.5, 0.5, 0.7071)  # oblique, so that every side shows stripes
DOT_RADIUS = 0.38  # of a cell
PHASE_SPREAD = 0.12  # of a cell, in training
_NOWHERE = (0.0, 0.0, 0.0)


def pattern_lattice(solid: Solid, pattern: PatternKind, random: np.random.Generator | None) -> tuple[Vector, Vector]:
    """Scale and phase of a solid's pattern."""
    match pattern:
        case "plain":
            return _NOWHERE, _NOWHERE
        case "marker":
            return _marker(solid)
        case "striped":
            a, b, c = (value / STRIPE for value in STRIPE_NORMAL)
            return (a, b, c), (_shift(random)[0], 0.0, 0.5)
        case "checked" | "dotted":
            halves = half_size(solid)
            a, b, c = (max(1, round(half / CELL)) / half for half in halves)
            return (a, b, c), _shift(random)


def _shift(random: np.random.Generator | None) -> Vector:
    if random is None:
        return _NOWHERE
    x, y, z = random.uniform(-PHASE_SPREAD, PHASE_SPREAD, 3).tolist()
    return x, y, z


def _marker(solid: Solid) -> tuple[Vector, Vector]:
    """A disk on the front where the solid is broad; in the shape's plane, so the solid must stand upright."""
    assert solid.rotation == IDENTITY, "only upright solids wear a marker"
    _, half_y, half_z = half_size(solid)
    narrow = min(half_y, half_z)
    depth, height, radius = 0.0, 0.0, max(0.42 * narrow, min(0.65 * narrow, 0.13))
    if solid.kind == "torus":
        depth, radius = solid.size[0], 0.8 * solid.size[1]
    elif solid.kind in ("frustum", "taper") and solid.size != (solid.size[0], solid.size[0], half_z):
        height, radius = -0.3 * half_z, 0.32 * half_y  # a cone or pyramid is broad below
    return (1.0, 1.0 / radius, 1.0 / radius), (-depth, 0.0, -height / radius)
