"""How far solids reach: boxes and norms, in closed form. Pure Python, since training needs thousands a second."""

import math
from collections.abc import Sequence

from corrdream.blocks.sketch import Solid, Vector


def half_size(solid: Solid) -> Vector:
    """Half of the solid's box in its own frame, about its center."""
    size = solid.size
    match solid.kind:
        case "ellipsoid" | "box":
            return size[0], size[1], size[2]
        case "frustum":
            radius = max(size[0], size[1])
            return radius, radius, size[2]
        case "torus":
            return size[0] + size[1], size[0] + size[1], size[1]
        case "capsule":
            return size[0], size[0], size[0] + size[1]
        case "taper":
            return max(size[0], size[2]), max(size[1], size[3]), size[4]
        case "cup":
            return size[0], size[0], size[1]
        case "bowl":
            radius = size[0] + size[2]
            return radius, radius, radius


def bounding_box(solids: Sequence[Solid]) -> tuple[Vector, Vector]:
    """The lowest and highest corner of the box around all solids; tight."""
    lows, highs = [], []
    for axis in range(3):
        spans = [(solid.center[axis], solid.rotation[3 * axis : 3 * axis + 3], solid) for solid in solids]
        highs.append(max(center + support(solid, (u[0], u[1], u[2])) for center, u, solid in spans))
        lows.append(min(center - support(solid, (-u[0], -u[1], -u[2])) for center, u, solid in spans))
    return (lows[0], lows[1], lows[2]), (highs[0], highs[1], highs[2])


def support(solid: Solid, direction: Vector) -> float:
    """How far the solid reaches from its center along a unit direction given in its own frame."""
    x, y, z = direction
    size = solid.size
    across = math.sqrt(max(0.0, 1.0 - z * z))
    match solid.kind:
        case "ellipsoid":
            return math.hypot(x * size[0], y * size[1], z * size[2])
        case "box":
            rounding = size[3]
            return (
                abs(x) * (size[0] - rounding) + abs(y) * (size[1] - rounding) + abs(z) * (size[2] - rounding) + rounding
            )
        case "frustum":
            return max(size[0] * across - size[2] * z, size[1] * across + size[2] * z)
        case "torus":
            return (
                max(x * px + y * py for px, py, _ in _arc_points(size)) + size[1]
                if size[2]
                else size[0] * across + size[1]
            )
        case "capsule":
            return size[1] * abs(z) + size[0]
        case "taper":
            bottom = abs(x) * size[0] + abs(y) * size[1] - size[4] * z
            return max(bottom, abs(x) * size[2] + abs(y) * size[3] + size[4] * z)
        case "cup":
            return size[0] * across + size[1] * abs(z)
        case "bowl":
            radius, rim, thickness = size
            rim_radius = math.sqrt(max(0.0, radius * radius - rim * rim))
            return (radius if z * radius <= rim else rim_radius * across + rim * z) + thickness


def largest_norm(solids: Sequence[Solid]) -> float:
    """A bound of how far any point is from the origin; tight but for ellipsoids off the origin and for bowls."""
    return max(_largest_norm(solid) for solid in solids)


def _largest_norm(solid: Solid) -> float:
    size, center = solid.size, solid.center
    match solid.kind:
        case "ellipsoid":
            return math.hypot(*center) + max(size[:3])
        case "box":
            r = size[3]
            return max(_norms_of(solid, _corners(size[0] - r, size[1] - r, (-(size[2] - r), size[2] - r)))) + r
        case "frustum":
            return max(_circle_norm(solid, size[0], -size[2]), _circle_norm(solid, size[1], size[2]))
        case "torus":
            if size[2]:
                return max(_norms_of(solid, _arc_points(size))) + size[1]
            return _circle_norm(solid, size[0], 0.0) + size[1]
        case "capsule":
            return max(_norms_of(solid, [(0.0, 0.0, -size[1]), (0.0, 0.0, size[1])])) + size[0]
        case "taper":
            bottom = _corners(size[0], size[1], (-size[4],))
            return max(_norms_of(solid, bottom + _corners(size[2], size[3], (size[4],))))
        case "cup":
            return max(_circle_norm(solid, size[0], -size[1]), _circle_norm(solid, size[0], size[1]))
        case "bowl":
            return math.hypot(*center) + size[0] + size[2]


def _corners(half_x: float, half_y: float, heights: tuple[float, ...]) -> list[Vector]:
    return [(x, y, z) for x in (-half_x, half_x) for y in (-half_y, half_y) for z in heights]


def _arc_points(size: tuple[float, ...]) -> list[Vector]:
    half = math.atan2(size[2], size[3])
    angles = [half * k / 6 for k in range(-6, 7)]
    return [(size[0] * math.sin(angle), size[0] * math.cos(angle), 0.0) for angle in angles]


def _norms_of(solid: Solid, points: list[Vector]) -> list[float]:
    """Norms in the shape's frame of points given in the solid's."""
    r, (cx, cy, cz) = solid.rotation, solid.center
    return [
        math.hypot(
            r[0] * x + r[1] * y + r[2] * z + cx,
            r[3] * x + r[4] * y + r[5] * z + cy,
            r[6] * x + r[7] * y + r[8] * z + cz,
        )
        for x, y, z in points
    ]


def _circle_norm(solid: Solid, radius: float, height: float) -> float:
    """The largest norm on the circle about the solid's axis at a height."""
    r, (cx, cy, cz) = solid.rotation, solid.center
    along = cx * r[2] + cy * r[5] + cz * r[8]
    across = math.sqrt(max(0.0, cx * cx + cy * cy + cz * cz - along * along))
    return math.hypot(across + radius, along + height)
