"""The whole correspondence loss against recorded training steps: geometry, matches, loss and gradient."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrdream.correspondence.epipolar import (
    border_points,
    containing_pixel,
    epipolar_lines,
    fundamental_matrices,
    is_close,
    is_inside,
    max_distance,
    opencv_pose,
    pixel_centers,
    project_matches,
    relative_motion,
)
from corrdream.correspondence.loss import (
    CorrespondenceSettings,
    correspondence_loss,
    find_matches,
    match_depths,
    match_loss,
    opaque_pixels,
    reproject,
    smooth_opacity,
)
from corrdream.correspondence.matching import VolumeMatching
from corrdream.correspondence.matching_streamed import StreamedMatching
from corrdream.interfaces import Matching, Similarity
from corrdream.structures import CameraBatch, Matches
from tests.golden.helpers import assert_absolute, assert_relative, group, group_names, tensor
from tests.sphere import rendering

FILE = "correspondence.npz"
PIXELS = 1e-3  # on projections
CONFIDENCE = 2e-4
LOSS = 5e-4
GRADIENT = 5e-3  # of the largest entry
LOSS_WEIGHT = 1000.0  # of `loss_lambda_1000`

Case = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The inputs of one recorded step."""

    size: int
    source: CameraBatch
    target: CameraBatch
    source_features: list[Tensor]
    target_features: list[Tensor]
    source_opacity: Tensor
    target_opacity: Tensor
    distance: Tensor
    settings: CorrespondenceSettings


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    for name in group_names(data):
        case = group(data, name)
        yield f"{name}-geometry", partial(check_geometry, case)
        yield f"{name}-recorded-matches", partial(check_loss_of_recorded_matches, case)
        yield f"{name}-reference", partial(check_whole_step, case, VolumeMatching())
        yield f"{name}-streamed", partial(check_whole_step, case, StreamedMatching())


def check_geometry(case: Case) -> None:
    """Poses, lines and filters, from the recorded best targets."""
    step = _step(case)
    size, settings = step.size, step.settings
    assert_relative(opencv_pose(step.source.c2w), case["out/c2w_cv"], 1e-6, "c2w_cv")
    assert_relative(opencv_pose(step.target.c2w), case["out/c2w_cv_perturbed"], 1e-6, "c2w_cv_perturbed")
    assert_relative(step.source.intrinsics, case["out/intrinsics"], 1e-6, "intrinsics")
    source_opacity = smooth_opacity(step.source_opacity, settings.edge_kernel)
    target_opacity = smooth_opacity(step.target_opacity, settings.edge_kernel)
    for view in range(len(source_opacity)):
        image = group(case, f"out/img{view}")
        assert_absolute(source_opacity[view], image["opacity_pooled"], 1e-6, "opacity_pooled")
        assert_absolute(target_opacity[view], image["opacity_perturbed_pooled"], 1e-6, "opacity_perturbed_pooled")
        opaque = (source_opacity[view] > settings.opacity_threshold).nonzero().flip(1)
        assert torch.equal(opaque, _pixels(image["stage0_src_xy"])), "opaque source pixels"
        motion = relative_motion(step.source, step.target)[view]
        fundamental = fundamental_matrices(step.source, step.target)[view]
        assert_relative(motion, image["transform_src_to_trg"], PIXELS, "transform_src_to_trg")
        assert_relative(fundamental, image["fundamental"], PIXELS, "fundamental")
        _check_filters(image, fundamental, target_opacity[view], size, settings)


def _check_filters(
    image: Case, fundamental: Tensor, target_opacity: Tensor, size: int, settings: CorrespondenceSettings
) -> None:
    source, best = _pixels(image["stage0_src_xy"]), _pixels(image["stage0_trg_xy"])
    best_xy = pixel_centers(best[:, 1] * size + best[:, 0], size, like=fundamental)
    source_xy = pixel_centers(source[:, 1] * size + source[:, 0], size, like=fundamental)
    lines = epipolar_lines(fundamental.expand(len(source), 3, 3), source_xy)
    assert_relative(lines, image["stage0_line"], PIXELS, "stage0_line")
    for side, points in zip(("left", "right"), border_points(lines, size), strict=True):
        recorded = image[f"stage0_y_at_{side}"]
        seen = np.abs(recorded) <= size  # elsewhere a line's slope magnifies its rounding
        assert_absolute(points[seen, 1], recorded[seen], PIXELS, f"stage0_y_at_{side}")
    on_line = project_matches(lines, best_xy, width=size, projection=settings.epipolar_projection)
    # Vertical lines are recorded as NaN and must be lost by the filters below.
    exists = np.isfinite(image["stage0_trg_proj_xy"]).all(axis=1)
    distance = torch.linalg.vector_norm(best_xy - on_line, dim=1)
    assert_absolute(on_line[exists], image["stage0_trg_proj_xy"][exists], PIXELS, "stage0_trg_proj_xy")
    assert_absolute(distance[exists], np.sqrt(image["stage0_sqdist"][exists]), 2 * PIXELS, "stage0_sqdist")
    limit = max_distance(settings.epipolar_threshold, settings.epipolar_threshold_unit, size)
    close = is_close(best_xy, on_line, limit)
    clear = _is_far_from_threshold(image, settings)
    recorded_close = tensor(image["stage0_keep_close"])
    assert torch.equal(close[clear], recorded_close[clear]), "stage0_keep_close"
    inside = is_inside(on_line, width=size, height=size)[recorded_close]
    recorded_inside = tensor(image["stage1_keep_inside"])
    assert torch.equal(inside, recorded_inside), "stage1_keep_inside"
    landing = containing_pixel(on_line, width=size, height=size)[recorded_close][recorded_inside]
    opaque = target_opacity.flatten()[landing] > settings.opacity_threshold
    assert torch.equal(opaque, tensor(image["stage2_keep_opaque"])), "stage2_keep_opaque"


def check_loss_of_recorded_matches(case: Case) -> None:
    """Reprojection, loss and gradient, given the very matches that were recorded."""
    step = _step(case)
    images = [group(case, f"out/img{view}") for view in range(len(step.distance))]
    matches = Matches(
        view=torch.cat([torch.full((len(image["final_src_xy"]),), view) for view, image in enumerate(images)]),
        source_xy=torch.cat([_pixels(image["final_src_xy"]) for image in images]),
        target_xy=torch.cat([tensor(image["final_trg_proj_xy"]) for image in images]),
        confidence=torch.cat([tensor(image["final_confidence"]) for image in images]),
        survives=torch.cat([torch.ones(len(image["final_src_xy"]), dtype=torch.bool) for image in images]),
    )
    distance = step.distance.clone().requires_grad_()
    depth = match_depths(matches, distance, step.source_opacity, step.source, settings=step.settings)
    assert_absolute(depth, np.concatenate([image["final_depth"] for image in images])[:, 0], PIXELS, "final_depth")
    xy, target_depth = reproject(matches, depth, step.source, step.target)
    assert_absolute(xy, np.concatenate([image["final_reproj_xy"] for image in images]), PIXELS, "final_reproj_xy")
    recorded_depth = np.concatenate([image["final_reproj_depth"] for image in images])
    assert_absolute(target_depth, recorded_depth, PIXELS, "final_reproj_depth")
    errors = xy - matches.target_xy
    for view, image in enumerate(images):
        chosen = (matches.view == view).nonzero().squeeze(dim=1)
        alone = matches.select(chosen)
        loss = match_loss(alone, errors[chosen], num_views=len(images), settings=step.settings)
        assert_absolute(loss, case["out/loss_per_image"][view], LOSS, f"loss of image {view}")
        assert len(alone.view) == case["out/num_matches"][view]
        # The recorded terms must add up to the same loss.
        terms = image["final_huber_times_confidence"].sum() / (2 * len(alone.view) + 1e-6)
        assert_absolute(loss, np.asarray(terms), LOSS, f"terms of image {view}")
    _check_total(case, match_loss(matches, errors, num_views=len(images), settings=step.settings), distance)


def check_whole_step(case: Case, matching: Matching) -> None:
    """Features to loss. Near ties our best target may differ from the recorded one: those matches are not compared."""
    step = _step(case)
    similarity = matching.similarity(step.source_features, step.target_features, size=step.size)
    source_pixels, target_pixels = opaque_pixels(
        step.source_opacity, step.target_opacity, settings=step.settings, generator=torch.Generator()
    )
    matches = find_matches(
        similarity, source_pixels, target_pixels, step.source, step.target, settings=step.settings
    ).kept()
    for view in range(len(step.distance)):
        _check_best_targets(case, view, similarity, step)
    same = [_check_matches(case, view, matches, step) for view in range(len(step.distance))]
    distance = step.distance.clone().requires_grad_()
    output = correspondence_loss(
        rendering(step.source_opacity, distance),
        rendering(step.target_opacity, distance.detach()),
        step.source,
        step.target,
        source_pixels=source_pixels,
        target_pixels=target_pixels,
        source_features=step.source_features,
        target_features=step.target_features,
        matching=matching,
        settings=step.settings,
    )
    assert len(output.matches) == 1
    assert torch.equal(output.matches[0].kept().confidence, matches.confidence)
    if all(same):
        _check_total(case, output.loss, distance)


def _check_best_targets(case: Case, view: int, similarity: Similarity, step: Step) -> None:
    """The most similar target of each opaque source pixel, and how similar it is."""
    image = group(case, f"out/img{view}")
    source, target = (_pixels(image[f"stage0_{side}_xy"]) for side in ("src", "trg"))
    numbers = source[:, 1] * step.size + source[:, 0]
    best_target, best = similarity.best_target(torch.full_like(numbers, view), numbers)
    assert_absolute(best, image["stage0_max"], CONFIDENCE, "stage0_max")
    clear = tensor(image["stage0_margin"]) >= 1e-6
    recorded = target[:, 1] * step.size + target[:, 0]
    assert torch.equal(best_target[clear], recorded[clear]), "stage0_trg_xy"


def _check_matches(case: Case, view: int, matches: Matches, step: Step) -> bool:
    """Compares one image's clear matches; returns whether the others agree too."""
    image = group(case, f"out/img{view}")
    candidates = _pixels(image["stage0_src_xy"])
    clear = (tensor(image["stage0_margin"]) >= 1e-6) & _is_far_from_threshold(image, step.settings)
    doubtful = {tuple(xy) for xy in candidates[~clear].tolist()}
    ours = (matches.view == view).nonzero().squeeze(1)
    our_pixels = [tuple(xy) for xy in matches.source_xy[ours].tolist()]
    their_pixels = [tuple(xy) for xy in _pixels(image["final_src_xy"]).tolist()]
    kept_ours = [index for index, xy in enumerate(our_pixels) if xy not in doubtful]
    kept_theirs = [index for index, xy in enumerate(their_pixels) if xy not in doubtful]
    assert [our_pixels[i] for i in kept_ours] == [their_pixels[i] for i in kept_theirs], "surviving matches"
    chosen = ours[kept_ours]
    assert_absolute(matches.target_xy[chosen], image["final_trg_proj_xy"][kept_theirs], PIXELS, "final_trg_proj_xy")
    assert_absolute(matches.confidence[chosen], image["final_confidence"][kept_theirs], CONFIDENCE, "final_confidence")
    if our_pixels != their_pixels:
        return False
    return torch.allclose(matches.target_xy[ours], tensor(image["final_trg_proj_xy"]), rtol=0, atol=PIXELS)


def _check_total(case: Case, loss: Tensor, distance: Tensor) -> None:
    assert_absolute(loss, case["out/loss_unweighted"], LOSS, "loss_unweighted")
    assert_absolute(LOSS_WEIGHT * loss, case["out/loss_lambda_1000"], LOSS_WEIGHT * LOSS, "loss_lambda_1000")
    (gradient,) = torch.autograd.grad(loss, distance)
    assert_relative(gradient[..., None], case["out/grad_depth"], GRADIENT, "grad_depth")


def _is_far_from_threshold(image: Case, settings: CorrespondenceSettings) -> Tensor:
    return ~((tensor(image["stage0_sqdist"]) - settings.epipolar_threshold).abs() <= 1e-4)  # NaN is far


def _pixels(array: np.ndarray) -> Tensor:
    return tensor(array).long()


def _step(case: Case) -> Step:
    size = int(case["in/image_size"])
    return Step(
        size=size,
        source=_cameras(case, "c2w", size),
        target=_cameras(case, "c2w_perturbed", size),
        source_features=_features(case, "src"),
        target_features=_features(case, "trg"),
        source_opacity=tensor(case["in/opacity"])[..., 0],
        target_opacity=tensor(case["in/opacity_perturbed"])[..., 0],
        distance=tensor(case["in/depth"])[..., 0],
        settings=CorrespondenceSettings(
            edge_kernel=int(case["cfg/edge_ksz"]),
            opacity_threshold=float(case["cfg/opacity_threshold"]),
            epipolar_threshold=float(case["cfg/epipolar_thres"]),
            epipolar_threshold_unit="squared_pixels",
            epipolar_projection="border_points",
            max_matches=int(case["cfg/max_corr"]),
            confidence="raw",
            huber_delta=float(case["cfg/huber_delta"]),
            depth_convention="ray_length",
            depth_normalization="none",
            direction="forward",
            reduction="sum",
        ),
    )


def _cameras(case: Case, pose: str, size: int) -> CameraBatch:
    focal = tensor(case["in/focal_length"])
    intrinsics = torch.zeros(len(focal), 3, 3)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, :2, 2] = size / 2
    intrinsics[:, 2, 2] = 1
    c2w = tensor(case[f"in/{pose}"])
    return CameraBatch(
        c2w=c2w,
        intrinsics=intrinsics,
        azimuth=torch.atan2(c2w[:, 1, 3], c2w[:, 0, 3]),
        elevation=torch.asin(c2w[:, 2, 3] / c2w[:, :3, 3].norm(dim=1)),
        distance=c2w[:, :3, 3].norm(dim=1),
        height=size,
        width=size,
    )


def _features(case: Case, side: str) -> list[Tensor]:
    return [tensor(case[name]) for name in sorted(case) if name.startswith(f"in/feat_{side}_")]
