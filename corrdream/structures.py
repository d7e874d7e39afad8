"""Nouns: the frozen dataclasses that cross module borders.

Axis letters, everywhere: B views, H W pixels, N rays, S samples along rays, M matches or candidates for them, P points
or prompts, C channels, h w latent pixels, L text tokens, D text width, G groups of `num_views` consecutive views.

Conventions, stated once:
* World: right-handed, z up, the object inside [-1, 1]^3. Azimuth turns from +x to +y, elevation from xy towards +z.
* Camera (c2w): OpenGL, x right, y up, looks along -z.
* Images: [B, row, column, channel], row 0 on top; pixel (x, y) has its centre at (x + 0.5, y + 0.5).
* `distance` is measured along the unit ray; `depth` is the planar z coordinate in the camera.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corrdream.transfer import all_to_device

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

    def select(self, index: Int[Tensor, " P"] | slice) -> "CameraBatch":
        """Some of them."""
        return replace(
            self,
            c2w=self.c2w[index],
            intrinsics=self.intrinsics[index],
            azimuth=self.azimuth[index],
            elevation=self.elevation[index],
            distance=self.distance[index],
        )

    def to(self, device: torch.device | str) -> "CameraBatch":
        """The same on another device."""
        c2w, intrinsics, azimuth, elevation, distance = all_to_device(
            [self.c2w, self.intrinsics, self.azimuth, self.elevation, self.distance], device
        )
        return replace(self, c2w=c2w, intrinsics=intrinsics, azimuth=azimuth, elevation=elevation, distance=distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightBatch:
    """One point light a view: position = distance * unit(camera position + offset)."""

    position: Float[Tensor, "B 3"]
    offset: Float[Tensor, "B 3"]
    distance: Float[Tensor, " B"]

    def to(self, device: torch.device | str) -> "LightBatch":
        """The same on another device."""
        position, offset, distance = all_to_device([self.position, self.offset, self.distance], device)
        return LightBatch(position=position, offset=offset, distance=distance)


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
    """The images that every step needs, and the samples behind them, from which others are made when asked for."""

    rgb: Float[Tensor, "B H W 3"]
    opacity: Float[Tensor, "B H W"]
    distance: Float[Tensor, "B H W"]  # sum of weight * t along the unit ray, not divided by opacity
    samples: RaySamples
    weights: Float[Tensor, " S"]
    sample_normal: Float[Tensor, "S 3"] | None
    sample_direction: Float[Tensor, "S 3"]

    def z_variance(self) -> Float[Tensor, "B H W"]:
        """Weighted squared deviation of t from the pixel's `distance`, summed over its samples."""
        middle = (self.samples.t_starts + self.samples.t_ends) / 2
        deviation = middle - self.distance.flatten().index_select(0, self.samples.ray_indices)
        return self._sum_over_samples((self.weights * deviation.square())[:, None]).squeeze(-1)

    def normal(self) -> Float[Tensor, "B H W 3"] | None:
        """The samples' mean normal, unit where opaque, world frame, times opacity; None without normals."""
        if self.sample_normal is None:
            return None
        mean = self._sum_over_samples(self.weights[:, None] * self.sample_normal)
        return F.normalize(mean, dim=-1) * self.opacity[..., None]

    def _sum_over_samples(self, values: Float[Tensor, "S C"]) -> Float[Tensor, "B H W C"]:
        zero = values.new_zeros(self.opacity.numel(), values.shape[1])
        total = zero.index_add(0, self.samples.ray_indices, values)
        return total.view(*self.opacity.shape, values.shape[1])


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
    """Candidates for cross-view matches; those that survive the epipolar filters are matches.

    To take the others out, as `kept` does, the host must wait for the device, so the training step leaves them in.
    """

    view: Int[Tensor, " M"]  # the camera pair that each belongs to
    source_xy: Int[Tensor, "M 2"]  # pixel indices in the source view
    target_xy: Float[Tensor, "M 2"]  # on the epipolar line, pixels of the target view; may be NaN where none is near
    confidence: Float[Tensor, " M"]  # 0 for those that do not survive
    survives: Bool[Tensor, " M"]

    def kept(self) -> "Matches":
        """The matches alone."""
        return self.select(self.survives.nonzero().squeeze(dim=1))  # sync

    def select(self, index: Int[Tensor, " P"]) -> "Matches":
        """Some of the candidates."""
        return Matches(
            view=self.view[index],
            source_xy=self.source_xy[index],
            target_xy=self.target_xy[index],
            confidence=self.confidence[index],
            survives=self.survives[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrespondenceOutput:
    """The correspondence loss and what to log and show of it (detached)."""

    loss: Float[Tensor, ""]
    matches: tuple[Matches, ...]  # source to target views; then target to source, where both directions are used
    errors: tuple[Tensor, ...]  # one [M] for each of the matches: distance of match and reprojection, pixels; 0 if lost
    residual: Float[Tensor, ""]  # median distance of match and reprojection, pixels; NaN without matches
