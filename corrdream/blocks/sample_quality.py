"""How well the prior's own 2D samples show what the caption says: colors by part, and the solid that they carve.

Samples are drawn from four canonical cameras. The object is what differs from the background, which is estimated from
an image's border. Its visual hull is compared with the hull of the true silhouettes, and with the truth's solid, which
no hull of four views from the side reaches (`ceiling_iou`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.blocks.image_measures import nearest_colors
from corrdream.blocks.measures import solid, volumetric_iou, voxel_centers
from corrdream.blocks.render import render_geometry
from corrdream.blocks.shapes import Shape, pack_shapes, signed_distance
from corrdream.blocks.training_data import DISTANCE_SHARE
from corrdream.blocks.vocabulary import COLORS
from corrdream.cameras import orbit_cameras, project
from corrdream.interfaces import MultiviewPrior
from corrdream.prior.sampling import sample_views
from corrdream.structures import CameraBatch

ELEVATION, FOVY = 15.0, 40.0  # degrees, in the middle of training's cameras
RESOLUTION = 48  # voxels a side of the hull
BACKGROUND_GAP = 0.12  # largest channel difference within the background
PATTERN_SHARE = 0.10  # of a part's pixels that must show each of its colors, where it has several
MARKER_SHARE = 0.02  # the same, of the color of a dot


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleQuality:
    """Measures of one caption's four samples."""

    caption: str
    colors_right: int
    colors_named: int
    hull_iou: float  # of the samples' hull with the hull of the true silhouettes
    solid_iou: float  # of the samples' hull with the true solid
    ceiling_iou: float  # of the hull of the true silhouettes with the true solid


def measure_samples(
    prior: MultiviewPrior,
    shapes: Sequence[Shape],
    *,
    num_steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> list[SampleQuality]:
    """Quality of samples for each shape's caption."""
    cameras = canonical_cameras(prior.num_views, prior.image_size)
    images = sample_views(
        prior,
        [shape.caption for shape in shapes],
        cameras.c2w,
        guidance_scale=guidance_scale,
        num_steps=num_steps,
        generator=generator,
    )
    return [measure_sample(shape, views) for shape, views in zip(shapes, images.float(), strict=True)]


def measure_sample(shape: Shape, images: Float[Tensor, "V H W 3"]) -> SampleQuality:
    """Quality of one caption's samples; the truth is rendered on the images' device."""
    num_views, size = images.shape[:2]
    packed = pack_shapes([shape]).to(images.device)
    cameras = canonical_cameras(num_views, size)
    buffer = render_geometry(
        packed, replace(cameras, c2w=cameras.c2w.to(images.device), intrinsics=cameras.intrinsics.to(images.device))
    )
    part, true_mask = buffer.part.cpu(), buffer.mask.cpu().numpy()
    images = images.cpu()
    foreground = np.stack([foreground_mask(image) for image in images.numpy()])
    hull = visual_hull(foreground, cameras)
    centers = torch.from_numpy(voxel_centers(RESOLUTION)).to(packed.center.device)
    occupied = signed_distance(packed, centers[None])[0].reshape((RESOLUTION,) * 3) < 0
    truth = solid(occupied.cpu().numpy())
    true_hull = visual_hull(true_mask, cameras)
    right = [is_color_right(shape, name, color, images, part) for name, color in shape.named_colors]
    return SampleQuality(
        caption=shape.caption,
        colors_right=sum(right),
        colors_named=len(right),
        hull_iou=volumetric_iou(hull, true_hull),
        solid_iou=volumetric_iou(hull, truth),
        ceiling_iou=volumetric_iou(true_hull, truth),
    )


def canonical_cameras(num_views: int, size: int) -> CameraBatch:
    """Cameras around the object, the first in front of it."""
    distance = DISTANCE_SHARE / math.tan(math.radians(FOVY) / 2)
    return orbit_cameras(num_views, elevation_deg=ELEVATION, distance=distance, fovy_deg=FOVY, height=size, width=size)


def foreground_mask(image: Float[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Pixels unlike the median of the image's border."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    gap = np.abs(image - np.median(border, axis=0)).max(axis=-1)
    different: Bool[np.ndarray, "H W"] = gap > BACKGROUND_GAP
    return different


def visual_hull(masks: Bool[np.ndarray, "V H W"], cameras: CameraBatch) -> Bool[np.ndarray, "N N N"]:
    """Voxels that every view sees inside its mask."""
    centers = torch.from_numpy(voxel_centers(RESOLUTION))
    hull = np.ones(len(centers), dtype=bool)
    for view, mask in enumerate(masks):
        pose = cameras.c2w[view].expand(len(centers), 4, 4)
        xy, _ = project(centers, pose, cameras.intrinsics[view].expand(len(centers), 3, 3))
        column, row = np.floor(xy.numpy()).astype(np.int64).T
        inside = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        hull &= inside & mask[row.clip(0, cameras.height - 1), column.clip(0, cameras.width - 1)]
    return hull.reshape((RESOLUTION,) * 3)


def is_color_right(
    shape: Shape, name: str, color: str, images: Float[Tensor, "V H W 3"], part: Int[Tensor, "V H W"]
) -> bool:
    """Whether the true pixels of a part show a color that the caption names for it.

    A part with one color: the palette entry nearest to the median of the brighter half of its pixels, which leaves out
    what lies in the shade. A part with several: enough of its pixels are nearest to each.
    """
    numbers = torch.tensor([index for index, one in enumerate(shape.parts) if one.name == name])
    pixels = images[torch.isin(part, numbers)].numpy()
    if not len(pixels):
        return False
    palette = list(COLORS)
    colors_of_part = [said for owner, said in shape.named_colors if owner == name]
    if len(colors_of_part) == 1:
        brightness = pixels.sum(axis=1)
        bright = pixels[brightness >= np.median(brightness)]
        return palette[int(nearest_colors(np.median(bright, axis=0)[None], COLORS)[0])] == color
    entries: Int[np.ndarray, " P"] = nearest_colors(pixels, COLORS)
    share = float((entries == palette.index(color)).mean())
    is_dot = shape.has_marker and color == colors_of_part[-1]
    return share >= (MARKER_SHARE if is_dot else PATTERN_SHARE)
