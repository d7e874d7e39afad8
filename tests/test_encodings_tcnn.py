"""tiny-cuda-nn's encodings against their torch twins and the recorded values, and what is said where it is missing."""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from corrdream.backends import MissingBackendError
from corrdream.field.encodings import HashGrid
from corrdream.field.encodings_tcnn import TcnnHashGrid, TcnnSphericalHarmonics
from corrdream.interfaces import Encoding
from tests.conftest import REFERENCES
from tests.contracts.encoding import EncodingContract
from tests.golden import tcnn_sh, tcnn_small
from tests.test_encodings import TestHashGrid, TestSphericalHarmonics, generator
from tests.test_golden import load

SMALL = {"num_levels": 4, "log2_table_size": 8, "base_resolution": 4, "growth": 1.7}
PUBLISHED = {"growth": 1.447269237440378}


@pytest.mark.gpu
class TestHashGridOnGpu(TestHashGrid):
    device = "cuda"


@pytest.mark.gpu
class TestSphericalHarmonicsOnGpu(TestSphericalHarmonics):
    device = "cuda"


@pytest.mark.gpu("tinycudann")
class TestTcnnHashGrid(EncodingContract):
    device = "cuda"

    def make(self) -> Encoding:
        grid = TcnnHashGrid(**SMALL, generator=generator())
        grid.table.data *= 1e4  # from the initial range to [-1, 1]
        return grid


@pytest.mark.gpu("tinycudann")
class TestTcnnSphericalHarmonics(EncodingContract):
    device = "cuda"
    is_twice_differentiable = False

    def make(self) -> Encoding:
        return TcnnSphericalHarmonics(degree=4)


def values(encoding: Any, points: Tensor) -> dict[str, Tensor]:
    """Features, their gradients, and the gradients of a slope: all that training takes of a grid."""
    cotangent = torch.randn(len(points), encoding.output_dim, generator=generator(1)).to(points).requires_grad_()
    direction = torch.randn(len(points), 3, generator=generator(2)).to(points)
    features = encoding(points)
    first = torch.autograd.grad((features * cotangent).sum(), (encoding.table, points), create_graph=True)
    second = torch.autograd.grad((first[1] * direction).sum(), (encoding.table, points, cotangent))
    names = ("features", "table", "points", "second table", "second points", "second cotangent")
    return dict(zip(names, (features, *first, *second), strict=True))


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerances: dict[str, float]) -> None:
    """Norm of the difference over the norm; the sums into a table are atomic, in any order."""
    off = {name: ((actual[name] - value).norm() / value.norm()).item() for name, value in expected.items()}
    assert all(off[name] <= tolerances[name] for name in expected), off


@pytest.mark.gpu("tinycudann")
@pytest.mark.parametrize("count", [1, 1000, 20_001])
def test_published_hash_grid_is_that_of_the_torch_twin(count: int) -> None:
    scales = [level["scale"] for level in published_levels()]
    twin = HashGrid(**PUBLISHED, level_scales=scales, generator=generator()).cuda()
    grid = TcnnHashGrid(**PUBLISHED).cuda()
    twin.table.data *= 1e4
    grid.load_state_dict(twin.state_dict())
    points = torch.rand(count, 3, generator=generator(3)).cuda().requires_grad_()
    # The kernels' fused arithmetic puts a few points on the other side of a cell's face, where slopes jump.
    rough = {"points": 1e-2, "second table": 1e-2, "second points": 1e-2, "second cotangent": 1e-2}
    assert_near(values(grid, points), values(twin, points), {"features": 1e-5, "table": 1e-5} | rough)


def published_levels() -> list[dict[str, Any]]:
    """The levels of the published grid as a GPU has them."""
    grids = json.loads((REFERENCES / "tcnn_scales.json").read_text(encoding="utf-8"))
    return next(levels for levels in grids.values() if isinstance(levels, list) and len(levels) == 16)


@pytest.mark.gpu("tinycudann")
def test_half_precision_is_near_full_precision() -> None:
    full, half = (TcnnHashGrid(**SMALL, dtype=dtype, generator=generator()) for dtype in (torch.float32, torch.float16))
    points = torch.rand(1000, 3, generator=generator(3)).cuda().requires_grad_()
    results = []
    for grid in (full, half):
        grid.cuda().table.data *= 1e4
        results.append(values(grid, points))
    assert all(value.dtype == torch.float32 for value in results[1].values())
    assert_near(results[1], results[0], dict.fromkeys(results[0], 1e-2))


@pytest.mark.gpu("tinycudann")
def test_checkpoints_fit_both_ways() -> None:
    twin, grid = HashGrid(**SMALL, generator=generator()), TcnnHashGrid(**SMALL, generator=generator())
    assert grid.state_dict().keys() == twin.state_dict().keys()
    assert torch.equal(grid.table, twin.table)  # the same initial values
    twin.load_state_dict(grid.cuda().state_dict())
    assert [name for name, _ in grid.named_parameters()] == ["table"]
    assert not list(TcnnSphericalHarmonics(degree=3).parameters())


@pytest.mark.gpu("tinycudann")
def test_no_points_leave_no_gradient() -> None:
    grid = TcnnHashGrid(**SMALL, generator=generator()).cuda()
    points = torch.zeros(0, 3, device="cuda", requires_grad=True)
    to_table, to_points = torch.autograd.grad(grid(points).sum(), (grid.table, points))
    assert not to_table.any()
    assert to_points.shape == (0, 3)


@pytest.mark.gpu("tinycudann")
def test_gradients_need_not_be_contiguous() -> None:
    grid = TcnnHashGrid(**SMALL, generator=generator()).cuda()
    points = torch.rand(256, 3, generator=generator()).cuda().requires_grad_()  # a multiple of the kernels' batch
    (slope,) = torch.autograd.grad(grid(points).sum(), points, create_graph=True)
    (from_expanded,) = torch.autograd.grad(slope.sum(), grid.table, retain_graph=True)
    (from_ones,) = torch.autograd.grad((slope * torch.ones_like(slope)).sum(), grid.table)
    torch.testing.assert_close(from_expanded, from_ones)


@pytest.mark.gpu("tinycudann")
@pytest.mark.parametrize(
    ("golden", "encoding"), [(tcnn_small, TcnnHashGrid), (tcnn_sh, TcnnSphericalHarmonics)], ids=["grid", "harmonics"]
)
def test_recorded_values_come_again(request: pytest.FixtureRequest, golden: Any, encoding: Callable[..., Any]) -> None:
    path = request.config.getoption("--golden") / golden.FILE
    if not path.is_file():
        pytest.skip(f"{golden.FILE} is not in {path.parent}")
    with torch.device("cuda"):
        golden.compare(load(path), encoding)


def test_level_width_without_kernels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"field\.hash_grid\.features_per_level must be one of .* got 3"):
        TcnnHashGrid(features_per_level=3)


@pytest.mark.skipif(importlib.util.find_spec("tinycudann") is not None, reason="tinycudann is installed here")
def test_tinycudann_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingBackendError, match=r"field\.backend=tinycudann needs the package tinycudann \(pip inst"):
        TcnnHashGrid(**SMALL)
