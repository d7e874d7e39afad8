"""Encodings, and the interpolation under the grids."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from corrdream.field.encodings import DenseGrid, FrequencyEncoding, HashGrid, SphericalHarmonics, hash_grid_scales
from corrdream.field.interpolation import interpolate_nodes, refine_nodes, smooth_nodes, sum_rows, trilinear_weights
from corrdream.interfaces import Encoding
from tests.contracts.encoding import EncodingContract


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_hash_grid(**changes: object) -> HashGrid:
    settings = {"num_levels": 4, "log2_table_size": 8, "base_resolution": 4, "growth": 1.7, "generator": generator()}
    grid = HashGrid(**(settings | changes))
    grid.table.data *= 1e4  # from the initial range to [-1, 1]
    return grid


def small_dense_grid(resolutions: tuple[int, ...] = (2, 4, 8), num_channels: int = 4) -> DenseGrid:
    grid = DenseGrid(resolutions=resolutions, num_channels=num_channels)
    for level in grid.grids:
        level.data.copy_(torch.randn(level.shape, generator=generator(len(level))))
    return grid


class TestHashGrid(EncodingContract):
    def make(self) -> Encoding:
        return small_hash_grid()


class TestDenseGrid(EncodingContract):
    def make(self) -> Encoding:
        return small_dense_grid()


class TestFrequencyEncoding(EncodingContract):
    def make(self) -> Encoding:
        return FrequencyEncoding(num_frequencies=3, include_input=True)


class TestSphericalHarmonics(EncodingContract):
    def make(self) -> Encoding:
        return SphericalHarmonics(degree=4)


def test_hash_grid_level_that_fits_interpolates_its_entries() -> None:
    grid = small_hash_grid(num_levels=1, base_resolution=3)
    # scale 2: u = 0.5 lies at 1.5 on every axis, in the middle of cell (1, 1, 1)
    corners = [x + 3 * y + 9 * z for x in (1, 2) for y in (1, 2) for z in (1, 2)]
    expected = grid.table[corners].mean(dim=0)
    torch.testing.assert_close(grid(torch.full((1, 3), 0.5))[0], expected)


def test_hash_grid_hashes_what_does_not_fit() -> None:
    grid = small_hash_grid(num_levels=1, base_resolution=17, log2_table_size=6)
    point = torch.full((1, 3), 0.5 / 16)  # node (1, 1, 1) on a grid of scale 16, shifted by half a cell
    entry = (1 ^ 2654435761 ^ 805459861) % 64
    torch.testing.assert_close(grid(point)[0], grid.table[entry])


def test_hash_grid_has_the_released_size_and_initial_range() -> None:
    grid = HashGrid(generator=generator())
    assert grid.table.numel() == 12599920
    assert grid.output_dim == 32
    assert 9.9e-5 < grid.table.abs().max().item() <= 1e-4


def test_hash_grid_levels_have_the_rounding_of_the_device() -> None:
    scales = hash_grid_scales(16, 16, 1.4472692012786865)
    assert scales[0] == 15.0
    assert scales[-1] == pytest.approx(4094.99853515625, rel=1e-9)  # not 4095


def test_hash_grid_takes_measured_scales() -> None:
    grid = small_hash_grid(num_levels=2, level_scales=(3.0, 6.5))
    assert grid.resolutions == [4, 8]


def test_hash_grid_is_the_same_for_the_same_generator() -> None:
    assert torch.equal(small_hash_grid().table, small_hash_grid().table)


def test_dense_grid_is_the_sum_of_its_levels() -> None:
    grid, points = small_dense_grid(), torch.rand(100, 3, generator=generator())
    expected = sum(interpolate_nodes(level, points) for level in grid.grids)
    torch.testing.assert_close(grid(points), expected, atol=1e-5, rtol=1e-5)


def test_dense_grid_gradient_is_that_of_the_sum_of_its_levels() -> None:
    grid, points = small_dense_grid((2, 6)), torch.rand(100, 3, generator=generator())
    cotangent = torch.randn(100, 4, generator=generator(1))
    levels = list(grid.grids)
    separate = sum((interpolate_nodes(level, points) * cotangent).sum() for level in levels)
    expected = torch.autograd.grad(separate, levels)
    for actual, slow in zip(torch.autograd.grad((grid(points) * cotangent).sum(), levels), expected, strict=True):
        torch.testing.assert_close(actual, slow, atol=1e-4, rtol=1e-4)


def test_dense_grid_first_channel_is_the_first_of_all() -> None:
    grid, points = small_dense_grid(), torch.rand(20, 3, generator=generator())
    torch.testing.assert_close(grid.first_channel(points), grid(points)[:, 0])


def test_dense_grid_slope_of_a_linear_function_is_its_gradient() -> None:
    grid = DenseGrid(resolutions=(4, 8))
    x, y, z = torch.meshgrid(*[torch.linspace(0, 1, 9)] * 3, indexing="ij")
    grid.grids[1].data[..., 0] = 2 * x - 3 * y + 0.5 * z
    points = torch.rand(30, 3, generator=generator())
    channels, slope = grid.with_slope(points)
    torch.testing.assert_close(channels, grid(points))
    torch.testing.assert_close(slope, torch.tensor([2.0, -3.0, 0.5]).expand(30, 3), atol=1e-4, rtol=0)


def test_dense_grid_slope_is_continuous_across_cells() -> None:
    grid = small_dense_grid((8,))
    along = torch.linspace(0.2, 0.8, 3001)[:, None] * torch.ones(1, 3)
    _, slope = grid.with_slope(along)
    assert slope.diff(dim=0).norm(dim=-1).max() < 0.02 * slope.norm(dim=-1).max()


def test_dense_grid_outside_the_cube_has_the_borders_value() -> None:
    grid = small_dense_grid()
    outside, border = torch.tensor([[1.5, 0.3, -2.0]]), torch.tensor([[1.0, 0.3, 0.0]])
    torch.testing.assert_close(grid(outside), grid(border))


def test_spherical_harmonics_are_orthonormal() -> None:
    # Gauss-Legendre nodes in z times equal angles: exact for the products of these orders
    z_nodes = torch.tensor([-0.9061798459, -0.5384693101, 0.0, 0.5384693101, 0.9061798459], dtype=torch.float64)
    z_weights = torch.tensor(
        [0.2369268851, 0.4786286705, 0.5688888889, 0.4786286705, 0.2369268851], dtype=torch.float64
    )
    angles = torch.arange(12, dtype=torch.float64) * (2 * math.pi / 12)
    z, angle = (grid.flatten() for grid in torch.meshgrid(z_nodes, angles, indexing="ij"))
    radius = (1 - z**2).sqrt()
    directions = torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)
    values = SphericalHarmonics(degree=4)((directions + 1) / 2)
    weights = z_weights.repeat_interleave(12) * (2 * math.pi / 12)
    torch.testing.assert_close(
        (values * weights[:, None]).T @ values, torch.eye(16, dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_first_harmonics_have_the_sign_of_condon_and_shortley() -> None:
    direction = torch.tensor([[0.48, -0.6, 0.64]])
    values = SphericalHarmonics(degree=2)((direction + 1) / 2)
    torch.testing.assert_close(
        values[0], torch.tensor([0.2820948, 0.4886025 * 0.6, 0.4886025 * 0.64, -0.4886025 * 0.48]), atol=1e-6, rtol=0
    )


def test_frequencies_are_octaves_without_pi() -> None:
    values = FrequencyEncoding(num_frequencies=2, include_input=True)(torch.tensor([[0.1, 0.2, 0.3]]))
    expected = [-0.8, -0.6, -0.4]
    for k in (1, 2):
        expected += [math.sin(k * u) for u in (0.1, 0.2, 0.3)] + [math.cos(k * u) for u in (0.1, 0.2, 0.3)]
    torch.testing.assert_close(values[0], torch.tensor(expected))


def test_trilinear_weights_sum_to_one_and_pick_corners() -> None:
    fraction = torch.rand(3, 20, generator=generator())
    torch.testing.assert_close(trilinear_weights(fraction).sum(dim=1), torch.ones(20))
    at_corner = trilinear_weights(torch.tensor([[1.0], [0.0], [1.0]]))
    assert at_corner[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_refined_nodes_are_the_same_function(factor: int) -> None:
    nodes = torch.randn(4, 4, 4, 2, generator=generator())
    points = torch.rand(50, 3, generator=generator(1))
    refined = refine_nodes(nodes, factor)
    assert refined.shape == (3 * factor + 1,) * 3 + (2,)
    torch.testing.assert_close(
        interpolate_nodes(refined, points), interpolate_nodes(nodes, points), atol=1e-5, rtol=1e-5
    )


def test_smoothing_is_a_weighted_mean_that_keeps_linear_functions() -> None:
    x, y, z = torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij")
    linear = 2 * x - y + 0.5 * z
    torch.testing.assert_close(smooth_nodes(linear), linear)
    peak = torch.zeros(5, 5, 5)
    peak[2, 2, 2] = 1.0
    smoothed = smooth_nodes(peak)
    torch.testing.assert_close(smoothed.sum(), torch.tensor(1.0))
    assert smoothed[2, 2, 2] == 1 / 8
    assert smoothed[1, 1, 1] == 1 / 64


def double(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed)).requires_grad_()


def test_sum_of_rows_has_first_and_second_derivatives() -> None:
    table, weights = double(10, 2, seed=0), double(5, 4, seed=1)
    indices = torch.randint(10, (5, 4), generator=generator(2))
    function = lambda table, weights: sum_rows(table, indices, weights)  # noqa: E731
    assert torch.autograd.gradcheck(function, (table, weights))
    assert torch.autograd.gradgradcheck(function, (table, weights))


def test_interpolation_has_first_and_second_derivatives() -> None:
    inputs = (double(3, 4, 3, 2, seed=0), double(6, 3, seed=1))
    assert torch.autograd.gradcheck(interpolate_nodes, inputs)
    assert torch.autograd.gradgradcheck(interpolate_nodes, inputs)


def test_refinement_has_first_and_second_derivatives() -> None:
    nodes = double(2, 3, 2, 1, seed=0)
    function = lambda nodes: refine_nodes(nodes, 3)  # noqa: E731
    assert torch.autograd.gradcheck(function, (nodes,))
    assert torch.autograd.gradgradcheck(function, (nodes,))


def test_hash_grid_has_first_and_second_derivatives() -> None:
    grid = small_hash_grid(num_levels=2).double()
    points = double(5, 3, seed=1)
    assert torch.autograd.gradcheck(grid, (points,))
    assert torch.autograd.gradgradcheck(grid, (points,))


class CountScatters(TorchDispatchMode):
    """Counts the additions into tables."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.index_add_
        return func(*args, **(kwargs or {}))


def test_gradient_in_the_points_alone_never_scatters_into_the_table() -> None:
    grid, points = small_hash_grid(), torch.rand(5, 3, generator=generator()).requires_grad_()
    with CountScatters() as counter:
        torch.autograd.grad(grid(points).sum(), points, create_graph=True)
        assert counter.count == 0
        grid(points).sum().backward()
        assert counter.count == 4  # a level each


def test_levels_that_do_not_nest_are_refused() -> None:
    with pytest.raises(ValueError, match=r"field.dense_grid.resolutions must each divide the next, got 8 before 12"):
        DenseGrid(resolutions=(8, 12))
