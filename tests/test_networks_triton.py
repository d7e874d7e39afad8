"""The fused networks against their torch twin: on a GPU, and in Triton's interpreter."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from corrdream.field.networks import Heads, TorchHeads, perceptron, value_and_slope

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def networks(channels: int, hidden: int) -> tuple[nn.Module, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    density, albedo = (
        perceptron(inputs=channels, outputs=outputs, hidden_width=hidden, num_hidden_layers=1, generator=generator)
        for outputs in (1, 3)
    )
    return density, albedo


def away_from_kinks(features: Tensor, channels: int, hidden: int) -> Tensor:
    """The points where no unit is so close to zero that rounding may switch it, and the slope with it."""
    units = torch.cat([network[0](features) for network in networks(channels, hidden)], dim=1)
    return features[(units.abs() > 1e-4).all(1)]


def outputs_and_gradients(heads: Heads, count: int, channels: int, hidden: int, device: str) -> list[Tensor]:
    """Outputs; gradients in features, derivatives and all weights; and the density alone."""
    density, albedo = (network.to(device) for network in networks(channels, hidden))
    generator = torch.Generator().manual_seed(1)
    features = away_from_kinks(torch.randn(count + count // 16, channels, generator=generator), channels, hidden)
    features = features[:count].to(device)
    shapes = (3, count, channels), (count,), (count, 3), (count, 3)
    jacobian, *cotangents = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    features.requires_grad_()
    jacobian.requires_grad_()
    outputs = heads.density_slope_albedo(density, albedo, features, jacobian)
    weights = [*density.parameters(), *albedo.parameters()]
    gradients = torch.autograd.grad(outputs, [features, jacobian, *weights], cotangents)
    with torch.no_grad():
        alone = heads.density(density, features)
    return [tensor.detach().cpu() for tensor in (*outputs, *gradients, alone)]


def assert_same(count: int, channels: int, hidden: int, device: str, tolerances: tuple[float, float]) -> None:
    """Tolerances of outputs and of gradients, relative to the largest value."""
    from corrdream.field.networks_triton import TritonHeads

    expected = outputs_and_gradients(TorchHeads(), count, channels, hidden, "cpu")
    actual = outputs_and_gradients(TritonHeads(), count, channels, hidden, device)
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.shape == theirs.shape
        is_gradient = 3 <= index < len(expected) - 1
        if ours.numel():
            assert (ours - theirs).norm() <= tolerances[is_gradient] * theirs.norm()


def interpreted() -> None:
    assert_same(
        150, 8, 20, "cpu", (1e-6, 1e-6)
    )  # more than one tile, the last not full; sizes that are no powers of two
    assert_same(0, 8, 16, "cpu", (0.0, 0.0))


@triton
def test_kernels_equal_the_reference_in_tritons_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # is read when triton is imported, hence a process of its own
    code = "from tests.test_networks_triton import interpreted; interpreted()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu("triton")
@pytest.mark.parametrize(("count", "channels", "hidden"), [(100_003, 32, 64), (777, 32, 64), (64, 8, 20), (0, 32, 64)])
def test_kernels_equal_the_reference_on_the_gpu(count: int, channels: int, hidden: int) -> None:
    # Gradients: products in TF32, 5e-4 each.
    assert_same(count, channels, hidden, "cuda", (1e-5, 2e-3))


@pytest.mark.parametrize("num_hidden_layers", [0, 1, 2])
def test_slope_of_a_perceptron_is_its_gradient(num_hidden_layers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"inputs": 5, "outputs": 1, "hidden_width": 8, "num_hidden_layers": num_hidden_layers}
    network = perceptron(**sizes, generator=generator).double()
    inputs = torch.randn(20, 5, dtype=torch.float64, generator=generator).requires_grad_()
    value, slope = value_and_slope(network, inputs)
    expected = network(inputs).squeeze(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), inputs, create_graph=True)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, gradient)
    weights = list(network.parameters())
    ours = torch.autograd.grad(slope.square().sum(), weights)
    theirs = torch.autograd.grad(gradient.square().sum(), weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
