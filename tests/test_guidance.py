"""Score distillation: what the prior is asked, and what the latents are pulled to."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from corrdream.diffusion import add_noise, alphas_cumprod
from corrdream.guidance import score_distillation
from corrdream.structures import GuidanceOutput, NoisePrediction

NUM_VIEWS, BATCH, CHANNELS, SIDE = 2, 4, 3, 4


class KnowingPrior:
    """A prior that knows the clean latents: it predicts the noise that would turn them into what it is given."""

    num_views, latent_channels, latent_size, image_size = NUM_VIEWS, CHANNELS, SIDE, 8 * SIDE
    fingerprint, device = "knowing", torch.device("cpu")

    def __init__(self, text: Tensor, unconditional: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod()
        self.clean = torch.cat([text, unconditional])
        self.asked: dict[str, Tensor] = {}

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def encode_images(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def decode_latents(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def predict_noise(
        self, latents: Tensor, timesteps: Tensor, *, text: Tensor, c2w: Tensor, feature_blocks: Sequence[int] = ()
    ) -> NoisePrediction:
        self.asked = {"latents": latents, "timesteps": timesteps, "text": text, "c2w": c2w}
        alpha = self.alphas_cumprod[timesteps].to(latents).reshape(-1, 1, 1, 1)
        noise = (latents - alpha.sqrt() * self.clean.to(latents)) / (1 - alpha).sqrt()
        return NoisePrediction(noise=noise, features=())

    def features(
        self, latents: Tensor, timesteps: Tensor, *, text: Tensor, c2w: Tensor, blocks: Sequence[int]
    ) -> tuple[Tensor, ...]:
        raise NotImplementedError


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LATENTS, NOISE, CLEAN, EMPTY = (randn(BATCH, CHANNELS, SIDE, SIDE, seed=seed) for seed in range(4))
TEXT, C2W = randn(2, 5, 6, seed=4), randn(BATCH, 4, 4, seed=5)


def distill(
    latents: Tensor = LATENTS,
    *,
    prior: KnowingPrior | None = None,
    timestep: int = 400,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    text: Tensor = TEXT,
) -> GuidanceOutput:
    return score_distillation(
        latents,
        noise=NOISE,
        timestep=torch.tensor(timestep),
        prior=prior or KnowingPrior(CLEAN, EMPTY),
        text=text,
        c2w=C2W,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
    )


def test_latents_that_the_prior_believes_in_have_no_loss() -> None:
    output = distill(CLEAN)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-20)
    assert output.grad_norm.item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_target_is_what_the_prior_knows_at_every_timestep(timestep: int) -> None:
    torch.testing.assert_close(distill(timestep=timestep).x0_target, CLEAN)


def test_guidance_moves_the_target_away_from_the_unconditional_one() -> None:
    torch.testing.assert_close(distill(guidance_scale=7.5).x0_target, EMPTY + 7.5 * (CLEAN - EMPTY))


def test_full_rescale_gives_each_group_the_spread_of_the_texts_x0() -> None:
    output = distill(guidance_scale=50.0, guidance_rescale=1.0)
    for group in (slice(0, 2), slice(2, 4)):
        torch.testing.assert_close(output.x0_target[group].std(), CLEAN[group].std())
    assert output.std_ratio.shape == (BATCH // NUM_VIEWS,)
    assert (output.std_ratio < 0.1).all()


def test_prior_is_asked_once_with_the_text_half_first() -> None:
    prior = KnowingPrior(CLEAN, EMPTY)
    distill(prior=prior, timestep=123)
    noisy = add_noise(LATENTS, NOISE, prior.alphas_cumprod[123].double())
    torch.testing.assert_close(prior.asked["latents"], torch.cat([noisy, noisy]))
    assert torch.equal(prior.asked["timesteps"], torch.full((2 * BATCH,), 123))
    assert torch.equal(prior.asked["text"], TEXT[[0] * BATCH + [1] * BATCH])
    assert torch.equal(prior.asked["c2w"], torch.cat([C2W, C2W]))


def test_text_may_differ_from_view_to_view() -> None:
    prior, text = KnowingPrior(CLEAN, EMPTY), randn(2 * BATCH, 5, 6, seed=6)
    distill(prior=prior, text=text)
    assert torch.equal(prior.asked["text"], text)


def test_loss_is_half_the_squared_distance_over_the_batch() -> None:
    output = distill(guidance_scale=3.0, guidance_rescale=0.5)
    distance = sum((z - x0).square().sum().item() for z, x0 in zip(LATENTS, output.x0_target, strict=True))
    assert output.loss.item() == pytest.approx(0.5 * distance / BATCH)


def test_gradient_is_the_residual_over_the_batch_and_its_norm_is_reported() -> None:
    latents = LATENTS.clone().requires_grad_()
    output = distill(latents, guidance_scale=7.5, guidance_rescale=0.5)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    torch.testing.assert_close(gradient, (LATENTS - output.x0_target) / BATCH)
    torch.testing.assert_close(output.grad_norm, gradient.norm())
    assert not output.x0_target.requires_grad
    assert not output.grad_norm.requires_grad


def test_gradient_equals_the_weighted_noise_residual() -> None:
    """SDS: without rescale, (z - x0) = sqrt(1 - a) / sqrt(a) (guided noise - noise)."""
    prior, scale = KnowingPrior(CLEAN, EMPTY), 5.0
    latents = LATENTS.clone().requires_grad_()
    output = distill(latents, prior=prior, guidance_scale=scale)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    asked = prior.asked
    text, unconditional = prior.predict_noise(**asked).noise.chunk(2)
    alpha = prior.alphas_cumprod[400].double()
    residual = unconditional + scale * (text - unconditional) - NOISE
    torch.testing.assert_close(gradient, ((1 - alpha) / alpha).sqrt() * residual / BATCH)


def test_gradient_agrees_with_finite_differences_where_the_target_is_constant() -> None:
    def loss(latents: Tensor) -> Tensor:
        return distill(latents, guidance_scale=7.5, guidance_rescale=0.5).loss

    assert torch.autograd.gradcheck(loss, (LATENTS.clone().requires_grad_(),))


def test_sixteen_bit_latents_are_distilled_in_float32_and_autocast_changes_nothing() -> None:
    halves = LATENTS.bfloat16()
    expected = distill(halves, guidance_scale=50.0, guidance_rescale=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = distill(halves, guidance_scale=50.0, guidance_rescale=0.5)
    assert actual.loss.dtype == actual.x0_target.dtype == torch.float32
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.x0_target, expected.x0_target)


def test_text_that_fits_neither_the_halves_nor_the_views_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="text must have 2 or 8 rows, got 4"):
        distill(text=randn(4, 5, 6, seed=7))
