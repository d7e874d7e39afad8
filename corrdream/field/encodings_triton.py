"""The hash grid of `encodings` as Triton kernels; one launch serves all levels.

Symbols: P points u in the unit cube, L levels, F features a level, C = L F; J the derivative of the features in u.
Two kernels do everything. `_gather` reads the corners of each point's cells once, for the features and, if asked for,
for J. `_scatter` is its transpose: it takes the gradients of features and of J, and adds to the table (and to the
points). Since features and J are linear in the table, a normal made of J needs no double backward; that of
`TritonHashGrid.__call__` is the same two kernels.

Samples come sorted along rays, so on coarse levels neighbors fall into the same cell: their contributions are summed
inside a program before they are added to the table, or thousands of additions would queue for one address.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from corrdream.field.encodings import HASH_PRIMES, UINT32, HashGrid

COMBINED_RESOLUTION = 300  # up to here neighbors along a ray of the released 512 samples share cells

_COLUMNS = tl.constexpr(6)  # of the level table, see `_level`


class TritonHashGrid(nn.Module):
    """A hash grid with the same table, features and derivatives, on a GPU; points must be inside the unit cube."""

    scales: Tensor
    levels: Tensor

    def __init__(self, grid: HashGrid, *, block: int = 128) -> None:
        super().__init__()
        self.block = block  # points a program
        self.output_dim = grid.output_dim
        self.table = grid.table  # under the same name, so that checkpoints do not depend on the backend
        width = grid.table.shape[1]
        if width & (width - 1):
            raise ValueError(
                f"field.backend=triton needs field.hash_grid.features_per_level to be a power of two, got {width}."
            )
        rows = []
        for resolution, size, offset in zip(grid.resolutions, grid.sizes, grid.offsets, strict=False):
            is_hashed = resolution**3 > size
            factors = HASH_PRIMES[1:] if is_hashed else (resolution, resolution**2)
            rows.append((*factors, size - 1 if is_hashed else UINT32, size, offset, int(is_hashed)))
        self.num_combined = sum(resolution <= COMBINED_RESOLUTION for resolution in grid.resolutions)
        self.register_buffer("scales", torch.tensor(grid.scales, dtype=torch.float32), persistent=False)
        self.register_buffer("levels", torch.tensor(rows, dtype=torch.int64), persistent=False)

    def forward(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P LF"]:
        """Features of all levels, coarsest first; twice differentiable."""
        features: Tensor = _Features.apply(self.table, self, (points,))  # type: ignore[no-untyped-call]  # torch does not type it
        if points.requires_grad:
            features = _PointEdge.apply(features, points, self, (self.table,))  # type: ignore[no-untyped-call]
        return features

    def with_jacobian(self, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "P C"], Float[Tensor, "3 P C"]]:
        """Features, and their derivatives along the three axes, both once differentiable in table and points."""
        features, jacobian = _WithJacobian.apply(self.table, points, self)  # type: ignore[no-untyped-call]
        return features, jacobian

    def gather(self, points: Tensor, *, with_jacobian: bool) -> tuple[Tensor, Tensor]:
        """Features and, if asked for, J (else empty); stored channel by channel, so that neighbors write together."""
        points = points.detach().contiguous()
        count, width = len(points), self.table.shape[1]
        features = points.new_empty(self.output_dim, count)
        jacobian = points.new_empty((3 if with_jacobian else 0), self.output_dim, count)
        if count:
            _gather[(triton.cdiv(count, self.block), len(self.levels))](
                *(self.table.detach(), points, self.scales, self.levels, features, jacobian, count),
                num_channels=self.output_dim,
                width=width,
                block=self.block,
                with_jacobian=with_jacobian,
            )
        return features.t(), jacobian.transpose(1, 2)

    def scatter(
        self, points: Tensor, grad_features: Tensor | None, grad_jacobian: Tensor | None, *, to_points: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients in the table and, if asked for, in the points (else empty)."""
        points = points.detach().contiguous()
        count, width = len(points), self.table.shape[1]
        grad_table = torch.zeros_like(self.table)
        grad_points = torch.zeros_like(points) if to_points else points.new_empty(0)
        of_features = points.new_empty(0, 0) if grad_features is None else grad_features
        of_jacobian = points.new_empty(0, 0, 0) if grad_jacobian is None else grad_jacobian
        num_fine = len(self.levels) - self.num_combined
        for first_level, num_levels, combine in ((0, self.num_combined, True), (self.num_combined, num_fine, False)):
            if not count or not num_levels:
                continue
            _scatter[(triton.cdiv(count, self.block), num_levels)](
                *(self.table.detach(), points, self.scales, self.levels, of_features, of_jacobian),
                *(grad_table, grad_points, count, first_level, *of_features.stride(), *of_jacobian.stride()),
                width=width,
                block=self.block,
                with_features=grad_features is not None,
                with_jacobian=grad_jacobian is not None,
                to_points=to_points,
                combine=combine,
            )
        return grad_table, grad_points


class _Features(torch.autograd.Function):
    """Features, differentiable in the table alone; the points hide in a tuple, so that no gradient looks for them."""

    @staticmethod
    def forward(ctx: Any, _table: Tensor, grid: TritonHashGrid, hidden: tuple[Tensor]) -> Tensor:
        ctx.grid, (ctx.points,) = grid, hidden
        return grid.gather(hidden[0], with_jacobian=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.grid.scatter(ctx.points, grads[0], None, to_points=False)[0], None, None


class _PointEdge(torch.autograd.Function):
    """The features as they are, differentiable in the points besides, and that derivative in everything."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, points: Tensor, grid: TritonHashGrid, hidden: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(points)
        ctx.grid, (ctx.table,) = grid, hidden
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (points,) = ctx.saved_tensors
        _, jacobian = _WithJacobian.apply(ctx.table, points, ctx.grid)  # type: ignore[no-untyped-call]
        return grads[0], (jacobian * grads[0]).sum(-1).t(), None, None


class _WithJacobian(torch.autograd.Function):
    """Features and J; the backward pass is one transpose of both."""

    @staticmethod
    def forward(ctx: Any, _table: Tensor, points: Tensor, grid: TritonHashGrid) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(points)
        ctx.grid = grid
        return grid.gather(points, with_jacobian=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        (points,) = ctx.saved_tensors
        grad_features, grad_jacobian = grads
        if grad_features is None and grad_jacobian is None:
            return None, None, None
        to_points = ctx.needs_input_grad[1]
        grad_table, grad_points = ctx.grid.scatter(points, grad_features, grad_jacobian, to_points=to_points)
        return grad_table, grad_points if to_points else None, None


@triton.jit
@no_type_check
def _cell(points, point, inside, scale):
    """Cell and position inside it along the three axes; one rounding, as the torch twin."""
    x = tl.load(points + point * 3, mask=inside, other=0.0)
    y = tl.load(points + point * 3 + 1, mask=inside, other=0.0)
    z = tl.load(points + point * 3 + 2, mask=inside, other=0.0)
    wide = scale.to(tl.float64)
    x = (x.to(tl.float64) * wide + 0.5).to(points.dtype.element_ty)
    y = (y.to(tl.float64) * wide + 0.5).to(points.dtype.element_ty)
    z = (z.to(tl.float64) * wide + 0.5).to(points.dtype.element_ty)
    cell_x, cell_y, cell_z = tl.floor(x), tl.floor(y), tl.floor(z)
    return cell_x.to(tl.int32), cell_y.to(tl.int32), cell_z.to(tl.int32), x - cell_x, y - cell_y, z - cell_z


@triton.jit
@no_type_check
def _level(levels, index):
    """Row of the level table: factors of y and z, mask, size, offset, whether the level is hashed."""
    level = levels + index * _COLUMNS
    factor_y, factor_z = tl.load(level).to(tl.uint32), tl.load(level + 1).to(tl.uint32)
    mask, size = tl.load(level + 2).to(tl.uint32), tl.load(level + 3).to(tl.uint32)
    return factor_y, factor_z, mask, size, tl.load(level + 4).to(tl.int32), tl.load(level + 5) != 0


@triton.jit
@no_type_check
def _row(level, x, y, z):
    """Table row of a node: dense, x fastest, or hashed; what lies one beyond the last node wraps around."""
    factor_y, factor_z, mask, size, offset, is_hashed = level
    x, y, z = x.to(tl.uint32), y.to(tl.uint32) * factor_y, z.to(tl.uint32) * factor_z
    row = tl.where(is_hashed, x ^ y ^ z, x + y + z) & mask
    row = tl.where(row >= size, row - size, row)
    return offset + tl.minimum(row, size - 1).to(tl.int32)


@triton.jit(do_not_specialize=["num_points"])
@no_type_check
def _gather(
    table,
    points,
    scales,
    levels,
    features_out,
    jacobian_out,
    num_points,
    num_channels: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    with_jacobian: tl.constexpr,
):
    index = tl.program_id(1)
    level = _level(levels, index)
    scale = tl.load(scales + index)
    point = tl.program_id(0) * block + tl.arange(0, block)
    inside = point < num_points
    dtype: tl.constexpr = points.dtype.element_ty
    cell_x, cell_y, cell_z, x, y, z = _cell(points, point, inside, scale)
    channel = tl.arange(0, width)
    total = tl.zeros((block, width), dtype)
    along_x, along_y, along_z = total, total, total
    for corner in tl.static_range(8):
        row = _row(level, cell_x + corner % 2, cell_y + corner // 2 % 2, cell_z + corner // 4)
        value = tl.load(table + row[:, None] * width + channel[None, :], mask=inside[:, None], other=0.0).to(dtype)
        weight_x = x if corner % 2 else 1 - x
        weight_y = y if corner // 2 % 2 else 1 - y
        weight_z = z if corner // 4 else 1 - z
        total += (weight_x * weight_y * weight_z)[:, None] * value
        if with_jacobian:
            by_yz, by_xz, by_xy = weight_y * weight_z, weight_x * weight_z, weight_x * weight_y
            along_x += (by_yz if corner % 2 else -by_yz)[:, None] * value
            along_y += (by_xz if corner // 2 % 2 else -by_xz)[:, None] * value
            along_z += (by_xy if corner // 4 else -by_xy)[:, None] * value
    start = (index * width).to(tl.int64) * num_points
    place = start + channel[None, :].to(tl.int64) * num_points + point[:, None]
    tl.store(features_out + place, total, mask=inside[:, None])
    if with_jacobian:
        axis = num_points.to(tl.int64) * num_channels
        slope = scale.to(dtype)
        tl.store(jacobian_out + place, along_x * slope, mask=inside[:, None])
        tl.store(jacobian_out + axis + place, along_y * slope, mask=inside[:, None])
        tl.store(jacobian_out + 2 * axis + place, along_z * slope, mask=inside[:, None])


@triton.jit
@no_type_check
def _add_in_segment(left, left_starts, right, right_starts):
    return tl.where(right_starts != 0, right, left + right), left_starts | right_starts


@triton.jit
@no_type_check
def _differs(points, other, num_points, scale, cell_x, cell_y, cell_z):
    """Whether the cell of another point is another one, or there is no other point."""
    exists = (other >= 0) & (other < num_points)
    other_x, other_y, other_z, _, _, _ = _cell(points, other, exists, scale)
    return (other_x != cell_x) | (other_y != cell_y) | (other_z != cell_z) | (exists == 0)


@triton.jit(do_not_specialize=["num_points", "features_channel", "jacobian_axis", "jacobian_channel"])
@no_type_check
def _scatter(
    table,
    points,
    scales,
    levels,
    grad_features,
    grad_jacobian,
    grad_table,
    grad_points,
    num_points,
    first_level,
    features_point,
    features_channel,
    jacobian_axis,
    jacobian_point,
    jacobian_channel,
    width: tl.constexpr,
    block: tl.constexpr,
    with_features: tl.constexpr,
    with_jacobian: tl.constexpr,
    to_points: tl.constexpr,
    combine: tl.constexpr,
):
    index = first_level + tl.program_id(1)
    level = _level(levels, index)
    scale = tl.load(scales + index)
    lane = tl.arange(0, block)
    point = tl.program_id(0) * block + lane
    inside = point < num_points
    dtype: tl.constexpr = points.dtype.element_ty
    cell_x, cell_y, cell_z, x, y, z = _cell(points, point, inside, scale)
    channel = tl.arange(0, width)
    slope = scale.to(dtype)
    mask = inside[:, None]
    wide = point[:, None].to(tl.int64)
    out = (index * width + channel[None, :]).to(tl.int64)
    zero = tl.zeros((block, width), dtype)
    value, along_x, along_y, along_z = zero, zero, zero, zero
    if with_features:
        place = grad_features + wide * features_point + out * features_channel
        value = tl.load(place, mask=mask, other=0.0).to(dtype)
    if with_jacobian:
        place = grad_jacobian + wide * jacobian_point + out * jacobian_channel
        along_x = tl.load(place, mask=mask, other=0.0).to(dtype) * slope
        along_y = tl.load(place + jacobian_axis, mask=mask, other=0.0).to(dtype) * slope
        along_z = tl.load(place + 2 * jacobian_axis, mask=mask, other=0.0).to(dtype) * slope
    ends = inside
    starts = tl.zeros((block, width), tl.int32)
    if combine:
        is_first = (lane == 0) | _differs(points, point - 1, num_points, scale, cell_x, cell_y, cell_z)
        is_last = (lane == block - 1) | _differs(points, point + 1, num_points, scale, cell_x, cell_y, cell_z)
        starts += is_first[:, None].to(tl.int32)
        ends = inside & is_last
    to_x, to_y, to_z = tl.zeros((block,), dtype), tl.zeros((block,), dtype), tl.zeros((block,), dtype)
    for corner in tl.static_range(8):
        row = _row(level, cell_x + corner % 2, cell_y + corner // 2 % 2, cell_z + corner // 4)
        place = row[:, None] * width + channel[None, :]
        sign_x, sign_y, sign_z = 2.0 * (corner % 2) - 1, 2.0 * (corner // 2 % 2) - 1, 2.0 * (corner // 4) - 1
        weight_x = x if corner % 2 else 1 - x
        weight_y = y if corner // 2 % 2 else 1 - y
        weight_z = z if corner // 4 else 1 - z
        slope_x = (sign_x * weight_y * weight_z)[:, None]
        slope_y = (sign_y * weight_x * weight_z)[:, None]
        slope_z = (sign_z * weight_x * weight_y)[:, None]
        added = (weight_x * weight_y * weight_z)[:, None] * value
        if with_jacobian:
            added += slope_x * along_x + slope_y * along_y + slope_z * along_z
        if combine:
            added, _ = tl.associative_scan((added, starts), 0, _add_in_segment)
        tl.atomic_add(grad_table + place, added.to(grad_table.dtype.element_ty), mask=ends[:, None], sem="relaxed")
        if to_points:
            entry = tl.load(table + place, mask=mask, other=0.0).to(dtype)
            in_xy, in_xz, in_yz = sign_x * sign_y * weight_z, sign_x * sign_z * weight_y, sign_y * sign_z * weight_x
            turned_x = in_xy[:, None] * along_y + in_xz[:, None] * along_z
            turned_y = in_xy[:, None] * along_x + in_yz[:, None] * along_z
            turned_z = in_xz[:, None] * along_x + in_yz[:, None] * along_y
            to_x += tl.sum(entry * (slope_x * value + turned_x), axis=1)
            to_y += tl.sum(entry * (slope_y * value + turned_y), axis=1)
            to_z += tl.sum(entry * (slope_z * value + turned_z), axis=1)
    if to_points:
        tl.atomic_add(grad_points + point * 3, to_x * slope, mask=inside, sem="relaxed")
        tl.atomic_add(grad_points + point * 3 + 1, to_y * slope, mask=inside, sem="relaxed")
        tl.atomic_add(grad_points + point * 3 + 2, to_z * slope, mask=inside, sem="relaxed")
