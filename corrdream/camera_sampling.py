"""Random multi-view cameras and lights from an explicit generator.

Views come in groups of `num_views` at equal steps of azimuth that share everything else. Drawing (random numbers,
always the same ones in the same order) is separate from placing (geometry), so that a setting never changes what the
draws after it are. Angles are degrees in settings and radians in the cameras.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from corrdream.cameras import intrinsics_from_fovy, look_at, place_lights, spherical_position
from corrdream.structures import CameraBatch, LightBatch

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """The distribution of cameras and lights at one step; angles in degrees, lengths in world units."""

    num_views: int  # in a group
    batch_size: int  # views, a multiple of num_views
    resolution: int  # rows of pixels
    aspect: float = 1.0  # columns a row
    elevation_range: Range = (0.0, 30.0)
    azimuth_range: Range = (-180.0, 180.0)
    fovy_range: Range = (15.0, 60.0)
    distance_range: Range = (0.8, 1.0)
    relative_distance: bool = True
    zoom_range: Range = (1.0, 1.0)
    camera_perturb: float = 0.0
    center_perturb: float = 0.0
    up_perturb: float = 0.0
    light_distance_range: Range = (0.8, 1.5)
    light_perturb: float = 1.0
    elevation_sampling: Literal["released", "area_uniform"] = "area_uniform"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.num_views:
            raise ValueError(
                f"cameras.batch_size must be a multiple of the prior's {self.num_views} views, got {self.batch_size}."
            )

    @property
    def num_groups(self) -> int:
        """Groups of views in a batch."""
        return self.batch_size // self.num_views


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraDraws:
    """The random numbers behind one batch: uniform in [0, 1) unless it says normal; one row a group."""

    elevation_rule: float  # below one half: uniform in the angle
    elevation: Float[Tensor, " G"]
    azimuth: Float[Tensor, " G"]
    fovy: Float[Tensor, " G"]
    distance: Float[Tensor, " G"]
    zoom: Float[Tensor, " G"]
    light_distance: Float[Tensor, " G"]
    camera_perturb: Float[Tensor, "G 3"]
    center_perturb: Float[Tensor, "G 3"]  # normal
    up_perturb: Float[Tensor, "G 3"]  # normal
    light: Float[Tensor, "G 3"]  # normal


def draw_cameras(settings: CameraSettings, generator: torch.Generator) -> CameraDraws:
    """Fresh random numbers for one batch, on the generator's device."""
    groups, device = settings.num_groups, generator.device
    rule = torch.rand((), generator=generator, device=device)
    uniform = torch.rand(6, groups, generator=generator, device=device)
    uniform_xyz = torch.rand(groups, 3, generator=generator, device=device)
    normal_xyz = torch.randn(3, groups, 3, generator=generator, device=device)
    return CameraDraws(
        elevation_rule=rule.item(),
        elevation=uniform[0],
        azimuth=uniform[1],
        fovy=uniform[2],
        distance=uniform[3],
        zoom=uniform[4],
        light_distance=uniform[5],
        camera_perturb=uniform_xyz,
        center_perturb=normal_xyz[0],
        up_perturb=normal_xyz[1],
        light=normal_xyz[2],
    )


def place_cameras(settings: CameraSettings, draws: CameraDraws) -> tuple[CameraBatch, LightBatch]:
    """The cameras and lights that `draws` mean under `settings`, on the draws' device.

    With `relative_distance` the distance is divided by tan(fovy / 2), so that the object fills the image at every
    field of view; zoom then multiplies the field of view and leaves the distance.
    """
    height, width = settings.resolution, round(settings.resolution * settings.aspect)
    elevation = torch.deg2rad(_elevation_deg(settings, draws))
    fovy_deg = _lerp(settings.fovy_range, draws.fovy)
    distance = _lerp(settings.distance_range, draws.distance)
    if settings.relative_distance:
        distance = distance / torch.tan(torch.deg2rad(fovy_deg) / 2)
    fovy = torch.deg2rad(fovy_deg * _lerp(settings.zoom_range, draws.zoom))
    camera_offset = (2 * draws.camera_perturb - 1) * settings.camera_perturb
    up = draws.up_perturb.new_tensor([0.0, 0.0, 1.0]) + draws.up_perturb * settings.up_perturb

    each_view = partial(torch.repeat_interleave, repeats=settings.num_views, dim=0)
    azimuth = _azimuth(settings, draws.azimuth)
    elevation, distance = each_view(elevation), each_view(distance)
    position = spherical_position(azimuth, elevation, distance) + each_view(camera_offset)
    cameras = CameraBatch(
        c2w=look_at(position, each_view(draws.center_perturb * settings.center_perturb), each_view(up)),
        intrinsics=intrinsics_from_fovy(each_view(fovy), height, width),
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        height=height,
        width=width,
    )
    light_distance = each_view(_lerp(settings.light_distance_range, draws.light_distance))
    return cameras, place_lights(position, each_view(draws.light * settings.light_perturb), light_distance)


def sample_multiview_cameras(settings: CameraSettings, generator: torch.Generator) -> tuple[CameraBatch, LightBatch]:
    """Random cameras and lights, where the generator is: on the host they are the same for a seed on every machine."""
    return place_cameras(settings, draw_cameras(settings, generator))


def _azimuth(settings: CameraSettings, uniform: Float[Tensor, " G"]) -> Float[Tensor, " B"]:
    """Stratified over the views of a group: view v is in the v-th of `num_views` parts of the range; radians."""
    view = torch.arange(settings.num_views, dtype=uniform.dtype, device=uniform.device)
    fraction = (uniform[:, None] + view) / settings.num_views
    return torch.deg2rad(_lerp(settings.azimuth_range, fraction)).flatten()


def _elevation_deg(settings: CameraSettings, draws: CameraDraws) -> Float[Tensor, " G"]:
    """One elevation a group: half of the batches uniform in the angle, the other half meant as uniform in area.

    area_uniform: the second half is uniform in sin(elevation) over the range, which is uniform on that band of the
    sphere. released: it is asin(2 p - 1) for p uniform between (low + 90) / 180 and (high + 90) / 180, which takes
    fractions of the angle for fractions of the area; of [0, 30] degrees it reaches [0, 19.47] only.
    """
    low, high = settings.elevation_range
    if draws.elevation_rule < 0.5:
        return _lerp((low, high), draws.elevation)
    match settings.elevation_sampling:
        case "area_uniform":
            sine = _lerp((math.sin(math.radians(low)), math.sin(math.radians(high))), draws.elevation)
        case "released":
            sine = 2 * _lerp(((low + 90) / 180, (high + 90) / 180), draws.elevation) - 1
        case _:
            assert_never(settings.elevation_sampling)
    return torch.rad2deg(torch.asin(sine))


def _lerp(bounds: Range, fraction: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    low, high = bounds
    return low + fraction * (high - low)
