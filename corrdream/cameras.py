"""Pinhole geometry, pure: poses, rays, projection, and the pose that the multi-view prior is conditioned on.

Symbols: `c2w` maps camera to world coordinates (OpenGL: x right, y up, looks along -z; world z up), `xy` are pixels of
an image whose pixel (x, y) has its centre at (x + 0.5, y + 0.5), `depth` is the planar coordinate in front of the
camera and `distance` the length along the unit ray. Intrinsics have no skew.

No product here is a matrix multiplication in torch's sense, which autocast would round to 16 bits: on poses that moves
a reprojected point by a tenth of a pixel.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from corrdream.structures import CameraBatch, LightBatch, RayBundle

TRANSLATION_EPS = 1e-8  # as MVDream adds to the norm of the translation that it divides by


def look_at(
    position: Float[Tensor, "B 3"], center: Float[Tensor, "B 3"], up: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 4 4"]:
    """Camera-to-world poses at `position` that see `center` in the middle, with `up` pointing upwards in the image."""
    forward = F.normalize(center - position, dim=-1)
    right = F.normalize(torch.linalg.cross(forward, up, dim=-1), dim=-1)
    image_up = F.normalize(torch.linalg.cross(right, forward, dim=-1), dim=-1)
    upper = torch.stack([right, image_up, -forward, position], dim=-1)
    last_row = torch.zeros_like(upper[:, :1])
    last_row[..., 3] = 1  # a constant from the host would have to be waited for
    return torch.cat([upper, last_row], dim=-2)


def intrinsics_from_fovy(fovy_rad: Float[Tensor, " B"], height: int, width: int) -> Float[Tensor, "B 3 3"]:
    """Intrinsics of cameras with square pixels and centred principal point, from the vertical field of view."""
    focal = height / (2 * torch.tan(fovy_rad / 2))
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    rows = [focal, zero, one * (width / 2), zero, focal, one * (height / 2), zero, zero, one]
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def spherical_position(
    azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"], distance: Float[Tensor, " B"]
) -> Float[Tensor, "B 3"]:
    """World positions at `distance` from the origin; angles in radians."""
    horizontal = torch.cos(elevation)
    unit = torch.stack([horizontal * torch.cos(azimuth), horizontal * torch.sin(azimuth), torch.sin(elevation)], dim=-1)
    return distance[:, None] * unit


def pixel_directions(intrinsics: Float[Tensor, "B 3 3"], height: int, width: int) -> Float[Tensor, "B H W 3"]:
    """Directions through the pixel centres in the camera frame, of depth one (not unit)."""
    columns = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
    rows = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5
    x = (columns - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (rows - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    shape = (len(intrinsics), height, width)
    x, y = x[:, None, :].expand(shape), y[:, :, None].expand(shape)
    return torch.stack([x, -y, -torch.ones_like(x)], dim=-1)


def camera_rays(cameras: CameraBatch) -> RayBundle:
    """One ray through every pixel centre, row-major over B, H, W, with unit directions."""
    local = pixel_directions(cameras.intrinsics, cameras.height, cameras.width).flatten(1, 2)
    directions = F.normalize(_rotate(cameras.c2w[:, None, :3, :3], local), dim=-1)
    origins = cameras.c2w[:, None, :3, 3].expand_as(directions)
    return RayBundle(origins=origins.reshape(-1, 3), directions=directions.reshape(-1, 3))


def project(
    points_world: Float[Tensor, "M 3"], c2w: Float[Tensor, "M 4 4"], intrinsics: Float[Tensor, "M 3 3"]
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, " M"]]:
    """Pixels and depths of world points; where the depth is not positive, the pixel is meaningless."""
    local = _rotate(c2w[:, :3, :3].transpose(-1, -2), points_world - c2w[:, :3, 3])
    depth = -local[:, 2]
    x = intrinsics[:, 0, 2] + intrinsics[:, 0, 0] * local[:, 0] / depth
    y = intrinsics[:, 1, 2] - intrinsics[:, 1, 1] * local[:, 1] / depth
    return torch.stack([x, y], dim=-1), depth


def unproject(
    xy: Float[Tensor, "M 2"],
    depth: Float[Tensor, " M"],
    c2w: Float[Tensor, "M 4 4"],
    intrinsics: Float[Tensor, "M 3 3"],
) -> Float[Tensor, "M 3"]:
    """World points seen at pixels `xy` at planar `depth` (not distance along the ray)."""
    slope = _slope(xy, intrinsics)
    local = depth[:, None] * torch.stack([slope[:, 0], -slope[:, 1], -torch.ones_like(depth)], dim=-1)
    return c2w[:, :3, 3] + _rotate(c2w[:, :3, :3], local)


def distance_to_depth(
    distance: Float[Tensor, " M"], xy: Float[Tensor, "M 2"], intrinsics: Float[Tensor, "M 3 3"]
) -> Float[Tensor, " M"]:
    """Planar depth of the points at `distance` along the unit rays through pixels `xy`."""
    return distance / torch.sqrt(1 + _slope(xy, intrinsics).square().sum(dim=-1))


def orbit_cameras(
    num_views: int,
    *,
    elevation_deg: float,
    distance: float,
    fovy_deg: float,
    height: int,
    width: int,
    include_end: bool = False,
    device: torch.device | str = "cpu",
) -> CameraBatch:
    """Cameras around the origin at equal steps of azimuth from 0; `include_end` has both 0 and 360 degrees."""
    intervals = max(num_views - 1, 1) if include_end else num_views
    azimuth = torch.arange(num_views, dtype=torch.float32, device=device) * (2 * math.pi / intervals)
    elevation = torch.full_like(azimuth, math.radians(elevation_deg))
    distances = torch.full_like(azimuth, distance)
    fovy = torch.full_like(azimuth, math.radians(fovy_deg))
    return CameraBatch(
        c2w=_look_at_origin(azimuth, elevation, distances),
        intrinsics=intrinsics_from_fovy(fovy, height, width),
        azimuth=azimuth,
        elevation=elevation,
        distance=distances,
        height=height,
        width=width,
    )


def lights_at_cameras(cameras: CameraBatch) -> LightBatch:
    """Each view lit from its own camera, as at evaluation."""
    position = cameras.c2w[:, :3, 3]
    return LightBatch(position=position, offset=torch.zeros_like(position), distance=position.norm(dim=-1))


def shift_azimuth(
    cameras: CameraBatch, lights: LightBatch, shift_rad: Float[Tensor, " B"]
) -> tuple[CameraBatch, LightBatch]:
    """The twin views: same elevation, distance, intrinsics and light offset, azimuth moved by `shift_rad`.

    As released, a twin stands on its unperturbed orbit and looks at the origin: with perturbed cameras a shift of zero
    is not the identity.
    """
    azimuth = cameras.azimuth + shift_rad
    c2w = _look_at_origin(azimuth, cameras.elevation, cameras.distance)
    twins = CameraBatch(
        c2w=c2w,
        intrinsics=cameras.intrinsics,
        azimuth=azimuth,
        elevation=cameras.elevation,
        distance=cameras.distance,
        height=cameras.height,
        width=cameras.width,
    )
    return twins, place_lights(c2w[:, :3, 3], lights.offset, lights.distance)


def place_lights(
    camera_position: Float[Tensor, "B 3"], offset: Float[Tensor, "B 3"], distance: Float[Tensor, " B"]
) -> LightBatch:
    """Point lights at `distance` from the origin, in the direction of the camera moved by `offset`."""
    position = distance[:, None] * F.normalize(camera_position + offset, dim=-1)
    return LightBatch(position=position, offset=offset, distance=distance)


def normalize_camera(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 16"]:
    """The multi-view prior's camera condition: the pose with unit translation, row by row."""
    translation = c2w[:, :3, 3]
    unit = translation / (translation.norm(dim=-1, keepdim=True) + TRANSLATION_EPS)
    upper = torch.cat([c2w[:, :3, :3], unit[:, :, None]], dim=-1)
    return torch.cat([upper, c2w[:, 3:]], dim=-2).flatten(1)


def y_up_to_z_up(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 4 4"]:
    """Poses in a world whose y axis points up, told in ours: (x, y, z) becomes (x, -z, y)."""
    return torch.stack([c2w[:, 0], -c2w[:, 2], c2w[:, 1], c2w[:, 3]], dim=1)


def preview_poses(
    num_views: int,
    *,
    elevation_deg: float,
    azimuth_start_deg: float,
    azimuth_span_deg: float = 360.0,
    z_up: bool = True,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "B 4 4"]:
    """Poses on the unit sphere as MVDream's two-dimensional sampling asks for them.

    MVDream counts the azimuth from +z towards +x in a world whose y axis points up; `z_up` turns that world into ours,
    where its azimuth 90 looks from +x.
    """
    azimuth = torch.arange(num_views, dtype=torch.float32, device=device) * math.radians(azimuth_span_deg / num_views)
    azimuth = azimuth + math.radians(azimuth_start_deg)
    elevation = torch.full_like(azimuth, math.radians(elevation_deg))
    z, x, y = spherical_position(azimuth, elevation, torch.ones_like(azimuth)).unbind(dim=-1)
    position = torch.stack([x, y, z], dim=-1)
    up = position.new_tensor([0.0, 1.0, 0.0]).expand_as(position)
    c2w = look_at(position, torch.zeros_like(position), up)
    return y_up_to_z_up(c2w) if z_up else c2w


def clip_from_world(cameras: CameraBatch, near: float, far: float) -> Float[Tensor, "B 4 4"]:
    """A rasterizer's projection: world to clip space, whose second axis points down the image as pixel rows do."""
    focal_x, focal_y = cameras.intrinsics[:, 0, 0], cameras.intrinsics[:, 1, 1]
    projection = torch.zeros_like(cameras.c2w)
    projection[:, 0, 0] = 2 * focal_x / cameras.width
    projection[:, 0, 2] = 1 - 2 * cameras.intrinsics[:, 0, 2] / cameras.width
    projection[:, 1, 1] = -2 * focal_y / cameras.height
    projection[:, 1, 2] = 1 - 2 * cameras.intrinsics[:, 1, 2] / cameras.height
    projection[:, 2, 2] = -(far + near) / (far - near)
    projection[:, 2, 3] = -2 * far * near / (far - near)
    projection[:, 3, 2] = -1.0
    return (projection[..., None] * _inverse(cameras.c2w)[:, None]).sum(dim=-2)


def _look_at_origin(
    azimuth: Float[Tensor, " B"], elevation: Float[Tensor, " B"], distance: Float[Tensor, " B"]
) -> Float[Tensor, "B 4 4"]:
    position = spherical_position(azimuth, elevation, distance)
    up = torch.zeros_like(position)
    up[:, 2] = 1
    return look_at(position, torch.zeros_like(position), up)


def _rotate(matrix: Float[Tensor, "*#N 3 3"], vector: Float[Tensor, "*#N 3"]) -> Float[Tensor, "*N 3"]:
    """matrix @ vector, in the precision of its inputs under autocast too."""
    return (matrix * vector[..., None, :]).sum(dim=-1)


def _slope(xy: Float[Tensor, "M 2"], intrinsics: Float[Tensor, "M 3 3"]) -> Float[Tensor, "M 2"]:
    """Offset from the optical axis at depth one, x right and y down."""
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)
    return (xy - intrinsics[:, :2, 2]) / focal


def _inverse(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 4 4"]:
    """The inverse of rigid motions."""
    rotation = c2w[:, :3, :3].transpose(-1, -2)
    translation = -_rotate(rotation, c2w[:, :3, 3])
    return torch.cat([torch.cat([rotation, translation[:, :, None]], dim=-1), c2w[:, 3:]], dim=-2)
