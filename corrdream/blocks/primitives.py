"""Sketches of the primitives: one noun, one solid, about the origin."""

from collections.abc import Callable

from corrdream.blocks.sketch import Sketch, toward

UPRIGHT_RING = toward((1.0, 0.0, 0.0))  # a ring stands, so that its hole is seen from the front


def _sphere(s: Sketch) -> None:
    s.ball("sphere", (0.0, 0.0, 0.0), 0.6)


def _cube(s: Sketch) -> None:
    s.box("cube", (0.0, 0.0, 0.0), (s.vary(0.5), s.vary(0.5), s.vary(0.5)))


def _cylinder(s: Sketch) -> None:
    radius, half = s.vary(0.4), s.vary(0.5)
    s.frustum("cylinder", (0.0, 0.0, -half), (0.0, 0.0, half), (radius, radius))


def _cone(s: Sketch) -> None:
    half = s.vary(0.55)
    s.frustum("cone", (0.0, 0.0, -half), (0.0, 0.0, half), (s.vary(0.5), 0.0))


def _torus(s: Sketch) -> None:
    s.torus("torus", (0.0, 0.0, 0.0), (s.vary(0.42), s.vary(0.18)))


def _capsule(s: Sketch) -> None:
    half = s.vary(0.36)
    s.rod("capsule", (0.0, 0.0, -half), (0.0, 0.0, half), s.vary(0.28))


def _pyramid(s: Sketch) -> None:
    side = s.vary(0.55)
    s.taper("pyramid", (0.0, 0.0, 0.0), (side, side), (0.0, 0.0), s.vary(0.45))


def _egg(s: Sketch) -> None:
    across = s.vary(0.4)
    s.ellipsoid("egg", (0.0, 0.0, 0.0), (across, across, s.vary(0.58)))


def _prism(s: Sketch) -> None:
    width = s.vary(0.6)
    s.taper("prism", (0.0, 0.0, 0.0), (s.vary(0.42), width), (0.0, width), s.vary(0.36))


def _bowl(s: Sketch) -> None:
    s.bowl("bowl", (0.0, 0.0, 0.0), (0.6, s.vary(0.08), s.vary(0.04)))


def _tube(s: Sketch) -> None:
    s.cup("tube", (0.0, 0.0, 0.0), (s.vary(0.4), s.vary(0.42), s.vary(0.08), 0.0))


def _ring(s: Sketch) -> None:
    s.torus("ring", (0.0, 0.0, 0.0), (s.vary(0.5), s.vary(0.1)), UPRIGHT_RING)


PRIMITIVE_SKETCHES: dict[str, Callable[[Sketch], None]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "capsule": _capsule,
    "pyramid": _pyramid,
    "egg": _egg,
    "prism": _prism,
    "bowl": _bowl,
    "tube": _tube,
    "ring": _ring,
}
