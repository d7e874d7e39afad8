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
    """Waves of many directions and lengths on the surface of the shape that a caption describes.

    Two pixels have similar features where they see nearly the same point of it; pixels beside it have none.
    """

    def __init__(self, caption: str) -> None:
        """Raises CaptionError for what the built-in world cannot draw."""
        self._shapes = pack_shapes([build_shape(caption)])
        generator = torch.Generator().manual_seed(0)
        self._waves = WAVE_NUMBER * torch.randn(3, NUM_WAVES, generator=generator)

    def __call__(self, cameras: CameraBatch) -> Float[Tensor, "B C H W"]:
        """At the resolution of the cameras."""
        device = cameras.c2w.device
        seen = render_geometry(self._shapes.to(device), cameras)
        angles = seen.position @ self._waves.to(device)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1) * seen.mask[..., None]
        return features.permute(0, 3, 1, 2)
