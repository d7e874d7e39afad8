"""Score distillation in its x0 form: a function of the prior, the views' latents, a timestep and noise.

MVDream's x0-reconstruction loss (arXiv:2308.16512). There is no weight w(t): told of the noise residual, the x0 form
has the implicit one sqrt(1 - a) / sqrt(a), with a from `diffusion`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrdream.diffusion import add_noise, classifier_free_guidance, rescale_std, x0_from_noise
from corrdream.interfaces import MultiviewPrior
from corrdream.structures import GuidanceOutput


def score_distillation(
    latents: Float[Tensor, "B C h w"],
    *,
    noise: Float[Tensor, "B C h w"],
    timestep: Int[Tensor, ""],
    prior: MultiviewPrior,
    text: Float[Tensor, "P L D"],
    c2w: Float[Tensor, "B 4 4"],
    guidance_scale: float,
    guidance_rescale: float,
) -> GuidanceOutput:
    """Half the squared distance of the latents to the guided prior's x0 of them, held constant, over B.

    `text`: the prompt's embedding, then the unconditional one (P = 2); or B of each, one a view (P = 2 B). One timestep
    serves the batch. The formulas run in float32 at least, whatever the latents' dtype and under autocast.
    """
    batch = len(latents)
    assert len(text) in (2, 2 * batch), f"text must have 2 or {2 * batch} rows, got {len(text)}"
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
    with torch.no_grad():
        alpha_cumprod = prior.alphas_cumprod.take(timestep)
        noisy = add_noise(latents, noise.to(latents), alpha_cumprod)
        # One call for both halves of the guidance: the text's views first, then the unconditional ones.
        prediction = prior.predict_noise(
            torch.cat([noisy, noisy]),
            timestep.expand(2 * batch),
            text=text.repeat_interleave(2 * batch // len(text), dim=0),
            c2w=torch.cat([c2w, c2w]),
        )
        noise_text, noise_unconditional = prediction.noise.to(latents).chunk(2)
        noise_guided = classifier_free_guidance(noise_text, noise_unconditional, guidance_scale)
        x0 = x0_from_noise(noisy, noise_guided, alpha_cumprod)
        x0_text = x0_from_noise(noisy, noise_text, alpha_cumprod)
        x0_target, std_ratio = rescale_std(x0, x0_text, num_views=prior.num_views, guidance_rescale=guidance_rescale)
    residual = latents - x0_target
    return GuidanceOutput(
        loss=0.5 * residual.square().sum() / batch,
        std_ratio=std_ratio,
        grad_norm=residual.detach().norm() / batch,
        x0_target=x0_target,
    )
