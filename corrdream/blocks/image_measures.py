"""Measures of rendered views against the true ones: pure functions of arrays, on the CPU.

Images are [B, H, W(, C)]; `both` marks the pixels that belong to the true object and are opaque in the prediction.
Colors are in [0, 1] and told apart in CIELAB. "Floor" is what a perfect prediction gets at 64 pixels a side, with a
surface between 0.05 and 0.3 voxels of 1/64 soft; soft walls also widen silhouettes, since grazing rays gather opacity.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2hsv, rgb2lab

from corrdream import metrics

MIN_PIXELS = 20  # of a part in all views together; less is not judged
RESOLVED_DEG = 10.0  # a true depth map that is off by more does not resolve the surface there
FAR = 0.05  # share of the diagonal beyond which a depth is wrong
SMALL_REGION = 0.25  # of the true marker's area; smaller regions of its color are not counted

Array = NDArray[Any]


def silhouette_iou(opaque: Bool[np.ndarray, "B H W"], mask: Bool[np.ndarray, "B H W"]) -> float:
    """Intersection over union of opacity > 1/2 and the true mask, mean over views. Floor: 0.98 to 0.93."""
    common = (opaque & mask).sum(axis=(1, 2))
    union = (opaque | mask).sum(axis=(1, 2))
    return float(np.where(union > 0, common / np.maximum(union, 1), 1.0).mean())


def depth_errors(
    depth: Float[np.ndarray, "B H W"],
    true_depth: Float[np.ndarray, "B H W"],
    both: Bool[np.ndarray, "B H W"],
    diagonal: float,
) -> tuple[float, float] | None:
    """Mean absolute error of planar depth as a fraction of the diagonal, and the share of pixels beyond `FAR`.

    `depth` is the rendered one divided by the opacity. Floor: 0.006 and 0.016, at inner outlines.
    """
    if not both.any():
        return None
    error = np.abs(depth - true_depth)[both] / diagonal
    return float(error.mean()), float((error > FAR).mean())


def normals_of_positions(
    positions: Float[np.ndarray, "B H W 3"], known: Bool[np.ndarray, "B H W"]
) -> tuple[Float[np.ndarray, "B H W 3"], Bool[np.ndarray, "B H W"]]:
    """Unit normals of a depth map from central differences, towards the camera, and where all five points are known."""
    right, left = np.roll(positions, -1, axis=2), np.roll(positions, 1, axis=2)
    below, above = np.roll(positions, -1, axis=1), np.roll(positions, 1, axis=1)
    normals = np.cross(below - above, right - left)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    valid = known & (length[..., 0] > 0)
    for axis in (1, 2):
        valid &= np.roll(known, 1, axis=axis) & np.roll(known, -1, axis=axis)
    valid[:, [0, -1]] = False
    valid[:, :, [0, -1]] = False
    return normals / np.maximum(length, np.finfo(np.float32).tiny), valid


def normal_error(
    positions: Float[np.ndarray, "B H W 3"],
    true_positions: Float[np.ndarray, "B H W 3"],
    true_normals: Float[np.ndarray, "B H W 3"],
    both: Bool[np.ndarray, "B H W"],
) -> float | None:
    """Mean angle in degrees between the normals of the predicted depth map and the true ones.

    Only where all four neighbours are common pixels, and where the true depth map itself gives the true normal to
    within `RESOLVED_DEG`: differences across edges and inner outlines say nothing. Floor: 0.3 to 4.
    """
    normals, valid = normals_of_positions(positions, both)
    of_truth, _ = normals_of_positions(true_positions, both)
    valid &= _angle_deg(of_truth, true_normals) < RESOLVED_DEG
    return float(_angle_deg(normals, true_normals)[valid].mean()) if valid.any() else None


def _angle_deg(first: Float[np.ndarray, "*N 3"], second: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
    angle: Array = np.degrees(np.arccos((first * second).sum(axis=-1).clip(-1, 1)))
    return angle


def color_errors(albedo: Float[np.ndarray, "P 3"], true_albedo: Float[np.ndarray, "P 3"]) -> tuple[float, float] | None:
    """Mean and median CIEDE2000 between colors of the same pixels. Floor: 1 (stripes: 2) and 0."""
    if not len(albedo):
        return None
    error = deltaE_ciede2000(rgb2lab(albedo), rgb2lab(true_albedo))
    return float(error.mean()), float(np.median(error))


def nearest_colors(rgb: Float[np.ndarray, "P 3"], palette: Mapping[str, tuple[float, ...]]) -> Int[np.ndarray, " P"]:
    """Index of the palette entry at the smallest CIELAB distance."""
    entries = rgb2lab(np.array(list(palette.values())))
    gaps = rgb2lab(np.asarray(rgb, dtype=np.float64))[:, None] - entries[None]
    nearest: Array = np.square(gaps).sum(axis=-1).argmin(axis=-1)
    return nearest


def attribute_accuracy(
    albedo: Float[np.ndarray, "P 3"],
    true_albedo: Float[np.ndarray, "P 3"],
    part: Int[np.ndarray, " P"],
    palette: Mapping[str, tuple[float, ...]],
) -> float | None:
    """Share of colored parts whose median color is nearest to the palette entry that the prompt gives them.

    A patterned part counts once for each of its colors. Floor: 1.
    """
    true_entry = nearest_colors(true_albedo, palette)
    right = []
    for index, entry in np.unique(np.stack([part, true_entry]), axis=1).T:
        chosen = (part == index) & (true_entry == entry)
        if chosen.sum() >= MIN_PIXELS:
            median = np.median(albedo[chosen], axis=0)[None]
            right.append(nearest_colors(median, palette)[0] == entry)
    return float(np.mean(right)) if right else None


def saturation_shift(albedo: Float[np.ndarray, "P 3"], true_albedo: Float[np.ndarray, "Q 3"]) -> float | None:
    """Mean HSV saturation of the prediction's pixels minus that of the true ones, in [-1, 1]. Floor: 0.00."""
    if not len(albedo) or not len(true_albedo):
        return None
    return float(rgb2hsv(albedo)[:, 1].mean() - rgb2hsv(true_albedo)[:, 1].mean())


def clipped_share(albedo: Float[np.ndarray, "P 3"]) -> float | None:
    """Share of pixels with a channel below 3/255 or above 252/255."""
    return metrics.clipped_share(torch.from_numpy(albedo))


def saturation_ratio(albedo: Float[np.ndarray, "P 3"], true_albedo: Float[np.ndarray, "Q 3"]) -> float | None:
    """Standard deviation of the prediction's pixels and channels over the true one: what rescaling should hold at 1.

    None for true objects of nearly one grey, whose deviation says nothing. Floor: 0.97 to 1.
    """
    return metrics.contrast_ratio(torch.from_numpy(albedo), torch.from_numpy(true_albedo))


def count_regions(marked: Bool[np.ndarray, "A Z"], min_size: int) -> int:
    """Connected regions (8 neighbours) of at least `min_size` pixels on a panorama whose azimuth axis wraps around."""
    return len(_region_sizes(marked, min_size))


def _region_sizes(marked: Bool[np.ndarray, "A Z"], min_size: int) -> list[int]:
    labels, count = ndimage.label(marked, structure=np.ones((3, 3)))
    owner = np.arange(count + 1)
    for row, first in enumerate(labels[0]):
        for last in labels[-1, max(row - 1, 0) : row + 2]:
            if first and last:
                owner[owner == owner[last]] = owner[first]
    sizes = np.bincount(owner[labels].reshape(-1), minlength=count + 1)
    return [int(size) for size in sizes[1:] if size >= min_size]


def janus_regions(
    panorama: Int[np.ndarray, "A Z"], true_panorama: Int[np.ndarray, "A Z"], max_width: float = 0.4
) -> int | None:
    """Connected regions of the front marker's color around the object; 1 is right, more is a Janus face.

    Panoramas hold palette indices of the first surface met from outside, by azimuth and height, -1 where there is none.
    A marker is a color with one true region, narrower than `max_width` of a turn; None for shapes without one. With
    more than one marker, the count furthest from 1. Regions below `SMALL_REGION` of the true one do not count.
    """
    counts = []
    for entry in np.unique(true_panorama[true_panorama >= 0]):
        true_marked = true_panorama == entry
        sizes = _region_sizes(true_marked, 1)
        if len(sizes) == 1 and sizes[0] >= MIN_PIXELS and true_marked.any(axis=1).mean() < max_width:
            min_size = max(int(SMALL_REGION * sizes[0]), 1)
            counts.append(count_regions(panorama == entry, min_size))
    return max(counts, key=lambda count: abs(count - 1)) if counts else None
