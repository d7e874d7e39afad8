"""What a grade looks at: the field's density at voxel centres, and its views from held-out cameras.

Views are drawn by the product's renderer. Only where it samples is decided here: in steps of one voxel side, wherever
the volume of densities, which is at hand, says that something can be seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from corrdream.blocks.measures import OCCUPIED, interpolate, opacity_of_density, voxel_centers
from corrdream.cameras import (
    camera_rays,
    intrinsics_from_fovy,
    lights_at_cameras,
    look_at,
    spherical_position,
)
from corrdream.field import SolidBackground
from corrdream.interfaces import DensityFunction, Field
from corrdream.rendering import render
from corrdream.structures import Appearance, CameraBatch, RayBundle, RaySamples

RESOLUTION = 128  # voxels along a side of the box
NUM_VIEWS = 24
VIEW_SIZE = 64  # pixels
FOVY_DEG, DISTANCE = 40.0, 3.0
GOLDEN_RATIO = (5**0.5 - 1) / 2
POINTS_PER_CHUNK = 1 << 18
VIEWS_PER_CHUNK = 6
BRICK = 4  # steps that are skipped together where nothing is
FAINT = 1e-3  # opacity of a voxel that is not worth a sample
HIDDEN = 1e-4  # transmittance below which nothing is seen

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """The prediction as the held-out cameras see it; colors and depths are meaningless where the opacity is 0."""

    opacity: Float[np.ndarray, "B H W"]
    depth: Float[np.ndarray, "B H W"]  # planar, divided by the opacity
    position: Float[np.ndarray, "B H W 3"]  # of the point at that depth, world units
    albedo: Float[np.ndarray, "B H W 3"]  # divided by the opacity, in [0, 1]


def spread_cameras(
    num_views: int, elevation_range_deg: tuple[float, float], size: int, device: torch.device
) -> CameraBatch:
    """Cameras at equal steps of azimuth whose elevations cover a range evenly in golden-ratio order."""
    order = torch.arange(num_views, dtype=torch.float32, device=device)
    low, high = elevation_range_deg
    azimuth = order * (2 * torch.pi / num_views)
    elevation = torch.deg2rad(low + (high - low) * ((order + 0.5) * GOLDEN_RATIO % 1))
    distance = torch.full_like(order, DISTANCE)
    position = spherical_position(azimuth, elevation, distance)
    return CameraBatch(
        c2w=look_at(position, torch.zeros_like(position), position.new_tensor([0.0, 0.0, 1.0]).expand_as(position)),
        intrinsics=intrinsics_from_fovy(torch.deg2rad(torch.full_like(order, FOVY_DEG)), size, size),
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        height=size,
        width=size,
    )


def held_out_cameras(device: torch.device) -> CameraBatch:
    """The 24 cameras of all view measures: elevations -10 to 60 degrees, which training never sees all of."""
    return spread_cameras(NUM_VIEWS, (-10.0, 60.0), VIEW_SIZE, device)


def training_positions() -> Float[np.ndarray, "B 3"]:
    """Where training cameras can stand: 72 positions at elevations 0 to 30 degrees."""
    cameras = spread_cameras(72, (0.0, 30.0), VIEW_SIZE, torch.device("cpu"))
    positions: Array = cameras.c2w[:, :3, 3].numpy()
    return positions


def surrounding_positions(count: int = 64) -> Float[np.ndarray, "B 3"]:
    """Positions all around, equally spread over the sphere of the cameras' distance."""
    order = np.arange(count)
    z = 1 - (2 * order + 1) / count
    angle = 2 * np.pi * order * GOLDEN_RATIO
    ring = np.sqrt(1 - z**2)
    return DISTANCE * np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=-1)


def density_volume(field: Field, device: torch.device) -> Float[np.ndarray, "N N N"]:
    """Densities at the voxel centres of the box, evaluated in chunks on the field's device; NaN counts as 0."""
    chunks = torch.from_numpy(voxel_centers(RESOLUTION)).split(POINTS_PER_CHUNK)
    with torch.no_grad():
        values = torch.cat([field.density(chunk.to(device)).float().cpu() for chunk in chunks])
    density: Array = values.nan_to_num(nan=0.0).clamp_min(0).reshape((RESOLUTION,) * 3).numpy()
    return density


class VolumeMarching:
    """Samples one voxel side apart wherever a volume of opacities says that something is there and can be seen."""

    def __init__(self, opacity: Float[Tensor, "N N N"]) -> None:
        self._opacity = opacity.reshape(-1)
        self._resolution = len(opacity)
        self._step = 2 / len(opacity)
        # a brick's midpoint is at most BRICK / 2 steps from its samples, and nearest voxels may be one further off
        reach = 2 * (BRICK // 2 + 1) + 1
        seen = (opacity > FAINT).float()[None, None]
        for kernel in ((reach, 1, 1), (1, reach, 1), (1, 1, reach)):
            seen = F.max_pool3d(seen, kernel, stride=1, padding=tuple(side // 2 for side in kernel))
        self._bricks = seen.reshape(-1) > 0

    def sample(self, rays: RayBundle, *, density: DensityFunction, jitter: Float[Tensor, " N"] | None) -> RaySamples:
        """Intervals that matter to the picture; `density` is not asked and `jitter` must be None."""
        assert jitter is None, f"a grade is not random, got jitter for {density}"
        ray, start = self._occupied_bricks(rays)
        offsets = torch.arange(BRICK, device=start.device) * self._step
        starts = (start[:, None] + offsets).reshape(-1)
        ray = ray.repeat_interleave(BRICK)
        opacity = self._opacity[self._voxels(rays, ray, starts + self._step / 2)]
        kept = (opacity > 0) & (_transmittance(opacity, ray) > HIDDEN)
        ray, starts = ray[kept], starts[kept]
        return RaySamples(ray_indices=ray, t_starts=starts, t_ends=starts + self._step)

    def _occupied_bricks(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        """Ray and starting distance of every brick of `BRICK` steps that is near something, sorted."""
        inverse = 1 / torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
        near_side, far_side = (-1 - rays.origins) * inverse, (1 - rays.origins) * inverse
        enter = torch.minimum(near_side, far_side).amax(dim=-1).clamp_min(0)
        leave = torch.maximum(near_side, far_side).amin(dim=-1)
        length = BRICK * self._step
        count = torch.ceil((leave - enter).clamp_min(0) / length).long()
        ray = torch.arange(len(enter), device=enter.device).repeat_interleave(count)
        first = (count.cumsum(0) - count).repeat_interleave(count)
        start = enter[ray] + (torch.arange(len(ray), device=ray.device) - first) * length
        voxel = self._voxels(rays, ray, start + length / 2)
        near = self._bricks[voxel]
        ray, start, opacity = ray[near], start[near], self._opacity[voxel[near]]
        # counts one voxel of every brick only, so what is hidden by this is hidden
        seen = _transmittance(opacity, ray) > HIDDEN**2
        return ray[seen], start[seen]

    def _voxels(self, rays: RayBundle, ray: Tensor, distance: Tensor) -> Tensor:
        """Flat indices of the voxels of the points at `distance` along rays; the nearest one for those outside."""
        points = rays.origins[ray] + distance[:, None] * rays.directions[ray]
        index = ((points + 1) / self._step).long().clamp(0, self._resolution - 1)
        return (index[:, 0] * self._resolution + index[:, 1]) * self._resolution + index[:, 2]


def _transmittance(opacity: Float[Tensor, " S"], ray: Tensor) -> Tensor:
    """What is left of the light before each sample; float64, since one sum runs over all rays."""
    if not len(ray):
        return opacity
    absorbed = -torch.log1p(-opacity.double().clamp_max(1 - 1e-9))
    before = absorbed.cumsum(0) - absorbed
    _, counts = torch.unique_consecutive(ray, return_counts=True)
    at_start = before[counts.cumsum(0) - counts].repeat_interleave(counts)
    return torch.exp(at_start - before)


def render_views(field: Field, density: Float[np.ndarray, "N N N"], cameras: CameraBatch) -> Views:
    """The field's unshaded views, drawn by the renderer of the product on black."""
    device = cameras.c2w.device
    marching = VolumeMarching(torch.from_numpy(opacity_of_density(density)).to(device))
    background = SolidBackground(color=(0.0, 0.0, 0.0)).to(device)
    parts = []
    for indices in torch.arange(len(cameras.c2w)).split(VIEWS_PER_CHUNK):
        chosen = cameras.select(indices.to(device))
        black = chosen.c2w.new_zeros(len(indices), 3)
        appearance = Appearance(mode="albedo", ambient=(1.0, 1.0, 1.0), diffuse=(0.0, 0.0, 0.0), background=black)
        with torch.no_grad():
            output = render(
                chosen,
                lights_at_cameras(chosen),
                appearance,
                field=field,
                background=background,
                marching=marching,
                jitter=None,
                with_normals=False,
            )
        parts.append(_views(chosen, output.opacity, output.distance, output.rgb))
    return Views(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _views(cameras: CameraBatch, opacity: Tensor, distance: Tensor, rgb: Tensor) -> dict[str, Array]:
    """The arrays of `Views` of one chunk."""
    safe = opacity.clamp_min(torch.finfo(torch.float32).eps)
    rays = camera_rays(cameras)
    position = rays.origins + (distance / safe).reshape(-1, 1) * rays.directions
    forward = -cameras.c2w[:, None, None, :3, 2]
    depth = ((position.reshape(*opacity.shape, 3) - cameras.c2w[:, None, None, :3, 3]) * forward).sum(dim=-1)
    return {
        "opacity": opacity.cpu().numpy(),
        "depth": depth.cpu().numpy(),
        "position": position.reshape(*opacity.shape, 3).cpu().numpy(),
        "albedo": (rgb / safe[..., None]).clamp(0, 1).cpu().numpy(),
    }


def unrolled_surface(
    opacity: Float[np.ndarray, "N N N"], num_azimuths: int = 180, num_heights: int = 64
) -> tuple[Float[np.ndarray, "A Z 3"], Bool[np.ndarray, "A Z"]]:
    """The first surface met on the way in to the z axis, by azimuth and height, and where there is one."""
    azimuth = np.arange(num_azimuths) * (2 * np.pi / num_azimuths)
    height = (np.arange(num_heights) + 0.5) * (2 / num_heights) - 1
    radius = np.arange(1.0, 0.0, -1 / len(opacity))
    shape = (num_azimuths, num_heights, len(radius))
    x = np.broadcast_to((np.cos(azimuth)[:, None] * radius)[:, None], shape)
    y = np.broadcast_to((np.sin(azimuth)[:, None] * radius)[:, None], shape)
    z = np.broadcast_to(height[None, :, None], shape)
    points = np.stack([x, y, z], axis=-1).astype(np.float32)
    met = interpolate(opacity, points.reshape(-1, 3)).reshape(shape) > OCCUPIED
    first = met.argmax(axis=-1)
    surface: Array = np.take_along_axis(points, first[..., None, None], axis=2)[:, :, 0]
    is_met: Array = np.asarray(met.any(axis=-1))
    return surface, is_met
