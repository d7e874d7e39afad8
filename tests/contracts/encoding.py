"""What every Encoding must do. A subclass says how to make one, and on which device."""

import pytest
import torch
from torch import Tensor, nn

from corrdream.interfaces import Encoding


class EncodingContract:
    device = "cpu"
    dtype = torch.float32
    is_twice_differentiable = True  # in the points

    def make(self) -> Encoding:
        """The encoding at random parameters."""
        raise NotImplementedError

    @pytest.fixture
    def encoding(self) -> Encoding:
        encoding = self.make()
        return encoding.to(self.device, self.dtype) if isinstance(encoding, nn.Module) else encoding

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Uniform numbers in [0, 1)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape, generator=generator).to(self.device, self.dtype)

    def test_output_has_the_declared_width(self, encoding: Encoding) -> None:
        features = encoding(self.random(37, 3))
        assert features.shape == (37, encoding.output_dim)
        assert features.dtype == self.dtype
        assert bool(torch.isfinite(features).all())

    def test_no_points_give_no_features(self, encoding: Encoding) -> None:
        assert encoding(self.random(0, 3)).shape == (0, encoding.output_dim)

    def test_each_point_is_encoded_on_its_own(self, encoding: Encoding) -> None:
        points = self.random(50, 3)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).to(self.device)
        torch.testing.assert_close(encoding(points)[order], encoding(points[order]))

    def test_corners_of_the_cube_are_encoded(self, encoding: Encoding) -> None:
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).to(self.device, self.dtype)
        assert bool(torch.isfinite(encoding(corners)).all())

    def test_features_are_continuous(self, encoding: Encoding) -> None:
        points = self.random(200, 3) * 0.9
        step = 1e-5
        jump = (encoding(points + step) - encoding(points)).abs().max()
        assert jump < 1e-2 * encoding(points).abs().max()

    def test_gradient_in_the_points_is_the_difference_quotient(self, encoding: Encoding) -> None:
        points = (self.random(400, 3) * 0.9 + 0.05).requires_grad_()
        cotangent, direction = self.random(400, encoding.output_dim, seed=1) - 0.5, self.random(400, 3, seed=2) - 0.5
        (gradient,) = torch.autograd.grad((encoding(points) * cotangent).sum(), points)
        step = 5e-4
        with torch.no_grad():
            change = encoding(points + step * direction) - encoding(points - step * direction)
            quotient = (change * cotangent).sum(-1) / (2 * step)
        analytic = (gradient * direction).sum(-1)
        off = (analytic - quotient).abs() / quotient.abs().max()
        # A cell's face between the two points makes the quotient wrong: hence most of the points, not all.
        assert off.quantile(0.8) < 1e-2

    def test_gradient_in_the_points_is_differentiable_in_points_and_parameters(self, encoding: Encoding) -> None:
        points = self.random(100, 3).requires_grad_()
        cotangent, direction = self.random(100, encoding.output_dim, seed=1) - 0.5, self.random(100, 3, seed=2) - 0.5
        parameters = list(encoding.parameters()) if isinstance(encoding, nn.Module) else []

        def slope(create_graph: bool) -> Tensor:
            features = encoding(points)
            (gradient,) = torch.autograd.grad((features * cotangent).sum(), points, create_graph=create_graph)
            return (gradient * direction).sum()

        variables = [points, *parameters]
        if not self.is_twice_differentiable:
            pytest.skip("differentiable once: nothing is said about its second derivatives")
        second = torch.autograd.grad(slope(True), variables, allow_unused=True)
        if not parameters:
            assert second[0] is not None
            return
        # The grids are linear in their parameters, so is the slope: its gradient times the parameters is the slope.
        by_parameters = sum((g * p).sum() for g, p in zip(second[1:], parameters, strict=True) if g is not None)
        torch.testing.assert_close(by_parameters, slope(False), rtol=1e-4, atol=1e-5)
