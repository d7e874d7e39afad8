"""The sphere tracer of `render` as one Triton kernel: a program traces one tile of one image, part by part.

Patterns are those of `distance.has_second_color`, with the same names. A program looks at one shape, so branching over
kinds of parts is uniform.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.blocks import distance as torch_twin
from corrdream.blocks import render
from corrdream.blocks.distance import PackedShapes
from corrdream.blocks.distance_triton import (
    COLOR,
    PATTERN_PHASE,
    PATTERN_SCALE,
    ROW,
    SECOND_COLOR,
    local_point,
    part_distance,
)
from corrdream.blocks.patterns import DOT_RADIUS
from corrdream.blocks.sketch import MAX_PARTS, PATTERN_KINDS
from corrdream.structures import CameraBatch

TILE = 16  # side of a program's tile, pixels

_MAX_PARTS = tl.constexpr(MAX_PARTS)
_FAR = tl.constexpr(torch_twin.FAR)
_NORMAL_STEP = tl.constexpr(torch_twin.NORMAL_STEP)
_BOUND = tl.constexpr(render.BOUND)
_MAX_STEPS = tl.constexpr(render.MAX_STEPS)
_SURFACE = tl.constexpr(render.SURFACE)
_DOT_RADIUS = tl.constexpr(DOT_RADIUS)

_STRIPED = tl.constexpr(PATTERN_KINDS.index("striped"))
_CHECKED = tl.constexpr(PATTERN_KINDS.index("checked"))
_DOTTED = tl.constexpr(PATTERN_KINDS.index("dotted"))
_MARKER = tl.constexpr(PATTERN_KINDS.index("marker"))


def trace_triton(
    packed: PackedShapes, cameras: CameraBatch
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"], Float[Tensor, "N 3"], Int[Tensor, " N"]]:
    """Distance, normal, albedo and part a ray, row-major over images; misses are zero and part -1."""
    device = cameras.c2w.device
    num_images, height, width = cameras.c2w.shape[0], cameras.height, cameras.width
    fields = (packed.size, packed.color, packed.second_color, packed.pattern_scale, packed.pattern_phase)
    rows = torch.cat([packed.rotation.flatten(2), packed.center, *fields], dim=-1).float().contiguous()
    kinds = torch.stack([packed.kind, packed.pattern], dim=-1).int().contiguous()
    num_parts = (packed.kind >= 0).sum(-1).int()
    num_rays = num_images * height * width
    distance = torch.zeros(num_rays, device=device)
    normal, albedo = torch.zeros(num_rays, 3, device=device), torch.zeros(num_rays, 3, device=device)
    part = torch.full((num_rays,), -1, dtype=torch.int32, device=device)
    grid = (num_images, triton.cdiv(width, TILE) * triton.cdiv(height, TILE))
    _trace[grid](
        rows,
        kinds,
        num_parts,
        cameras.c2w.float().contiguous(),
        cameras.intrinsics.float().contiguous(),
        distance,
        normal,
        albedo,
        part,
        num_images // len(packed),
        height,
        width,
        tile=TILE,
    )
    return distance, normal, albedo, part.long()


@triton.jit
@no_type_check
def _trace(
    rows,
    kinds,
    num_parts,
    c2w,
    intrinsics,
    distance_out,
    normal_out,
    albedo_out,
    part_out,
    views_a_shape,
    height,
    width,
    tile: tl.constexpr,
):
    image = tl.program_id(0)
    tiles_across = (width + tile - 1) // tile
    lane = tl.arange(0, tile * tile)
    column = (tl.program_id(1) % tiles_across) * tile + lane % tile
    row = (tl.program_id(1) // tiles_across) * tile + lane // tile
    inside = (column < width) & (row < height)
    shape = image // views_a_shape
    rows += shape * _MAX_PARTS * ROW
    kinds += shape * _MAX_PARTS * 2
    count = tl.load(num_parts + shape)

    ox, oy, oz, dx, dy, dz = _ray(c2w + image * 16, intrinsics + image * 9, column, row)
    along = -(ox * dx + oy * dy + oz * dz)
    squared = _BOUND * _BOUND - (ox * ox + oy * oy + oz * oz) + along * along
    reach = tl.sqrt(tl.maximum(squared, 0.0))
    t = tl.maximum(along - reach, 0.0)
    end = along + reach
    active = (inside & (squared > 0.0)).to(tl.int32)
    hit = tl.zeros_like(active)
    steps = 0
    while (steps < _MAX_STEPS) & (tl.sum(active, axis=0) > 0):
        step, _ = _nearest_part(rows, kinds, count, ox + t * dx, oy + t * dy, oz + t * dz)
        is_hit = active * (step < _SURFACE).to(tl.int32)
        hit += is_hit
        active -= is_hit
        t += tl.where(active > 0, step, 0.0)
        active *= (t < end).to(tl.int32)
        steps += 1

    if tl.sum(hit, axis=0) > 0:
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        nx, ny, nz = _outward_normal(rows, kinds, count, x, y, z)
        _, part = _nearest_part(rows, kinds, count, x, y, z)
        red, green, blue = _albedo(rows, kinds, part, x, y, z)
        pixel = (image.to(tl.int64) * height + row) * width + column
        is_hit_here = hit > 0
        tl.store(distance_out + pixel, t, mask=is_hit_here)
        tl.store(normal_out + pixel * 3, nx, mask=is_hit_here)
        tl.store(normal_out + pixel * 3 + 1, ny, mask=is_hit_here)
        tl.store(normal_out + pixel * 3 + 2, nz, mask=is_hit_here)
        tl.store(albedo_out + pixel * 3, red, mask=is_hit_here)
        tl.store(albedo_out + pixel * 3 + 1, green, mask=is_hit_here)
        tl.store(albedo_out + pixel * 3 + 2, blue, mask=is_hit_here)
        tl.store(part_out + pixel, part, mask=is_hit_here)


@triton.jit
@no_type_check
def _ray(c2w, intrinsics, column, row):
    """Origin and unit direction in the world, of the ray through a pixel's center."""
    u = (column + 0.5 - tl.load(intrinsics + 2)) / tl.load(intrinsics)
    v = -(row + 0.5 - tl.load(intrinsics + 5)) / tl.load(intrinsics + 4)
    x = tl.load(c2w) * u + tl.load(c2w + 1) * v - tl.load(c2w + 2)
    y = tl.load(c2w + 4) * u + tl.load(c2w + 5) * v - tl.load(c2w + 6)
    z = tl.load(c2w + 8) * u + tl.load(c2w + 9) * v - tl.load(c2w + 10)
    norm = tl.sqrt(x * x + y * y + z * z)
    return tl.load(c2w + 3), tl.load(c2w + 7), tl.load(c2w + 11), x / norm, y / norm, z / norm


@triton.jit
@no_type_check
def _nearest_part(rows, kinds, count, x, y, z):
    nearest = tl.zeros_like(x) + _FAR
    part = tl.zeros_like(x).to(tl.int32)
    for slot in range(count):
        distance = part_distance(tl.load(kinds + 2 * slot), rows + slot * ROW, x, y, z)
        closer = distance < nearest
        nearest = tl.where(closer, distance, nearest)
        part = tl.where(closer, slot, part)
    return nearest, part


@triton.jit
@no_type_check
def _outward_normal(rows, kinds, count, x, y, z):
    nx, ny, nz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    for vertex in range(4):  # of the tetrahedron, in the order of the torch twin
        sx = tl.where((vertex == 0) | (vertex == 3), 1.0, -1.0)
        sy = tl.where(vertex >= 2, 1.0, -1.0)
        sz = tl.where((vertex == 1) | (vertex == 3), 1.0, -1.0)
        h = _NORMAL_STEP
        distance, _ = _nearest_part(rows, kinds, count, x + sx * h, y + sy * h, z + sz * h)
        nx += sx * distance
        ny += sy * distance
        nz += sz * distance
    norm = tl.maximum(tl.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
    return nx / norm, ny / norm, nz / norm


@triton.jit
@no_type_check
def _albedo(rows, kinds, part, x, y, z):
    """Color of the surface; `part` differs from lane to lane."""
    row = rows + part * ROW
    pattern = tl.load(kinds + 2 * part + 1)
    lx, ly, lz = local_point(row, x, y, z)
    qx = lx * tl.load(row + PATTERN_SCALE) + tl.load(row + PATTERN_PHASE)
    qy = ly * tl.load(row + PATTERN_SCALE + 1) + tl.load(row + PATTERN_PHASE + 1)
    qz = lz * tl.load(row + PATTERN_SCALE + 2) + tl.load(row + PATTERN_PHASE + 2)
    cx, cy, cz = tl.floor(qx + 0.5), tl.floor(qy + 0.5), tl.floor(qz + 0.5)
    striped = _is_odd(tl.floor(qx + qy + qz))
    checked = _is_odd(cx + cy + cz)
    squared = (qx - cx) * (qx - cx) + (qy - cy) * (qy - cy) + (qz - cz) * (qz - cz)
    dotted = squared < _DOT_RADIUS * _DOT_RADIUS
    marker = (qy * qy + qz * qz < 1.0) & (qx > 0.0)
    is_second = ((pattern == _STRIPED) & striped) | ((pattern == _CHECKED) & checked)
    is_second = is_second | ((pattern == _DOTTED) & dotted) | ((pattern == _MARKER) & marker)
    color = tl.where(is_second, SECOND_COLOR, COLOR)
    return tl.load(row + color), tl.load(row + color + 1), tl.load(row + color + 2)


@triton.jit
@no_type_check
def _is_odd(whole):
    return whole - 2.0 * tl.floor(whole * 0.5) > 0.5
