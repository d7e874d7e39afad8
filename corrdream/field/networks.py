"""Small bias-free ReLU networks, whose weights come from an explicit generator."""

import itertools
import math

import torch
from torch import nn


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
