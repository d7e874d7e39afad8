"""How good a field is for a caption of the built-in world, whose true shape is known.

`grade_field` samples the field once as a volume of densities and once as 24 views, and measures both against the truth
(measures.py, image_measures.py hold the formulae and what a perfect prediction gets).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import nn

from corrdream.blocks import image_measures, measures
from corrdream.blocks.observe import (
    Views,
    density_volume,
    held_out_cameras,
    render_views,
    surrounding_positions,
    unrolled_surface,
)
from corrdream.blocks.truth import NUM_POINTS, PALETTE, Truth, noun_volumes, thinned, true_shape, unrolled_entries
from corrdream.interfaces import Field

DEEP_DENT = 0.02  # of the diagonal

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """All measures of one field; None where one does not apply or there is nothing to measure.

    Lengths are fractions of the true bounding-box diagonal, angles degrees, colors CIEDE2000.
    """

    viou_solid: float  # higher is better, 1 at best
    dent_error: float  # mean dent of what training cameras can see
    color_error: float | None  # mean CIEDE2000
    viou_raw: float  # hollow interiors count as wrong
    viou_best_yaw: float  # solid, best of 72 turns about z
    best_yaw_deg: float
    viou_best_threshold: float  # raw, at the opacity threshold that suits the field best
    silhouette_iou: float
    chamfer: float | None  # L1, outer surfaces
    f_1: float  # F-score at 1% of the diagonal
    f_2: float
    depth_error: float | None
    depth_far_share: float | None  # pixels off by more than 5% of the diagonal
    normal_error: float | None
    dent_share: float  # surface points dented by more than 2% of the diagonal
    bulge_error: float
    hull_deficit: float | None  # convex shapes only
    floaters: float | None  # share of opacity more than two voxels outside
    color_error_median: float | None
    attribute_accuracy: float | None
    saturation_ratio: float | None  # contrast over the true contrast, 1 at best
    saturation_shift: float | None  # mean HSV saturation minus the true one
    clipped_share: float | None
    shape_retrieved: float  # 1 if no noun of the world overlaps more with the field (solid) than the caption's shape
    janus_regions: float | None  # of the front marker's color, 1 at best

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers by name, the headline triple first."""
        return dataclasses.asdict(self)


def grade_field(field: Field, caption: str, *, device: torch.device | None = None) -> Grade:
    """The grade of a field for a caption. Raises CaptionError if the caption cannot be read.

    `device` is where the field is evaluated; by default where its parameters are.
    """
    truth = true_shape(caption)
    device = device or _device_of(field)
    density = density_volume(field, device)
    views = render_views(field, density, held_out_cameras(device))
    found = _measure_volume(density, truth) | _measure_views(views, truth)
    return Grade(**found, janus_regions=_count_faces(field, density, truth, device))


def _device_of(field: Field) -> torch.device:
    first = next(field.parameters(), None) if isinstance(field, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _measure_volume(density: Float[np.ndarray, "N N N"], truth: Truth) -> dict[str, Any]:
    """Measures that need no colors and no views."""
    opacity = measures.opacity_of_density(density)
    predicted, true = opacity > measures.OCCUPIED, truth.signed_distance < 0
    solid, true_solid = measures.solid(predicted), measures.solid(true)
    solid_opacity = np.where(solid & ~predicted, np.float32(1), opacity)
    points, normals = truth.trained_points, truth.trained_normals
    dents = measures.dent_depths(solid_opacity, points, normals, truth.diagonal)
    bulges = measures.bulge_heights(solid_opacity, points, normals, truth.diagonal)
    best_iou, best_yaw = measures.best_yaw_iou(solid, true_solid)
    mesh = measures.surface_mesh(solid_opacity, measures.OCCUPIED)
    return {
        "viou_solid": measures.volumetric_iou(solid, true_solid),
        "viou_raw": measures.volumetric_iou(predicted, true),
        "viou_best_yaw": best_iou,
        "best_yaw_deg": best_yaw,
        "viou_best_threshold": measures.best_threshold_iou(opacity, true),
        "floaters": measures.floater_fraction(opacity, truth.signed_distance),
        "dent_error": float(dents.mean()),
        "dent_share": float((dents > DEEP_DENT).mean()),
        "bulge_error": float(bulges.mean()),
        "shape_retrieved": _is_retrieved(solid, true),
        "hull_deficit": measures.hull_deficit(*mesh) if truth.shape.convex else None,
        **_measure_surface(opacity, predicted, truth),
    }


def _is_retrieved(solid: Bool[np.ndarray, "N N N"], true: Bool[np.ndarray, "N N N"]) -> float:
    """Closed-world retrieval on thinned volumes: 1 where the caption's shape has the largest IoU of all nouns'."""
    found = thinned(solid)
    own = measures.volumetric_iou(found, thinned(true))
    return float(own > 0 and own >= max(measures.volumetric_iou(found, other) for other in noun_volumes()))


def _measure_surface(
    opacity: Float[np.ndarray, "N N N"], predicted: Bool[np.ndarray, "N N N"], truth: Truth
) -> dict[str, Any]:
    """Chamfer distance and F-scores of the outer surfaces."""
    vertices, triangles = measures.surface_mesh(opacity, measures.OCCUPIED)
    if len(triangles):
        points, normals = measures.sample_surface(vertices, triangles, NUM_POINTS, np.random.default_rng(1))
        points = points[measures.visible_from(points, normals, predicted, surrounding_positions())]
        if len(points):
            chamfer, f_1, f_2 = measures.chamfer_and_f(points, truth.outer_points, truth.diagonal)
            return {"chamfer": chamfer, "f_1": f_1, "f_2": f_2}
    return {"chamfer": None, "f_1": 0.0, "f_2": 0.0}


def _measure_views(views: Views, truth: Truth) -> dict[str, Any]:
    """Measures of the 24 held-out views."""
    mask, true_albedo = truth.views.mask.numpy(), truth.views.albedo.numpy()
    opaque = views.opacity > measures.OCCUPIED
    both = opaque & mask
    depth_error, far_share = image_measures.depth_errors(
        views.depth, truth.views.depth.numpy(), both, truth.diagonal
    ) or (None, None)
    common = views.albedo[both], true_albedo[both]
    color_mean, color_median = image_measures.color_errors(*common) or (None, None)
    return {
        "silhouette_iou": image_measures.silhouette_iou(opaque, mask),
        "depth_error": depth_error,
        "depth_far_share": far_share,
        "normal_error": image_measures.normal_error(
            views.position, truth.views.position.numpy(), truth.views.normal.numpy(), both
        ),
        "color_error": color_mean,
        "color_error_median": color_median,
        "attribute_accuracy": image_measures.attribute_accuracy(*common, truth.views.part.numpy()[both], PALETTE),
        "saturation_ratio": image_measures.saturation_ratio(views.albedo[opaque], true_albedo[mask]),
        "saturation_shift": image_measures.saturation_shift(views.albedo[opaque], true_albedo[mask]),
        "clipped_share": image_measures.clipped_share(views.albedo[opaque]),
    }


def _count_faces(field: Field, density: Float[np.ndarray, "N N N"], truth: Truth, device: torch.device) -> float | None:
    """Regions of the front marker's color on the unrolled surface."""
    points, met = unrolled_surface(measures.opacity_of_density(density))
    with torch.no_grad():
        albedo = field(torch.from_numpy(points[met]).to(device), with_normal=False).albedo
    count = image_measures.janus_regions(unrolled_entries(albedo.float().cpu().numpy(), met), truth.unrolled)
    return None if count is None else float(count)


DESCRIPTIONS: Mapping[str, str] = {
    "viou_solid": "vIoU: hollow interiors filled",
    "dent_error": "mean dent / diagonal",
    "color_error": "mean CIEDE2000",
    "viou_raw": "vIoU, but hollow interiors as they are",
    "viou_best_yaw": "vIoU, best of 72 turns",
    "best_yaw_deg": "that turn, degrees",
    "viou_best_threshold": "the same as raw, at the best opacity threshold",
    "silhouette_iou": "mean over 24 views",
    "chamfer": "Chamfer-L1 / diagonal",
    "f_1": "F-score at 1% of the diagonal",
    "f_2": "F-score at 2% of the diagonal",
    "depth_error": "mean / diagonal",
    "depth_far_share": "share off by more than 5% of the diagonal",
    "normal_error": "mean angle, degrees",
    "dent_share": "share dented by more than 2% of the diagonal",
    "bulge_error": "mean bulge / diagonal",
    "hull_deficit": "volume missing to the convex hull",
    "floaters": "share of opacity outside the shape",
    "color_error_median": "median CIEDE2000",
    "attribute_accuracy": "share of parts in their color",
    "saturation_ratio": "contrast / true contrast",
    "saturation_shift": "mean HSV saturation - true one",
    "clipped_share": "share of pixels at the end of a channel",
    "shape_retrieved": "1 if no other noun fits better",
    "janus_regions": "faces, 1 is right",
    # without the truth (quality.py)
    "hull_gap": "share of the visual hull that is missing",
    "floater_share": "share of the volume outside its largest part",
    "fuzziness": "half transparency of what is seen, 0 is crisp",
    "z_variance": "depth variance along rays / diagonal^2",
    "saturation_distance": "saturation against the prior's own pictures",
    "contrast_ratio": "contrast / that of the prior's own pictures",
    "clipped_pixels": "share of seen pixels at the end of a channel",
    "match_residual": "matches against reprojections, pixels",
    "step_seconds_median": "seconds a step",
    "step_seconds_p95": "seconds of the slowest 5% of the steps and more",
    "nonfinite_share": "share of steps without a finite gradient",
    "peak_memory_gb": "GB, of the GPU or else the process",
}


def format_grade(values: Mapping[str, float | None]) -> str:
    """A table of a grade's numbers, one a line with what it means; "-" where a measure does not apply."""
    width = max(len(name) for name in values)
    return "\n".join(
        f"{name:<{width}}  {'-' if value is None else f'{value:.4f}':>9}  {DESCRIPTIONS.get(name, '')}".rstrip()
        for name, value in values.items()
    )
