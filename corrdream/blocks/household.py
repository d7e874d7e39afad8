"""Sketches of the things of a household: furniture, tableware, tools. Front +x, standing on z = 0."""

import math
from collections.abc import Callable

from corrdream.blocks.sketch import Rotation, Sketch, toward, turn

HANDLE: Rotation = toward((1.0, 0.0, 0.0))  # a ring about x, whose arcs lie around +y
HOOK: Rotation = (0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # a ring about x, whose arcs lie around -z
SIDES = (-1.0, 1.0)


def _table(s: Sketch) -> None:
    half_x, half_y, height, top = s.vary(0.42), s.vary(0.6), s.vary(0.55), s.vary(0.05)
    leg = s.vary(0.05)
    s.box("table", (0.0, 0.0, height + top), (half_x, half_y, top), 0.015)
    for x in SIDES:
        for y in SIDES:
            s.box("legs", (x * (half_x - 0.08), y * (half_y - 0.08), height / 2), (leg, leg, height / 2 + 0.01))


def _chair(s: Sketch) -> None:
    half, height, leg, back = s.vary(0.32), s.vary(0.42), s.vary(0.045), s.vary(0.36)
    s.box("seat", (0.0, 0.0, height + 0.05), (half, half, 0.05), 0.015)
    s.box("chair", (-half + 0.05, 0.0, height + 0.1 + back), (0.05, half, back), 0.015)
    for x in SIDES:
        for y in SIDES:
            s.box("legs", (x * (half - leg), y * (half - leg), height / 2), (leg, leg, height / 2 + 0.01))


def _sofa(s: Sketch) -> None:
    depth, width, seat, back = s.vary(0.32), s.vary(0.62), s.vary(0.17), s.vary(0.34)
    s.box("sofa", (0.0, 0.0, seat), (depth, width, seat), 0.03)
    s.box("sofa", (-depth + 0.09, 0.0, seat + back), (0.09, width, back), 0.04)
    for y in SIDES:
        s.box("sofa", (0.0, y * (width - 0.08), seat + 0.12), (depth, 0.08, seat + 0.12), 0.04)
        s.box(
            "cushions", (0.1, y * (width - 0.16) / 2, 2 * seat + 0.06), (depth - 0.11, (width - 0.18) / 2, 0.07), 0.04
        )


def _lamp(s: Sketch) -> None:
    height, bottom, top, shade = s.vary(0.75), s.vary(0.42), s.vary(0.22), s.vary(0.4)
    s.frustum("stand", (0.0, 0.0, 0.0), (0.0, 0.0, 0.08), (0.3, 0.26))
    s.frustum("stand", (0.0, 0.0, 0.05), (0.0, 0.0, height + 0.1), (0.05, 0.05))
    s.frustum("lamp", (0.0, 0.0, height), (0.0, 0.0, height + shade), (bottom, top))


def _mug(s: Sketch) -> None:
    radius, half, ring = s.vary(0.4), s.vary(0.45), s.vary(0.25)
    s.cup("mug", (0.0, 0.0, half), (radius, half, 0.07, 0.08))
    s.torus("handle", (0.0, radius + 0.02, half), (ring, 0.07), HANDLE, math.radians(92.0))


def _bottle(s: Sketch) -> None:
    radius, body, neck, length = s.vary(0.28), s.vary(0.75), s.vary(0.1), s.vary(0.26)
    shoulder = body + 0.22
    s.frustum("bottle", (0.0, 0.0, 0.0), (0.0, 0.0, body), (radius, radius))
    s.frustum("bottle", (0.0, 0.0, body), (0.0, 0.0, shoulder), (radius, neck))
    s.frustum("bottle", (0.0, 0.0, shoulder), (0.0, 0.0, shoulder + length), (neck, neck))
    s.frustum("cap", (0.0, 0.0, shoulder + length), (0.0, 0.0, shoulder + length + 0.1), (neck + 0.04, neck + 0.04))
    s.frustum("label", (0.0, 0.0, 0.3 * body), (0.0, 0.0, 0.7 * body), (radius + 0.015, radius + 0.015))


def _candle(s: Sketch) -> None:
    radius, height, plate = s.vary(0.17), s.vary(0.7), s.vary(0.38)
    s.frustum("plate", (0.0, 0.0, 0.0), (0.0, 0.0, 0.08), (plate, plate))
    s.torus("plate", (0.0, plate, 0.08), (0.12, 0.04), HANDLE)
    s.frustum("candle", (0.0, 0.0, 0.06), (0.0, 0.0, height), (radius, radius))
    s.frustum("wick", (0.0, 0.0, height), (0.0, 0.0, height + 0.1), (0.03, 0.03), color="black")
    s.ellipsoid("flame", (0.0, 0.0, height + 0.2), (0.1, 0.1, s.vary(0.15)))


def _umbrella(s: Sketch) -> None:
    radius, rim, length = s.vary(0.6), s.vary(-0.14), s.vary(0.75)
    s.bowl("umbrella", (0.0, 0.0, 0.0), (radius, rim, 0.035), turn("x", 180.0))
    s.rod("handle", (0.0, 0.0, -length + 0.2), (0.0, 0.0, radius + 0.08), 0.045)
    s.torus("handle", (0.0, 0.14, -length + 0.2), (0.14, 0.05), HOOK, math.radians(90.0))


def _hammer(s: Sketch) -> None:
    length, head, radius = s.vary(0.95), s.vary(0.3), s.vary(0.13)
    s.rod("handle", (0.0, 0.0, 0.06), (0.0, 0.0, length), 0.07)
    s.frustum("hammer", (0.0, -0.12, length), (0.0, head, length), (radius, radius))
    s.frustum("hammer", (0.0, head, length), (0.0, head + 0.1, length), (radius + 0.05, radius + 0.05))
    s.taper("hammer", (0.0, -0.3, length), (0.11, radius), (0.11, 0.02), 0.2, toward((0.0, -1.0, 0.0)))


def _dumbbell(s: Sketch) -> None:
    half, radius, width = s.vary(0.3), s.vary(0.36), s.vary(0.11)
    s.frustum("handle", (0.0, -half - 0.05, 0.0), (0.0, half + 0.05, 0.0), (0.09, 0.09))
    for y in SIDES:
        inner, outer = y * half, y * (half + 2 * width)
        s.frustum("dumbbell", (0.0, inner, 0.0), (0.0, outer, 0.0), (radius, radius))
        s.frustum("dumbbell", (0.0, outer, 0.0), (0.0, outer + y * 0.12, 0.0), (0.7 * radius, 0.7 * radius))


def _sword(s: Sketch) -> None:
    blade, width, guard, grip = s.vary(0.75), s.vary(0.11), s.vary(0.3), s.vary(0.28)
    s.ball("guard", (0.0, 0.0, -grip - 0.07), 0.09)
    s.rod("handle", (0.0, 0.0, -grip), (0.0, 0.0, 0.0), 0.06)
    s.box("guard", (0.0, 0.0, 0.05), (0.08, guard, 0.05), 0.02)
    s.box("sword", (0.0, 0.0, 0.08 + blade / 2), (0.045, width, blade / 2))
    s.taper("sword", (0.0, 0.0, 0.08 + blade + 0.1), (0.045, width), (0.0, 0.0), 0.1)


def _ice_cream(s: Sketch) -> None:
    height, radius, scoop = s.vary(0.75), s.vary(0.27), s.vary(0.33)
    s.frustum("cone", (0.0, 0.0, 0.0), (0.0, 0.0, height), (0.02, radius))
    s.torus("ice cream", (0.0, 0.0, height + 0.04), (radius - 0.02, 0.08))
    s.ball("ice cream", (0.0, 0.0, height + 0.16), scoop)
    s.ball("cherry", (0.0, 0.0, height + 0.16 + scoop + 0.06), s.vary(0.11))


HOUSEHOLD_SKETCHES: dict[str, Callable[[Sketch], None]] = {
    "bottle": _bottle,
    "candle": _candle,
    "chair": _chair,
    "dumbbell": _dumbbell,
    "hammer": _hammer,
    "ice cream": _ice_cream,
    "lamp": _lamp,
    "mug": _mug,
    "sofa": _sofa,
    "sword": _sword,
    "table": _table,
    "umbrella": _umbrella,
}
