"""Density, albedo and normals."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdream.field.activations import (
    DensityActivation,
    DensityBlob,
    activate_albedo,
    activate_density,
    density_bias,
    density_bias_slope,
    unit_coordinates,
)
from corrdream.field.encodings import DenseGrid, HashGrid
from corrdream.field.radiance_field import NormalKind, RadianceField
from corrdream.interfaces import Field


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, seed: int = 0) -> Tensor:
    return (torch.rand(count, 3, generator=generator(seed)) - 0.5) * 1.6


def dense_field(**changes: object) -> RadianceField:
    return RadianceField(encoding=DenseGrid(resolutions=(4, 8, 16)), **({"normal": "grid_difference"} | changes))


def hash_field(**changes: object) -> RadianceField:
    encoding = HashGrid(num_levels=4, log2_table_size=10, base_resolution=4, growth=1.6, generator=generator())
    return RadianceField(encoding=encoding, generator=generator(1), **changes)


def roughen(field: RadianceField, amount: float) -> RadianceField:
    """Random grids instead of zeros."""
    for index, parameter in enumerate(field.encoding_parameters()):
        parameter.data.copy_(amount * torch.randn(parameter.shape, generator=generator(index)))
    return field


KINDS = get_args(NormalKind)
GRID_KINDS = [kind for kind in KINDS if kind not in ("none", "predicted")]
HASH_KINDS = [kind for kind in KINDS if kind not in ("none", "grid_difference")]


def test_a_new_dense_field_is_the_blob() -> None:
    x = points(50)
    expected = F.softplus(10 * (1 - x.norm(dim=-1) / 0.5))
    output = dense_field()(x, with_normal=False)
    torch.testing.assert_close(output.density, expected)
    torch.testing.assert_close(output.albedo, torch.full((50, 3), 0.5))
    assert output.normal is None


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_normals_of_the_blob_point_outwards_in_a_dense_field(kind: NormalKind) -> None:
    check_outwards(dense_field(normal=kind), kind)


@pytest.mark.parametrize("kind", [kind for kind in HASH_KINDS if kind != "predicted"])
def test_normals_of_the_blob_point_outwards_in_a_hashed_field(kind: NormalKind) -> None:
    check_outwards(hash_field(normal=kind), kind)


def check_outwards(field: RadianceField, kind: NormalKind) -> None:
    x = F.normalize(points(50), dim=-1) * 0.4
    normal = field(x, with_normal=True).normal
    assert normal is not None
    cosine = (normal * x / 0.4).sum(-1)
    # the released forward difference has the wrong sign
    assert (-cosine if kind == "finite_difference_released" else cosine).min() > 0.99


def test_right_and_released_finite_differences_are_opposite() -> None:
    x = points(20)
    right = roughen(dense_field(normal="finite_difference"), 1.0)(x, with_normal=True).normal
    released = roughen(dense_field(normal="finite_difference_released"), 1.0)(x, with_normal=True).normal
    torch.testing.assert_close(right, -released)


def test_analytic_normal_is_against_the_slope_of_the_density() -> None:
    field, x = roughen(hash_field(), 1.0), points(30)
    step, directions = 1e-6, torch.eye(3, dtype=torch.float64)
    exact, at = field.double(), x.double()
    slope = torch.stack(
        [(exact.density(at + step * d) - exact.density(at - step * d)) / (2 * step) for d in directions], dim=-1
    )
    normal = exact(at, with_normal=True).normal
    torch.testing.assert_close(normal, -F.normalize(slope, dim=-1), atol=1e-4, rtol=0)


def test_normals_are_unit_vectors() -> None:
    for kind in GRID_KINDS:
        normal = roughen(dense_field(normal=kind), 1.0)(points(50), with_normal=True).normal
        torch.testing.assert_close(normal.norm(dim=-1), torch.ones(50))


@pytest.mark.parametrize("make", [dense_field, hash_field])
def test_density_alone_is_the_density(make: type) -> None:
    field, x = roughen(make(), 1.0), points(40)
    torch.testing.assert_close(field.density(x), field(x, with_normal=False).density)
    assert isinstance(field, Field)


@pytest.mark.parametrize("make", [dense_field, hash_field])
def test_no_points_are_legal(make: type) -> None:
    output = make()(torch.zeros(0, 3), with_normal=True)
    assert output.density.shape == (0,)
    assert output.normal.shape == (0, 3)


@pytest.mark.parametrize(("make", "kinds"), [(dense_field, GRID_KINDS), (hash_field, HASH_KINDS)])
def test_a_loss_of_the_normals_reaches_the_encoding(make: type, kinds: list[NormalKind]) -> None:
    for kind in kinds:
        field = roughen(make(normal=kind), 1.0)
        normal = field(points(30), with_normal=True).normal
        (normal * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        gradient = field.encoding_parameters()[-1].grad
        assert gradient is not None, kind
        assert gradient.abs().max() > 0, kind


def test_analytic_normals_without_gradient_leave_no_graph_and_keep_the_mode() -> None:
    with torch.no_grad():
        output = hash_field()(points(10), with_normal=True)
        assert not torch.is_grad_enabled()
    assert not output.normal.requires_grad
    assert not output.density.requires_grad
    assert not output.albedo.requires_grad


def test_no_normal_is_computed_unless_asked_for() -> None:
    assert dense_field(normal="analytic")(points(5), with_normal=False).normal is None
    assert dense_field(normal="none")(points(5), with_normal=True).normal is None


def test_parameter_groups_hold_every_parameter_once() -> None:
    for field in (dense_field(), hash_field(), hash_field(normal="predicted")):
        groups = [id(p) for p in field.encoding_parameters() + field.network_parameters()]
        assert sorted(groups) == sorted(id(p) for p in field.parameters())
    assert not dense_field().network_parameters()


def test_field_is_computed_in_32_bits_under_autocast() -> None:
    field, x = roughen(hash_field(), 1.0), points(20)
    expected = field(x, with_normal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = field(x, with_normal=True)
    torch.testing.assert_close(output.density, expected.density, atol=0, rtol=0)
    torch.testing.assert_close(output.normal, expected.normal, atol=0, rtol=0)


def test_same_generator_gives_the_same_field() -> None:
    torch.testing.assert_close(hash_field().density(points(9)), hash_field().density(points(9)), atol=0, rtol=0)


def test_only_a_dense_grid_has_grids_to_smooth() -> None:
    assert [grid.shape for grid in dense_field().smooth_grids()] == [(17, 17, 17, 4)]
    assert not list(hash_field().smooth_grids())


def test_radius_scales_the_box() -> None:
    field = dense_field(radius=2.0)
    field.encoding.grids[0].data[-1, -1, -1, 0] = 100.0
    corner = torch.tensor([[2.0, 2.0, 2.0]])
    assert field.density(corner) > field.density(corner / 2)


@pytest.mark.parametrize(("activation", "expected"), [("softplus", math.log1p(math.e**2)), ("exp", math.e**2)])
def test_density_activation_of_two(activation: DensityActivation, expected: float) -> None:
    assert activate_density(torch.tensor([2.0]), activation).item() == pytest.approx(expected, rel=1e-6)
    assert activate_density(torch.tensor([3.0]), "shifted_softplus").item() == pytest.approx(
        math.log1p(math.e**2), rel=1e-6
    )


def test_truncated_exponential_has_a_bounded_derivative() -> None:
    raw = torch.tensor([1.0, 15.0, 20.0], requires_grad=True)
    density = activate_density(raw, "trunc_exp")
    torch.testing.assert_close(density, raw.exp())
    (gradient,) = torch.autograd.grad(density.sum(), raw)
    torch.testing.assert_close(gradient, torch.tensor([math.e, math.e**15, math.e**15]))


@pytest.mark.parametrize("activation", list(get_args(DensityActivation)))
def test_density_activations_are_differentiable_twice(activation: DensityActivation) -> None:
    raw = torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: activate_density(r, activation), (raw,))
    assert torch.autograd.gradgradcheck(lambda r: activate_density(r, activation), (raw,))


@pytest.mark.parametrize("blob", get_args(DensityBlob))
def test_bias_slope_is_the_derivative_of_the_bias(blob: DensityBlob) -> None:
    x = points(20).double().requires_grad_()
    bias = density_bias(x, blob, 5.0, 0.7)
    expected = torch.zeros_like(x)
    if blob != "constant":
        (expected,) = torch.autograd.grad(bias.sum(), x)
    torch.testing.assert_close(density_bias_slope(x, blob, 5.0, 0.7), expected)


def test_albedo_activations() -> None:
    raw = torch.tensor([[0.0, 1.0, -1.0]])
    torch.testing.assert_close(activate_albedo(raw), torch.sigmoid(raw))
    torch.testing.assert_close(activate_albedo(raw, "scale_-11_01"), torch.tensor([[0.5, 1.0, 0.0]]))
    assert activate_albedo(raw, "none") is raw


def test_contraction_keeps_the_ball_and_bounds_space() -> None:
    x = torch.tensor([[0.5, 0.0, 0.0], [1.0, 0.0, 0.0], [4.0, 0.0, 0.0], [1e6, 0.0, 0.0]])
    contracted = unit_coordinates(x, 1.0, unbounded=True)[:, 0]
    torch.testing.assert_close(contracted, torch.tensor([0.625, 0.75, 0.9375, 1.0]))


def test_settings_that_do_not_fit_the_encoding_are_refused() -> None:
    with pytest.raises(ValueError, match=r"field.normal=grid_difference needs field.encoding=dense_grid"):
        hash_field(normal="grid_difference")
    with pytest.raises(ValueError, match=r"field.normal=predicted needs networks"):
        dense_field(normal="predicted")
    with pytest.raises(ValueError, match=r"density and albedo: 4, got 3"):
        RadianceField(encoding=DenseGrid(resolutions=(4,), num_channels=3))
