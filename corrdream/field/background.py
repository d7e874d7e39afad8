"""What is seen where the object is not: one color, or a network of the viewing direction."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from corrdream.field.networks import perceptron
from corrdream.interfaces import Encoding


class SolidBackground(nn.Module):
    """The same color in every direction; nothing to train."""

    color: Tensor

    def __init__(self, *, color: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("color", torch.tensor(color, dtype=torch.float32), persistent=False)

    def forward(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The color, once a ray."""
        return self.color.to(directions).expand_as(directions)


class NetworkBackground(nn.Module):
    """Color of a direction: its encoding, ReLU layers without bias, a sigmoid."""

    def __init__(
        self,
        *,
        encoding: Encoding,
        hidden_width: int = 16,
        num_hidden_layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.network = perceptron(
            inputs=encoding.output_dim,
            outputs=3,
            hidden_width=hidden_width,
            num_hidden_layers=num_hidden_layers,
            generator=generator,
        )

    def forward(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Colors in [0, 1] along unit directions, whatever the autocast in 32 bits."""
        with torch.autocast(directions.device.type, enabled=False):
            encoded: Tensor = self.encoding((directions.float() + 1) / 2)
            return torch.sigmoid(self.network(encoded))
