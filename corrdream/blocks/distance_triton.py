"""Distances to parts, as Triton functions: the formulas of `distance.part_distance`, in the same order.

A part is one row of floats; `lx, ly, lz` is a block of points in the part's frame.
"""

from typing import no_type_check

import triton
import triton.language as tl

from corrdream.blocks.sketch import NUM_SIZES, PART_KINDS

# One row of floats a part: rotation, center, size, then the paint.
CENTER = tl.constexpr(9)
SIZE = tl.constexpr(12)
COLOR = tl.constexpr(12 + NUM_SIZES)
SECOND_COLOR = tl.constexpr(15 + NUM_SIZES)
PATTERN_SCALE = tl.constexpr(18 + NUM_SIZES)
PATTERN_PHASE = tl.constexpr(21 + NUM_SIZES)
ROW = tl.constexpr(24 + NUM_SIZES)

_ELLIPSOID = tl.constexpr(PART_KINDS.index("ellipsoid"))
_BOX = tl.constexpr(PART_KINDS.index("box"))
_FRUSTUM = tl.constexpr(PART_KINDS.index("frustum"))
_TORUS = tl.constexpr(PART_KINDS.index("torus"))
_CAPSULE = tl.constexpr(PART_KINDS.index("capsule"))
_TAPER = tl.constexpr(PART_KINDS.index("taper"))
_CUP = tl.constexpr(PART_KINDS.index("cup"))
_BOWL = tl.constexpr(PART_KINDS.index("bowl"))


@triton.jit
@no_type_check
def local_point(row, x, y, z):
    """The point in the part's frame: the transposed rotation of its offset from the center."""
    x -= tl.load(row + CENTER)
    y -= tl.load(row + CENTER + 1)
    z -= tl.load(row + CENTER + 2)
    lx = tl.load(row) * x + tl.load(row + 3) * y + tl.load(row + 6) * z
    ly = tl.load(row + 1) * x + tl.load(row + 4) * y + tl.load(row + 7) * z
    lz = tl.load(row + 2) * x + tl.load(row + 5) * y + tl.load(row + 8) * z
    return lx, ly, lz


@triton.jit
@no_type_check
def part_distance(kind, row, x, y, z):
    """Signed distance of a block of points in the shape's frame to one part; `kind` is a scalar."""
    lx, ly, lz = local_point(row, x, y, z)
    a, b, c = tl.load(row + SIZE), tl.load(row + SIZE + 1), tl.load(row + SIZE + 2)
    d, e = tl.load(row + SIZE + 3), tl.load(row + SIZE + 4)
    radius = tl.sqrt(lx * lx + ly * ly)
    distance = tl.zeros_like(lx)
    if kind == _ELLIPSOID:
        distance = _ellipsoid(lx, ly, lz, a, b, c)
    elif kind == _BOX:
        distance = _box(lx, ly, lz, a, b, c, d)
    elif kind == _FRUSTUM:
        distance = _frustum(radius, lz, a, b, c)
    elif kind == _TORUS:
        distance = _torus(lx, ly, lz, radius, a, b, c, d)
    elif kind == _CAPSULE:
        height = tl.maximum(tl.abs(lz) - b, 0.0)
        distance = tl.sqrt(radius * radius + height * height) - a
    elif kind == _TAPER:
        side_x, side_y = _slope(tl.abs(lx), lz, a, c, e), _slope(tl.abs(ly), lz, b, d, e)
        distance = tl.maximum(tl.abs(lz) - e, tl.maximum(side_x, side_y))
    elif kind == _CUP:
        distance = _cup(radius, lz, a, b, c, d)
    elif kind == _BOWL:
        distance = _bowl(radius, lz, a, b, c)
    return distance


@triton.jit
@no_type_check
def _ellipsoid(x, y, z, a, b, c):
    u, v, w = x / a, y / b, z / c
    scaled = (tl.sqrt(u * u + v * v + w * w) - 1.0) * tl.minimum(a, tl.minimum(b, c))
    return tl.maximum(scaled, tl.sqrt(x * x + y * y + z * z) - tl.maximum(a, tl.maximum(b, c)))


@triton.jit
@no_type_check
def _box(x, y, z, a, b, c, rounding):
    u, v, w = tl.abs(x) - a + rounding, tl.abs(y) - b + rounding, tl.abs(z) - c + rounding
    px, py, pz = tl.maximum(u, 0.0), tl.maximum(v, 0.0), tl.maximum(w, 0.0)
    largest = tl.maximum(u, tl.maximum(v, w))
    return tl.sqrt(px * px + py * py + pz * pz) + tl.minimum(largest, 0.0) - rounding


@triton.jit
@no_type_check
def _frustum(radius, height, bottom, top, half):
    cap_x = radius - tl.minimum(radius, tl.where(height < 0.0, bottom, top))
    cap_y = tl.abs(height) - half
    edge_x, edge_y = top - bottom, 2.0 * half
    along = ((radius - bottom) * edge_x + (height + half) * edge_y) / (edge_x * edge_x + edge_y * edge_y)
    along = tl.minimum(tl.maximum(along, 0.0), 1.0)
    side_x = radius - bottom - edge_x * along
    side_y = height + half - edge_y * along
    magnitude = tl.sqrt(tl.minimum(cap_x * cap_x + cap_y * cap_y, side_x * side_x + side_y * side_y))
    return tl.where((side_x < 0.0) & (cap_y < 0.0), -magnitude, magnitude)


@triton.jit
@no_type_check
def _torus(x, y, z, radius, ring, tube, sine, cosine):
    x = tl.abs(x)
    beyond = cosine * x > sine * y
    across_x = tl.where(beyond, x - ring * sine, radius - ring)
    across_y = tl.where(beyond, y - ring * cosine, 0.0)
    return tl.sqrt(across_x * across_x + across_y * across_y + z * z) - tube


@triton.jit
@no_type_check
def _slope(across, height, bottom, top, half):
    """Distance to one slanted side of a taper."""
    slope = bottom - top
    rise = 2.0 * half
    distance = (across - (bottom + top) * 0.5) * rise + height * slope
    return distance / tl.sqrt(rise * rise + slope * slope)


@triton.jit
@no_type_check
def _cup(radius, height, outer, half, wall, floor):
    side = _rectangle(tl.abs(radius - outer + wall * 0.5) - wall * 0.5, tl.abs(height) - half)
    base = _rectangle(radius - outer, tl.abs(height + half - floor * 0.5) - floor * 0.5)
    return tl.where(floor > 0.0, tl.minimum(side, base), side)


@triton.jit
@no_type_check
def _bowl(radius, height, sphere, rim, thickness):
    rim_radius = tl.sqrt(tl.maximum(sphere * sphere - rim * rim, 0.0))
    above = height * rim_radius > rim * radius
    to_rim = tl.sqrt((radius - rim_radius) * (radius - rim_radius) + (height - rim) * (height - rim))
    to_sphere = tl.abs(tl.sqrt(radius * radius + height * height) - sphere)
    return tl.where(above, to_rim, to_sphere) - thickness


@triton.jit
@no_type_check
def _rectangle(x, y):
    px, py = tl.maximum(x, 0.0), tl.maximum(y, 0.0)
    return tl.sqrt(px * px + py * py) + tl.minimum(tl.maximum(x, y), 0.0)
