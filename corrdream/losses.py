"""Regularizers of a rendering: each a scalar of a RenderOutput or of the field's grids.

Symbols: w weight, n normal, d ray direction (unit) of a sample; o opacity of a ray.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from corrdream.structures import RenderOutput

OPAQUE_CLAMP = 1e-3  # keeps the logarithms finite; beyond it there is no gradient
SOLID_OPACITY = 0.5  # of rays whose depth counts as one surface


@runtime_checkable
class HasSmoothGrids(Protocol):
    """A field with node values, or with none."""

    def smooth_grids(self) -> Iterable[Float[Tensor, "X Y Z C"]]:
        """Values on the nodes of regular grids."""
        ...


def orientation_loss(render: RenderOutput) -> Float[Tensor, ""]:
    """Normals that face away from the camera, sum of w max(n . d, 0)^2 over samples, a ray with any opacity.

    Eq. 11 of arXiv:2112.03907, with constant weights: it turns normals and moves no density.
    """
    if render.sample_normal is None:
        raise ValueError("loss_weights.orientation needs normals; field.normal must not be none.")
    facing_away = (render.sample_normal * render.sample_direction).sum(-1).clamp_min(0)
    hit_rays = (render.opacity > 0).sum().clamp_min(1)
    return (render.weights.detach() * facing_away.square()).sum() / hit_rays


def sparsity_loss(opacity: Float[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean sqrt(o^2 + 0.01): pulls opacity to zero."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaque_loss(opacity: Float[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean binary entropy of the opacity: pulls it to zero or one."""
    clamped = opacity.clamp(OPAQUE_CLAMP, 1 - OPAQUE_CLAMP)
    return -(clamped * clamped.log() + (1 - clamped) * torch.log1p(-clamped)).mean()


def z_variance_loss(z_variance: Float[Tensor, "B H W"], opacity: Float[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean variance of the distance along rays with o > 0.5; zero if there is none. Pulls weights to one surface."""
    solid = opacity > SOLID_OPACITY
    return (z_variance * solid).sum() / solid.sum().clamp_min(1)


def total_variation(grids: Iterable[Float[Tensor, "X Y Z C"]]) -> Float[Tensor, ""]:
    """Squared differences of neighbors: summed over axes and channels, averaged over nodes, summed over grids."""
    terms = [_squared_differences(grid) / grid[..., 0].numel() for grid in grids]
    return torch.stack(terms).sum() if terms else torch.zeros(())


class _SquaredDifferences(torch.autograd.Function):
    """Sum of squared differences of neighbors; its gradient comes out of the same pass over the grid."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor) -> Tensor:
        gradient, total = torch.zeros_like(grid), grid.new_zeros(())
        for axis in range(3):
            length = grid.shape[axis] - 1
            difference = grid.diff(dim=axis)
            gradient.narrow(axis, 0, length).sub_(difference)
            gradient.narrow(axis, 1, length).add_(difference)
            total += torch.linalg.vector_norm(difference).square()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        scaled: Tensor = gradient * (2 * grads[0])
        return scaled


def _squared_differences(grid: Tensor) -> Tensor:
    total: Tensor = _SquaredDifferences.apply(grid)  # type: ignore[no-untyped-call]  # torch does not type it
    return total


def regularization_losses(
    render: RenderOutput, field: HasSmoothGrids, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The terms whose weight is not zero, by the names of their weights."""
    terms: dict[str, Callable[[], Tensor]] = {
        "orientation": lambda: orientation_loss(render),
        "sparsity": lambda: sparsity_loss(render.opacity),
        "opaque": lambda: opaque_loss(render.opacity),
        "z_variance": lambda: z_variance_loss(render.z_variance(), render.opacity),
        "total_variation": lambda: total_variation(field.smooth_grids()),
    }
    return {name: term() for name, term in terms.items() if weights[name]}
