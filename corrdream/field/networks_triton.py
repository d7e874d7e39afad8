"""The density and albedo networks behind a hash grid, and the density's slope, as one kernel each way.

Symbols: P points, C features, H hidden units; both networks have one hidden layer and no biases. Features and their
derivatives J are stored channel by channel, so a program works on tiles [channels, points]. Nothing between features
and outputs is stored: the backward pass computes it again, and sums the weights' gradients over many tiles before it
writes them, one row a program.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 64  # points a tile
GRADIENT_BLOCK = 32  # the same in the backward pass, which with more would spill registers
PROGRAMS = 528  # of the backward pass: four on each of an H100's multiprocessors
SMALLEST = 16  # side of a matrix product
# Of products. Outputs, and the signs that say which units are active: three passes of the matrix units, close to
# float32; with one pass a unit in 2000 gets the wrong sign, which is 2 % of the gradient's norm. Other products of the
# backward kernel: one pass, 10 bits of mantissa; with three it needs more registers than there are.
OUTPUT_PRECISION = "tf32x3"
GRADIENT_PRECISION = "tf32"


class TritonHeads:
    """The networks' outputs, as `networks.TorchHeads` has them."""

    def density(self, density: nn.Module, features: Float[Tensor, "P C"]) -> Float[Tensor, " P"]:
        """Raw density alone; carries no gradient."""
        weights = [layer.weight.detach() for layer in density.children() if isinstance(layer, nn.Linear)]
        columns = features.detach().t().contiguous()
        raw = columns.new_empty(columns.shape[1])
        if len(raw):
            grid = (triton.cdiv(len(raw), BLOCK),)
            _forward[grid](
                *(columns, columns, *weights, *weights, raw, raw, raw, len(raw)),
                **_sizes(weights[0]),
                block=BLOCK,
                precision=OUTPUT_PRECISION,
                with_all=False,
            )
        return raw

    def density_slope_albedo(
        self,
        density: nn.Module,
        albedo: nn.Module,
        features: Float[Tensor, "P C"],
        jacobian: Float[Tensor, "3 P C"],
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
        """Raw density, its slope through the features' derivatives, and raw albedo."""
        weights = [
            layer.weight
            for network in (density, albedo)
            for layer in network.children()
            if isinstance(layer, nn.Linear)
        ]
        raw, slope, raw_albedo = _Heads.apply(features.t(), jacobian.transpose(1, 2), *weights)  # type: ignore[no-untyped-call]
        return raw, slope.t(), raw_albedo.t()


def _sizes(weights: Tensor) -> dict[str, Any]:
    """Sizes that a kernel is compiled for."""
    hidden, channels = weights.shape
    return {
        "channels": channels,
        "hidden": hidden,
        "channels_padded": max(SMALLEST, triton.next_power_of_2(channels)),
        "hidden_padded": max(SMALLEST, triton.next_power_of_2(hidden)),
    }


class _Heads(torch.autograd.Function):
    """Once differentiable in everything."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, jacobian: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, jacobian = features.contiguous(), jacobian.contiguous()
        ctx.save_for_backward(features, jacobian, *weights)
        count = features.shape[1]
        raw, slope, albedo = features.new_empty(count), features.new_empty(3, count), features.new_empty(3, count)
        if count:
            grid = (triton.cdiv(count, BLOCK),)
            _forward[grid](
                *(features, jacobian, *weights, raw, slope, albedo, count),
                **_sizes(weights[0]),
                block=BLOCK,
                precision=OUTPUT_PRECISION,
                with_all=True,
            )
        return raw, slope, albedo

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        features, jacobian, *weights = ctx.saved_tensors
        count, sizes = features.shape[1], _sizes(weights[0])
        to_features, to_jacobian = torch.zeros_like(features), torch.zeros_like(jacobian)
        programs = min(PROGRAMS, triton.cdiv(count, GRADIENT_BLOCK))
        matrix, vector = sizes["hidden_padded"] * sizes["channels_padded"], sizes["hidden_padded"]
        to_weights = features.new_zeros(max(programs, 1), 2 * matrix + 4 * vector)
        if count:
            _backward[(programs,)](
                *(features, jacobian, *weights, *(grad.contiguous() for grad in grads)),
                *(to_features, to_jacobian, to_weights, count),
                **sizes,
                block=GRADIENT_BLOCK,
                precision=GRADIENT_PRECISION,
                sign_precision=OUTPUT_PRECISION,
                num_warps=8,
            )
        hidden, channels = weights[0].shape
        *matrices, of_density, of_albedo = to_weights.sum(0).split([matrix, matrix, vector, 3 * vector])
        shape = vector, sizes["channels_padded"]
        first, second = (part.view(shape)[:hidden, :channels] for part in matrices)
        density, albedo = of_density.view(1, vector)[:, :hidden], of_albedo.view(3, vector)[:, :hidden]
        return to_features, to_jacobian, first, density, second, albedo


@triton.jit
@no_type_check
def _load_matrix(place, hidden, channels, hidden_padded: tl.constexpr, channels_padded: tl.constexpr):
    row, column = tl.arange(0, hidden_padded)[:, None], tl.arange(0, channels_padded)[None, :]
    return tl.load(place + row * channels + column, mask=(row < hidden) & (column < channels), other=0.0)


@triton.jit(do_not_specialize=["num_points"])
@no_type_check
def _forward(
    features,
    jacobian,
    density_in,
    density_out,
    albedo_in,
    albedo_out,
    raw_out,
    slope_out,
    color_out,
    num_points,
    channels: tl.constexpr,
    hidden: tl.constexpr,
    channels_padded: tl.constexpr,
    hidden_padded: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
    with_all: tl.constexpr,
):
    point = tl.program_id(0) * block + tl.arange(0, block)
    is_point = point < num_points
    unit, is_unit = tl.arange(0, hidden_padded), tl.arange(0, hidden_padded) < hidden
    channel = tl.arange(0, channels_padded)[:, None]
    place = channel.to(tl.int64) * num_points + point[None, :]
    mask = (channel < channels) & is_point[None, :]
    x = tl.load(features + place, mask=mask, other=0.0)
    matrix = _load_matrix(density_in, hidden, channels, hidden_padded, channels_padded)
    out = tl.load(density_out + unit, mask=is_unit, other=0.0)[:, None]
    before = tl.dot(matrix, x, input_precision=precision)
    active = tl.where(before > 0, out, 0.0)
    tl.store(raw_out + point, tl.sum(active * before, axis=0), mask=is_point)
    if with_all:
        by_feature = tl.dot(tl.trans(matrix), active, input_precision=precision)
        for axis in tl.static_range(3):
            slope = tl.load(jacobian + axis * channels * num_points.to(tl.int64) + place, mask=mask, other=0.0)
            tl.store(slope_out + axis * num_points + point, tl.sum(slope * by_feature, axis=0), mask=is_point)
        matrix = _load_matrix(albedo_in, hidden, channels, hidden_padded, channels_padded)
        after = tl.maximum(tl.dot(matrix, x, input_precision=precision), 0.0)
        for color in tl.static_range(3):
            out = tl.load(albedo_out + color * hidden + unit, mask=is_unit, other=0.0)[:, None]
            tl.store(color_out + color * num_points + point, tl.sum(out * after, axis=0), mask=is_point)


@triton.jit(do_not_specialize=["num_points"])
@no_type_check
def _backward(
    features,
    jacobian,
    density_in,
    density_out,
    albedo_in,
    albedo_out,
    grad_raw,
    grad_slope,
    grad_color,
    to_features,
    to_jacobian,
    to_weights,
    num_points,
    channels: tl.constexpr,
    hidden: tl.constexpr,
    channels_padded: tl.constexpr,
    hidden_padded: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
    sign_precision: tl.constexpr,
):
    unit, is_unit = tl.arange(0, hidden_padded), tl.arange(0, hidden_padded) < hidden
    channel = tl.arange(0, channels_padded)[:, None]
    to_density = tl.zeros((hidden_padded, channels_padded), tl.float32)
    to_albedo = tl.zeros((hidden_padded, channels_padded), tl.float32)
    to_out = tl.zeros((hidden_padded,), tl.float32)
    to_red, to_green, to_blue = to_out, to_out, to_out
    axis = channels * num_points.to(tl.int64)
    tile = tl.program_id(0)
    while tile * block < num_points:  # Triton's interpreter cannot take a range that begins at the program's number
        point = tile * block + tl.arange(0, block)
        is_point = point < num_points
        place = channel.to(tl.int64) * num_points + point[None, :]
        mask = (channel < channels) & is_point[None, :]
        x = tl.load(features + place, mask=mask, other=0.0)
        of_raw = tl.load(grad_raw + point, mask=is_point, other=0.0)[None, :]
        of_x = tl.load(grad_slope + point, mask=is_point, other=0.0)[None, :]
        of_y = tl.load(grad_slope + num_points + point, mask=is_point, other=0.0)[None, :]
        of_z = tl.load(grad_slope + 2 * num_points + point, mask=is_point, other=0.0)[None, :]
        # Weights are loaded where they are used, from the cache: kept, they would fill the registers.
        density = _load_matrix(density_in, hidden, channels, hidden_padded, channels_padded)
        out = tl.load(density_out + unit, mask=is_unit, other=0.0)[:, None]
        before = tl.dot(density, x, input_precision=sign_precision)
        active = tl.where(before > 0, out, 0.0)
        by_feature = tl.dot(tl.trans(density), active, input_precision=precision)
        tl.store(to_jacobian + place, of_x * by_feature, mask=mask)
        tl.store(to_jacobian + axis + place, of_y * by_feature, mask=mask)
        tl.store(to_jacobian + 2 * axis + place, of_z * by_feature, mask=mask)
        along = of_x * tl.load(jacobian + place, mask=mask, other=0.0)
        along += of_y * tl.load(jacobian + axis + place, mask=mask, other=0.0)
        along += of_z * tl.load(jacobian + 2 * axis + place, mask=mask, other=0.0)
        density = _load_matrix(density_in, hidden, channels, hidden_padded, channels_padded)
        to_active = tl.dot(density, along, input_precision=precision) + of_raw * before
        to_out += tl.sum(tl.where(before > 0, to_active, 0.0), axis=1)
        to_density += tl.dot(active, tl.trans(along + of_raw * x), input_precision=precision)
        of_red = tl.load(grad_color + point, mask=is_point, other=0.0)[None, :]
        of_green = tl.load(grad_color + num_points + point, mask=is_point, other=0.0)[None, :]
        of_blue = tl.load(grad_color + 2 * num_points + point, mask=is_point, other=0.0)[None, :]
        albedo = _load_matrix(albedo_in, hidden, channels, hidden_padded, channels_padded)
        color = tl.dot(albedo, x, input_precision=sign_precision)
        after = tl.maximum(color, 0.0)
        to_red += tl.sum(of_red * after, axis=1)
        to_green += tl.sum(of_green * after, axis=1)
        to_blue += tl.sum(of_blue * after, axis=1)
        red_out = tl.load(albedo_out + unit, mask=is_unit, other=0.0)[:, None]
        green_out = tl.load(albedo_out + hidden + unit, mask=is_unit, other=0.0)[:, None]
        blue_out = tl.load(albedo_out + 2 * hidden + unit, mask=is_unit, other=0.0)[:, None]
        to_color = tl.where(color > 0, of_red * red_out + of_green * green_out + of_blue * blue_out, 0.0)
        to_albedo += tl.dot(to_color, tl.trans(x), input_precision=precision)
        albedo = _load_matrix(albedo_in, hidden, channels, hidden_padded, channels_padded)
        to_x = of_raw * by_feature + tl.dot(tl.trans(albedo), to_color, input_precision=precision)
        tl.store(to_features + place, to_x, mask=mask)
        tile += tl.num_programs(0)
    matrix: tl.constexpr = hidden_padded * channels_padded
    start = to_weights + tl.program_id(0) * (2 * matrix + 4 * hidden_padded)
    cell = unit[:, None] * channels_padded + tl.arange(0, channels_padded)[None, :]
    tl.store(start + cell, to_density)
    tl.store(start + matrix + cell, to_albedo)
    tl.store(start + 2 * matrix + unit, to_out)
    tl.store(start + 2 * matrix + hidden_padded + unit, to_red)
    tl.store(start + 2 * matrix + 2 * hidden_padded + unit, to_green)
    tl.store(start + 2 * matrix + 3 * hidden_padded + unit, to_blue)
