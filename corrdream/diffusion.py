"""The diffusion process as formulas: noise schedule, forward noising, x0, guidance and its rescale. No network.

Symbols: z0 clean latents, z_t = sqrt(a) z0 + sqrt(1 - a) noise, where a is `alpha_cumprod`, the cumulative product of
1 - beta up to the timestep: one number for the batch, or one an image. Roots are taken in float64, where 1 - a keeps
its digits at small timesteps; the results have the latents' dtype. DDPM is arXiv:2006.11239.
"""

import torch
from jaxtyping import Float
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START = 0.00085  # Stable Diffusion's, as MVDream's: linear in the square root
BETA_END = 0.012
STD_EPS = 1e-8


def betas() -> Float[Tensor, " T"]:
    """Variance added at each timestep, linear in its square root, in float64."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64).square()


def alphas_cumprod() -> Float[Tensor, " T"]:
    """Share of the signal's variance left at each timestep, in float64."""
    return torch.cumprod(1 - betas(), dim=0)


def add_noise(
    latents: Float[Tensor, "B C h w"],
    noise: Float[Tensor, "B C h w"],
    alpha_cumprod: Float[Tensor, ""] | Float[Tensor, " B"],
) -> Float[Tensor, "B C h w"]:
    """Noisy latents z_t (Eq. 4 of arXiv:2006.11239)."""
    alpha = _per_image(alpha_cumprod.double())
    return alpha.sqrt().to(latents) * latents + (1 - alpha).sqrt().to(latents) * noise


def x0_from_noise(
    noisy: Float[Tensor, "B C h w"],
    noise: Float[Tensor, "B C h w"],
    alpha_cumprod: Float[Tensor, ""] | Float[Tensor, " B"],
) -> Float[Tensor, "B C h w"]:
    """Clean latents that `noise` would turn into `noisy`: the inverse of `add_noise`."""
    alpha = _per_image(alpha_cumprod.double())
    return noisy / alpha.sqrt().to(noisy) - (1 / alpha - 1).sqrt().to(noisy) * noise


def noise_from_velocity(
    noisy: Float[Tensor, "B C h w"],
    velocity: Float[Tensor, "B C h w"],
    alpha_cumprod: Float[Tensor, ""] | Float[Tensor, " B"],
) -> Float[Tensor, "B C h w"]:
    """Noise of a v-prediction, v = sqrt(a) noise - sqrt(1 - a) z0 (Appendix D of arXiv:2202.00512)."""
    alpha = _per_image(alpha_cumprod.double())
    return alpha.sqrt().to(noisy) * velocity + (1 - alpha).sqrt().to(noisy) * noisy


def classifier_free_guidance(
    noise_text: Float[Tensor, "B C h w"], noise_unconditional: Float[Tensor, "B C h w"], guidance_scale: float
) -> Float[Tensor, "B C h w"]:
    """Noise moved from the unconditional estimate through the text's and beyond (arXiv:2207.12598); 1 is the text's."""
    return noise_unconditional + guidance_scale * (noise_text - noise_unconditional)


def rescale_std(
    x0: Float[Tensor, "B C h w"],
    x0_text: Float[Tensor, "B C h w"],
    *,
    num_views: int,
    guidance_rescale: float,
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, " G"]]:
    """Guided x0 whose spread is drawn towards that of the text's x0, and the ratio of both spreads a view group.

    Section 3.4 of arXiv:2305.08891 on x0 instead of the noise, with the unbiased standard deviation over the views,
    channels and pixels of a group: x0 <- r ratio x0 + (1 - r) x0 for r = `guidance_rescale`; r = 0 returns x0 itself.
    """
    assert len(x0) % num_views == 0, f"{len(x0)} images are no groups of {num_views} views"
    ratio = (_group_std(x0_text, num_views) + STD_EPS) / (_group_std(x0, num_views) + STD_EPS)
    if guidance_rescale == 0:
        return x0, ratio
    factor = guidance_rescale * ratio + (1 - guidance_rescale)
    return _per_image(factor.repeat_interleave(num_views)) * x0, ratio


def _group_std(images: Float[Tensor, "B C h w"], num_views: int) -> Float[Tensor, " G"]:
    return images.reshape(len(images) // num_views, -1).std(dim=1)


def _per_image(value: Float[Tensor, ""] | Float[Tensor, " B"]) -> Tensor:
    return value.reshape(-1, 1, 1, 1)
