"""Images straight from the prior by DDIM (arXiv:2010.02502): a look at what it knows of a prompt, without any 3D.

Symbols: `alpha` is the cumulative product at the step's timestep, `alpha_next` at the one that it goes to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.diffusion import classifier_free_guidance
from corrdream.interfaces import MultiviewPrior

NoisePredictor = Callable[[Tensor, int], Tensor]  # (latents, timestep) -> noise


@dataclass(frozen=True, slots=True, kw_only=True)
class DdimStep:
    """Where a trajectory stands after one step."""

    timestep: int  # at which the noise was predicted
    latents: Float[Tensor, "B C h w"]
    x0: Float[Tensor, "B C h w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DdimSchedule:
    """The K timesteps that are visited, increasing, with the constants of Eq. 12 and 16 of arXiv:2010.02502."""

    timesteps: Int[Tensor, " K"]
    alpha: Float[Tensor, " K"]
    alpha_next: Float[Tensor, " K"]  # of the timestep before in this list, which is the next one to be visited
    sigma: Float[Tensor, " K"]


def ddim_schedule(alphas_cumprod: Float[Tensor, " T"], num_steps: int, eta: float = 0.0) -> DdimSchedule:
    """Timesteps 1, 1 + c, 1 + 2c, ... with c = T // num_steps, as published: their count can exceed `num_steps`.

    Raises ValueError for a number of steps whose last timestep would lie beyond the table.
    """
    num_timesteps = len(alphas_cumprod)
    if not 0 < num_steps <= num_timesteps or (num_timesteps - 1) % (num_timesteps // num_steps) == 0:
        raise ValueError(f"DDIM cannot take {num_steps} of {num_timesteps} timesteps; take a divisor, such as 50.")
    table = alphas_cumprod.cpu().double()
    timesteps = torch.arange(0, num_timesteps, num_timesteps // num_steps, device=table.device) + 1
    alpha = table[timesteps]
    alpha_next = torch.cat([table[:1], alpha[:-1]])
    sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).sqrt()
    return DdimSchedule(timesteps=timesteps, alpha=alpha, alpha_next=alpha_next, sigma=sigma)


def ddim_steps(
    predict_noise: NoisePredictor,
    initial: Float[Tensor, "B C h w"],
    schedule: DdimSchedule,
    draw_noise: Callable[[], Tensor] | None = None,
) -> Iterator[DdimStep]:
    """The trajectory from pure noise to an image, step by step; `draw_noise` is asked only where sigma is not zero."""
    latents = initial
    for index in reversed(range(len(schedule.timesteps))):
        alpha, alpha_next = float(schedule.alpha[index]), float(schedule.alpha_next[index])
        sigma, timestep = float(schedule.sigma[index]), int(schedule.timesteps[index])
        noise = predict_noise(latents, timestep)
        x0 = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        latents = alpha_next**0.5 * x0 + (1 - alpha_next - sigma**2) ** 0.5 * noise
        if sigma > 0:
            assert draw_noise is not None, "a stochastic schedule draws noise"
            latents = latents + sigma * draw_noise()
        yield DdimStep(timestep=timestep, latents=latents, x0=x0)


@torch.no_grad()
def sample_views(
    prior: MultiviewPrior,
    prompts: Sequence[str],
    c2w: Float[Tensor, "V 4 4"],
    *,
    guidance_scale: float,
    num_steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "P V H W 3"]:
    """Images in [0, 1] of each prompt from the same V cameras, as deterministic DDIM draws them."""
    num_prompts, num_views = len(prompts), len(c2w)
    shape = (num_prompts * num_views, prior.latent_channels, prior.latent_size, prior.latent_size)
    initial = torch.randn(shape, generator=generator, device=generator.device).to(prior.device)
    text = prior.encode_text([*prompts, *[""] * num_prompts]).repeat_interleave(num_views, dim=0)
    cameras = c2w.to(prior.device).repeat(2 * num_prompts, 1, 1)

    def predict_noise(latents: Tensor, timestep: int) -> Tensor:
        timesteps = torch.full((2 * len(latents),), timestep, device=prior.device)
        doubled = latents.repeat(2, 1, 1, 1)
        with_text, unconditional = prior.predict_noise(doubled, timesteps, text=text, c2w=cameras).noise.chunk(2)
        return classifier_free_guidance(with_text, unconditional, guidance_scale)

    latents = initial
    for step in ddim_steps(predict_noise, initial, ddim_schedule(prior.alphas_cumprod, num_steps)):
        latents = step.latents
    images = prior.decode_latents(latents)
    return images.reshape(num_prompts, num_views, *images.shape[1:])
