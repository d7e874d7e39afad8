"""Point-light shading of samples: ambient and Lambertian light on a diffuse surface (arXiv:2209.14988, section 3.2)."""

from typing import assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corrdream.structures import Appearance
from corrdream.transfer import to_device


def shade(
    albedo: Float[Tensor, "S 3"],
    normal: Float[Tensor, "S 3"] | None,
    *,
    points: Float[Tensor, "S 3"],
    light_position: Float[Tensor, "S 3"],
    appearance: Appearance,
) -> Float[Tensor, "S 3"]:
    """Color of samples: the albedo itself, the light that falls on white (textureless), or their product (diffuse)."""
    if appearance.mode == "albedo":
        return albedo
    if normal is None:
        raise ValueError(f"shading mode {appearance.mode} needs normals; field.normal must not be none.")
    to_light = F.normalize(light_position - points, dim=-1)
    lambert = (normal * to_light).sum(-1, keepdim=True).clamp_min(0)
    colors = to_device(torch.tensor([appearance.diffuse, appearance.ambient], dtype=lambert.dtype), lambert.device)
    light = lambert * colors[0] + colors[1]
    match appearance.mode:
        case "textureless":
            return light
        case "diffuse":
            return albedo.clamp(0, 1) * light
        case _:
            assert_never(appearance.mode)
