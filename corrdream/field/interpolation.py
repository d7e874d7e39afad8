"""Weighted sums of table rows, the common core of the grids, and the trilinear weights they use.

Symbols: table [V C], indices [P K] of its rows, weights [P K], values [P C], values_p = sum_k weights_pk
table[indices_pk]. The trilinear form sum_pkc weights_pk table[indices_pk, c] values_pc has three partial derivatives;
each is an autograd function below whose backward consists of the other two, so that every order of derivative exists.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _SumRows(torch.autograd.Function):
    """values_p = sum_k weights_pk table[indices_pk], differentiable in the table alone.

    The weights come in a tuple, which autograd does not look into: this node has no edge to them, and is not visited
    when only they (the points) need a gradient. Nothing tells a node with both edges which of the two is asked for.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor, hidden: tuple[Tensor]) -> Tensor:
        ctx.num_rows, ctx.indices, (ctx.weights,) = len(table), indices, hidden
        return F.embedding_bag(indices, table, per_sample_weights=ctx.weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _apply(_ScatterRows, ctx.weights, ctx.indices, grads[0], ctx.num_rows), None, None


class _WeightEdge(torch.autograd.Function):
    """The values of _SumRows as they are, differentiable in the weights besides."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, _weights: Tensor, indices: Tensor, hidden: tuple[Tensor]) -> Tensor:
        ctx.indices, (ctx.table,) = indices, hidden
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grads[0], _apply(_DotRows, ctx.table, ctx.indices, grads[0]), None, None


class _ScatterRows(torch.autograd.Function):
    """table_v = sum over (p, k) with indices_pk = v of weights_pk values_p."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, indices: Tensor, values: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(weights, indices, values)
        rows = (weights[:, :, None] * values[:, None, :]).flatten(0, 1)
        return values.new_zeros(num_rows, values.shape[1]).index_add_(0, indices.flatten(), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        weights, indices, values = ctx.saved_tensors
        (grad,) = grads
        to_weights, _, to_values, _ = ctx.needs_input_grad
        return (
            _apply(_DotRows, grad, indices, values) if to_weights else None,
            None,
            sum_rows(grad, indices, weights) if to_values else None,
            None,
        )


class _DotRows(torch.autograd.Function):
    """weights_pk = <table[indices_pk], values_p>."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(table, indices, values)
        rows = table.index_select(0, indices.flatten()).view(*indices.shape, table.shape[1])
        return (rows * values[:, None, :]).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, indices, values = ctx.saved_tensors
        (grad,) = grads
        to_table, _, to_values = ctx.needs_input_grad
        return (
            _apply(_ScatterRows, grad, indices, values, table.shape[0]) if to_table else None,
            None,
            sum_rows(table, indices, grad) if to_values else None,
        )


def sum_rows(
    table: Float[Tensor, "V C"], indices: Int[Tensor, "P K"], weights: Float[Tensor, "P K"]
) -> Float[Tensor, "P C"]:
    """Weighted sum of K table rows a point, differentiable to any order in the table and the weights."""
    values = _apply(_SumRows, table, indices, (weights,))
    return _apply(_WeightEdge, values, weights, indices, (table,)) if weights.requires_grad else values


def trilinear_weights(fraction: Float[Tensor, "3 P"]) -> Float[Tensor, "P 8"]:
    """Weights of a cell's corners at a position inside it; corner 4 i + 2 j + k lies at (i, j, k)."""
    (x0, y0, z0), (x1, y1, z1) = (1 - fraction).unbind(0), fraction.unbind(0)
    x0y0, x0y1, x1y0, x1y1 = x0 * y0, x0 * y1, x1 * y0, x1 * y1
    corners = (x0y0 * z0, x0y0 * z1, x0y1 * z0, x0y1 * z1, x1y0 * z0, x1y0 * z1, x1y1 * z0, x1y1 * z1)
    return torch.stack(corners, dim=1)


def cell_corners(points: Float[Tensor, "P 3"], size: Sequence[int]) -> tuple[Int[Tensor, "P 8"], Float[Tensor, "P 8"]]:
    """Flat indices and trilinear weights of the nodes around each point; points outside the cube are moved into it.

    `size` nodes along each axis span the unit cube, z fastest.
    """
    axes = points.unbind(1)
    position = torch.stack([axis.clamp(0, 1) * (count - 1) for axis, count in zip(axes, size, strict=True)])
    floors = position.detach().floor().unbind(0)
    cell = torch.stack([floor.clamp(max=count - 2) for floor, count in zip(floors, size, strict=True)])
    x, y, z = cell.long().unbind(0)
    _, num_y, num_z = size
    corner = torch.arange(8, device=points.device)
    offset = ((corner // 4) * num_y + corner // 2 % 2) * num_z + corner % 2
    indices = ((x * num_y + y) * num_z + z).unsqueeze(1) + offset
    return indices, trilinear_weights(position - cell)


def interpolate_nodes(nodes: Float[Tensor, "X Y Z C"], points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
    """Trilinear interpolation of nodes that span the unit cube; points outside it take the border's value."""
    return sum_rows(nodes.flatten(0, 2), *cell_corners(points, nodes.shape[:3]))


def smooth_nodes(values: Float[Tensor, "X Y Z"]) -> Float[Tensor, "X Y Z"]:
    """Weighted means (1, 2, 1) / 4 along each axis; the ends stay, so that linear functions do."""
    for axis in range(3):
        inner = values.shape[axis] - 2
        left, middle, right = (values.narrow(axis, start, inner) for start in range(3))
        mean = torch.lerp((left + right) / 2, middle, 0.5)
        values = torch.cat((values.narrow(axis, 0, 1), mean, values.narrow(axis, inner + 1, 1)), dim=axis)
    return values


class _RefineAxis(torch.autograd.Function):
    """Nodes on a line to `factor` times as many intervals, by linear interpolation along the axis."""

    @staticmethod
    def forward(ctx: Any, nodes: Tensor, axis: int, factor: int) -> Tensor:
        ctx.axis, ctx.factor = axis, factor
        intervals = nodes.shape[axis] - 1
        left, right = nodes.narrow(axis, 0, intervals), nodes.narrow(axis, 1, intervals)
        shape = list(nodes.shape)
        shape[axis] = intervals * factor + 1
        fine = nodes.new_empty(shape)
        for offset in range(factor):
            part = _strided(fine, axis, offset, factor, intervals)
            torch.lerp(left, right, offset / factor, out=part) if offset else part.copy_(left)
        fine.select(axis, -1).copy_(nodes.select(axis, -1))
        return fine

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return _apply(_CoarsenAxis, grad, ctx.axis, ctx.factor), None, None


class _CoarsenAxis(torch.autograd.Function):
    """The adjoint of _RefineAxis."""

    @staticmethod
    def forward(ctx: Any, fine: Tensor, axis: int, factor: int) -> Tensor:
        ctx.axis, ctx.factor = axis, factor
        intervals = (fine.shape[axis] - 1) // factor
        coarse = _strided(fine, axis, 0, factor, intervals + 1).clone(memory_format=torch.contiguous_format)
        for offset in range(1, factor):
            part = _strided(fine, axis, offset, factor, intervals)
            coarse.narrow(axis, 0, intervals).add_(part, alpha=1 - offset / factor)
            coarse.narrow(axis, 1, intervals).add_(part, alpha=offset / factor)
        return coarse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return _apply(_RefineAxis, grad, ctx.axis, ctx.factor), None, None


def _strided(nodes: Tensor, axis: int, offset: int, factor: int, length: int) -> Tensor:
    """`length` nodes of an axis from `offset` on, `factor` apart, as a view."""
    index = [slice(None)] * nodes.dim()
    index[axis] = slice(offset, offset + (length - 1) * factor + 1, factor)
    return nodes[tuple(index)]


def refine_nodes(nodes: Float[Tensor, "X Y Z C"], factor: int) -> Float[Tensor, "X2 Y2 Z2 C"]:
    """The same trilinear function on cells `factor` times finer (exact: every coarse node is a fine one)."""
    if factor == 1:
        return nodes
    for axis in (2, 1, 0):
        nodes = _apply(_RefineAxis, nodes, axis, factor)
    return nodes
