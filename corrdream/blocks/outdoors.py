"""Sketches of the things of the outdoors: plants, animals, vehicles, buildings. Front +x, standing on z = 0."""

import math
from collections.abc import Callable

from corrdream.blocks.sketch import Sketch, toward, turn
from corrdream.blocks.vocabulary import Rgb

GLASS: Rgb = (0.55, 0.80, 0.95)
SIDES = (-1.0, 1.0)
UP = (0.0, 0.0, 1.0)


def _snowman(s: Sketch) -> None:
    low, middle, top = s.vary(0.42), s.vary(0.31), s.vary(0.22)
    chest = 2 * low + 0.6 * middle - 0.05
    face = chest + middle + 0.7 * top
    s.ball("snowman", (0.0, 0.0, low), low)
    s.ball("snowman", (0.0, 0.0, chest), middle)
    s.ball("snowman", (0.0, 0.0, face), top)
    s.frustum("nose", (0.8 * top, 0.0, face), (top + s.vary(0.22), 0.0, face - 0.02), (0.07, 0.0))
    s.torus("scarf", (0.0, 0.0, chest + 0.82 * middle), (0.62 * middle, 0.08))
    s.frustum("hat", (0.0, 0.0, face + 0.7 * top), (0.0, 0.0, face + 0.7 * top + 0.06), (1.3 * top, 1.3 * top))
    s.frustum("hat", (0.0, 0.0, face + 0.7 * top), (0.0, 0.0, face + top + s.vary(0.22)), (0.8 * top, 0.8 * top))
    for y in SIDES:
        s.ball("eye", (0.87 * top, 0.38 * top * y, face + 0.3 * top), 0.045, "black")
    for height in (-0.25, 0.3):
        s.ball("button", (0.96 * middle, 0.0, chest + height * middle), 0.05, "black")


def _mushroom(s: Sketch) -> None:
    stem, height, cap, dome = s.vary(0.17), s.vary(0.62), s.vary(0.5), s.vary(0.32)
    s.frustum("stem", (0.0, 0.0, 0.0), (0.0, 0.0, height), (1.25 * stem, stem))
    s.ellipsoid("mushroom", (0.0, 0.0, height + 0.1), (cap, cap, dome))
    for azimuth, up in ((0.0, 0.35), (75.0, 0.6), (140.0, 0.3), (215.0, 0.55), (285.0, 0.3), (0.0, 1.0)):
        angle, across = math.radians(azimuth + 20.0), math.sqrt(1.0 - up * up)
        x, y = cap * across * math.cos(angle), cap * across * math.sin(angle)
        s.ball("spot", (0.97 * x, 0.97 * y, height + 0.1 + 0.97 * dome * up), 0.08, "white")


def _tree(s: Sketch) -> None:
    height, radius, crown = s.vary(0.6), s.vary(0.11), s.vary(0.34)
    s.frustum("trunk", (0.0, 0.0, 0.0), (0.0, 0.0, height), (1.3 * radius, radius))
    s.ball("tree", (0.0, 0.0, height + 0.42), crown)
    for azimuth, up in ((30.0, 0.1), (150.0, 0.16), (270.0, 0.06)):
        angle = math.radians(azimuth)
        s.ball("tree", (0.27 * math.cos(angle), 0.27 * math.sin(angle), height + up), s.vary(0.28))


def _pine(s: Sketch) -> None:
    trunk, width, step = s.vary(0.25), s.vary(0.46), s.vary(0.3)
    s.frustum("trunk", (0.0, 0.0, 0.0), (0.0, 0.0, trunk + 0.1), (0.1, 0.1))
    for level, share in enumerate((1.0, 0.78, 0.55)):
        base = trunk + level * step
        s.frustum("pine", (0.0, 0.0, base), (0.0, 0.0, base + 1.6 * step), (width * share, 0.0))
    s.ball("star", (0.0, 0.0, trunk + 3.6 * step), s.vary(0.1))


def _cactus(s: Sketch) -> None:
    pot, height, radius = s.vary(0.34), s.vary(0.75), s.vary(0.17)
    s.frustum("pot", (0.0, 0.0, 0.0), (0.0, 0.0, 0.34), (0.75 * pot, pot))
    s.rod("cactus", (0.0, 0.0, 0.3), (0.0, 0.0, 0.3 + height), radius)
    for y, elbow, tip in ((-0.36, 0.62, 0.9), (0.36, 0.5, 0.72)):
        s.rod("cactus", (0.0, 0.0, elbow), (0.0, y, elbow), 0.09)
        s.rod("cactus", (0.0, y, elbow), (0.0, y, s.vary(tip)), 0.09)
    s.ball("flower", (0.0, 0.0, 0.3 + height + radius + 0.03), s.vary(0.1))


def _duck(s: Sketch) -> None:
    length, width, height, head = s.vary(0.5), s.vary(0.34), s.vary(0.3), s.vary(0.23)
    s.ellipsoid("duck", (0.0, 0.0, height), (length, width, height))
    s.frustum("duck", (-0.7 * length, 0.0, height + 0.04), (-1.25 * length, 0.0, height + 0.3), (0.17, 0.03))
    s.ball("duck", (0.72 * length, 0.0, 2 * height + 0.15), head)
    s.ellipsoid("beak", (0.72 * length + head + 0.06, 0.0, 2 * height + 0.1), (0.14, 0.12, 0.05))
    for y in SIDES:
        s.ellipsoid("wings", (-0.05, 0.92 * y * width, height + 0.06), (0.28, 0.08, 0.16), turn("y", 15.0))
        s.ball("eye", (0.72 * length + 0.72 * head, 0.55 * y * head, 2 * height + 0.24), 0.045, "black")


def _dog(s: Sketch) -> None:
    length, body, leg, head = s.vary(0.36), s.vary(0.2), s.vary(0.32), s.vary(0.2)
    height = leg + 0.6 * body
    face = height + 0.36
    s.rod("dog", (-length, 0.0, height), (length, 0.0, height), body)
    s.ball("dog", (length + 0.16, 0.0, face), head)
    s.rod("dog", (length + 0.16, 0.0, face - 0.05), (length + 0.38, 0.0, face - 0.07), 0.1)
    s.ball("muzzle", (length + 0.48, 0.0, face - 0.05), 0.055, "black")
    s.rod("dog", (-length - 0.1, 0.0, height + 0.08), (-length - 0.3, 0.0, height + s.vary(0.35)), 0.06)
    s.torus("collar", (length + 0.1, 0.0, height + 0.17), (0.15, 0.05), toward((0.5, 0.0, 0.9)))
    for y in SIDES:
        s.ellipsoid("ears", (length + 0.1, 0.95 * y * head, face), (0.09, 0.06, 0.18))
        s.ball("eye", (length + 0.16 + 0.82 * head, 0.45 * y * head, face + 0.4 * head), 0.04, "black")
        for x in (-length, length):
            s.rod("dog", (x, 0.55 * y * body, 0.08), (x, 0.55 * y * body, height), 0.08)


def _robot(s: Sketch) -> None:
    depth, width, body, leg = s.vary(0.2), s.vary(0.3), s.vary(0.3), s.vary(0.34)
    top = leg + 2 * body
    s.box("robot", (0.0, 0.0, leg + body), (depth, width, body), 0.02)
    s.box("panel", (depth, 0.0, leg + 1.1 * body), (0.02, 0.6 * width, 0.45 * body), color="yellow")
    s.box("head", (0.0, 0.0, top + 0.24), (0.18, 0.22, 0.19), 0.02)
    s.frustum("robot", (0.0, 0.0, top - 0.02), (0.0, 0.0, top + 0.1), (0.1, 0.1))
    s.frustum("robot", (0.0, 0.0, top + 0.4), (0.0, 0.0, top + 0.56), (0.03, 0.03))
    s.ball("antenna", (0.0, 0.0, top + 0.58), 0.07, "yellow")
    for y in SIDES:
        s.ball("eyes", (0.17, 0.1 * y, top + 0.28), 0.065)
        s.rod("robot", (0.0, y * (width + 0.1), top - 0.1), (0.0, y * (width + 0.14), leg + s.vary(0.1)), 0.08)
        s.box("robot", (0.0, 0.5 * y * width, leg / 2), (0.11, 0.1, leg / 2 + 0.02))


def _rocket(s: Sketch) -> None:
    radius, body, nose, fin = s.vary(0.25), s.vary(0.8), s.vary(0.4), s.vary(0.25)
    s.frustum("rocket", (0.0, 0.0, 0.12), (0.0, 0.0, 0.12 + body), (radius, radius))
    s.frustum("nose", (0.0, 0.0, 0.12 + body), (0.0, 0.0, 0.12 + body + nose), (radius, 0.0))
    s.frustum("nozzle", (0.0, 0.0, 0.0), (0.0, 0.0, 0.14), (0.2, 0.13), "black")
    s.ball("window", (radius - 0.04, 0.0, 0.12 + 0.68 * body), 0.12, GLASS)
    for quarter in range(4):
        angle = math.radians(45.0 + 90.0 * quarter)
        reach = radius + fin / 2 - 0.02
        center = (reach * math.cos(angle), reach * math.sin(angle), 0.26)
        outward = (math.cos(angle), math.sin(angle), -0.25)
        s.taper("fins", center, (0.26, 0.045), (0.12, 0.04), fin / 2 + 0.03, toward(outward, UP))


def _car(s: Sketch) -> None:
    length, width, body, wheel = s.vary(0.62), s.vary(0.3), s.vary(0.14), s.vary(0.15)
    floor = 0.8 * wheel
    top = floor + 2 * body
    s.box("car", (0.0, 0.0, floor + body), (length, width, body), 0.05)
    s.taper("glass", (-0.08, 0.0, top + 0.09), (0.4, 0.9 * width), (0.24, 0.75 * width), 0.11, color=GLASS)
    s.box("roof", (-0.08, 0.0, top + 0.2), (0.25, 0.78 * width, 0.035), 0.01)
    for y in SIDES:
        s.ball("headlight", (length - 0.02, 0.6 * y * width, floor + 1.1 * body), 0.065, "yellow")
        s.box("taillight", (-length, 0.6 * y * width, floor + 1.2 * body), (0.02, 0.07, 0.04), color="red")
        for x in (-0.6 * length, 0.6 * length):
            s.frustum("wheels", (x, y * (width - 0.08), wheel), (x, y * (width + 0.05), wheel), (wheel, wheel))


def _airplane(s: Sketch) -> None:
    length, radius, span, chord = s.vary(0.6), s.vary(0.12), s.vary(0.68), s.vary(0.15)
    s.rod("airplane", (-length, 0.0, 0.0), (length, 0.0, 0.0), radius)
    s.box("wings", (0.08, 0.0, -0.02), (chord, span, 0.035), 0.02)
    s.box("tail", (-length, 0.0, 0.05), (0.09, 0.28, 0.03), 0.015)
    s.taper("tail", (-length - 0.02, 0.0, 0.25), (0.13, 0.035), (0.07, 0.03), 0.2)
    s.ellipsoid("glass", (0.72 * length, 0.0, 0.75 * radius), (0.14, 0.08, 0.08), color=GLASS)
    for y in SIDES:
        s.frustum("engine", (-0.02, 0.55 * y * span, -0.09), (0.26, 0.55 * y * span, -0.09), (0.07, 0.08), "black")


def _boat(s: Sketch) -> None:
    length, width, hull, mast = s.vary(0.5), s.vary(0.24), s.vary(0.14), s.vary(0.9)
    s.taper("boat", (-0.1, 0.0, hull), (length - 0.1, 0.7 * width), (length, width), hull)
    s.taper("boat", (length + 0.02, 0.0, hull), (hull, width), (hull, 0.0), 0.22, toward((1.0, 0.0, 0.0)))
    s.frustum("mast", (0.0, 0.0, hull), (0.0, 0.0, 2 * hull + mast), (0.04, 0.04), "brown")
    s.taper("sail", (-0.22, 0.0, 2 * hull + 0.08 + 0.4 * mast), (0.24, 0.035), (0.02, 0.03), 0.4 * mast)
    s.box("flag", (0.1, 0.0, 2 * hull + mast - 0.05), (0.1, 0.03, 0.06))


def _house(s: Sketch) -> None:
    half_x, half_y, wall, roof = s.vary(0.42), s.vary(0.5), s.vary(0.3), s.vary(0.2)
    s.box("house", (0.0, 0.0, wall), (half_x, half_y, wall))
    s.taper("roof", (0.0, 0.0, 2 * wall + roof), (half_x + 0.08, half_y + 0.08), (0.0, half_y + 0.08), roof)
    s.box("chimney", (-0.2, 0.25, 2 * wall + 1.4 * roof), (0.07, 0.07, 0.26), color="brown")
    s.box("door", (half_x, 0.0, 0.18), (0.02, 0.1, 0.18))
    for y in SIDES:
        s.box("window", (half_x, 0.6 * y * half_y, 1.2 * wall), (0.02, 0.1, 0.1), color=GLASS)
        s.box("window", (0.0, y * half_y, 1.1 * wall), (0.14, 0.02, 0.11), color=GLASS)


def _tower(s: Sketch) -> None:
    radius, height, roof = s.vary(0.27), s.vary(0.8), s.vary(0.4)
    s.frustum("tower", (0.0, 0.0, 0.0), (0.0, 0.0, height), (1.1 * radius, radius))
    s.frustum("tower", (0.0, 0.0, height), (0.0, 0.0, height + 0.15), (1.3 * radius, 1.3 * radius))
    s.frustum("roof", (0.0, 0.0, height + 0.15), (0.0, 0.0, height + 0.15 + roof), (1.4 * radius, 0.0))
    s.frustum("pole", (0.0, 0.0, height + roof), (0.0, 0.0, height + roof + 0.35), (0.03, 0.03), "black")
    s.box("flag", (0.0, 0.11, height + roof + 0.29), (0.03, 0.11, 0.07))
    s.box("entrance", (1.07 * radius, 0.0, 0.15), (0.06, 0.1, 0.15), color="brown")
    s.box("window", (1.0 * radius, 0.0, 0.6 * height), (0.06, 0.07, 0.1), color="black")


OUTDOOR_SKETCHES: dict[str, Callable[[Sketch], None]] = {
    "airplane": _airplane,
    "boat": _boat,
    "cactus": _cactus,
    "car": _car,
    "dog": _dog,
    "duck": _duck,
    "house": _house,
    "mushroom": _mushroom,
    "pine": _pine,
    "robot": _robot,
    "rocket": _rocket,
    "snowman": _snowman,
    "tower": _tower,
    "tree": _tree,
}
