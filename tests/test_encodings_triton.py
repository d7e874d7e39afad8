"""The hash grid's kernels against their torch twin: on a GPU, and slowly in Triton's interpreter."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from corrdream.field.encodings import HashGrid
from corrdream.field.radiance_field import RadianceField
from corrdream.interfaces import Encoding, JacobianEncoding
from tests.contracts.encoding import EncodingContract
from tests.golden.encodings import compare_hash_grid
from tests.golden.helpers import group

REFERENCES = Path(__file__).parent / "references"
triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_grid(num_levels: int = 4, *, width: int = 2, dtype: torch.dtype = torch.float32) -> HashGrid:
    """Two dense levels, then hashed ones; entries in [-1, 1]."""
    grid = HashGrid(
        num_levels=num_levels,
        features_per_level=width,
        log2_table_size=9,
        base_resolution=4,
        growth=1.7,
        generator=generator(),
    ).to(dtype)
    grid.table.data *= 1e4
    return grid


def make_points(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Both ends of the cube, points along a short ray that shares cells, and points anywhere."""
    ends = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    start, end = torch.tensor([0.3, 0.2, 0.6]), torch.tensor([0.35, 0.3, 0.5])
    ray = torch.lerp(start, end, torch.linspace(0, 1, count // 2)[:, None])
    return torch.cat((ends, ray, torch.rand(count - count // 2 - 3, 3, generator=generator(1)))).to(dtype)


def derivatives(encoding: Encoding, table: Tensor, points: Tensor) -> list[Tensor]:
    """Features; first derivatives in table and points; derivatives of the latter in table, points and cotangent."""
    points = points.detach().requires_grad_()
    features = encoding(points)
    cotangent = torch.randn(features.shape, generator=generator(2), dtype=torch.float64).to(features)
    cotangent.requires_grad_()
    to_table, to_points = torch.autograd.grad((features * cotangent).sum(), (table, points), retain_graph=True)
    (slope,) = torch.autograd.grad(features, points, cotangent, create_graph=True)
    direction = torch.randn(slope.shape, generator=generator(3), dtype=torch.float64).to(slope)
    second = torch.autograd.grad((slope * direction).sum(), (table, points, cotangent))
    return [features.detach(), to_table, to_points, *second]


def assert_same(grid: HashGrid, encoding: Encoding, table: Tensor, points: Tensor, tolerance: float) -> None:
    expected = derivatives(grid, grid.table, points)
    actual = derivatives(encoding, table, points.to(table.device))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def assert_jacobian(encoding: JacobianEncoding, table: Tensor, points: Tensor, tolerance: float) -> None:
    """Features and J are those of the other path, and so is what both do to the table."""
    features, jacobian = encoding.with_jacobian(points)
    variable = points.detach().requires_grad_()
    expected = encoding(variable)
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance)
    columns = [torch.autograd.grad(column.sum(), variable, create_graph=True)[0] for column in expected.unbind(1)]
    slow = torch.stack(columns, dim=1).permute(2, 0, 1)
    scale = float(slow.detach().abs().max())
    torch.testing.assert_close(jacobian, slow, rtol=0, atol=tolerance * scale)
    one = torch.randn(features.shape, generator=generator(4), dtype=torch.float64).to(features)
    other = torch.randn(jacobian.shape, generator=generator(5), dtype=torch.float64).to(features)
    (ours,) = torch.autograd.grad((features * one).sum() + (jacobian * other).sum(), table)
    (theirs,) = torch.autograd.grad((expected * one).sum() + (slow * other).sum(), table)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def interpreted() -> None:
    """All that the interpreter can afford; run in a process of its own."""
    from corrdream.field.encodings_triton import TritonHashGrid

    grid, points = make_grid(3), make_points(8)
    torch.testing.assert_close(TritonHashGrid(grid, block=8)(points), grid(points), rtol=0, atol=1e-6)
    grid, points = grid.double(), points.double()
    encoding = TritonHashGrid(grid, block=8)
    encoding.num_combined = 2  # of three levels: both ways of adding
    assert_same(grid, encoding, encoding.table, points, 1e-13)
    assert encoding(points[:0]).shape == (0, 6)


@triton
def test_kernels_equal_the_reference_in_tritons_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # is read when triton is imported, hence a process of its own
    code = "from tests.test_encodings_triton import interpreted; interpreted()"
    subprocess.run([sys.executable, "-c", code], check=True)


@triton
def test_table_has_the_same_name_on_every_backend() -> None:
    from corrdream.field.encodings_triton import TritonHashGrid

    grid = make_grid()
    assert TritonHashGrid(grid).state_dict().keys() == grid.state_dict().keys()


@triton
def test_width_that_is_no_power_of_two_is_refused() -> None:
    from corrdream.field.encodings_triton import TritonHashGrid

    with pytest.raises(ValueError, match="features_per_level to be a power of two, got 3"):
        TritonHashGrid(make_grid(width=3))


@pytest.mark.gpu("triton")
class TestTritonHashGrid(EncodingContract):
    device = "cuda"

    def make(self) -> Encoding:
        from corrdream.field.encodings_triton import TritonHashGrid

        return TritonHashGrid(make_grid())


@pytest.mark.gpu("triton")
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
def test_kernels_equal_the_reference_on_the_gpu(width: int, dtype: torch.dtype, tolerance: float) -> None:
    from corrdream.field.encodings_triton import TritonHashGrid

    grid, points = make_grid(width=width, dtype=dtype), make_points(3001, dtype)
    encoding = TritonHashGrid(make_grid(width=width, dtype=dtype)).to("cuda")
    assert_same(grid, encoding, encoding.table, points, tolerance)
    assert_jacobian(encoding, encoding.table, points.cuda(), tolerance)


@pytest.mark.gpu("triton")
@pytest.mark.parametrize("name", ["published", "small_hash"])
def test_kernels_give_the_published_numbers_on_the_gpu(name: str) -> None:
    from corrdream.field.encodings_triton import TritonHashGrid

    with np.load(REFERENCES / "encodings.npz") as data:
        arrays = group(data, name)
    compare_hash_grid(arrays, accelerate=lambda grid: TritonHashGrid(grid).to("cuda"))


class TwinWithJacobian(nn.Module):
    """The torch twin, which takes its Jacobian from autograd: for the field's path that has no second derivative."""

    def __init__(self, grid: HashGrid) -> None:
        super().__init__()
        self.grid, self.output_dim = grid, grid.output_dim

    def forward(self, points: Tensor) -> Tensor:
        return self.grid(points)

    def with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        variable = points.detach().requires_grad_()
        features = self.grid(variable)
        columns = [torch.autograd.grad(column.sum(), variable, create_graph=True)[0] for column in features.unbind(1)]
        return features, torch.stack(columns, dim=1).permute(2, 0, 1)


@pytest.mark.parametrize("num_hidden_layers", [0, 1, 2])
def test_field_has_the_same_normals_and_gradients_with_and_without_a_jacobian(num_hidden_layers: int) -> None:
    points = 2 * make_points(200, torch.float64)[3:] - 1
    outputs = []
    for wrap in (lambda grid: grid, TwinWithJacobian):
        field = RadianceField(
            encoding=wrap(make_grid(dtype=torch.float64)),
            hidden_width=8,
            num_hidden_layers=num_hidden_layers,
            generator=generator(),
        ).double()
        output = field(points, with_normal=True)
        assert output.normal is not None
        turned = (output.normal * torch.linspace(-1, 1, 3, dtype=torch.float64)).square().sum()
        loss = turned + output.density.square().sum() + output.albedo.sum()
        gradients = torch.autograd.grad(loss, list(field.parameters()))
        outputs.append([output.density, output.albedo, output.normal, *gradients])
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
