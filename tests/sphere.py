"""A sphere at the origin seen by exact cameras: what a perfect rendering of opacity and distance would be."""

import math

import torch
from torch import Tensor

from corrdream.cameras import camera_rays, orbit_cameras, project, shift_azimuth
from corrdream.structures import CameraBatch, LightBatch, RaySamples, RenderOutput

ORBIT_FACTOR = 0.9  # middle of the released distances (0.8 .. 1.0) / tan(fovy / 2)


def camera_pairs(
    num_views: int = 1, *, size: int = 32, fovy_deg: float = 60.0, shift_deg: float = 20.0, elevation_deg: float = 15.0
) -> tuple[CameraBatch, CameraBatch]:
    """Cameras at the middle of the released orbit distances, and their twins."""
    cameras = orbit_cameras(
        num_views,
        elevation_deg=elevation_deg,
        distance=ORBIT_FACTOR / math.tan(math.radians(fovy_deg) / 2),
        fovy_deg=fovy_deg,
        height=size,
        width=size,
    )
    position = cameras.c2w[:, :3, 3]
    lights = LightBatch(position=position, offset=torch.zeros_like(position), distance=cameras.distance)
    twins, _ = shift_azimuth(cameras, lights, torch.full((num_views,), math.radians(shift_deg)))
    return cameras, twins


def surface(cameras: CameraBatch, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each pixel's ray hits the sphere, its distance there, and the point: [B S S], [B S S], [B S S 3]."""
    rays = camera_rays(cameras)
    along = (rays.origins * rays.directions).sum(dim=1)
    discriminant = along**2 - rays.origins.square().sum(dim=1) + radius**2
    distance = -along - discriminant.clamp_min(0).sqrt()
    points = rays.origins + distance[:, None] * rays.directions
    shape = (len(cameras.c2w), cameras.height, cameras.width)
    return (discriminant > 0).reshape(shape), distance.reshape(shape), points.reshape(*shape, 3)


def seen_by_both(source: CameraBatch, target: CameraBatch, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Source pixels of the sphere that the target sees too, and exactly where: view [M], xy [M 2], target_xy [M 2]."""
    hit, _, points = surface(source, radius)
    towards_target = target.c2w[:, None, None, :3, 3] - points
    view, row, column = (hit & ((towards_target * points).sum(dim=3) > 0)).nonzero().unbind(dim=1)
    target_xy, _ = project(points[view, row, column], target.c2w[view], target.intrinsics[view])
    return view, torch.stack([column, row], dim=1), target_xy


def render_sphere(cameras: CameraBatch, radius: float) -> RenderOutput:
    """Opacity one on the sphere and zero elsewhere, and the distance of its surface."""
    hit, distance, _ = surface(cameras, radius)
    return rendering(hit.to(distance.dtype), torch.where(hit, distance, 0))


def position_features(cameras: CameraBatch, radius: float, num_channels: int) -> Tensor:
    """Features [B C S S] that are the same where two views see the same point: random waves of the position."""
    hit, _, points = surface(cameras, radius)
    waves = 6 * torch.randn(3, num_channels, generator=torch.Generator().manual_seed(0))
    phase = (points[..., None] / radius * waves).sum(dim=3) + torch.arange(num_channels)
    return (torch.cos(phase) * hit[..., None]).permute(0, 3, 1, 2)


def rendering(opacity: Tensor, distance: Tensor) -> RenderOutput:
    """A rendering of which only opacity and distance matter."""
    empty = opacity.new_zeros(0)
    return RenderOutput(
        rgb=opacity.new_zeros(*opacity.shape, 3),
        opacity=opacity,
        distance=distance,
        samples=RaySamples(ray_indices=torch.zeros(0, dtype=torch.long), t_starts=empty, t_ends=empty),
        weights=empty,
        sample_normal=None,
        sample_direction=opacity.new_zeros(0, 3),
    )
