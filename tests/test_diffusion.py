"""The diffusion process: inverses, limits, and the published formulas written out."""

import math

import pytest
import torch
from torch import Tensor

from corrdream.diffusion import (
    add_noise,
    alphas_cumprod,
    betas,
    classifier_free_guidance,
    noise_from_velocity,
    rescale_std,
    x0_from_noise,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_schedule_starts_nearly_clean_and_ends_nearly_pure_noise() -> None:
    alpha = alphas_cumprod()
    assert alpha.dtype == torch.float64
    assert alpha.shape == (1000,)
    assert math.sqrt(1 - alpha[0].item()) == pytest.approx(0.0292, abs=5e-5)
    assert alpha[-1].item() == pytest.approx(0.0047, abs=5e-5)


def test_noise_schedule_decreases() -> None:
    assert (alphas_cumprod().diff() < 0).all()
    assert (betas().diff() > 0).all()


def test_noise_schedule_is_the_product_of_what_each_timestep_leaves() -> None:
    """Written as a loop over beta_k = (sqrt(b0) + k / 999 (sqrt(b1) - sqrt(b0)))^2."""
    start, end, product, expected = math.sqrt(0.00085), math.sqrt(0.012), 1.0, []
    for k in range(1000):
        product *= 1 - (start + k / 999 * (end - start)) ** 2
        expected.append(product)
    torch.testing.assert_close(alphas_cumprod(), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-12)


@pytest.mark.parametrize("alpha", [torch.tensor(0.3), torch.tensor([0.9, 0.5, 0.01])])
def test_x0_inverts_adding_noise_with_one_timestep_or_one_an_image(alpha: Tensor) -> None:
    latents, noise = randn(3, 4, 5, 5), randn(3, 4, 5, 5, seed=1)
    noisy = add_noise(latents, noise, alpha.double())
    torch.testing.assert_close(x0_from_noise(noisy, noise, alpha.double()), latents)


def test_noise_keeps_unit_variance() -> None:
    latents, noise = randn(2, 4, 128, 128), randn(2, 4, 128, 128, seed=1)
    std = add_noise(latents, noise, torch.tensor(0.4, dtype=torch.float64)).std().item()
    assert std == pytest.approx(1.0, abs=0.01)  # standard error 0.002


def test_velocity_and_noise_say_the_same() -> None:
    """v = sqrt(a) noise - sqrt(1 - a) z0."""
    alpha, latents, noise = torch.tensor([0.2, 0.7], dtype=torch.float64), randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    velocity = torch.stack([a.sqrt() * e - (1 - a).sqrt() * z for a, e, z in zip(alpha, noise, latents, strict=True)])
    torch.testing.assert_close(noise_from_velocity(add_noise(latents, noise, alpha), velocity, alpha), noise)


def test_guidance_of_one_is_the_texts_and_of_zero_the_unconditional() -> None:
    text, unconditional = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(classifier_free_guidance(text, unconditional, 1.0), text)
    assert torch.equal(classifier_free_guidance(text, unconditional, 0.0), unconditional)
    torch.testing.assert_close(classifier_free_guidance(text, unconditional, 3.0), 3 * text - 2 * unconditional)


def test_full_rescale_gives_each_group_the_spread_of_its_text() -> None:
    x0, x0_text = 7 * randn(8, 4, 3, 3), randn(8, 4, 3, 3, seed=1)
    x0[4:] *= 3
    rescaled, ratio = rescale_std(x0, x0_text, num_views=4, guidance_rescale=1.0)
    for group in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(rescaled[group].std(), x0_text[group].std())
    assert ratio[0] > 2 * ratio[1]


def test_rescale_equals_the_formula_group_by_group() -> None:
    x0, x0_text, r = 5 * randn(6, 2, 3, 3), randn(6, 2, 3, 3, seed=1), 0.3
    rescaled, ratio = rescale_std(x0, x0_text, num_views=2, guidance_rescale=r)
    for index in range(3):
        views = slice(2 * index, 2 * index + 2)

        def std(values: Tensor) -> Tensor:
            return ((values - values.mean()).square().sum() / (values.numel() - 1)).sqrt()

        expected = (std(x0_text[views]) + 1e-8) / (std(x0[views]) + 1e-8)
        torch.testing.assert_close(ratio[index], expected)
        torch.testing.assert_close(rescaled[views], r * expected * x0[views] + (1 - r) * x0[views])


def test_no_rescale_returns_x0_itself_and_still_says_the_ratio() -> None:
    x0, x0_text = randn(4, 2, 3, 3), 2 * randn(4, 2, 3, 3)
    same, ratio = rescale_std(x0, x0_text, num_views=4, guidance_rescale=0.0)
    assert same is x0
    torch.testing.assert_close(ratio, torch.full((1,), 2.0, dtype=torch.float64))


def test_rescale_of_constant_images_is_finite() -> None:
    flat = torch.ones(4, 2, 3, 3)
    rescaled, ratio = rescale_std(flat, flat, num_views=4, guidance_rescale=0.5)
    torch.testing.assert_close(rescaled, flat)
    torch.testing.assert_close(ratio, torch.ones(1))


def test_gradients_of_the_process_are_right() -> None:
    first, second = randn(2, 2, 2, 2).requires_grad_(), randn(2, 2, 2, 2, seed=1).requires_grad_()
    alpha = torch.tensor([0.3, 0.8], dtype=torch.float64)
    for function in (add_noise, x0_from_noise, noise_from_velocity):
        assert torch.autograd.gradcheck(lambda a, b, f=function: f(a, b, alpha), (first, second))
    assert torch.autograd.gradcheck(lambda a, b: classifier_free_guidance(a, b, 7.5), (first, second))
    assert torch.autograd.gradcheck(lambda a, b: rescale_std(a, b, num_views=2, guidance_rescale=0.5), (first, second))


def test_images_that_form_no_groups_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="6 images are no groups of 4 views"):
        rescale_std(randn(6, 1, 2, 2), randn(6, 1, 2, 2), num_views=4, guidance_rescale=0.5)
