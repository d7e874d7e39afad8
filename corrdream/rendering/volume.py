"""Emission-absorption along rays, on samples packed one after the other (Eq. 3 of arXiv:2003.08934).

Symbols: S samples sorted by ray, N rays; optical depth tau = density * (t_end - t_start), transmittance
T = exp(-sum of tau before the sample), alpha = 1 - exp(-tau), weight = T alpha.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.structures import RaySamples

# exp(-104) is no longer a float32: a larger optical depth changes nothing, but would cost the running sum its digits.
MAX_OPTICAL_DEPTH = 104.0


def optical_depth(density: Float[Tensor, " S"], samples: RaySamples) -> Float[Tensor, " S"]:
    """Density times the interval's length."""
    return (density * (samples.t_ends - samples.t_starts)).clamp(max=MAX_OPTICAL_DEPTH)


def transmittance(tau: Float[Tensor, " S"], ray_indices: Int[Tensor, " S"], num_rays: int) -> Float[Tensor, " S"]:
    """Share of light that reaches each sample from the ray's origin.

    One running sum over all samples, in double precision: in single precision the difference of two sums of 1e5 terms
    has no digits left.
    """
    before = tau.double().cumsum(0) - tau
    rays = torch.arange(num_rays, device=tau.device)
    starts = torch.searchsorted(ray_indices, rays)  # of a ray without samples: never looked at
    return torch.exp(before.index_select(0, starts.index_select(0, ray_indices)) - before).to(tau.dtype)


def render_weights(
    density: Float[Tensor, " S"], samples: RaySamples, num_rays: int
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Weights, transmittances and alphas of samples."""
    tau = optical_depth(density, samples)
    visible = transmittance(tau, samples.ray_indices, num_rays)
    alpha = -torch.expm1(-tau)
    return visible * alpha, visible, alpha


def accumulate(values: Float[Tensor, "S C"], ray_indices: Int[Tensor, " S"], num_rays: int) -> Float[Tensor, "N C"]:
    """Sum over each ray's samples."""
    return values.new_zeros(num_rays, values.shape[1]).index_add(0, ray_indices, values)
