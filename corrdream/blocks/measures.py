"""Measures of a predicted volume against the true solid: pure functions of arrays, on the CPU.

Volumes hold values at the centres of N^3 voxels of the box [-1, 1]^3, indexed [x, y, z]; voxel i is centred at
-1 + (2 i + 1) / N. `opacity` is 1 - exp(-density * voxel side), a voxel is occupied where it is above 1/2, and a
`solid` is the complement of the outside, so that hollow interiors do not count. `diagonal` is the length of the true
shape's bounding-box diagonal; lengths are told as fractions of it.

Resolution errors, in the docstrings as "floor": what a measure says of a perfect prediction at N = 128, whose surface
is between 0.05 and 0.3 voxels soft.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, KDTree, QhullError
from skimage.measure import marching_cubes

from corrdream import metrics

OCCUPIED = 0.5  # opacity above which a voxel belongs to the object
GRAZING = 0.2  # cosine below which a surface is too oblique to count as seen
YAW_GAIN = 0.01
TRAVEL_CAP = 0.2  # dents and bulges are cut off here, fraction of the diagonal

Array = NDArray[Any]


def voxel_centers(resolution: int) -> Float[np.ndarray, "P 3"]:
    """Centres of all voxels of the box, float32, with z running fastest."""
    return metrics.voxel_centers(resolution).numpy()


def opacity_of_density(density: Float[np.ndarray, "N N N"]) -> Float[np.ndarray, "N N N"]:
    """Opacity of one voxel side of every density: the occupancy rule's alpha."""
    return -np.expm1(-density * (2 / len(density)))


def solid(occupied: Bool[np.ndarray, "N N N"]) -> Bool[np.ndarray, "N N N"]:
    """The complement of the outside, which floods in through faces from beyond the box."""
    return metrics.solid(torch.from_numpy(np.ascontiguousarray(occupied))).numpy()


def volumetric_iou(predicted: Bool[np.ndarray, "N N N"], true: Bool[np.ndarray, "N N N"]) -> float:
    """Intersection over union of two sets of voxels; 1 if both are empty. Floor: 1."""
    union = np.count_nonzero(predicted | true)
    return float(np.count_nonzero(predicted & true) / union) if union else 1.0


def best_yaw_iou(
    predicted: Bool[np.ndarray, "N N N"], true: Bool[np.ndarray, "N N N"], num_yaws: int = 72
) -> tuple[float, float]:
    """The best intersection over union of the prediction turned about z, and that turn in degrees.

    Separates pose from shape; a turn that gains less than `YAW_GAIN` over none is told as 0. Turned voxels are looked
    up at the nearest centre, on every second voxel along each axis. Floor: 0.97 to 1.
    """
    resolution = len(true)
    thinned = np.argwhere(predicted[::2, ::2, ::2]) * 2
    x, y = (thinned[:, axis] + 0.5 - resolution / 2 for axis in (0, 1))
    sizes = len(thinned) + np.count_nonzero(true[::2, ::2, ::2])
    yaws = np.arange(num_yaws) * (360 / num_yaws)
    ious = np.ones(num_yaws)
    for index, yaw in enumerate(np.radians(yaws)):
        turned_x = np.floor(np.cos(yaw) * x - np.sin(yaw) * y + resolution / 2).astype(np.int64)
        turned_y = np.floor(np.sin(yaw) * x + np.cos(yaw) * y + resolution / 2).astype(np.int64)
        inside = (np.minimum(turned_x, turned_y) >= 0) & (np.maximum(turned_x, turned_y) < resolution)
        common = np.count_nonzero(true[turned_x[inside], turned_y[inside], thinned[inside, 2]])
        if sizes > common:
            ious[index] = common / (sizes - common)
    best = int(ious.argmax())
    return float(ious[best]), float(yaws[best]) if ious[best] > ious[0] + YAW_GAIN else 0.0


def best_threshold_iou(opacity: Float[np.ndarray, "N N N"], true: Bool[np.ndarray, "N N N"]) -> float:
    """The best intersection over union at any of 99 thresholds of opacity: tells fog from wrong shapes. Floor: 1."""
    levels = np.linspace(0.01, 0.99, 99)
    bins = np.arange(len(levels) + 1)
    entry = np.searchsorted(levels, opacity, side="left")  # how many levels the opacity is above
    common, above = (
        np.bincount(chosen.reshape(-1), minlength=len(bins))[::-1].cumsum() for chosen in (entry[true], entry)
    )
    return float((common / (np.count_nonzero(true) + above - common))[:-1].max())


def floater_fraction(opacity: Float[np.ndarray, "N N N"], signed_distance: Float[np.ndarray, "N N N"]) -> float | None:
    """Share of the opacity that is more than two voxels outside the true shape; None if all is empty. Floor: 0."""
    total = float(opacity.sum(dtype=np.float64))
    if total <= 0:
        return None
    return float(opacity[signed_distance > 2 * (2 / len(opacity))].sum(dtype=np.float64)) / total


def surface_mesh(
    values: Float[np.ndarray, "N N N"], level: float
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "T 3"]]:
    """Vertices and triangles (counter-clockwise from outside) of the surface around all that is above `level`.

    What touches the box's border is closed there. Empty arrays where there is no surface.
    """
    padded = np.pad(values, 1, constant_values=level - 1)
    if padded.max() <= level or padded.min() >= level:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    vertices, triangles, _, _ = marching_cubes(padded, level, allow_degenerate=False)
    return (vertices - 0.5) * (2 / len(values)) - 1, triangles[:, ::-1]


def sample_surface(
    vertices: Float[np.ndarray, "V 3"],
    triangles: Int[np.ndarray, "T 3"],
    num_points: int,
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Points uniform in area, and the outward unit normals of their triangles."""
    corner, first, second = (vertices[triangles[:, index]] for index in range(3))
    normals = np.cross(first - corner, second - corner)
    doubled_areas = np.linalg.norm(normals, axis=-1)
    cumulative = np.cumsum(doubled_areas)
    chosen = np.searchsorted(cumulative, generator.random(num_points) * cumulative[-1]).clip(max=len(triangles) - 1)
    along = generator.random((2, num_points, 1))
    along = np.where(along.sum(axis=0) > 1, 1 - along, along)
    points = corner[chosen] + along[0] * (first - corner)[chosen] + along[1] * (second - corner)[chosen]
    return points.astype(np.float32), (normals[chosen] / doubled_areas[chosen, None]).astype(np.float32)


def visible_from(
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    occupied: Bool[np.ndarray, "N N N"],
    positions: Float[np.ndarray, "B 3"],
) -> Bool[np.ndarray, " P"]:
    """Which surface points face one of the cameras at `positions` with no occupied voxel in between."""
    side = 2 / len(occupied)
    seen = np.zeros(len(points), bool)
    for position in positions.astype(np.float32):
        towards = position - points
        towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
        open_points = np.flatnonzero(~seen & ((towards * normals).sum(axis=-1) > GRAZING))
        start = points[open_points] + normals[open_points] * (0.5 * side)
        free = _reaches_outside(start, towards[open_points], occupied)
        seen[open_points[free]] = True
    return seen


def _reaches_outside(
    start: Float[np.ndarray, "P 3"], direction: Float[np.ndarray, "P 3"], occupied: Bool[np.ndarray, "N N N"]
) -> Bool[np.ndarray, " P"]:
    """Which lines leave the box, in steps of one voxel from the second on, without meeting an occupied voxel."""
    resolution = len(occupied)
    cell = (start + 1) * (resolution / 2)
    free = np.zeros(len(start), bool)
    left = np.arange(len(start))
    flat = occupied.reshape(-1)
    cell = cell + 1.5 * direction
    while len(left):
        index = np.floor(cell).astype(np.int32)
        out = ((index < 0) | (index >= resolution)).any(axis=-1)
        free[left[out]] = True
        index, cell, direction, left = index[~out], cell[~out], direction[~out], left[~out]
        kept = ~flat[(index[:, 0] * resolution + index[:, 1]) * resolution + index[:, 2]]
        cell, direction, left = cell[kept] + direction[kept], direction[kept], left[kept]
    return free


def chamfer_and_f(
    predicted: Float[np.ndarray, "P 3"], true: Float[np.ndarray, "Q 3"], diagonal: float
) -> tuple[float, float, float]:
    """Chamfer-L1 as a fraction of the diagonal, and F-scores at 1% and 2% of it.

    Chamfer-L1 = [mean_p min_q |p - q| + mean_q min_p |q - p|] / 2; F = 2 P R / (P + R), with P the share of predicted
    points within the distance of a true one and R the converse. Floor with 30,000 points: 0.004, 1, 1.
    """
    to_true = KDTree(true).query(predicted)[0] / diagonal
    to_predicted = KDTree(predicted).query(true)[0] / diagonal
    scores = []
    for distance in (0.01, 0.02):
        precision, recall = float((to_true <= distance).mean()), float((to_predicted <= distance).mean())
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(to_true.mean() + to_predicted.mean()) / 2, scores[0], scores[1]


def interpolate(volume: Float[np.ndarray, "N N N"], points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, " P"]:
    """Trilinear values between voxel centres; the nearest border value beyond them."""
    source = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
    zyx = torch.from_numpy(np.ascontiguousarray(points[:, ::-1], dtype=np.float32))
    values = F.grid_sample(source, zyx[None, None, None], padding_mode="border", align_corners=False)
    result: Array = values.reshape(-1).numpy()
    return result


def dent_depths(
    solid_opacity: Float[np.ndarray, "N N N"],
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    diagonal: float,
) -> Float[np.ndarray, " P"]:
    """How far the predicted surface lies below each true surface point, along -normal: fraction of the diagonal.

    Zero where the point is inside the prediction, `TRAVEL_CAP` where nothing is met before. Floor of the mean: 0.001.
    """
    return _travel(solid_opacity, points, -normals, diagonal)


def bulge_heights(
    solid_opacity: Float[np.ndarray, "N N N"],
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    diagonal: float,
) -> Float[np.ndarray, " P"]:
    """How far the prediction rises above each true surface point, along +normal: fraction of the diagonal, capped.

    Zero where the point is outside the prediction. Floor of the mean: 0.001.
    """
    return _travel(1 - solid_opacity, points, normals, diagonal)


def _travel(
    values: Float[np.ndarray, "N N N"],
    points: Float[np.ndarray, "P 3"],
    directions: Float[np.ndarray, "P 3"],
    diagonal: float,
) -> Float[np.ndarray, " P"]:
    """Distance to the first crossing of `OCCUPIED` upwards, in steps of half a voxel with linear interpolation."""
    stride = 1 / len(values)
    steps = np.arange(int(np.ceil(TRAVEL_CAP * diagonal / stride)) + 1, dtype=np.float32) * stride
    along = points[:, None] + steps[None, :, None] * directions[:, None]
    met = interpolate(values, along.reshape(-1, 3)).reshape(along.shape[:2])
    above = met > OCCUPIED
    first = above.argmax(axis=1)
    rows, before = np.arange(len(points)), np.maximum(first - 1, 0)
    low, high = met[rows, before], met[rows, first]
    fraction = np.where(first > 0, (OCCUPIED - low) / np.maximum(high - low, 1e-6), 0)
    distance = np.where(above.any(axis=1), (before + fraction) * stride, np.inf)
    result: Array = np.minimum(distance / diagonal, TRAVEL_CAP)
    return result


def hull_deficit(vertices: Float[np.ndarray, "V 3"], triangles: Int[np.ndarray, "T 3"]) -> float | None:
    """1 - volume of a closed mesh / volume of its convex hull; None for a mesh without volume. Floor: 0.01."""
    if len(vertices) < 4:
        return None
    first, second, third = (vertices[triangles[:, index]].astype(np.float64) for index in range(3))
    volume = float((first * np.cross(second, third)).sum()) / 6
    try:
        return 1 - volume / float(ConvexHull(vertices).volume)
    except QhullError:
        return None
