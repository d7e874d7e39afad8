"""How good a run's result is where no truth is known: from its own renderings and the prior's own pictures.

The object is seen in 24 views, 15 degrees apart, at the evaluation's elevation, distance and field of view, unshaded on
the evaluation's background, at the side of the prior's images; its hull is carved from 64 silhouettes of that size.
Nothing here needs downloaded weights or a prompt whose shape is known.
"""

import dataclasses
import hashlib
import json
import math
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corrdream import metrics
from corrdream.cameras import lights_at_cameras, shift_azimuth
from corrdream.correspondence import StreamedMatching, correspondence_loss, opaque_pixels
from corrdream.diffusion import add_noise
from corrdream.interfaces import MultiviewPrior
from corrdream.prior.sampling import sample_views
from corrdream.prior.text_cache import default_cache, read_tensor, write_tensor
from corrdream.scene import SceneView
from corrdream.settings import correspondence_settings
from corrdream.structures import RenderOutput

NUM_VIEWS = 24
VIEWS_AT_ONCE = 4
TWIN_DEG = 20.0  # azimuth between the two sets of views whose matches are judged
SAMPLING_STEPS = 25
SAMPLING_SCALE = 7.5  # guidance of the prior's own pictures
CHUNK = 1 << 18  # points whose density is asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """None where there is nothing to measure, such as the colors of an empty scene."""

    hull_gap: float | None  # share of the visual hull that the object lacks; compare with a baseline's
    floater_share: float | None  # of the occupied volume, outside its largest component
    fuzziness: float | None  # mean 4 a (1 - a) of the visible pixels' opacity, 0 is crisp
    z_variance: float | None  # mean variance of the distance along foreground rays over the squared diagonal
    saturation_distance: float | None  # Wasserstein-1 to the saturation of the prior's own pictures
    contrast_ratio: float | None  # deviation of the colors over that of the prior's own pictures, 1 at best
    clipped_pixels: float | None  # share of foreground pixels with a channel at an end
    match_residual: float | None  # median distance of matches and reprojections, in pixels of the prior's images
    step_seconds_median: float | None
    step_seconds_p95: float | None
    nonfinite_share: float | None  # of the steps, whose gradient was not finite
    peak_memory_gb: float  # of the GPU, or of the process on a CPU

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers by name."""
        return dataclasses.asdict(self)


def measure_quality(scene: SceneView, prior: MultiviewPrior, logged: Sequence[Mapping[str, float]]) -> Quality:
    """All measures of a scene; `logged` are the rows of its metrics.jsonl, for what it cost."""
    cameras = scene.orbit(NUM_VIEWS, size=prior.image_size)
    views = [scene.render(cameras.select(slice(k, k + VIEWS_AT_ONCE))) for k in range(0, NUM_VIEWS, VIEWS_AT_ONCE)]
    pixels = torch.cat([metrics.foreground_pixels(view.rgb, view.opacity) for view in views]).cpu()
    opacity = torch.cat([view.opacity for view in views]).cpu()
    samples = metrics.unlike_border_pixels(prior_samples(scene, prior)) if len(pixels) else pixels
    return Quality(
        **_measure_volume(scene, prior.image_size, views),
        fuzziness=metrics.fuzziness(opacity),
        saturation_distance=metrics.saturation_distance(pixels, samples),
        contrast_ratio=metrics.contrast_ratio(pixels, samples),
        clipped_pixels=metrics.clipped_share(pixels),
        match_residual=match_residual(scene, prior),
        **measure_cost(logged),
        peak_memory_gb=_peak_memory_bytes(scene.device) / 1e9,
    )


@torch.no_grad()
def _measure_volume(scene: SceneView, size: int, views: Sequence[RenderOutput]) -> dict[str, float | None]:
    radius = scene.config.field.radius
    points = metrics.voxel_centers(metrics.RESOLUTION, radius)
    density = torch.cat([scene.scene.field.density(part.to(scene.device)).cpu() for part in points.split(CHUNK)])
    occupied = metrics.occupied_voxels(density.float().reshape((metrics.RESOLUTION,) * 3), radius)
    cameras = metrics.hull_cameras(size, radius=radius, device=scene.device)
    parts = [slice(start, start + VIEWS_AT_ONCE) for start in range(0, metrics.NUM_HULL_VIEWS, VIEWS_AT_ONCE)]
    silhouettes = torch.cat([scene.render(cameras.select(part)).opacity for part in parts])
    diagonal = metrics.bounding_diagonal(occupied, radius)
    variance, opacity = torch.cat([view.z_variance() for view in views]), torch.cat([view.opacity for view in views])
    return {
        "hull_gap": metrics.visual_hull_gap(occupied, silhouettes, cameras, radius),
        "floater_share": metrics.floater_share(occupied),
        "z_variance": None if diagonal is None else metrics.relative_z_variance(variance, opacity, diagonal),
    }


@torch.no_grad()
def match_residual(scene: SceneView, prior: MultiviewPrior) -> float | None:
    """Median distance, in pixels, between what the prior's features match and where the depths take it; None without.

    Views a quarter turn apart (with four of them) and their twins at TWIN_DEG, under the same noise. Matches are made
    and judged by the right settings whatever the run was trained with, so that runs can be compared.
    """
    cameras = scene.orbit(prior.num_views, size=prior.image_size)
    shift = torch.full_like(cameras.azimuth, math.radians(TWIN_DEG))
    twins, _ = shift_azimuth(cameras, lights_at_cameras(cameras), shift)
    source, target = scene.render(cameras), scene.render(twins)
    correspondence = scene.config.correspondence
    latents = prior.encode_images(torch.cat([source.rgb, target.rgb]))
    noise = torch.randn(latents[: len(cameras.c2w)].shape, generator=torch.Generator().manual_seed(0)).to(latents)
    timestep = torch.tensor(correspondence.timestep, device=prior.device)
    features = prior.features(
        add_noise(latents, torch.cat([noise, noise]), prior.alphas_cumprod[timestep]),
        timestep.expand(len(latents)),
        text=prior.encode_text([scene.config.prompt]).expand(len(latents), -1, -1),
        c2w=torch.cat([cameras.c2w, twins.c2w]),
        blocks=correspondence.feature_blocks,
    )
    settings = dataclasses.replace(
        correspondence_settings(correspondence),
        depth_convention="z_depth",
        depth_normalization="opacity",
        direction="both",
        epipolar_threshold_unit="scaled_pixels",
        epipolar_projection="normal_form",
        confidence="normalized",
        reduction="mean",
    )
    source_pixels, target_pixels = opaque_pixels(
        source.opacity, target.opacity, settings=settings, generator=torch.Generator().manual_seed(0)
    )
    output = correspondence_loss(
        source,
        target,
        cameras,
        twins,
        source_pixels=source_pixels,
        target_pixels=target_pixels,
        source_features=[feature.chunk(2)[0] for feature in features],
        target_features=[feature.chunk(2)[1] for feature in features],
        matching=StreamedMatching(),
        settings=settings,
    )
    residual = float(output.residual)
    return residual if math.isfinite(residual) else None


def prior_samples(scene: SceneView, prior: MultiviewPrior) -> Float[Tensor, "B H W 3"]:
    """The prior's own set of views of the prompt by DDIM, always the same; kept in the cache of text embeddings."""
    cameras = scene.config.cameras
    view = [cameras.eval_elevation, cameras.eval_distance, cameras.eval_fovy]
    what = [prior.fingerprint, scene.config.prompt, view, SAMPLING_STEPS, SAMPLING_SCALE]
    path = default_cache() / "samples" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.safetensors"
    kept = read_tensor(path)
    if kept is None:
        drawn = sample_views(
            prior,
            [scene.config.prompt],
            scene.orbit(prior.num_views, size=prior.image_size).c2w,
            guidance_scale=SAMPLING_SCALE,
            num_steps=SAMPLING_STEPS,
            generator=torch.Generator().manual_seed(0),
        )
        kept = drawn.flatten(0, 1).float().cpu()
        write_tensor(path, kept)
    return kept


def measure_cost(logged: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Seconds a step, and the share of steps that were lost to a gradient that is not finite."""
    if not logged:
        return {"step_seconds_median": None, "step_seconds_p95": None, "nonfinite_share": None}
    seconds = np.array([row["seconds"] for row in logged])
    lost = [not math.isfinite(row["grad_norm"]) for row in logged]
    return {
        "step_seconds_median": float(np.median(seconds)),
        "step_seconds_p95": float(np.percentile(seconds, 95)),
        "nonfinite_share": sum(lost) / len(lost),
    }


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
