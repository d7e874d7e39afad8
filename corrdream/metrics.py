"""Quality without ground truth and without downloaded weights: shape from its own silhouettes, floaters, fog, color.

Volumes [R, R, R] hold values at the centres of the voxels of the box [-radius, radius]^3, indexed x, y, z. A voxel is
occupied where one voxel side of its density absorbs more than half of the light; a `solid` is the complement of the
outside, so that a hollow interior does not count. Images hold colors in [0, 1], and opacity a; foreground pixels have
a > 1/2. A measure that has nothing to measure is None. What each says of a perfect shape is its "floor".
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from corrdream.cameras import intrinsics_from_fovy, look_at, project, spherical_position
from corrdream.structures import CameraBatch

RESOLUTION = 128  # voxels along a side
NUM_HULL_VIEWS = 64
HULL_DISTANCE = 3.0  # in radii
HULL_FOVY_DEG = 40.0
OPAQUE = 0.5  # of a voxel, and of a foreground pixel
VISIBLE = 0.05  # opacity from which fog is part of the object's image
CLIPPED = (3 / 255, 252 / 255)  # channels beyond are clipped
SATURATION_BINS = 256
GREY = 0.02  # references of less contrast say nothing about contrast
BORDER_DISTANCE = 0.1  # a pixel this far from an image's border color, in any channel, is foreground
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def voxel_centers(resolution: int = RESOLUTION, radius: float = 1.0) -> Float[Tensor, "P 3"]:
    """Centres of all voxels of the box, z running fastest, so that values reshape to a volume."""
    axis = ((torch.arange(resolution) + 0.5) * (2 / resolution) - 1) * radius
    return torch.cartesian_prod(axis, axis, axis)


def occupied_voxels(density: Float[Tensor, "R R R"], radius: float = 1.0) -> Bool[Tensor, "R R R"]:
    """Where 1 - exp(-density * voxel side) exceeds 1/2."""
    return -torch.expm1(-density * (2 * radius / len(density))) > OPAQUE


def solid(occupied: Bool[Tensor, "R R R"]) -> Bool[Tensor, "R R R"]:
    """The complement of the outside, which floods in from beyond the box through the faces of empty voxels."""
    regions, _ = ndimage.label(~np.pad(occupied.cpu().numpy(), 1))
    return torch.from_numpy(regions != regions[0, 0, 0])[1:-1, 1:-1, 1:-1]


def bounding_diagonal(occupied: Bool[Tensor, "R R R"], radius: float = 1.0) -> float | None:
    """Diagonal of the box around the occupied voxels, world units. Floor: two voxel sides."""
    corners = occupied.nonzero()
    if not len(corners):
        return None
    extent = corners.amax(dim=0) - corners.amin(dim=0) + 1
    return float(extent.double().norm()) * 2 * radius / len(occupied)


def hull_cameras(
    size: int, *, radius: float = 1.0, num_views: int = NUM_HULL_VIEWS, device: torch.device | str = "cpu"
) -> CameraBatch:
    """Cameras spread evenly all around, a spiral in equal steps of height, that each see the ball in the box."""
    order = torch.arange(num_views, device=device)
    elevation = torch.asin(1 - (2 * order + 1) / num_views)
    azimuth = order * GOLDEN_ANGLE
    distance = torch.full_like(azimuth, HULL_DISTANCE * radius)
    position = spherical_position(azimuth, elevation, distance)
    up = position.new_tensor([0.0, 0.0, 1.0]).expand_as(position)
    fovy = torch.full_like(azimuth, math.radians(HULL_FOVY_DEG))
    return CameraBatch(
        c2w=look_at(position, torch.zeros_like(position), up),
        intrinsics=intrinsics_from_fovy(fovy, size, size),
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
        height=size,
        width=size,
    )


def visual_hull(
    silhouettes: Float[Tensor, "B H W"], cameras: CameraBatch, *, resolution: int = RESOLUTION, radius: float = 1.0
) -> Bool[Tensor, "R R R"]:
    """Voxels that every view covers: bilinear opacity above 1/2 at their centre. What a view cannot see, it keeps."""
    points = voxel_centers(resolution, radius).to(silhouettes)
    alive = torch.arange(len(points), device=points.device)
    for image, c2w, intrinsics in zip(silhouettes, cameras.c2w, cameras.intrinsics, strict=True):
        count = len(alive)
        xy, depth = project(points[alive], c2w.expand(count, 4, 4), intrinsics.expand(count, 3, 3))
        grid = 2 * xy / xy.new_tensor([cameras.width, cameras.height]) - 1
        seen = (grid.abs() <= 1).all(dim=-1) & (depth > 0)
        sampled = F.grid_sample(image[None, None], grid[None, None], padding_mode="border", align_corners=False)
        alive = alive[(sampled.flatten() > OPAQUE) | ~seen]
    hull = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    hull[alive] = True
    return hull.reshape(resolution, resolution, resolution)


def visual_hull_gap(
    occupied: Bool[Tensor, "R R R"], silhouettes: Float[Tensor, "B H W"], cameras: CameraBatch, radius: float = 1.0
) -> float | None:
    """1 - |solid| / |visual hull|: the share of the hull that the object's own silhouettes leave and the object lacks.

    A reading of unreasonable concavity: compare it with a baseline's for the same prompt, since truly concave objects
    have one too. Floor: within 0.025 of 0 for convex shapes at 128 voxels and silhouettes of 256 pixels, mostly below.
    """
    hull = visual_hull(silhouettes, cameras, resolution=len(occupied), radius=radius).count_nonzero().item()
    return 1 - solid(occupied).count_nonzero().item() / hull if hull else None


def floater_share(occupied: Bool[Tensor, "R R R"]) -> float | None:
    """Share of the occupied volume outside its largest component, where voxels touch by a corner too. Floor: 0."""
    regions, _ = ndimage.label(occupied.cpu().numpy(), structure=np.ones((3, 3, 3)))
    sizes = np.bincount(regions.ravel())[1:]
    return float(1 - sizes.max() / sizes.sum()) if len(sizes) else None


def fuzziness(opacity: Float[Tensor, "B H W"]) -> float | None:
    """Mean of 4 a (1 - a) where a exceeds VISIBLE: 0 is crisp, 1 half transparent everywhere."""
    visible = opacity[opacity > VISIBLE]
    return (4 * visible * (1 - visible)).mean().item() if len(visible) else None


def relative_z_variance(
    z_variance: Float[Tensor, "B H W"], opacity: Float[Tensor, "B H W"], diagonal: float
) -> float | None:
    """Mean variance of the distance along foreground rays over the squared diagonal of the object's bounding box."""
    foreground = z_variance[opacity > OPAQUE]
    return foreground.mean().item() / diagonal**2 if len(foreground) else None


def foreground_pixels(rgb: Float[Tensor, "B H W 3"], opacity: Float[Tensor, "B H W"]) -> Float[Tensor, "P 3"]:
    """Colors of the foreground pixels."""
    return rgb[opacity > OPAQUE]


def unlike_border_pixels(rgb: Float[Tensor, "B H W 3"]) -> Float[Tensor, "P 3"]:
    """Foreground of images without opacity, such as the prior's samples: colors unlike the border's median."""
    border = torch.cat([rgb[:, 0], rgb[:, -1], rgb[:, :, 0], rgb[:, :, -1]], dim=1)
    difference = (rgb - border.median(dim=1).values[:, None, None]).abs().amax(dim=-1)
    return rgb[difference > BORDER_DISTANCE]


def saturation_distance(pixels: Float[Tensor, "P 3"], reference: Float[Tensor, "Q 3"]) -> float | None:
    """Wasserstein-1 distance, in [0, 1], of the histograms of HSV saturation of two sets of pixels. Floor: 1/256."""
    if not len(pixels) or not len(reference):
        return None
    cumulative = [_saturation_histogram(colors).cumsum(dim=0) for colors in (pixels, reference)]
    return (cumulative[0] - cumulative[1]).abs().sum().item() / SATURATION_BINS


def clipped_share(pixels: Float[Tensor, "P 3"]) -> float | None:
    """Share of pixels with a channel below 3/255 or above 252/255."""
    clipped = (pixels < CLIPPED[0]) | (pixels > CLIPPED[1])
    return clipped.any(dim=-1).double().mean().item() if len(pixels) else None


def contrast_ratio(pixels: Float[Tensor, "P 3"], reference: Float[Tensor, "Q 3"]) -> float | None:
    """Standard deviation over pixels and channels over the reference's: what guidance_rescale should hold at 1."""
    spread = reference.std(correction=0).item() if len(reference) else 0.0
    return pixels.std(correction=0).item() / spread if len(pixels) and spread >= GREY else None


def _saturation_histogram(pixels: Float[Tensor, "P 3"]) -> Float[Tensor, " K"]:
    high, low = pixels.double().clamp(0, 1).aminmax(dim=-1)[::-1]
    saturation = torch.where(high > 0, (high - low) / high.clamp_min(torch.finfo(high.dtype).tiny), 0.0)
    return torch.histc(saturation, bins=SATURATION_BINS, min=0, max=1) / len(saturation)
