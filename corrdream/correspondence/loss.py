"""Cross-view correspondence loss: where the prior's features match, the rendered depths must agree.

Symbols: B pairs of a source and a target view, S their side in pixels, M candidates for matches, of all pairs
together. `distance` is a rendering's, along the unit ray and not divided by opacity. Matches are constants; only the
distance and the opacity at their source pixels receive a gradient. What is no match stays among them, with `survives`
false: taking it out would make the host wait for the device. CorrespondentDream, arXiv:2404.10603; where the published
code departs from right geometry, `CorrespondenceSettings` offers both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.cameras import distance_to_depth
from corrdream.correspondence.epipolar import (
    EpipolarProjection,
    EpipolarThresholdUnit,
    apply,
    containing_pixel,
    epipolar_lines,
    fundamental_matrices,
    homogeneous,
    inverse_intrinsics,
    is_close,
    is_inside,
    max_distance,
    pixel_centers,
    project_matches,
    relative_motion,
)
from corrdream.correspondence.matching import count_before_rows
from corrdream.interfaces import Matching, Similarity
from corrdream.structures import CameraBatch, CorrespondenceOutput, Matches, RenderOutput
from corrdream.transfer import all_to_device, to_device

EPS = 1e-6  # as released: in both divisions of the projection and in the division by the number of matches


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrespondenceSettings:
    """What a match is and what it costs; the configuration's `correspondence` section explains the choices."""

    edge_kernel: int  # odd; side of the square over which opacity is averaged
    opacity_threshold: float
    epipolar_threshold: float
    epipolar_threshold_unit: EpipolarThresholdUnit
    epipolar_projection: EpipolarProjection
    max_matches: int  # candidates an image
    confidence: Literal["raw", "normalized"]
    huber_delta: float  # pixels
    depth_convention: Literal["ray_length", "z_depth"]
    depth_normalization: Literal["none", "opacity"]
    direction: Literal["forward", "both"]
    reduction: Literal["sum", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaquePixels:
    """Where a rendering is opaque, and the pixels that look for a match."""

    mask: Bool[Tensor, "B S S"]
    view: Int[Tensor, " N"]  # ascending, and `pixel` within each
    pixel: Int[Tensor, " N"]  # row S + column
    before_row: list[int]  # how many come before each row of all images, and how many there are


def correspondence_loss(
    source: RenderOutput,
    target: RenderOutput,
    source_cameras: CameraBatch,
    target_cameras: CameraBatch,
    *,
    source_pixels: OpaquePixels,
    target_pixels: OpaquePixels,
    source_features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    matching: Matching,
    settings: CorrespondenceSettings,
) -> CorrespondenceOutput:
    """The loss of two view sets, in one direction or both; features are [B, C_k, h_k, w_k], one a layer.

    With direction `both` the pairs count twice, once each way, and the target rendering needs its graph too. The
    cameras may stay on the host, whose small matrices are quicker there.
    """
    forward = matching.similarity(source_features, target_features, size=source.opacity.shape[1])
    directions = [(forward, source, source_cameras, target_cameras, source_pixels, target_pixels)]
    if settings.direction == "both":
        backward = forward.transposed()
        directions.append((backward, target, target_cameras, source_cameras, target_pixels, source_pixels))
    losses, all_matches, all_errors = [], [], []
    for similarity, seen, cameras, other_cameras, pixels, other_pixels in directions:
        matches = find_matches(similarity, pixels, other_pixels, cameras, other_cameras, settings=settings)
        depth = match_depths(matches, seen.distance, seen.opacity, cameras, settings=settings)
        errors = match_errors(matches, depth, cameras, other_cameras)
        losses.append(match_loss(matches, errors, num_views=len(seen.opacity), settings=settings))
        all_matches.append(matches)
        all_errors.append(errors.detach())
    total = torch.stack(losses)
    return CorrespondenceOutput(
        loss=total.sum() if settings.reduction == "sum" else total.mean(),
        matches=tuple(all_matches),
        errors=tuple(torch.linalg.vector_norm(errors, dim=1) for errors in all_errors),
        residual=match_residual(torch.cat(all_errors), torch.cat([matches.survives for matches in all_matches])),
    )


@torch.no_grad()
def opaque_pixels(
    source_opacity: Float[Tensor, "B S S"],
    target_opacity: Float[Tensor, "B S S"],
    *,
    settings: CorrespondenceSettings,
    generator: torch.Generator,
) -> tuple[OpaquePixels, OpaquePixels]:
    """The opaque pixels of both renderings, at most `max_matches` of each view drawn at random to look for a match.

    Of the target none looks unless the direction is `both`. It waits for the renderings, so call it before the prior
    has work to do.
    """
    source, target = (
        smooth_opacity(opacity, settings.edge_kernel) > settings.opacity_threshold
        for opacity in (source_opacity, target_opacity)
    )
    looking = _looking_pixels(source, settings, generator)
    if settings.direction == "both":
        return looking, _looking_pixels(target, settings, generator)
    none = looking.view[:0]
    return looking, OpaquePixels(mask=target, view=none, pixel=none, before_row=[0] * len(looking.before_row))


def _looking_pixels(
    mask: Bool[Tensor, "B S S"], settings: CorrespondenceSettings, generator: torch.Generator
) -> OpaquePixels:
    size = mask.shape[1]
    view, pixel = mask.flatten(1).nonzero().unbind(dim=1)  # sync
    if size**2 > settings.max_matches:
        chosen = random_subset(view, settings.max_matches, generator=generator)
        view, pixel = view[chosen], pixel[chosen]
    before_row = count_before_rows(view * size**2 + pixel, len(mask), size)
    return OpaquePixels(mask=mask, view=view, pixel=pixel, before_row=before_row)


@torch.no_grad()
def find_matches(
    similarity: Similarity,
    source_pixels: OpaquePixels,
    target_pixels: OpaquePixels,
    source: CameraBatch,
    target: CameraBatch,
    *,
    settings: CorrespondenceSettings,
) -> Matches:
    """Best targets of the source pixels, moved to their epipolar lines; those survive that agree with the geometry.

    A match is lost when its epipolar line is too far away, or the nearest point of that line is outside the image or
    not opaque. Its confidence is its similarity with the pixel that it lands in.
    """
    num_views, size, _ = source_pixels.mask.shape
    view, pixel = source_pixels.view, source_pixels.pixel
    best, _ = similarity.best_target(view, pixel, source_pixels.before_row)
    best_xy = pixel_centers(best, size, like=source.c2w)
    fundamental = to_device(fundamental_matrices(source, target), view.device)
    lines = epipolar_lines(fundamental[view], pixel_centers(pixel, size, like=best_xy))
    on_line_xy = project_matches(lines, best_xy, width=size, projection=settings.epipolar_projection)
    landing = containing_pixel(on_line_xy, width=size, height=size)
    limit = max_distance(settings.epipolar_threshold, settings.epipolar_threshold_unit, size)
    survives = is_close(best_xy, on_line_xy, limit) & is_inside(on_line_xy, width=size, height=size)
    survives &= target_pixels.mask.flatten(1)[view, landing]
    confidence = torch.where(survives, similarity.at(view, pixel, landing).to(on_line_xy.dtype), 0)
    if settings.confidence == "normalized":
        confidence = normalize_confidence(confidence, survives, view, num_views=num_views)
    return Matches(
        view=view,
        source_xy=torch.stack([pixel % size, pixel // size], dim=1),
        target_xy=on_line_xy,
        confidence=confidence,
        survives=survives,
    )


def smooth_opacity(opacity: Float[Tensor, "B S S"], kernel: int) -> Float[Tensor, "B S S"]:
    """Mean over `kernel` x `kernel` pixels, zeros outside: pixels at the border of the image are never opaque."""
    wide = opacity.to(torch.promote_types(opacity.dtype, torch.float32))
    return F.avg_pool2d(wide[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]


def random_subset(view: Int[Tensor, " M"], limit: int, *, generator: torch.Generator) -> Int[Tensor, " K"]:
    """Indices, ascending, of at most `limit` entries of each view, drawn at random; `view` is ascending."""
    keys = torch.rand(len(view), generator=generator, device=generator.device, dtype=torch.float64)
    order = (view + to_device(keys, view.device)).argsort()
    rank = torch.arange(len(view), device=view.device) - torch.searchsorted(view, view)
    return order[rank < limit].sort().values  # sync


def normalize_confidence(
    confidence: Float[Tensor, " M"], survives: Bool[Tensor, " M"], view: Int[Tensor, " M"], *, num_views: int
) -> Float[Tensor, " M"]:
    """Confidences, 0 where nothing survives, clamped at zero and divided by the mean of their view's matches."""
    positive = confidence.clamp_min(0)
    per_view = _sum_by_view(torch.stack([positive, survives.to(positive)], dim=1), view, num_views)
    mean = per_view[:, 0] / per_view[:, 1].clamp_min(1)
    return positive / mean.clamp_min(torch.finfo(mean.dtype).tiny)[view]


def match_depths(
    matches: Matches,
    distance: Float[Tensor, "B S S"],
    opacity: Float[Tensor, "B S S"],
    cameras: CameraBatch,
    *,
    settings: CorrespondenceSettings,
) -> Float[Tensor, " M"]:
    """The depth that a rendering gives to each candidate, as the settings understand its distance."""
    column, row = matches.source_xy.unbind(dim=1)
    length = distance[matches.view, row, column].to(cameras.c2w.dtype)
    if settings.depth_normalization == "opacity":
        accumulated = opacity[matches.view, row, column].to(length.dtype)
        length = length / accumulated.clamp_min(torch.finfo(length.dtype).eps)
    match settings.depth_convention:
        case "ray_length":
            return length
        case "z_depth":
            source_xy = matches.source_xy.to(length.dtype) + 0.5
            intrinsics = to_device(cameras.intrinsics, length.device)
            return distance_to_depth(length, source_xy, intrinsics[matches.view])
        case _:
            assert_never(settings.depth_convention)


def reproject(
    matches: Matches, depth: Float[Tensor, " M"], source: CameraBatch, target: CameraBatch
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, " M"]]:
    """Where, and at which depth, the target views see the source pixels' centres at their depth."""
    matrices = [inverse_intrinsics(source.intrinsics), relative_motion(source, target), target.intrinsics]
    inverse, motion, intrinsics = (each[matches.view] for each in all_to_device(matrices, depth.device))
    direction = apply(inverse, homogeneous(matches.source_xy.to(depth.dtype) + 0.5))
    in_target = (apply(motion[:, :3, :3], depth[:, None] * direction) + motion[:, :3, 3]) / (1 + EPS)
    projected = apply(intrinsics, in_target)
    return projected[:, :2] / (projected[:, 2:] + EPS), in_target[:, 2]


def match_errors(
    matches: Matches, depth: Float[Tensor, " M"], source: CameraBatch, target: CameraBatch
) -> Float[Tensor, "M 2"]:
    """Reprojection minus match in pixels; 0, without a gradient, for what does not survive."""
    reprojected, _ = reproject(matches, depth, source, target)
    return torch.where(matches.survives[:, None], reprojected - matches.target_xy, 0)


def match_loss(
    matches: Matches, errors: Float[Tensor, "M 2"], *, num_views: int, settings: CorrespondenceSettings
) -> Float[Tensor, ""]:
    """Confidence-weighted Huber loss of `match_errors`.

    Averaged over both coordinates of an image's matches, then reduced over images; the mean counts images without
    matches, whose loss is zero.
    """
    penalty = F.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=settings.huber_delta)
    weighted = matches.confidence * penalty.sum(dim=1)
    per_view = _sum_by_view(torch.stack([weighted, matches.survives.to(weighted)], dim=1), matches.view, num_views)
    losses = per_view[:, 0] / (2 * per_view[:, 1] + EPS)
    match settings.reduction:
        case "sum":
            return losses.sum()
        case "mean":
            return losses.mean()
        case _:
            assert_never(settings.reduction)


def match_residual(errors: Float[Tensor, "M 2"], survives: Bool[Tensor, " M"]) -> Float[Tensor, ""]:
    """Median distance of matches and reprojections in pixels; NaN without matches."""
    if len(errors) == 0:
        return errors.new_full((), torch.nan)
    lengths: Tensor = torch.linalg.vector_norm(errors.detach(), dim=1)
    ascending = torch.where(survives, lengths, torch.nan).sort().values  # NaN is the largest
    median = ascending.take((survives.sum() - 1).clamp_min(0) // 2)
    return torch.where((survives & lengths.isnan()).any(), torch.nan, median)


def _sum_by_view(values: Float[Tensor, "M 2"], view: Int[Tensor, " M"], num_views: int) -> Float[Tensor, "B 2"]:
    return values.new_zeros(num_views, 2).index_add(0, view, values)
