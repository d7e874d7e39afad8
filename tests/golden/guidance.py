"""Noise schedule and score distillation against the published guidance, with the model's outputs prescribed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corrdream.cameras import normalize_camera
from corrdream.diffusion import alphas_cumprod, betas, classifier_free_guidance
from corrdream.guidance import score_distillation
from corrdream.structures import GuidanceOutput, NoisePrediction
from tests.golden.helpers import assert_relative, group, tensor

FILE = "guidance.npz"
TOLERANCE = 1e-5  # of the largest magnitude
TOLERANCE_GRADIENT = 1e-4
LOG_VARIANCE_FLOOR = 1e-20


class PrescribedPrior:
    """A multi-view prior whose noise is given, and which keeps what it was asked."""

    def __init__(self, noise: Tensor, num_views: int) -> None:
        self.noise = noise
        self.num_views = num_views
        self.alphas_cumprod = alphas_cumprod()
        self.latent_channels, self.latent_size = noise.shape[1:3]
        self.image_size = 8 * self.latent_size
        self.fingerprint = "prescribed"
        self.device = noise.device
        self.latents = self.timesteps = self.text = self.c2w = torch.empty(0)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def encode_images(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def decode_latents(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def predict_noise(
        self, latents: Tensor, timesteps: Tensor, *, text: Tensor, c2w: Tensor, feature_blocks: Sequence[int] = ()
    ) -> NoisePrediction:
        assert not feature_blocks, "only noise is prescribed"
        self.latents, self.timesteps, self.text, self.c2w = latents, timesteps, text, c2w
        return NoisePrediction(noise=self.noise, features=())

    def features(
        self, latents: Tensor, timesteps: Tensor, *, text: Tensor, c2w: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, ...]:
        raise NotImplementedError


def cases(data: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    schedule = schedule_buffers()
    for name, expected in group(data, "schedule").items():
        yield f"schedule-{name}", partial(assert_relative, schedule[name], expected, TOLERANCE, name)
    yield "model", partial(check_what_the_model_is_asked, data)
    yield "guidance", partial(check_classifier_free_guidance, data)
    yield "reconstruction", partial(check_reconstruction, data)
    yield "distillation", partial(check_distillation, data)


def schedule_buffers() -> dict[str, Tensor]:
    """The published buffers, by the usual formulas from our two schedules (Eq. 7 of arXiv:2006.11239)."""
    beta, alpha = betas(), alphas_cumprod()
    exact = torch.cumprod(1 - beta, dim=0)
    previous = torch.cat([exact.new_ones(1), exact[:-1]])
    variance = beta * (1 - previous) / (1 - exact)
    return {
        "betas": beta,
        "alphas_cumprod": alpha,
        "alphas_cumprod_prev": torch.cat([alpha.new_ones(1), alpha[:-1]]),
        "sqrt_alphas_cumprod": alpha.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp_min(LOG_VARIANCE_FLOOR).log(),
        "posterior_mean_coef1": beta * previous.sqrt() / (1 - exact),
        "posterior_mean_coef2": (1 - previous) * (1 - beta).sqrt() / (1 - exact),
    }


def distill(
    data: Mapping[str, np.ndarray], timestep: int, guidance_scale: float, guidance_rescale: float
) -> tuple[GuidanceOutput, Tensor, PrescribedPrior]:
    """The output, the gradient in the latents, and the prior after the call."""
    prior = PrescribedPrior(
        torch.cat([tensor(data["in/eps_text"]), tensor(data["in/eps_uncond"])]), int(data["in/n_view"])
    )
    latents = tensor(data["in/latents"]).requires_grad_()
    output = score_distillation(
        latents,
        noise=tensor(data["in/noise"]),
        timestep=torch.tensor(timestep),
        prior=prior,
        text=tensor(data["in/text_embeddings"]),
        c2w=tensor(data["in/c2w"]),
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
    )
    (gradient,) = torch.autograd.grad(output.loss, latents)
    return output, gradient, prior


def check_what_the_model_is_asked(data: Mapping[str, np.ndarray]) -> None:
    _, _, prior = distill(data, int(data["in/t"][0]), 1.0, 0.0)
    first, second = prior.latents.chunk(2)
    assert_relative(first, data["out/model_input_first_half"], TOLERANCE, "latents, text half")
    assert bool(data["out/model_input_second_half_equal"]) == torch.equal(first, second), "latents, other half"
    assert_relative(prior.timesteps, data["out/model_t"], 0.0, "timesteps")
    assert_relative(prior.text, data["in/text_embeddings"], 0.0, "text")
    assert_relative(normalize_camera(prior.c2w), data["out/model_camera"], TOLERANCE, "camera condition")
    assert prior.num_views == int(data["out/model_num_frames"]), "views a group"
    # The published call leaves the caller's poses normalized; ours leaves them alone and normalizes to the same.
    normalized = normalize_camera(tensor(data["in/c2w"])).reshape(-1, 4, 4)
    assert_relative(normalized, data["out/c2w_after_call"], TOLERANCE, "normalized poses")


def check_classifier_free_guidance(data: Mapping[str, np.ndarray]) -> None:
    text, unconditional = tensor(data["in/eps_text"]), tensor(data["in/eps_uncond"])
    guided = [classifier_free_guidance(text, unconditional, scale) for scale in data["in/guidance_scale"].tolist()]
    assert_relative(torch.stack(guided), data["out/eps_guided"], TOLERANCE, "guided noise")


def check_reconstruction(data: Mapping[str, np.ndarray]) -> None:
    """What the prior gets, and x0 before the rescale; a guidance scale of one leaves the text's."""
    noisy, x0_text, x0 = [], [], []
    for timestep in data["in/t"].tolist():
        text_only, _, prior = distill(data, timestep, 1.0, 0.0)
        noisy.append(prior.latents.chunk(2)[0])
        x0_text.append(text_only.x0_target)
        guided = [distill(data, timestep, scale, 0.0)[0] for scale in data["in/guidance_scale"].tolist()]
        x0.append(torch.stack([output.x0_target for output in guided]))
    assert_relative(torch.stack(noisy), data["out/latents_noisy"], TOLERANCE, "noisy latents")
    assert_relative(torch.stack(x0_text), data["out/x0_text"], TOLERANCE, "x0 of the text")
    assert_relative(torch.stack(x0), data["out/x0_cfg"], TOLERANCE, "guided x0")


def check_distillation(data: Mapping[str, np.ndarray]) -> None:
    axes = [data[f"in/{name}"].tolist() for name in ("t", "guidance_scale", "rescale")]
    results = [distill(data, *point) for point in product(*axes)]
    outputs = [output for output, _, _ in results]
    shape = [len(axis) for axis in axes]

    def over_axes(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).unflatten(0, shape)

    ratios = over_axes([output.std_ratio for output in outputs])
    for index, rescale in enumerate(axes[2]):
        assert_relative(ratios[:, :, index], data["out/std_ratio"], TOLERANCE, f"std_ratio at rescale {rescale}")
    targets = over_axes([output.x0_target for output in outputs])
    assert_relative(targets, data["out/x0_target"], TOLERANCE, "x0_target")
    assert_relative(over_axes([output.loss for output in outputs]), data["out/loss_sds"], TOLERANCE, "loss")
    assert_relative(over_axes([output.grad_norm for output in outputs]), data["out/grad_norm"], TOLERANCE, "grad_norm")
    gradients = over_axes([gradient for _, gradient, _ in results])
    assert_relative(gradients, data["out/grad_latents"], TOLERANCE_GRADIENT, "gradient")
