"""Nouns: the frozen dataclasses that cross module borders.

Axis letters, everywhere: B views, H W pixels, N rays, S samples along rays, M matches, P points or prompts,
C channels, h w latent pixels, L text tokens, D text width, G groups of `num_views` consecutive views.

Conventions, stated once:
* World: right-handed, z up, the object inside [-1, 1]^3. Azimuth turns from +x to +y, elevation from xy towards +z.
* Camera (c2w): OpenGL, x right, y up, looks along -z.
* Images: [B, row, column, channel], row 0 on top; pixel (x, y) has its centre at (x + 0.5, y + 0.5).
* `distance` is measured along the unit ray; `depth` is the planar z coordinate in the camera.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

ShadingMode = Literal["albedo", "textureless", "diffuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraBatch:
    """Pinhole cameras; consecutive groups of `num_views` look at one object for the multi-view prior."""

    c2w: Float[Tensor, "B 4 4"]
    intrinsics: Float[Tensor, "B 3 3"]  # pixels of an image of `height` x `width`
    azimuth: Float[Tensor, " B"]  # radians, before any perturbation
    elevation: Float[Tensor, " B"]  # radians
    distance: Float[Tensor, " B"]  # of the unperturbed camera from the origin, world units
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LightBatch:
    """One point light a view: position = distance * unit(camera position + offset)."""

    position: Float[Tensor, "B 3"]
    offset: Float[Tensor, "B 3"]
    distance: Float[Tensor, " B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """How one rendering is shaded and what is behind it; drawn once a view set."""

    mode: ShadingMode
    ambient: tuple[float, float, float]  # color of the ambient light
    diffuse: tuple[float, float, float]  # color of the point light; light = ambient + diffuse * lambert
    background: Float[Tensor, "B 3"] | None  # a fixed color a view; None asks the scene's background


@dataclass(frozen=True, slots=True, kw_only=True)
class RayBundle:
    """Rays in world space, row-major over B, H, W."""

    origins: Float[Tensor, "N 3"]
    directions: Float[Tensor, "N 3"]  # unit


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySamples:
    """Intervals along rays, sorted by ray; a ray may have none."""

    ray_indices: Int[Tensor, " S"]
    t_starts: Float[Tensor, " S"]
    t_ends: Float[Tensor, " S"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOutput:
    """The field at S points."""

    density: Float[Tensor, " S"]
    albedo: Float[Tensor, "S 3"]
    normal: Float[Tensor, "S 3"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOutput:
    """Images, and what the regularizers need of the samples behind them."""

    rgb: Float[Tensor, "B H W 3"]
    opacity: Float[Tensor, "B H W"]
    distance: Float[Tensor, "B H W"]  # sum of weight * t along the unit ray, not divided by opacity
    z_variance: Float[Tensor, "B H W"]
    normal: Float[Tensor, "B H W 3"] | None  # unit where opaque, world frame, times opacity
    samples: RaySamples
    weights: Float[Tensor, " S"]
    sample_normal: Float[Tensor, "S 3"] | None
    sample_direction: Float[Tensor, "S 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePrediction:
    """The prior's estimate of the noise, and the activations that were asked for (after each up-block)."""

    noise: Float[Tensor, "B C h w"]
    features: tuple[Tensor, ...]  # one [B, C_k, h_k, w_k] for each requested block, in the order asked


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceOutput:
    """Score distillation's scalar loss and what to log and show of it (detached)."""

    loss: Float[Tensor, ""]
    std_ratio: Float[Tensor, " G"]
    grad_norm: Float[Tensor, ""]
    x0_target: Float[Tensor, "B C h w"]  # the latents that the loss pulls to


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Cross-view matches that survived the epipolar filters; `view` says which camera pair each belongs to."""

    view: Int[Tensor, " M"]
    source_xy: Int[Tensor, "M 2"]  # pixel indices in the source view
    target_xy: Float[Tensor, "M 2"]  # on the epipolar line, pixels of the target view
    confidence: Float[Tensor, " M"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrespondenceOutput:
    """The correspondence loss and what to log and show of it (detached)."""

    loss: Float[Tensor, ""]
    matches: tuple[Matches, ...]  # source to target views; then target to source, where both directions are used
    errors: tuple[Tensor, ...]  # one [M] for each of the matches: distance of match and reprojection, pixels
    residual: Float[Tensor, ""]  # median distance of match and reprojection, pixels; NaN without matches
