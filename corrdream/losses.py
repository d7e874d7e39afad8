"""Regularizers of a rendering: each a scalar of a RenderOutput or of the field's grids.

Symbols: w weight, n normal, d ray direction (unit) of a sample; o opacity of a ray.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

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


def z_variance_loss(render: RenderOutput) -> Float[Tensor, ""]:
    """Mean variance of the distance along rays with o > 0.5; zero if there is none. Pulls weights to one surface."""
    solid = render.opacity > SOLID_OPACITY
    return (render.z_variance * solid).sum() / solid.sum().clamp_min(1)


def total_variation(grids: Iterable[Float[Tensor, "X Y Z C"]]) -> Float[Tensor, ""]:
    """Squared differences of neighbors: summed over axes and channels, averaged over nodes, summed over grids."""
    total = torch.zeros(())
    for grid in grids:
        differences = [grid.diff(dim=axis).square().sum() for axis in range(3)]
        total = total.to(grid) + torch.stack(differences).sum() / grid[..., 0].numel()
    return total


def regularization_losses(
    render: RenderOutput, field: HasSmoothGrids, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The terms whose weight is not zero, by the names of their weights."""
    terms: dict[str, Callable[[], Tensor]] = {
        "orientation": lambda: orientation_loss(render),
        "sparsity": lambda: sparsity_loss(render.opacity),
        "opaque": lambda: opaque_loss(render.opacity),
        "z_variance": lambda: z_variance_loss(render),
        "total_variation": lambda: total_variation(field.smooth_grids()),
    }
    return {name: term() for name, term in terms.items() if weights[name]}
