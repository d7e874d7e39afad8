"""Signed distances and surface colors of many shapes at once, in torch, on any device.

Every formula is a true distance or a smaller one (ellipsoids, tapers outside), with slope at most 1 everywhere: rays
never step through a surface. Points are in the shape's frame; K shapes, P points, N = MAX_PARTS parts.
The formulas of kinds and patterns stand again in `render_triton`, in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.blocks.patterns import DOT_RADIUS
from corrdream.blocks.sketch import MAX_PARTS, NUM_SIZES, PART_KINDS, PATTERN_KINDS, Part, PartKind

FAR = 10.0  # distance to a part that is not there
NORMAL_STEP = 1e-3
# The vertices of a tetrahedron: four distances give a gradient.
_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShapes:
    """K shapes, padded to MAX_PARTS parts."""

    kind: Int[Tensor, "K N"]  # index into PART_KINDS, -1 where there is no part
    rotation: Float[Tensor, "K N 3 3"]
    center: Float[Tensor, "K N 3"]
    size: Float[Tensor, "K N 5"]
    color: Float[Tensor, "K N 3"]
    second_color: Float[Tensor, "K N 3"]
    pattern: Int[Tensor, "K N"]  # index into PATTERN_KINDS
    pattern_scale: Float[Tensor, "K N 3"]
    pattern_phase: Float[Tensor, "K N 3"]
    kinds: tuple[tuple[int, ...], ...]  # `kind` on the host

    def to(self, device: torch.device | str) -> "PackedShapes":
        """The same shapes on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__ if name != "kinds"}
        return PackedShapes(kinds=self.kinds, **moved)

    def select(self, index: int) -> "PackedShapes":
        """One of the shapes, as a batch of one."""
        picked = {name: getattr(self, name)[index : index + 1] for name in self.__slots__ if name != "kinds"}
        return PackedShapes(kinds=self.kinds[index : index + 1], **picked)

    def __len__(self) -> int:
        return len(self.kinds)


def pack_parts(shapes: Sequence[Sequence[Part]]) -> PackedShapes:
    """Parts of K shapes as tensors on the CPU."""
    integers = np.zeros((len(shapes), MAX_PARTS, 2), dtype=np.int64)
    integers[..., 0] = -1
    floats = np.zeros((len(shapes), MAX_PARTS, 9 + 3 + NUM_SIZES + 4 * 3), dtype=np.float32)
    for row, parts in enumerate(shapes):
        for column, part in enumerate(parts):
            integers[row, column] = PART_KINDS.index(part.kind), PATTERN_KINDS.index(part.pattern)
            padding = (0.0,) * (NUM_SIZES - len(part.size))
            paint = (*part.color, *part.second_color, *part.pattern_scale, *part.pattern_phase)
            floats[row, column] = (*part.rotation, *part.center, *part.size, *padding, *paint)
    fields = torch.from_numpy(floats).split([9, 3, NUM_SIZES, 3, 3, 3, 3], dim=-1)
    rotation, center, size, color, second_color, scale, phase = (field.contiguous() for field in fields)
    return PackedShapes(
        kind=torch.from_numpy(integers[..., 0].copy()),
        rotation=rotation.unflatten(-1, (3, 3)),
        center=center,
        size=size,
        color=color,
        second_color=second_color,
        pattern=torch.from_numpy(integers[..., 1].copy()),
        pattern_scale=scale,
        pattern_phase=phase,
        kinds=tuple(tuple(PART_KINDS.index(part.kind) for part in parts) for parts in shapes),
    )


def signed_distance(packed: PackedShapes, points: Float[Tensor, "K P 3"]) -> Float[Tensor, "K P"]:
    """Distance to each shape's surface, negative inside; a lower bound where only that is cheap."""
    return _nearest_part(packed, points)[0]


def surface_attributes(
    packed: PackedShapes, points: Float[Tensor, "K P 3"]
) -> tuple[Float[Tensor, "K P 3"], Int[Tensor, "K P"]]:
    """Albedo, and the index of the part that is nearest, at points on or near the surface."""
    part = _nearest_part(packed, points)[1]
    rotation = _of_parts(packed.rotation.flatten(2), part).unflatten(-1, (3, 3))
    local = torch.einsum("kpij,kpi->kpj", rotation, points - _of_parts(packed.center, part))
    lattice = local * _of_parts(packed.pattern_scale, part) + _of_parts(packed.pattern_phase, part)
    is_second = has_second_color(packed.pattern.gather(1, part), lattice)[..., None]
    return torch.where(is_second, _of_parts(packed.second_color, part), _of_parts(packed.color, part)), part


def _of_parts(values: Float[Tensor, "K N C"], part: Int[Tensor, "K P"]) -> Float[Tensor, "K P C"]:
    """Each point's part's values."""
    return values.gather(1, part[..., None].expand(-1, -1, values.shape[-1]))


def outward_normal(packed: PackedShapes, points: Float[Tensor, "K P 3"]) -> Float[Tensor, "K P 3"]:
    """Unit gradient of the signed distance, by differences over NORMAL_STEP."""
    gradient = torch.zeros_like(points)
    for vertex in _TETRAHEDRON:
        direction = points.new_tensor(vertex)
        gradient += direction * signed_distance(packed, points + NORMAL_STEP * direction)[..., None]
    return torch.nn.functional.normalize(gradient, dim=-1)


def has_second_color(pattern: Int[Tensor, "K P"], lattice: Float[Tensor, "K P 3"]) -> Bool[Tensor, "K P"]:
    """Whether a pattern shows its second color at points of its lattice (patterns.py)."""
    x, y, z = lattice.unbind(-1)
    cell = torch.floor(lattice + 0.5)
    offset = lattice - cell
    striped = torch.floor(x + y + z).remainder(2.0) > 0.5
    checked = cell.sum(-1).remainder(2.0) > 0.5
    dotted = offset.square().sum(-1) < DOT_RADIUS**2
    marker = (y * y + z * z < 1.0) & (x > 0.0)
    chosen = torch.zeros_like(striped)
    for index, name in enumerate(PATTERN_KINDS):
        match name:
            case "plain":
                continue
            case "striped":
                shows = striped
            case "checked":
                shows = checked
            case "dotted":
                shows = dotted
            case "marker":
                shows = marker
        chosen = chosen | ((pattern == index) & shows)
    return chosen


def _nearest_part(
    packed: PackedShapes, points: Float[Tensor, "K P 3"]
) -> tuple[Float[Tensor, "K P"], Int[Tensor, "K P"]]:
    """Distance to the union of a shape's parts, and which part is nearest; each formula runs where its kind occurs."""
    nearest = points.new_full(points.shape[:2], FAR)
    part = torch.zeros_like(nearest, dtype=torch.int64)
    for slot in range(max(len(kinds) for kinds in packed.kinds)):
        rows_of_kind: dict[int, list[int]] = {}
        for row, kinds in enumerate(packed.kinds):
            if slot < len(kinds):
                rows_of_kind.setdefault(kinds[slot], []).append(row)
        for kind, rows in rows_of_kind.items():
            # One kind in this slot of every shape is the common case when grading: no gather then.
            which = slice(None) if len(rows) == len(packed.kinds) else torch.tensor(rows, device=points.device)
            offset = points[which] - packed.center[which, slot][:, None]
            local = offset @ packed.rotation[which, slot]
            distance = part_distance(PART_KINDS[kind], local, packed.size[which, slot][:, None])
            closer = distance < nearest[which]
            nearest[which] = torch.where(closer, distance, nearest[which])
            part[which] = torch.where(closer, slot, part[which])
    return nearest, part


def part_distance(kind: PartKind, local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """Signed distance of points in the part's frame to a part of the given kind and size (sketch.py)."""
    match kind:
        case "ellipsoid":
            return _ellipsoid(local, size)
        case "box":
            return _box(local, size)
        case "frustum":
            return _frustum(local, size)
        case "torus":
            return _torus(local, size)
        case "capsule":
            return _capsule(local, size)
        case "taper":
            return _taper(local, size)
        case "cup":
            return _cup(local, size)
        case "bowl":
            return _bowl(local, size)


def _ellipsoid(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """Exact for a sphere; else the larger of two bounds, whose zero is the ellipsoid."""
    radii = size[..., :3]
    scaled = ((local / radii).norm(dim=-1) - 1.0) * radii.amin(-1)
    return torch.maximum(scaled, local.norm(dim=-1) - radii.amax(-1))


def _box(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    rounding = size[..., 3]
    outside = local.abs() - size[..., :3] + rounding[..., None]
    beyond: Tensor = outside.clamp_min(0.0).norm(dim=-1)
    return beyond + outside.amax(-1).clamp_max(0.0) - rounding


def _frustum(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """Distance in the half plane (radius, height) to the caps and to the slanted side."""
    bottom, top, half = size[..., 0], size[..., 1], size[..., 2]
    radius, height = local[..., :2].norm(dim=-1), local[..., 2]
    cap_x = radius - torch.minimum(radius, torch.where(height < 0.0, bottom, top))
    cap_y = height.abs() - half
    edge_x, edge_y = top - bottom, 2.0 * half
    along = ((radius - bottom) * edge_x + (height + half) * edge_y) / (edge_x**2 + edge_y**2)
    along = along.clamp(0.0, 1.0)
    side_x = radius - bottom - edge_x * along
    side_y = height + half - edge_y * along
    squared = torch.minimum(cap_x**2 + cap_y**2, side_x**2 + side_y**2)
    inside = (side_x < 0.0) & (cap_y < 0.0)
    return torch.where(inside, -squared.sqrt(), squared.sqrt())


def _torus(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """Distance to the arc's nearest point: on the circle within the aperture, at the arc's end beyond it."""
    ring, tube, sine, cosine = size[..., 0], size[..., 1], size[..., 2], size[..., 3]
    x, y = local[..., 0].abs(), local[..., 1]
    beyond = cosine * x > sine * y
    radius = local[..., :2].norm(dim=-1)
    across_x = torch.where(beyond, x - ring * sine, radius - ring)
    across_y = torch.where(beyond, y - ring * cosine, torch.zeros_like(y))
    return (across_x**2 + across_y**2 + local[..., 2] ** 2).sqrt() - tube


def _capsule(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    radius, half = size[..., 0], size[..., 1]
    height = (local[..., 2].abs() - half).clamp_min(0.0)
    return (local[..., 0] ** 2 + local[..., 1] ** 2 + height**2).sqrt() - radius


def _taper(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """The largest of the distances to the planes: exact inside and off the faces, a bound off edges and corners."""
    half = size[..., 4]
    planes = [local[..., 2].abs() - half]
    for axis in range(2):
        bottom, top = size[..., axis], size[..., 2 + axis]
        slope = bottom - top
        rise = 2.0 * half
        distance = (local[..., axis].abs() - (bottom + top) / 2.0) * rise + local[..., 2] * slope
        planes.append(distance / (rise**2 + slope**2).sqrt())
    return torch.stack(planes).amax(0)


def _cup(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """The union of a wall and a floor: rectangles in the half plane (radius, height)."""
    outer, half, wall, floor = size[..., 0], size[..., 1], size[..., 2], size[..., 3]
    radius, height = local[..., :2].norm(dim=-1), local[..., 2]
    side = _rectangle((radius - outer + wall / 2.0).abs() - wall / 2.0, height.abs() - half)
    base = _rectangle(radius - outer, (height + half - floor / 2.0).abs() - floor / 2.0)
    return torch.where(floor > 0.0, torch.minimum(side, base), side)


def _bowl(local: Float[Tensor, "K P 3"], size: Float[Tensor, "K #P 5"]) -> Float[Tensor, "K P"]:
    """Distance to the part of a sphere below the rim, or to the rim, less the half thickness."""
    sphere, rim, thickness = size[..., 0], size[..., 1], size[..., 2]
    radius, height = local[..., :2].norm(dim=-1), local[..., 2]
    rim_radius = (sphere**2 - rim**2).clamp_min(0.0).sqrt()
    above = height * rim_radius > rim * radius
    to_rim = ((radius - rim_radius) ** 2 + (height - rim) ** 2).sqrt()
    to_sphere = ((radius**2 + height**2).sqrt() - sphere).abs()
    return torch.where(above, to_rim, to_sphere) - thickness


def _rectangle(x: Float[Tensor, "K P"], y: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
    """Distance to a rectangle from how far a point is beyond each pair of its sides."""
    outside = (x.clamp_min(0.0) ** 2 + y.clamp_min(0.0) ** 2).sqrt()
    return outside + torch.maximum(x, y).clamp_max(0.0)
