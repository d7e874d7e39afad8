"""Density, albedo and normals at world points.

Symbols: x world points in [-r, r]^3, u unit coordinates, raw values before the activations; the normal is the unit
vector against the density's slope, so it points out of the object.
"""

from collections.abc import Iterable
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from corrdream.field.activations import (
    DensityActivation,
    DensityBlob,
    activate_albedo,
    activate_density,
    density_bias,
    density_bias_slope,
    unit_coordinates,
)
from corrdream.field.encodings import DenseGrid
from corrdream.field.networks import Heads, TorchHeads, perceptron
from corrdream.interfaces import DensityFunction, Encoding, JacobianEncoding
from corrdream.structures import FieldOutput

NormalKind = Literal[
    "analytic",
    "finite_difference",
    "finite_difference_released",
    "finite_difference_laplacian",
    "grid_difference",
    "predicted",
    "none",
]
UNIT_EPS = 1e-12  # shorter vectors stay shorter than 1


class RadianceField(nn.Module):
    """A radiance field that starts as a blob.

    A DenseGrid's four channels are the raw density and albedo themselves; any other encoding is followed by bias-free
    ReLU networks, one a quantity. Everything is computed in 32 bits, whatever the autocast. `albedo_gain` scales a
    DenseGrid's albedo channels: an optimizer that moves all nodes alike then moves the albedo more slowly.

    normal: analytic differentiates the density (twice differentiable); finite_difference takes forward differences,
    finite_difference_released the same with the released code's sign, pointing inwards; finite_difference_laplacian
    takes central ones; grid_difference interpolates the differences of a dense grid's nodes; predicted has a network.
    """

    def __init__(
        self,
        *,
        encoding: Encoding,
        radius: float = 1.0,
        hidden_width: int = 64,
        num_hidden_layers: int = 1,
        density_activation: DensityActivation = "softplus",
        density_blob: DensityBlob = "magic3d",
        density_blob_scale: float = 10.0,
        density_blob_std: float = 0.5,
        normal: NormalKind = "analytic",
        finite_difference_eps: float = 0.01,
        albedo_gain: float = 1.0,
        contraction: Literal["bounded", "unbounded"] = "bounded",
        heads: Heads | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads or TorchHeads()
        self.encoding = encoding
        self.radius = radius
        self.density_activation: DensityActivation = density_activation
        self.density_blob: DensityBlob = density_blob
        self.density_blob_scale = density_blob_scale
        self.density_blob_std = density_blob_std
        self.normal: NormalKind = normal
        self.finite_difference_eps = finite_difference_eps
        self.albedo_gain = albedo_gain
        self.contraction = contraction
        self._check(encoding)
        self.networks = nn.ModuleDict()
        if not isinstance(encoding, DenseGrid):
            outputs = {"density": 1, "albedo": 3} | ({"normal": 3} if normal == "predicted" else {})
            for name, width in outputs.items():
                self.networks[name] = perceptron(
                    inputs=encoding.output_dim,
                    outputs=width,
                    hidden_width=hidden_width,
                    num_hidden_layers=num_hidden_layers,
                    generator=generator,
                )

    def _check(self, encoding: Encoding) -> None:
        is_grid = isinstance(encoding, DenseGrid)
        if is_grid and encoding.output_dim != 4:
            raise ValueError(f"a dense grid's channels are density and albedo: 4, got {encoding.output_dim}.")
        if is_grid and self.normal == "predicted":
            raise ValueError("field.normal=predicted needs networks, which field.encoding=dense_grid has not.")
        if self.normal == "grid_difference" and not (is_grid and self.contraction == "bounded"):
            raise ValueError("field.normal=grid_difference needs field.encoding=dense_grid and a bounded contraction.")

    def encoding_parameters(self) -> list[nn.Parameter]:
        """What the encoding trains: a table or grids."""
        return list(self.encoding.parameters()) if isinstance(self.encoding, nn.Module) else []

    def network_parameters(self) -> list[nn.Parameter]:
        """The networks' weights; none behind a dense grid."""
        return list(self.networks.parameters())

    def smooth_grids(self) -> Iterable[Float[Tensor, "X Y Z C"]]:
        """Node values whose total variation can be penalized; none but a dense grid has them."""
        return [self.encoding.nodes()] if isinstance(self.encoding, DenseGrid) else []

    def forward(self, points: Float[Tensor, "S 3"], *, with_normal: bool) -> FieldOutput:
        """Density, albedo and, if asked for and not `none`, normals at world points."""
        with torch.autocast(points.device.type, enabled=False):
            points = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
            kind = self.normal if with_normal else "none"
            match kind:
                case "none":
                    density, albedo, _ = self._values(points)
                    normal = None
                case "analytic":
                    density, albedo, normal = self._with_analytic_normal(points)
                case "grid_difference":
                    density, albedo, normal = self._with_grid_normal(points)
                case "predicted":
                    density, albedo, features = self._values(points)
                    normal = F.normalize(self.networks["normal"](features), dim=-1, eps=UNIT_EPS)
                case "finite_difference" | "finite_difference_released":
                    density, albedo, _ = self._values(points)
                    inward = forward_difference(self.density, points, density, self.finite_difference_eps, self.radius)
                    normal = inward if kind == "finite_difference_released" else -inward
                case "finite_difference_laplacian":
                    density, albedo, _ = self._values(points)
                    normal = -central_difference(self.density, points, self.finite_difference_eps, self.radius)
                case _:
                    assert_never(kind)
        return FieldOutput(density=density, albedo=albedo, normal=normal)

    def density(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """Density alone at world points."""
        with torch.autocast(points.device.type, enabled=False):
            unit = self._unit(points)
            if isinstance(self.encoding, DenseGrid):
                raw = self.encoding.first_channel(unit)
            else:
                heads = TorchHeads() if torch.is_grad_enabled() else self.heads
                raw = heads.density(self.networks["density"], self.encoding(unit))
            return self._activate(raw, points)

    def _unit(self, points: Tensor) -> Tensor:
        return unit_coordinates(points, self.radius, unbounded=self.contraction == "unbounded")

    def _activate(self, raw: Tensor, points: Tensor) -> Tensor:
        bias = density_bias(points, self.density_blob, self.density_blob_scale, self.density_blob_std)
        return activate_density(raw + bias, self.density_activation)

    def _values(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Density, albedo, and the encoding's features."""
        features = self.encoding(self._unit(points))
        if isinstance(self.encoding, DenseGrid):
            raw, raw_albedo = features[:, 0], self.albedo_gain * features[:, 1:]
        else:
            raw, raw_albedo = self.networks["density"](features).squeeze(-1), self.networks["albedo"](features)
        return self._activate(raw, points), activate_albedo(raw_albedo), features

    def _with_analytic_normal(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.encoding, JacobianEncoding) and self.contraction == "bounded":
            return self._with_jacobian_normal(self.encoding, points)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            variable = points if points.requires_grad else points.detach().requires_grad_()
            density, albedo, _ = self._values(variable)
            (slope,) = torch.autograd.grad(density.sum(), variable, create_graph=differentiable)
        normal = -F.normalize(slope, dim=-1, eps=UNIT_EPS)
        return (density, albedo, normal) if differentiable else (density.detach(), albedo.detach(), normal.detach())

    def _with_jacobian_normal(self, encoding: JacobianEncoding, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, jacobian = encoding.with_jacobian(self._unit(points))
        raw, unit_slope, raw_albedo = self.heads.density_slope_albedo(
            self.networks["density"], self.networks["albedo"], features, jacobian
        )
        return self._activate(raw, points), activate_albedo(raw_albedo), self._normal(unit_slope, points)

    def _normal(self, unit_slope: Tensor, points: Tensor) -> Tensor:
        """Normals of the raw density's slope in unit coordinates, to which the blob adds its own.

        The activation is increasing, so the raw density's slope has the density's direction.
        """
        bias_slope = density_bias_slope(points, self.density_blob, self.density_blob_scale, self.density_blob_std)
        return -F.normalize(unit_slope / (2 * self.radius) + bias_slope, dim=-1, eps=UNIT_EPS)

    def _with_grid_normal(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(self.encoding, DenseGrid), "checked when the field was made"
        channels, unit_slope = self.encoding.with_slope(self._unit(points))
        density = self._activate(channels[:, 0], points)
        albedo = activate_albedo(self.albedo_gain * channels[:, 1:])
        return density, albedo, self._normal(unit_slope, points)


def forward_difference(
    density: DensityFunction, points: Float[Tensor, "P 3"], at_points: Float[Tensor, " P"], eps: float, radius: float
) -> Float[Tensor, "P 3"]:
    """Unit direction of growing density, from `eps` further along each axis (inside the box)."""
    shifted = (points[:, None, :] + eps * torch.eye(3).to(points)).clamp(-radius, radius)
    ahead = density(shifted.flatten(0, 1)).unflatten(0, (-1, 3))
    return F.normalize((ahead - at_points[:, None]) / eps, dim=-1, eps=UNIT_EPS)


def central_difference(
    density: DensityFunction, points: Float[Tensor, "P 3"], eps: float, radius: float
) -> Float[Tensor, "P 3"]:
    """Unit direction of growing density, from `eps` to both sides along each axis (inside the box)."""
    offsets = eps * torch.cat((torch.eye(3), -torch.eye(3))).to(points)
    shifted = (points[:, None, :] + offsets).clamp(-radius, radius)
    values = density(shifted.flatten(0, 1)).unflatten(0, (-1, 6))
    return F.normalize((values[:, :3] - values[:, 3:]) / (2 * eps), dim=-1, eps=UNIT_EPS)
