"""Verbs: the protocols behind which more than one implementation stands."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.structures import FieldOutput, NoisePrediction, RayBundle, RaySamples


@runtime_checkable
class Encoding(Protocol):
    """Positions in the unit cube to features; differentiable twice in the positions."""

    output_dim: int

    def __call__(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
        """Features of points in the unit cube."""
        ...


@runtime_checkable
class JacobianEncoding(Encoding, Protocol):
    """An encoding that knows its derivatives, so that a normal costs no second derivative."""

    def with_jacobian(self, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "P C"], Float[Tensor, "3 P C"]]:
        """Features, and their derivatives along the three axes; both once differentiable."""
        ...


@runtime_checkable
class DensityFunction(Protocol):
    """Density at world points, used by sampling to skip what is not seen."""

    def __call__(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """Density at world points."""
        ...


@runtime_checkable
class Field(Protocol):
    """A radiance field in world coordinates."""

    def __call__(self, points: Float[Tensor, "S 3"], *, with_normal: bool) -> FieldOutput:
        """Density, albedo and, if asked for, normals at world points."""
        ...

    def density(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """Density alone at world points."""
        ...


@runtime_checkable
class Background(Protocol):
    """The color behind the object, seen along unit directions."""

    def __call__(self, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Colors along unit directions."""
        ...


@runtime_checkable
class Marching(Protocol):
    """Where along each ray the field is evaluated."""

    def sample(
        self,
        rays: RayBundle,
        *,
        density: DensityFunction,
        jitter: Float[Tensor, " N"] | None,
    ) -> RaySamples:
        """Intervals inside occupied cells, pruned by visibility; `jitter` in [0, 1) shifts each ray's lattice."""
        ...


@runtime_checkable
class MultiviewPrior(Protocol):
    """A frozen multi-view text-to-image diffusion model. Everything here runs on its own device and dtype."""

    num_views: int
    image_size: int  # side of the images it encodes, pixels
    latent_channels: int
    latent_size: int
    alphas_cumprod: Float[Tensor, " T"]  # float64, T training timesteps
    fingerprint: str  # identifies the weights; part of a trial's identity
    device: torch.device

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "P L D"]:
        """Text embeddings; the empty prompt is the unconditional one. ValueError for what it cannot express."""
        ...

    def encode_images(self, images: Float[Tensor, "B H W 3"], noise: Tensor | None = None) -> Float[Tensor, "B C h w"]:
        """Latents of images in [0, 1] of any side (resized bilinearly); `noise` draws from the posterior."""
        ...

    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B H W 3"]:
        """Images in [0, 1]."""
        ...

    def predict_noise(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        *,
        text: Float[Tensor, "B L D"],
        c2w: Float[Tensor, "B 4 4"],
        feature_blocks: Sequence[int] = (),
    ) -> NoisePrediction:
        """Predicted noise; views are grouped by `num_views`; `c2w`, on any device, conditions by unit translation."""
        ...

    def features(
        self,
        latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        *,
        text: Float[Tensor, "B L D"],
        c2w: Float[Tensor, "B 4 4"],
        blocks: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """The same activations as `predict_noise`, computing nothing after the last block that is asked for."""
        ...


@runtime_checkable
class Similarity(Protocol):
    """How alike the pixels of B pairs of S x S images are, source to target; pixel (x, y) has number y S + x."""

    def best_target(
        self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], before_row: Sequence[int] | None = None
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """The most similar target pixel of each source pixel, and how similar it is.

        `before_row` [B S + 1]: how many of the source pixels come before each row of all images, and how many there
        are; the host may have to wait for the device to learn it.
        """
        ...

    def at(self, view: Int[Tensor, " M"], source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """The similarity of given pixel pairs."""
        ...

    def transposed(self) -> "Similarity":
        """The same with source and target exchanged; the similarity is symmetric."""
        ...


@runtime_checkable
class Matching(Protocol):
    """Dense matching of two view sets by the features of one or more layers, fine or coarse."""

    def similarity(
        self, source_features: Sequence[Tensor], target_features: Sequence[Tensor], *, size: int
    ) -> Similarity:
        """Similarity at `size` x `size` pixels from features [B, C_k, h_k, w_k]; carries no gradient."""
        ...
