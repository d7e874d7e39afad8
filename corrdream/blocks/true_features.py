"""Features of the true shape, for a run whose matches are right: what the correspondence loss gives at best."""

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.blocks.render import render_geometry
from corrdream.blocks.shapes import build_shape, pack_shapes
from corrdream.structures import CameraBatch

NUM_WAVES = 64
WAVE_NUMBER = 6.0  # standard deviation, radians a world unit: smooth over a pixel, unlike over a part


class TrueFeatures:
    """Waves on the surface of the shape that a caption describes; pixels beside it have no features."""

    def __init__(self, caption: str) -> None:
        """Raises CaptionError for what the built-in world cannot draw."""
        self._shapes = pack_shapes([build_shape(caption)])

    def __call__(self, cameras: CameraBatch) -> Float[Tensor, "B C H W"]:
        """At the resolution of the cameras."""
        seen = render_geometry(self._shapes.to(cameras.c2w.device), cameras)
        return position_waves(seen.position) * seen.mask[:, None]


def position_waves(position: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B C H W"]:
    """Waves of many directions and lengths at world points: alike where two pixels see nearly the same point."""
    generator = torch.Generator().manual_seed(0)
    angles = position @ (WAVE_NUMBER * torch.randn(3, NUM_WAVES, generator=generator)).to(position)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(0, 3, 1, 2)
