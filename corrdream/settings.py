"""What the schedules say at one optimizer step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from corrdream.camera_sampling import CameraSettings
from corrdream.config import Config, CorrespondenceConfig
from corrdream.correspondence import CorrespondenceSettings
from corrdream.diffusion import NUM_TIMESTEPS
from corrdream.rendering import AppearanceSettings
from corrdream.schedules import value_at


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """Every scheduled quantity at one optimizer step."""

    cameras: CameraSettings
    appearance: AppearanceSettings
    guidance_scale: float
    guidance_rescale: float
    timestep_range: tuple[int, int]  # both ends included
    is_correspondence_step: bool
    loss_weights: Mapping[str, float]


def settings_at(config: Config, step: int, num_views: int) -> StepSettings:
    """The one place where schedules are evaluated; pure."""
    value = partial(value_at, step=step, horizon=config.schedule_steps)
    return StepSettings(
        cameras=_camera_settings(config, step, num_views),
        appearance=AppearanceSettings(
            ambient_only=config.shading.ambient_only.contains(step, config.schedule_steps),
            soft=config.shading.soft,
            ambient_color=config.shading.ambient_color,
            diffuse_color=config.shading.diffuse_color,
            diffuse_prob=config.shading.diffuse_prob,
            textureless_prob=config.shading.textureless_prob,
            random_prob=config.background.random_prob,
            random_shared=config.background.random_shared,
        ),
        guidance_scale=value(config.guidance.guidance_scale),
        guidance_rescale=value(config.guidance.guidance_rescale),
        timestep_range=(
            int(NUM_TIMESTEPS * value(config.guidance.min_timestep)),
            int(NUM_TIMESTEPS * value(config.guidance.max_timestep)),
        ),
        is_correspondence_step=_is_correspondence_step(config, step),
        loss_weights={name: value(weight) for name, weight in vars(config.loss_weights).items()},
    )


def _is_correspondence_step(config: Config, step: int) -> bool:
    """Whether the correspondence loss takes the place of score distillation."""
    correspondence = config.correspondence
    weight = value_at(config.loss_weights.correspondence, step, config.schedule_steps)
    return (
        correspondence.enabled
        and correspondence.window.contains(step, config.schedule_steps)
        and step % correspondence.every == 0
        and (weight > 0 or correspondence.at_zero_weight == "no_guidance")
    )


def _camera_settings(config: Config, step: int, num_views: int) -> CameraSettings:
    """Camera ranges at a step; while `progressive_until` lasts they widen from the evaluation view.

    Batches drawn before the first step know nothing of it yet.
    """
    cameras = config.cameras
    drawn_at = step - cameras.drawn_ahead
    is_narrow = cameras.progressive_until >= 0 and drawn_at >= 0
    widening = min(1.0, drawn_at / (cameras.progressive_until + 1)) if is_narrow else 1.0
    return CameraSettings(
        num_views=num_views,
        batch_size=int(value_at(cameras.batch_size, drawn_at, config.schedule_steps)),
        resolution=int(value_at(cameras.resolution, drawn_at, config.schedule_steps)),
        elevation_range=_widened(cameras.elevation_range, cameras.eval_elevation, widening),
        azimuth_range=_widened(cameras.azimuth_range, 0.0, widening),
        fovy_range=cameras.fovy_range,
        distance_range=cameras.distance_range,
        relative_distance=cameras.relative_distance,
        zoom_range=cameras.zoom_range,
        camera_perturb=cameras.camera_perturb,
        center_perturb=cameras.center_perturb,
        up_perturb=cameras.up_perturb,
        light_distance_range=cameras.light_distance_range,
        light_perturb=cameras.light_perturb,
        elevation_sampling=cameras.elevation_sampling,
    )


def _widened(bounds: tuple[float, float], center: float, share: float) -> tuple[float, float]:
    """From the center alone (share 0) to all of the bounds (1)."""
    low, high = ((1 - share) * center + share * bound for bound in bounds)
    return low, high


def correspondence_settings(config: CorrespondenceConfig) -> CorrespondenceSettings:
    """The part of the configuration that the loss itself reads."""
    return CorrespondenceSettings(
        edge_kernel=config.edge_kernel,
        opacity_threshold=config.opacity_threshold,
        epipolar_threshold=config.epipolar_threshold,
        epipolar_threshold_unit=config.epipolar_threshold_unit,
        epipolar_projection=config.epipolar_projection,
        max_matches=config.max_matches,
        confidence=config.confidence,
        huber_delta=config.huber_delta,
        depth_convention=config.depth_convention,
        depth_normalization=config.depth_normalization,
        direction=config.direction,
        reduction=config.reduction,
    )
