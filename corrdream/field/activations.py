"""From raw network or grid outputs to density and albedo, and from world to unit coordinates. Pure functions.

Symbols: x world points in [-r, r]^3 with r the radius, u unit coordinates in [0, 1]^3.
"""

from typing import Any, Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DensityBlob = Literal["magic3d", "dreamfusion", "constant"]
DensityActivation = Literal["softplus", "shifted_softplus", "trunc_exp", "exp", "none"]
AlbedoActivation = Literal["sigmoid", "scale_-11_01", "none"]
TRUNC_EXP_LIMIT = 15.0  # of the exponent in the backward pass, as instant-ngp has it


def density_bias(points: Float[Tensor, "P 3"], blob: DensityBlob, scale: float, std: float) -> Float[Tensor, " P"]:
    """What is added to the raw density at world points, so that training starts from a blob at the origin.

    magic3d: scale (1 - |x| / std), arXiv:2211.10440; dreamfusion: scale exp(-|x|^2 / (2 std^2)), arXiv:2209.14988;
    constant: scale everywhere.
    """
    match blob:
        case "magic3d":
            cone: Tensor = 1 - torch.linalg.vector_norm(points, dim=-1) / std
            return scale * cone
        case "dreamfusion":
            return scale * torch.exp(-0.5 * points.square().sum(-1) / std**2)
        case "constant":
            return torch.full_like(points[:, 0], scale)
        case _:
            assert_never(blob)


def density_bias_slope(
    points: Float[Tensor, "P 3"], blob: DensityBlob, scale: float, std: float
) -> Float[Tensor, "P 3"]:
    """Derivative of `density_bias` in the world points (zero at the origin)."""
    match blob:
        case "magic3d":
            return -scale / std * F.normalize(points, dim=-1)
        case "dreamfusion":
            return -density_bias(points, blob, scale, std).unsqueeze(-1) * points / std**2
        case "constant":
            return torch.zeros_like(points)
        case _:
            assert_never(blob)


class _TruncExp(torch.autograd.Function):
    """exp, whose derivative stops growing at TRUNC_EXP_LIMIT."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return torch.exp(raw)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        return grads[0] * torch.exp(raw.clamp(max=TRUNC_EXP_LIMIT))


def activate_density(raw: Float[Tensor, " P"], activation: DensityActivation) -> Float[Tensor, " P"]:
    """Density of raw values; all but none are increasing, so that density and raw value have the same normals."""
    match activation:
        case "softplus":
            return F.softplus(raw)
        case "shifted_softplus":
            return F.softplus(raw - 1)
        case "trunc_exp":
            density: Tensor = _TruncExp.apply(raw)  # type: ignore[no-untyped-call]  # torch does not type it
            return density
        case "exp":
            return torch.exp(raw)
        case "none":
            return raw
        case _:
            assert_never(activation)


def activate_albedo(raw: Float[Tensor, "P 3"], activation: AlbedoActivation = "sigmoid") -> Float[Tensor, "P 3"]:
    """Albedo of raw values; only the sigmoid keeps it in [0, 1]."""
    match activation:
        case "sigmoid":
            return torch.sigmoid(raw)
        case "scale_-11_01":
            return 0.5 * raw + 0.5
        case "none":
            return raw
        case _:
            assert_never(activation)


def unit_coordinates(points: Float[Tensor, "P 3"], radius: float, *, unbounded: bool = False) -> Float[Tensor, "P 3"]:
    """u = (x + r) / (2 r), or all of space contracted into the cube with the box at its middle half.

    Unbounded: y = x / r, outside the unit ball (2 - 1/|y|) y / |y| (arXiv:2111.12077, Eq. 10), then y / 4 + 0.5.
    """
    if not unbounded:
        return (points + radius) / (2 * radius)
    scaled = points / radius
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(
        1.0
    )  # the formula is the identity at |y| = 1
    contracted: Tensor = (2 - 1 / norm) * (scaled / norm)
    return contracted / 4 + 0.5
