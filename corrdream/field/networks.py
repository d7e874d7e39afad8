"""Small bias-free ReLU networks, whose weights come from an explicit generator, and what a field asks of them."""

import itertools
import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def perceptron(
    *, inputs: int, outputs: int, hidden_width: int, num_hidden_layers: int, generator: torch.Generator | None
) -> nn.Sequential:
    """Bias-free linear layers with ReLU in between, none after the last; initialized as torch does."""
    widths = [inputs, *[hidden_width] * num_hidden_layers, outputs]
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, width, next_width, bias=False)
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def value_and_slope(network: nn.Module, inputs: Float[Tensor, "P C"]) -> tuple[Float[Tensor, " P"], Tensor]:
    """Values of a perceptron with one output, and their derivative in the inputs [P C]; both once differentiable.

    The network is piecewise linear: each layer's weights pass on the slope where their inputs are active.
    """
    hidden, active = inputs, []
    linears = [layer for layer in network.children() if isinstance(layer, nn.Linear)]
    for layer in linears[:-1]:
        before = layer(hidden)
        active.append(before > 0)
        hidden = torch.relu(before)
    slope = linears[-1].weight.expand(len(inputs), -1)
    for layer, is_active in zip(reversed(linears[:-1]), reversed(active), strict=True):
        slope = (slope * is_active) @ layer.weight
    return linears[-1](hidden).squeeze(-1), slope


@runtime_checkable
class Heads(Protocol):
    """A field's density and albedo networks, evaluated on features and their derivatives."""

    def density(self, density: nn.Module, features: Float[Tensor, "P C"]) -> Float[Tensor, " P"]:
        """Raw density alone, for sampling: may carry no gradient."""
        ...

    def density_slope_albedo(
        self,
        density: nn.Module,
        albedo: nn.Module,
        features: Float[Tensor, "P C"],
        jacobian: Float[Tensor, "3 P C"],
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
        """Raw density, its slope through the features' derivatives, and raw albedo; once differentiable."""
        ...


class TorchHeads:
    """The networks as torch runs them."""

    def density(self, density: nn.Module, features: Float[Tensor, "P C"]) -> Float[Tensor, " P"]:
        """Raw density alone."""
        raw: Tensor = density(features)
        return raw.squeeze(-1)

    def density_slope_albedo(
        self,
        density: nn.Module,
        albedo: nn.Module,
        features: Float[Tensor, "P C"],
        jacobian: Float[Tensor, "3 P C"],
    ) -> tuple[Float[Tensor, " P"], Float[Tensor, "P 3"], Float[Tensor, "P 3"]]:
        """Raw density, its slope through the features' derivatives, and raw albedo."""
        raw, by_feature = value_and_slope(density, features)
        return raw, (jacobian * by_feature).sum(-1).t(), albedo(features)
