"""Two-view geometry of matches: epipolar lines, points projected on them, and which matches survive.

Symbols: source and target cameras of B pairs, T the motion from source to target camera coordinates, F the fundamental
matrix, lines (a, b, c) with a x + b y + c = 0. Cameras here are OpenCV's (x right, y down, z forward); `CameraBatch`
holds OpenGL poses. A pixel of integer indices (x, y) is matched at its centre (x + 0.5, y + 0.5).

No product here is a matrix multiplication in torch's sense, which autocast would round to 16 bits.
"""

import math
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.structures import CameraBatch

EpipolarProjection = Literal["border_points", "normal_form"]
EpipolarThresholdUnit = Literal["squared_pixels", "scaled_pixels"]

REFERENCE_SIDE = 32  # pixels; the image side at which both units of the threshold are the same


def multiply(left: Float[Tensor, "*#N r k"], right: Float[Tensor, "*#N k c"]) -> Float[Tensor, "*N r c"]:
    """Matrix product in the precision of its inputs."""
    return (left[..., :, :, None] * right[..., None, :, :]).sum(dim=-2)


def apply(matrix: Float[Tensor, "*#N r k"], vector: Float[Tensor, "*#N k"]) -> Float[Tensor, "*N r"]:
    """Matrix times vector in the precision of its inputs."""
    return (matrix * vector[..., None, :]).sum(dim=-1)


def opencv_pose(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 4 4"]:
    """Camera-to-world poses of OpenCV cameras: y and z axis of the OpenGL camera reversed."""
    return torch.cat([c2w[..., :1], -c2w[..., 1:3], c2w[..., 3:]], dim=-1)


def inverse_intrinsics(intrinsics: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B 3 3"]:
    """Inverse of intrinsics without skew."""
    focal_x, focal_y = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
    zero, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    rows = [
        *(1 / focal_x, zero, -intrinsics[:, 0, 2] / focal_x),
        *(zero, 1 / focal_y, -intrinsics[:, 1, 2] / focal_y),
        *(zero, zero, one),
    ]
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def relative_motion(source: CameraBatch, target: CameraBatch) -> Float[Tensor, "B 4 4"]:
    """T: source camera coordinates to target camera coordinates."""
    source_pose, target_pose = opencv_pose(source.c2w), opencv_pose(target.c2w)
    target_axes = target_pose[:, :3, :3].transpose(1, 2)
    rotation = multiply(target_axes, source_pose[:, :3, :3])
    translation = apply(target_axes, source_pose[:, :3, 3] - target_pose[:, :3, 3])
    return torch.cat([torch.cat([rotation, translation[:, :, None]], dim=2), source_pose[:, 3:]], dim=1)


def fundamental_matrices(source: CameraBatch, target: CameraBatch) -> Float[Tensor, "B 3 3"]:
    """F with q^T F p = 0 for a source point p and its target point q (Hartley and Zisserman, Eq. 9.2)."""
    motion = relative_motion(source, target)
    x, y, z = motion[:, :3, 3].unbind(dim=1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    essential = multiply(cross, motion[:, :3, :3])
    to_target = inverse_intrinsics(target.intrinsics).transpose(1, 2)
    return multiply(to_target, multiply(essential, inverse_intrinsics(source.intrinsics)))


def homogeneous(xy: Float[Tensor, "M 2"]) -> Float[Tensor, "M 3"]:
    """Points with a third coordinate of one."""
    return torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)


def epipolar_lines(fundamental: Float[Tensor, "M 3 3"], source_xy: Float[Tensor, "M 2"]) -> Float[Tensor, "M 3"]:
    """Lines of the target image on which the match of each source point must lie."""
    return apply(fundamental, homogeneous(source_xy))


def project_on_line(lines: Float[Tensor, "M 3"], xy: Float[Tensor, "M 2"]) -> Float[Tensor, "M 2"]:
    """Foot of the perpendicular from each point on its line, whatever the line's direction; NaN without a line."""
    normal = lines[:, :2]
    signed_distance = (lines * homogeneous(xy)).sum(dim=1, keepdim=True) / normal.square().sum(dim=1, keepdim=True)
    return xy - signed_distance * normal


def border_points(lines: Float[Tensor, "M 3"], width: int) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 2"]]:
    """The lines' points at x = 0 and at x = width; not finite where vertical."""
    a, b, c = lines.unbind(dim=1)
    left = torch.stack([torch.zeros_like(c), -c / b], dim=1)
    right = torch.stack([torch.full_like(c, width), -(c + width * a) / b], dim=1)
    return left, right


def project_on_border_segment(
    lines: Float[Tensor, "M 3"], xy: Float[Tensor, "M 2"], width: int
) -> Float[Tensor, "M 2"]:
    """As released: nearest point of the segment between the line's ends at x = 0 and x = width; NaN where vertical."""
    left, right = border_points(lines, width)
    along = right - left
    fraction = ((xy - left) * along).sum(dim=1) / along.square().sum(dim=1)
    return left + fraction.clamp(0, 1)[:, None] * along


def project_matches(
    lines: Float[Tensor, "M 3"], xy: Float[Tensor, "M 2"], *, width: int, projection: EpipolarProjection
) -> Float[Tensor, "M 2"]:
    """Matched points moved to their epipolar lines."""
    match projection:
        case "border_points":
            return project_on_border_segment(lines, xy, width)
        case "normal_form":
            return project_on_line(lines, xy)
        case _:
            assert_never(projection)


def max_distance(threshold: float, unit: EpipolarThresholdUnit, side: int) -> float:
    """How far from its epipolar line a match may lie, in pixels of an image of `side` pixels.

    squared_pixels (released): sqrt(threshold) at any side. scaled_pixels: sqrt(threshold) at 32 pixels, growing with
    the side, so that the same part of the image is accepted at every resolution.
    """
    match unit:
        case "squared_pixels":
            return math.sqrt(threshold)
        case "scaled_pixels":
            return math.sqrt(threshold) * side / REFERENCE_SIDE
        case _:
            assert_never(unit)


def is_close(xy: Float[Tensor, "M 2"], other_xy: Float[Tensor, "M 2"], limit: float) -> Bool[Tensor, " M"]:
    """Whether two points are less than `limit` pixels apart; NaN is far."""
    return (xy - other_xy).square().sum(dim=1) < limit**2


def is_inside(xy: Float[Tensor, "M 2"], *, width: int, height: int) -> Bool[Tensor, " M"]:
    """Whether points lie strictly inside the image; NaN is outside."""
    x, y = xy.unbind(dim=1)
    return (x > 0) & (x < width) & (y > 0) & (y < height)


def containing_pixel(xy: Float[Tensor, "M 2"], *, width: int, height: int) -> Int[Tensor, " M"]:
    """The row-major number of the pixel that contains each point, the nearest one for points outside; 0 for NaN."""
    column = xy[:, 0].nan_to_num().clamp(0, width - 1).long()
    row = xy[:, 1].nan_to_num().clamp(0, height - 1).long()
    return row * width + column


def pixel_centers(pixel: Int[Tensor, " M"], width: int, like: Tensor) -> Float[Tensor, "M 2"]:
    """Centres of pixels given by their row-major numbers, in the dtype of `like`."""
    return torch.stack([pixel % width, pixel // width], dim=1).to(like.dtype) + 0.5
